"""The step at which a loss was not finite: saved with its batch, weights and seeds, and run again.

The loop looks at losses only when it logs, so as not to wait for the device at every step. Yet the
weights of the bad step must not be gone by then. Our choice: from the first loss or gradient that
is not finite the device itself skips every optimiser step (loop.py says how), which costs nothing,
and the weights found at the next logged line are those that the bad step began with. The batch is
made anew from the picks, as it was: it depends on (seed, epoch, sample_id) alone.

Running statistics of batch norms go on until that line; in training no number depends on them.

The replay runs the step as it was trained (its precision) and in fp32, on one device, and tells
where the first number that is not finite arises: in the weights, the batch, a module's output, the
loss, or on the way back.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datasets_build.manifest import fingerprint, read_json, replaced_file, write_json
from training.build import RunRecord, build_method, pick_device, read_run
from training.checkpoint import MADE_BY
from training.methods.method import Method, StepOutput, copy_state
from training.seeding import cpu_threads, seed_step, seeded
from training.skeleton_data import SkeletonBatch

NONFINITE_FILE = "nonfinite.json"
NONFINITE_TENSORS = "nonfinite.safetensors"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Finding:
    """One place with numbers that are not finite.

    Attributes:
        precision: "fp32", "bf16" or "fp16".
        place: "weights", "batch", "forward", "loss" or "backward", in the order of computation.
        name: of the parameter, module or metric.
        detail: how many numbers are not finite, and of what.
    """

    precision: str
    place: str
    name: str
    detail: str


@dataclass(frozen=True)
class Replay:
    """What was found.

    Attributes:
        folder: run folder.
        epoch: 0-based.
        step: 0-based optimiser step.
        sample_ids: of the part of the batch that the findings are from; empty if there are none.
        losses: loss of the parts, by precision.
        findings: in the order in which they arise, as trained first.
    """

    folder: Path
    epoch: int
    step: int
    sample_ids: list[str]
    losses: dict[str, list[float]]
    findings: list[Finding]


@dataclass
class _Watch:
    """Collects the findings of one forward and backward pass."""

    precision: str
    findings: list[Finding] = field(default_factory=list)

    def look(self, place: str, name: str, value: Any, what: str = "") -> None:
        """Note a tensor with numbers that are not finite; anything else is passed over."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return
        bad = ~torch.isfinite(value.detach())
        count = int(bad.sum())
        if count:
            num_nan = int(torch.isnan(value.detach()).sum())
            kinds = f"{num_nan} nan, {count - num_nan} inf"
            detail = f"{what}{count} of {value.numel()} numbers {tuple(value.shape)} ({kinds})"
            self.findings.append(Finding(self.precision, place, name, detail))

    def first(self, place: str) -> list[Finding]:
        """The first finding of a place, if there is one."""
        return [finding for finding in self.findings if finding.place == place][:1]


def save_bad_step(
    folder: Path,
    method: Method,
    batches: Sequence[SkeletonBatch],
    *,
    epoch: int,
    step: int,
    sample_ids: Sequence[Sequence[str]],
    num_processes: int,
) -> Path:
    """Write nonfinite.json and nonfinite.safetensors.

    Args:
        folder: run folder, with its config.json.
        method: with the weights that the step began with.
        batches: the parts of the step: process by process, accumulated parts in order.
        epoch: 0-based.
        step: 0-based.
        sample_ids: of each part.
        num_processes: among which the parts are shared evenly.

    Returns:
        The JSON file, which is written last.
    """
    tensors = {f"weights/{name}": value for name, value in method.saved_state().items()}
    for part, batch in enumerate(batches):
        tensors |= {f"{part}/{name}": v for name, v in vars(batch).items() if v is not None}
    with replaced_file(folder / NONFINITE_TENSORS) as file:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file.name)
    path = folder / NONFINITE_FILE
    record = {
        "request": _asked_fingerprint(read_run(folder)),
        "epoch": epoch,
        "step": step,
        "num_processes": num_processes,
        "sample_ids": [list(ids) for ids in sample_ids],
    }
    write_json(path, record)
    return path


def replay(folder: Path, *, device: str = "auto") -> Replay:
    """Run the saved step again and tell where the first number that is not finite arises.

    Args:
        folder: run folder that a run with a loss that is not finite left.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        FileNotFoundError: it is no run, or no such step was saved.
        ValueError: the files are not those of this run, or its norms were shared by processes.
    """
    run, where = read_run(folder), pick_device(device)
    path = folder / NONFINITE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"nothing to replay: {folder} met no loss that is not finite (there is no {path.name})"
        )
    record = read_json(path, made_by=MADE_BY)
    if record.get("request") != _asked_fingerprint(run):
        raise ValueError(
            f"nothing to replay: {path} was saved by a run with other settings or other data than "
            f"{folder} holds by now; remove it"
        )
    loop = run.config.loop
    if loop.sync_batch_norm and record["num_processes"] > 1:
        raise ValueError(
            f"the step in {path} had batch norms over {record['num_processes']} processes "
            "(loop.sync_batch_norm), which one process cannot make again; train with "
            "loop.sync_batch_norm = false to replay a bad step"
        )
    tensors = {k: v.to(where) for k, v in load_file(folder / NONFINITE_TENSORS).items()}
    with seeded(0, "replaced weights"):
        method = build_method(
            run.config, num_classes=len(run.classes), skeleton=run.skeleton, device=where
        )
    weights = _named(tensors, "weights/")
    copy_state(method.saved_state(), weights, what=f"{folder / NONFINITE_TENSORS}")
    method.train()
    losses: dict[str, list[float]] = {}
    findings: list[Finding] = []
    bad_ids: list[str] = []
    num_parts = len(record["sample_ids"])
    parts_each = num_parts // record["num_processes"]
    generator = torch.Generator(where)
    with cpu_threads(loop.num_threads), seeded(loop.seed, "replay"):
        for precision in dict.fromkeys((loop.mixed_precision.replace("no", "fp32"), "fp32")):
            losses[precision] = []
            for part, ids in enumerate(record["sample_ids"]):
                if part % parts_each == 0:
                    seed_step(generator, loop.seed, step=record["step"], rank=part // parts_each)
                values = _named(tensors, f"{part}/")
                batch = SkeletonBatch(**values)
                loss, found = _run_part(method, batch, generator, precision)
                losses[precision].append(loss)
                if found and not any(f.precision == precision for f in findings):
                    findings += found
                    bad_ids = bad_ids or list(ids)
    return Replay(folder, record["epoch"], record["step"], bad_ids, losses, findings)


def _asked_fingerprint(run: RunRecord) -> str:
    """A hash over what decides a run's numbers."""
    return fingerprint(
        {
            **run.config.request(),
            "dataset_fingerprint": run.dataset_fingerprint,
            "protocol_fingerprint": run.protocol_fingerprint,
        }
    )


def _run_part(
    method: Method, batch: SkeletonBatch, generator: torch.Generator, precision: str
) -> tuple[float, list[Finding]]:
    """Forward and backward of one part: its loss, and what is first not finite of each place.

    The way back is looked at only where the way there is finite: else it tells nothing new.
    """
    watch = _Watch(precision)
    with _same_draws_again(generator) as copy:
        operation = _bad_operation(method, batch, copy, precision)
    for name, parameter in method.named_parameters():
        watch.look("weights", name, parameter)
    watch.look("batch", "x", batch.x)
    method.zero_grad()
    with _watched(method, watch):
        output = _forward(method, batch, generator, precision)
        for name, value in {**output.metrics, "loss": output.loss}.items():
            watch.look("loss", name, value)
        output.loss.backward()
    loss = float(output.loss.detach())
    found = [f for place in ("weights", "batch", "forward", "loss") for f in watch.first(place)]
    if found:
        return loss, found
    found = watch.first("backward")
    if operation is not None:
        found.append(Finding(precision, "backward", *operation))
    for name, parameter in method.named_parameters():
        watch.look("gradient", name, parameter.grad)
    gradients = [finding.name for finding in watch.findings if finding.place == "gradient"]
    if gradients:
        names = ", ".join(gradients[:3]) + (", ..." if len(gradients) > 3 else "")
        what = f"gradients of {len(gradients)} parameters"
        found.append(Finding(precision, "backward", what, names))
    return loss, found


@contextmanager
def _same_draws_again(generator: torch.Generator) -> Iterator[torch.Generator]:
    """Within it a pass draws what the next one after it will draw; gives it its generator."""
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield copy


def _forward(
    method: Method, batch: SkeletonBatch, generator: torch.Generator, precision: str
) -> StepOutput:
    dtype = _DTYPES.get(precision)
    autocast = nullcontext() if dtype is None else torch.autocast(batch.x.device.type, dtype)
    with autocast:
        return method.training_step(batch, generator)


def _bad_operation(
    method: Method, batch: SkeletonBatch, generator: torch.Generator, precision: str
) -> tuple[str, str] | None:
    """The operation whose gradient is the first nan, and the line that it was called from."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.autograd.detect_anomaly(check_nan=True):
            output = _forward(method, batch, generator, precision)
            try:
                output.loss.backward()
            except RuntimeError as error:
                said = str(error)
            else:
                return None  # infinite, but no nan
    texts = "".join(str(warning.message) for warning in caught)
    own = str(Path(__file__).parent)
    lines = [line.strip() for line in texts.splitlines() if line.lstrip().startswith("File ")]
    ours = [line for line in lines if own in line] or lines or ["an unknown line"]
    return said.split("'")[1] if "'" in said else said, f"called from {ours[-1]}"


@contextmanager
def _watched(method: Method, watch: _Watch) -> Iterator[None]:
    """Within it every module's output, and the gradient that comes back to it, are looked at.

    A module is done before what contains it, so the first finding is the innermost place.
    """

    def watch_module(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        what = f"{name} ({type(module).__name__})"

        def after(_: nn.Module, __: Any, output: Any) -> None:
            watch.look("forward", what, output, "output: ")
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(
                    lambda gradient: watch.look("backward", what, gradient, "gradient of output: ")
                )

        return module.register_forward_hook(after)

    handles = [watch_module(name, module) for name, module in method.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
