"""`hoc captions merge`: shards that several jobs made become one run, or a list of gaps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from captioning.journal import Journal
from captioning.plan import Plan, load_plan
from captioning.results import (
    INDEX_FILE,
    journal_path,
    read_result,
    shard_path,
    unfinished_shards,
    write_index,
)
from datasets_build.locks import BusyError


@dataclass(frozen=True)
class MissingShard:
    """A shard that is not finished.

    Attributes:
        num_done: clips that its journal holds.
    """

    shard: int
    num_clips: int
    num_done: int


@dataclass(frozen=True)
class MergeSummary:
    """How a merge ended.

    Attributes:
        num_shards: of the plan.
        num_copied: shards taken from other folders.
        missing: shards that nobody has finished; the index is written only when there are none.
        index: the index.json.
    """

    folder: Path
    num_shards: int
    num_copied: int
    missing: list[MissingShard]
    index: Path


def merge(folder: Path, others: Sequence[Path] = ()) -> MergeSummary:
    """Write the index over the shards of a run, taking from other folders what is missing.

    Args:
        folder: of a planned run.
        others: folders of the same run, by fingerprint, from machines that do not share a disk.

    Raises:
        FileNotFoundError: a folder holds no plan.
        ValueError: another folder holds another run, or a shard is damaged.
    """
    plan = load_plan(folder)
    num_copied = 0
    for other in others:
        if load_plan(other).fingerprint != plan.fingerprint:
            raise ValueError(
                f"{other} holds another run than {folder} (the fingerprints in plan.json differ); "
                "only parts of one run can be merged"
            )
        for shard in unfinished_shards(folder, plan):
            if read_result(other, plan, shard) is not None:
                num_copied += _copy_shard(other, folder, plan, shard)
    missing = [_missing(folder, plan, shard) for shard in unfinished_shards(folder, plan)]
    if not missing:
        write_index(folder, plan)
    return MergeSummary(folder, plan.num_shards, num_copied, missing, folder / INDEX_FILE)


def _copy_shard(source: Path, target: Path, plan: Plan, shard: int) -> bool:
    """Journal and shard first, the record that makes them count last; each is whole or absent.

    Returns:
        Whether it was copied; a shard that somebody works on is left to them.
    """
    journal_path(target, shard).parent.mkdir(exist_ok=True)
    try:
        journal = Journal(journal_path(target, shard), fingerprint=plan.fingerprint)
    except BusyError:
        return False
    with closing(journal):
        _copy_files(source, target, shard)
    return True


def _copy_files(source: Path, target: Path, shard: int) -> None:
    record = journal_path(source, shard).with_suffix(".json")
    for path in (journal_path(source, shard), shard_path(source, shard), record):
        goal = target / path.relative_to(source)
        temporary = goal.with_name(goal.name + ".tmp")
        shutil.copyfile(path, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(goal)


def _missing(folder: Path, plan: Plan, shard: int) -> MissingShard:
    path = journal_path(folder, shard)
    num_done = 0
    if path.is_file():
        done = Journal.batches_in(path)
        num_done = sum(
            plan.num_clips_in(batch) for batch in plan.batches_of(shard) if batch in done
        )
    return MissingShard(shard, plan.num_clips_of(shard), num_done)
