"""Checkpoints that are whole or absent: safetensors and JSON, no pickle.

`last/` holds
- model.safetensors   the trained weights that evaluation uses (the average where EMA is on);
- state.safetensors   optimiser tensors ("optimizer/<group index>/<name>") and, with EMA, the raw
                      weights ("weights/<name>");
- checkpoint.json     epoch, step, optimiser numbers, what the run was asked to do, and the hashes
    of the two files.
A new one is written beside it as `last.tmp`, then the two change places; a kill at any moment
leaves either the old or the new one whole, under `last` or (between two renames) `last.old`. Only
the training run renames or removes anything: whoever reads takes the folder that is there.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from datasets_build.manifest import differing_parts, read_json, sha256_file, write_json

LAST = "last"
MODEL_FILE = "model.safetensors"
STATE_FILE = "state.safetensors"
CHECKPOINT_FILE = "checkpoint.json"
LANGUAGE_MODEL_KEY = "language_model_weights"  # of the request: what the frozen model's are
STAGE_KEY = "stage"  # of the request: runs that this one starts from, one after the other
ENVIRONMENT_FILE = "environment.json"  # beside last/: versions, device and commit
MADE_BY = "hoc train"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on as if it had not stopped.

    Attributes:
        epoch: finished epochs.
        step: finished optimiser steps; the place within an epoch follows from it.
        request: what decides the weights; a resume must have the same.
        weights: what evaluation uses.
        state: optimiser tensors, and the raw weights with EMA.
        numbers: JSON values of the optimiser, the gradient scaler and the like.
    """

    epoch: int
    step: int
    request: Mapping[str, Any]
    weights: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedWeights:
    """Weights with what vouches for them, all of one checkpoint, also while a run replaces it.

    Attributes:
        tensors: on the CPU.
        sha256: of the file that they are from.
        epoch: finished epochs.
    """

    tensors: dict[str, torch.Tensor]
    sha256: str
    epoch: int


def save_checkpoint(run_folder: Path, checkpoint: Checkpoint) -> Path:
    """Replace `last/` by this checkpoint.

    Raises:
        OSError: it could not be written; the message says so, and the last good one stays whole.
    """
    last, temporary, old = (run_folder / f"{LAST}{end}" for end in ("", ".tmp", ".old"))
    try:
        settle(run_folder)
        temporary.mkdir(parents=True)
        files = {}
        for name, tensors in ((MODEL_FILE, checkpoint.weights), (STATE_FILE, checkpoint.state)):
            path = temporary / name
            contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            path.touch()
            mode = path.stat().st_mode  # the user's; save_file makes files for the owner alone
            save_file(contiguous, path, metadata={"format": "pt"})
            path.chmod(mode)
            _flush(path)
            files[name] = {"sha256": sha256_file(path), "num_bytes": path.stat().st_size}
        write_json(
            temporary / CHECKPOINT_FILE,
            {
                "epoch": checkpoint.epoch,
                "step": checkpoint.step,
                "request": dict(checkpoint.request),
                "numbers": checkpoint.numbers,
                "files": files,
            },
        )
        _flush(temporary)
        if last.exists():
            last.replace(old)
        temporary.replace(last)
        _flush(run_folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # safetensors raises an error of its own, which has the system's words but not its number.
        full = any(os.strerror(n) in str(error) for n in (errno.ENOSPC, errno.EDQUOT))
        todo = "free some space" if full else "remove the cause"
        raise OSError(
            f"the checkpoint of step {checkpoint.step} could not be written to {last} ({error}); "
            f"the last good one is whole: {todo} and run the same command again"
        ) from error
    return last


def settle(run_folder: Path) -> None:
    """Finish or undo a change of places that was cut short; for the process that writes only."""
    last, temporary, old = (run_folder / f"{LAST}{end}" for end in ("", ".tmp", ".old"))
    if old.exists() and not last.exists():
        old.replace(last)
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)


def has_checkpoint(run_folder: Path) -> bool:
    """Whether the run has a whole checkpoint."""
    return (_whole(run_folder) / CHECKPOINT_FILE).is_file()


def model_path(run_folder: Path) -> Path:
    """The file with the weights that evaluation uses.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    _read_index(run_folder)
    return _whole(run_folder) / MODEL_FILE


def read_request(run_folder: Path) -> tuple[int, dict[str, Any]]:
    """Finished epochs and what the run was asked to do, without loading a tensor."""
    value = _read_index(run_folder)
    return value["epoch"], value["request"]


def read_progress(run_folder: Path) -> tuple[int, int]:
    """Finished epochs and optimiser steps of the checkpoint; 0 and 0 without one."""
    if not has_checkpoint(run_folder):
        return 0, 0
    value = _read_index(run_folder)
    return value["epoch"], value["step"]


def load_saved_weights(run_folder: Path) -> SavedWeights:
    """The weights that evaluation uses.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: a file is damaged.
    """
    index, (tensors,) = _load(run_folder, [MODEL_FILE])
    return SavedWeights(tensors, index["files"][MODEL_FILE]["sha256"], index["epoch"])


def load_weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of `load_saved_weights` alone."""
    return load_saved_weights(run_folder).tensors


def load_checkpoint(run_folder: Path) -> Checkpoint:
    """The whole of `last/`, on the CPU.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: a file is damaged.
    """
    index, (weights, state) = _load(run_folder, [MODEL_FILE, STATE_FILE])
    return Checkpoint(
        epoch=index["epoch"],
        step=index["step"],
        request=index["request"],
        weights=weights,
        state=state,
        numbers=index["numbers"],
    )


def refuse_other_request(
    run_folder: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]
) -> None:
    """Stop where a run folder was begun with other settings or other data.

    Raises:
        ValueError: names every key that differs, with both values.
    """
    names = differing_parts(asked, saved)
    if names:
        lines = [f"{name}: {_part(saved, name)} there, {_part(asked, name)} now" for name in names]
        raise ValueError(
            f"{run_folder} holds a run with other settings; resume it with the same ones or give "
            "another --out folder:\n  " + "\n  ".join(lines)
        )


def pack_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """An optimiser's state as named tensors and the JSON numbers of its parameters."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: list[dict[str, Any]] = []
    state = optimizer.state_dict()["state"]
    for index in sorted(state):
        plain: dict[str, Any] = {}
        for name, value in state[index].items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                plain[name] = value
        numbers.append({"index": index, "values": plain})
    return tensors, numbers


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    numbers: list[dict[str, Any]],
) -> None:
    """Give an optimiser the state that pack_optimizer took; its groups keep their settings."""
    state: dict[int, dict[str, Any]] = {entry["index"]: dict(entry["values"]) for entry in numbers}
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            index, _, name = rest.partition("/")
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _whole(run_folder: Path) -> Path:
    """The folder of the whole checkpoint: `last`, or `last.old` between two renames."""
    last, old = run_folder / LAST, run_folder / f"{LAST}.old"
    return old if old.exists() and not last.exists() else last


def _read_index(run_folder: Path) -> dict[str, Any]:
    for _ in range(3):  # a run that saves just now may rename the folder under our eyes
        try:
            index: dict[str, Any] = read_json(_whole(run_folder) / CHECKPOINT_FILE, made_by=MADE_BY)
        except FileNotFoundError:
            continue
        return index
    raise FileNotFoundError(
        f"{run_folder} holds no checkpoint ({LAST}/{CHECKPOINT_FILE}); give the --out folder "
        f"of a `{MADE_BY}` run that has saved one"
    )


def _load(
    run_folder: Path, names: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """The index and tensors of one checkpoint, also while a run replaces it by another."""
    index = _read_index(run_folder)
    while True:
        try:
            tensors = [_load_tensors(run_folder, index, name) for name in names]
            problem: Exception | None = None
        except (OSError, ValueError, SafetensorError) as error:
            problem = error
        now = _read_index(run_folder)
        if now != index:
            index = now
        elif problem is not None:
            raise problem
        else:
            return index, tensors


def _load_tensors(run_folder: Path, index: Mapping[str, Any], name: str) -> dict[str, torch.Tensor]:
    path = _whole(run_folder) / name
    if not path.is_file() or sha256_file(path) != index["files"][name]["sha256"]:
        raise ValueError(
            f"{path} is missing or not the file that was saved (its sha256 differs); restore it "
            "from a copy or train again"
        )
    return load_file(path)


def _part(parts: Mapping[str, Any], name: str) -> Any:
    value: Any = parts
    for key in name.split("."):
        value = value.get(key, "nothing") if isinstance(value, Mapping) else "nothing"
    return value


def _flush(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
