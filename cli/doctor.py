"""`hoc doctor`: what this machine can do, what is missing, and the command that cures it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import typer

from cli import console
from cli.options import JsonOption
from datasets_build.child_processes import available_cores

State = Literal["ok", "optional", "missing"]

_MARKS = {"ok": "[green]ok[/]", "optional": "[yellow]optional[/]", "missing": "[red]missing[/]"}
_GIB = 2**30
# Weights in bf16 plus room for a batch of 16-frame clips: our choice, checked before a run by
# `hoc caption`, which reports what a batch really takes.
_MODELS_GIB = {"Qwen/Qwen3-VL-2B-Instruct": 8, "Qwen/Qwen3-VL-4B-Instruct": 14,
               "Qwen/Qwen3-VL-8B-Instruct": 24}  # fmt: skip
_EXTRAS = {
    "gguf": ("gguf", "hoc fetch smollm2"),
    "text": ("sacrebleu", "BLEU and chrF of hoc describe --all"),
    "onnx": ("onnxruntime", "hoc export --onnx"),
    "quantised": ("bitsandbytes", "language models in 8 or 4 bit"),
    "ray": ("ray", "hoc caption --cluster ray"),
    "tensorboard": ("tensorboard", "loop.tensorboard = true"),
    "trackio": ("trackio", "hoc train --tracker trackio"),
    "wandb": ("wandb", "hoc train --tracker wandb"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    state: State
    found: str
    cure: str = ""


def doctor(json_output: JsonOption = False) -> None:
    """Tell what this machine can do: GPU, memory, video readers, versions, model cache.

    What is missing is listed with the command that cures it. Exit code 1 when something that
    every run needs is missing.
    """
    findings = [finding for check in CHECKS for finding in check()]
    if json_output:
        console.print_json([asdict(finding) for finding in findings])
    else:
        from rich.text import Text

        rows = [(f.subject, Text.from_markup(_MARKS[f.state]), f.found, f.cure) for f in findings]
        console.print_table("This machine", ["what", "state", "found", "what to do"], rows)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_machine() -> list[Finding]:
    """Python, processor cores, memory and free disk of the current folder."""
    findings = [Finding("Python", "ok", f"{sys.version.split()[0]} at {sys.executable}")]
    cores = available_cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    findings.append(Finding("processor", "ok", f"{cores} cores, {memory:.0f} GiB memory"))
    findings.append(
        Finding("disk here", "ok", f"{free:.0f} GiB free")
        if free >= 2
        else Finding("disk here", "missing", f"{free:.1f} GiB free", "make room: 2 GiB or more")
    )
    return findings


def check_packages() -> list[Finding]:
    """The packages that every run needs."""
    findings = []
    for package in ("torch", "torchvision", "transformers", "accelerate", "qwen-vl-utils",
                    "pyarrow", "datasets"):  # fmt: skip
        version = _version(package)
        findings.append(
            Finding(package, "ok", version)
            if version
            else Finding(package, "missing", "not installed", "make install")
        )
    try:
        import torchvision  # noqa: F401  (a torchvision of another torch build fails here)
    except (ImportError, RuntimeError) as error:
        cure = "install torch and torchvision from one index, of matching versions"
        findings.append(Finding("torchvision loads", "missing", str(error)[:120], cure))
    return findings


def check_gpus() -> list[Finding]:
    """CUDA and Apple devices, and which Qwen3-VL they can hold."""
    try:
        import torch
    except ImportError:
        return []
    if torch.cuda.is_available():
        findings = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            total = properties.total_memory / _GIB
            holds = [name for name, need in _MODELS_GIB.items() if need <= total]
            found = (
                f"{properties.name}, {total:.0f} GiB, "
                f"bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}; "
                f"captions with {holds[-1] if holds else 'tiny only'}"
            )
            findings.append(Finding(f"GPU {index}", "ok", found))
        return findings
    if torch.backends.mps.is_available():
        return [Finding("GPU", "ok", "Apple MPS: training yes, captioning not tried")]
    cure = "none needed for `hoc demo`; to caption with a real Qwen3-VL use a machine with a GPU"
    built = "with" if torch.version.cuda else "without"
    return [Finding("GPU", "optional", f"none seen (torch built {built} CUDA)", cure)]


def check_readers() -> list[Finding]:
    """The video readers."""
    findings = []
    try:
        import av

        ffmpeg = ".".join(map(str, av.library_versions.get("libavcodec", ())))
        findings.append(Finding("PyAV", "ok", f"{av.__version__}, libavcodec {ffmpeg}"))
    except ImportError as error:
        findings.append(Finding("PyAV", "missing", str(error), "make install"))
    version = _version("decord")
    found, cure = "no wheel for this platform", "none needed: PyAV reads the same frames"
    findings.append(
        Finding("decord", "ok", f"{version} (reads in order; its seeking is not used)")
        if version
        else Finding("decord", "optional", found, cure)
    )
    return findings


def check_models() -> list[Finding]:
    """The bundled model, and the real ones in the Hugging Face cache."""
    bundled = Path(__file__).resolve().parent.parent / "captioning" / "tiny" / "model"
    weights = bundled / "model.safetensors"
    findings = [
        Finding("model tiny", "ok", f"bundled, {weights.stat().st_size / 2**20:.1f} MiB")
        if weights.is_file()
        else Finding("model tiny", "missing", f"{weights} is not there", "git checkout captioning")
    ]
    try:
        from huggingface_hub import constants, try_to_load_from_cache

        from training.fetch_model import MODELS, models_folder
    except ImportError:
        return findings
    for name in MODELS:
        folder = models_folder() / name
        findings.append(
            Finding(name, "ok", str(folder))
            if (folder / "config.json").is_file()
            else Finding(name, "optional", "not fetched", f"hoc fetch {name}")
        )
    findings.append(Finding("model cache", "ok", str(constants.HF_HUB_CACHE)))
    for name in [*_MODELS_GIB, "Qwen/Qwen3-4B"]:
        is_cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
        cure = f"hf download {name}"
        findings.append(
            Finding(name, "ok", "in the model cache")
            if is_cached
            else Finding(name, "optional", "not in the model cache", cure)
        )
    return findings


def check_extras() -> list[Finding]:
    """Optional packages, one of each extra."""
    findings = []
    for extra, (package, purpose) in _EXTRAS.items():
        version = _version(package)
        cure = f"pip install 'hocslm[{extra}]'"
        findings.append(
            Finding(package, "ok", version)
            if version
            else Finding(package, "optional", f"not installed ({purpose})", cure)
        )
    return findings


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_machine,
    check_packages,
    check_gpus,
    check_readers,
    check_models,
    check_extras,
)
