"""A run folder while a process trains in it: one process at a time, and a note of every start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from datasets_build.locks import BusyError, locked
from datasets_build.manifest import read_json, write_json
from training.checkpoint import ENVIRONMENT_FILE, MADE_BY

LOCK_FILE = "lock"


@contextmanager
def sole_trainer(folder: Path) -> Iterator[None]:
    """Make a run folder and let no other process train in it meanwhile.

    Raises:
        ValueError: another process does already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / LOCK_FILE, wait=False))
        except BusyError:
            raise ValueError(
                f"another process is training in {folder}; wait for it, or choose another --out"
            ) from None
        yield


def note_start(folder: Path, environment: Mapping[str, Any], *, from_step: int) -> None:
    """Write environment.json: that of the first start, and under "starts" that of each.

    Args:
        folder: run folder.
        environment: versions, commit and device of this start.
        from_step: optimiser steps that were done before; 0 begins a new file. In entries of
            starts that an earlier version noted it is None.
    """
    path = folder / ENVIRONMENT_FILE
    start = {**environment, "from_step": from_step}
    first: dict[str, Any] = dict(environment)
    starts: list[dict[str, Any]] = []
    if from_step and path.is_file():
        first = read_json(path, made_by=MADE_BY)
        starts = first.pop("starts", None) or [{**first, "from_step": None}]
    write_json(path, {**first, "starts": [*starts, start]})
