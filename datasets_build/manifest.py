"""Provenance: hashes, fingerprints, the environment of a run, and JSON that is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

_RECORDED_PACKAGES = (
    "hocslm", "torch", "torchvision", "transformers", "accelerate", "tokenizers", "safetensors",
    "qwen-vl-utils", "av", "decord", "datasets", "pyarrow", "numpy", "pillow",
)  # fmt: skip


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Hex SHA-256 over the canonical JSON of named parts."""
    return sha256_bytes(canonical_json(parts).encode())


def differing_parts(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of the fingerprint parts that are not equal, nested names joined by dots, sorted."""
    names = []
    for key in sorted(ours.keys() | theirs.keys()):
        left, right = ours.get(key), theirs.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            names += [f"{key}.{name}" for name in differing_parts(left, right)]
        elif left != right:
            names.append(key)
    return names


@contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file that stands under its name when the block ends without an error, and not before.

    Until then it is `path` + ".tmp", open for writing and reading; it is flushed to the disk before
    it is renamed, and an error removes it.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # nothing is there after a rename


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file that is whole or absent."""
    with replaced_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented, key-sorted JSON atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomic(path, text.encode())


def read_json(path: Path, *, made_by: str) -> Any:
    """Read a JSON file that one of our commands wrote.

    Args:
        path: the file.
        made_by: the command that writes it, named in the error message.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; it is written by `{made_by}`, run that first"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); write it anew with `{made_by}`"
        ) from error


def environment() -> dict[str, Any]:
    """Versions, platform and git commit of this run; imports no heavy package."""
    packages = {}
    for name in _RECORDED_PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "num_cpus": os.cpu_count(),
        "packages": packages,
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The source tree's commit, "+changes" when it is not clean; None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=10
    )
    return done.stdout.strip()
