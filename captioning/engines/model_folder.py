"""Where a model's files lie, and the hashes that prove which files they were."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets_build.manifest import canonical_json, sha256_bytes, sha256_file, write_json

# Names that stand for model folders inside this package.
BUNDLED_MODELS = {"tiny": Path(__file__).resolve().parent.parent / "tiny" / "model"}

_WANTED = ("*.json", "*.jinja", "*.safetensors", "*.txt")


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine.

    Attributes:
        model_id: the bundled name, the hub id, or the name of the local folder.
        folder: where its files lie.
        commit: the hub's commit; None for a folder that is not from a hub.
    """

    model_id: str
    folder: Path
    commit: str | None


def find_model(model: str, *, revision: str | None = None) -> ModelFolder:
    """Find a bundled model, a local folder, or a hub model (downloaded where it is not cached).

    Raises:
        FileNotFoundError: none of the three.
        ValueError: the folder is no model folder, or a revision is given for one.
    """
    local = BUNDLED_MODELS.get(model, Path(model).expanduser())
    if local.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision {revision!r} is given, but {model} is a folder; only hub models have one"
            )
        if not (local / "config.json").is_file():
            raise ValueError(
                f"{local} holds no config.json; give a folder as `save_pretrained` writes it"
            )
        name = model if model in BUNDLED_MODELS else local.resolve().name
        return ModelFolder(name, local, commit=None)
    if model in BUNDLED_MODELS:
        raise FileNotFoundError(f"{local}, the bundled model {model!r}, is missing; install again")
    return _download(model, revision)


def _download(model: str, revision: str | None) -> ModelFolder:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(_WANTED)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # the disk, not the hub
        names = ", ".join(repr(name) for name in BUNDLED_MODELS)
        raise FileNotFoundError(
            f"model {model!r} is neither {names}, nor a folder, nor could it be had from the hub "
            f"({str(error).strip().splitlines()[0]}); give a hub id such as "
            "Qwen/Qwen3-VL-2B-Instruct, or the path of a downloaded model folder"
        ) from error
    # The cache keeps a snapshot in a folder named after its commit.
    return ModelFolder(model, folder, commit=folder.name)


def hash_model_files(folder: Path, *, cache: Path) -> dict[str, str]:
    """SHA-256 of what a model folder says and weighs.

    Args:
        folder: the model folder.
        cache: a JSON file that remembers the hashes of files by path, size and time, because
            weights may be tens of GB; its folder need not exist yet.

    Returns:
        "weights" over all safetensors files, and "config" over config.json.

    Raises:
        ValueError: there are no safetensors files.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{folder} holds no *.safetensors file; the weights must be in that form")
    known: dict[str, str] = {}
    if cache.is_file():
        known = json.loads(cache.read_text(encoding="utf-8"))
    files = [*weights, folder / "config.json"]
    current = {_key(path): path for path in files}
    hashes = {key: known.get(key) or sha256_file(path) for key, path in current.items()}
    if not hashes.items() <= known.items():
        cache.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may begin at once, before any of them holds a lock.
        own = cache.with_name(f"{cache.name}.{socket.gethostname()}.{os.getpid()}")
        write_json(own, known | hashes)
        own.replace(cache)
    return {
        "weights": _joint_hash((path, hashes[_key(path)]) for path in weights),
        "config": hashes[_key(folder / "config.json")],
    }


def _key(path: Path) -> str:
    info = path.stat()
    return f"{path.resolve()}|{info.st_size}|{info.st_mtime_ns}"


def _joint_hash(files: Iterable[tuple[Path, str]]) -> str:
    return sha256_bytes(canonical_json([[path.name, sha256] for path, sha256 in files]).encode())
