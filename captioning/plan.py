"""The plan of a run: which frames of which clips form which batch and shard, under one fingerprint.

Greedy decoding gives the same bits only for the same batch members, so the batches are part of the
recipe: they are decided (captioning/planning.py) before anything runs, from the probes alone.

A plan is an Arrow table with a row a clip in the order of the batches, saved as `plan.arrow` and
mapped into memory, so a run's memory does not grow with its clips. `plan.json` holds the
fingerprint. Any tool that reads Arrow (polars, duckdb) reads it too.

Legend: N clips, T frames of a clip, P prompts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.prompt_files import Prompt
from datasets_build.manifest import (
    canonical_json,
    differing_parts,
    read_json,
    sha256_bytes,
    write_json,
)

ROWS_PER_CHUNK = 65536  # our choice: rows that are turned into bytes at a time

PLAN_FILE = "plan.json"
TABLE_FILE = "plan.arrow"
MADE_BY = "hoc caption"

PLAN_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("path", pa.binary(), nullable=False),  # as the file system has it
        pa.field("video_sha256", pa.string()),
        pa.field("problem_status", pa.string()),  # set: nothing can be captioned
        pa.field("problem", pa.string()),
        pa.field("num_frames", pa.int32()),  # of the source
        pa.field("fps", pa.float64()),
        pa.field("frame_indices", pa.list_(pa.int32())),  # (T,)
        pa.field("height", pa.int32()),  # pixels after resizing
        pa.field("width", pa.int32()),
        pa.field("prompt_tokens", pa.list_(pa.int32())),  # (P,)
        pa.field("batch", pa.int32(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Clip:
    """One planned clip; frames and tokens are empty where the probe found a problem.

    Attributes:
        problem_status: the status of its rows where it cannot be captioned, else None.
        problem: the reason in words.
        num_frames: of the source.
        fps: frames a second of the source.
        frame_indices: T frames to take.
        height: H of the frames in pixels after resizing.
        width: W of the frames.
        prompt_tokens: tokens that go in, for each prompt of the run.
    """

    sample_id: str
    path: str
    video_sha256: str | None
    problem_status: str | None = None
    problem: str | None = None
    num_frames: int | None = None
    fps: float | None = None
    frame_indices: tuple[int, ...] = ()
    height: int = 0
    width: int = 0
    prompt_tokens: tuple[int, ...] = ()

    @property
    def duration_s(self) -> float | None:
        """Frames over rate."""
        return self.num_frames / self.fps if self.num_frames and self.fps else None


@dataclass(frozen=True)
class Plan:
    """What a run will do and nothing else.

    Attributes:
        table: a row a clip (PLAN_SCHEMA) in the order of the batches. Clips with a problem stand
            in batches of their own after all others and are only written down.
        parts: what decides the captions, by name.
        fingerprint: hash of `parts`.
        recipe_key: hash of the parts that do not depend on which other clips the run has.
    """

    table: pa.Table
    parts: dict[str, Any]
    fingerprint: str
    recipe_key: str

    @property
    def num_clips(self) -> int:
        """Clips of the run, with and without a problem."""
        return int(self.table.num_rows)

    @property
    def num_batches(self) -> int:
        """Batches of the run."""
        return len(self._batch_starts) - 1

    @property
    def num_shards(self) -> int:
        """Shards of the run."""
        return len(self._shard_starts) - 1

    @cached_property
    def _batch_starts(self) -> NDArray[np.int64]:
        return _starts(self.table["batch"])

    @cached_property
    def _shard_starts(self) -> NDArray[np.int64]:
        return _starts(self.table["shard"])

    def batch(self, number: int) -> tuple[Clip, ...]:
        """The clips of one batch."""
        start, end = self._batch_starts[number : number + 2].tolist()
        return tuple(map(_clip_of_row, self.table.slice(start, end - start).to_pylist()))

    def batches_of(self, shard: int) -> range:
        """The numbers of a shard's batches."""
        places = np.searchsorted(self._batch_starts, self._shard_starts[shard : shard + 2])
        return range(int(places[0]), int(places[1]))

    def num_clips_of(self, shard: int) -> int:
        """Clips of one shard."""
        return int(self._shard_starts[shard + 1] - self._shard_starts[shard])

    def num_clips_in(self, batch: int) -> int:
        """Clips of one batch."""
        return int(self._batch_starts[batch + 1] - self._batch_starts[batch])


def request_key(plan: Plan, clip: Clip, prompt: Prompt) -> str:
    """Hash of everything that one caption was asked with, except the other members of its batch."""
    request = [plan.recipe_key, clip.video_sha256, clip.frame_indices, clip.height, clip.width]
    return sha256_bytes(canonical_json([*request, prompt.sha256]).encode())


def table_parts(table: pa.Table) -> dict[str, str]:
    """The two fingerprint parts that a plan's table decides.

    Returns:
        "videos": which files in which condition, in the order of their ids. "batches": which clips
        with how many frames of which size stand together, in the order of the batches.
    """
    videos = table.select(["sample_id", "video_sha256", "problem_status"])
    layout = table.select(["sample_id", "num_frames", "fps", "height", "width", "batch"])
    by_id = pc.sort_indices(videos, sort_keys=[("sample_id", "ascending")])
    return {
        "videos": _hash_rows(
            videos.take(by_id.slice(start, ROWS_PER_CHUNK))
            for start in range(0, len(by_id), ROWS_PER_CHUNK)
        ),
        "batches": _hash_rows(
            layout.slice(start, ROWS_PER_CHUNK) for start in range(0, len(layout), ROWS_PER_CHUNK)
        ),
    }


def _hash_rows(chunks: Iterable[pa.Table]) -> str:
    """Hash of a table's values in chunks of ROWS_PER_CHUNK; it does not depend on Arrow's format.

    Texts are told apart by a 0 byte, absent values by a bit mask.
    """
    digest = hashlib.sha256()
    for chunk in chunks:
        for name in chunk.column_names:
            values = chunk[name].combine_chunks()
            digest.update(f"{name}:{values.type}:{len(values)}\0".encode())
            digest.update(np.packbits(values.is_null().to_numpy(zero_copy_only=False)).tobytes())
            if pa.types.is_string(values.type):
                text = "\0".join(pc.fill_null(values, "").to_pylist())
                digest.update(text.encode() + b"\0")
            else:
                numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
                digest.update(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def unsaved_path(folder: Path) -> Path:
    """Where a plan lies that `save_plan` has not yet kept."""
    return folder / (TABLE_FILE + ".tmp")


def map_table(path: Path) -> pa.Table:
    """The table of an Arrow file, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _starts(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Where each run of equal values begins, and the end; the values ascend."""
    values = column.to_numpy()
    return np.concatenate(
        [[0], np.flatnonzero(np.diff(values)) + 1, [len(values)]] if len(values) else [[0]]
    ).astype(np.int64)


def _clip_of_row(row: dict[str, Any]) -> Clip:
    return Clip(
        sample_id=row["sample_id"],
        path=os.fsdecode(row["path"]),
        video_sha256=row["video_sha256"],
        problem_status=row["problem_status"],
        problem=row["problem"],
        num_frames=row["num_frames"],
        fps=row["fps"],
        frame_indices=tuple(row["frame_indices"] or ()),
        height=row["height"] or 0,
        width=row["width"] or 0,
        prompt_tokens=tuple(row["prompt_tokens"] or ()),
    )


def save_plan(plan: Plan, folder: Path, *, settings: dict[str, Any]) -> Plan:
    """Keep a plan as plan.arrow and then plan.json, or check that the folder's is the same.

    Where the same files lie in another place, the new paths are taken. Where files could not be
    read when the folder's plan was made and can be now, or the other way round, that plan holds:
    its failed rows are tried again.

    Args:
        plan: what `make_plan` wrote there last.
        folder: of the run.
        settings: of the run, as JSON values; the manifest repeats them.

    Returns:
        The plan that the folder now holds.

    Raises:
        ValueError: the folder holds a run with another fingerprint; what differs is named.
    """
    path = folder / PLAN_FILE
    if path.is_file():
        saved = read_json(path, made_by=MADE_BY)
        kept = load_plan(folder)
        if saved["fingerprint"] != plan.fingerprint:
            names = differing_parts(plan.parts, saved["parts"])
            same_budget = saved["settings"].get("batch_tokens") == settings.get("batch_tokens")
            drop_plan(folder)
            is_same_run = set(names) == {"videos", "batches"} and same_budget
            if is_same_run and _is_readability_alone(kept.table, plan.table):
                return kept
            raise ValueError(
                f"{folder} holds a caption run with other settings or videos (different: "
                f"{', '.join(names) or 'the fingerprint'}); give another output folder, or the "
                "same settings to go on with that run, or delete that folder"
            )
        if kept.table["path"].equals(plan.table["path"]):
            drop_plan(folder)
            return kept
        (folder / "index.json").unlink(missing_ok=True)  # its manifest has the old table's hash
    unsaved_path(folder).replace(folder / TABLE_FILE)
    write_json(
        path,
        {
            "fingerprint": plan.fingerprint,
            "recipe_key": plan.recipe_key,
            "parts": plan.parts,
            "settings": settings,
            "num_clips": plan.num_clips,
            "num_batches": plan.num_batches,
            "num_shards": plan.num_shards,
        },
    )
    return plan


def _is_readability_alone(before: pa.Table, now: pa.Table) -> bool:
    """Whether two plans are of the same files, but for some that one of them could not read."""
    tables = [t.select(["sample_id", "video_sha256"]).sort_by("sample_id") for t in (before, now)]
    if not tables[0]["sample_id"].equals(tables[1]["sample_id"]):
        return False
    # Unknown where either has no hash.
    differ = pc.not_equal(tables[0]["video_sha256"], tables[1]["video_sha256"])
    return differ.null_count > 0 and not pc.any(differ).as_py()


def drop_plan(folder: Path) -> None:
    """Remove what `make_plan` wrote; a plan that maps it stays usable."""
    unsaved_path(folder).unlink(missing_ok=True)


def load_plan(folder: Path) -> Plan:
    """The plan that a folder holds, its table mapped into memory.

    Raises:
        FileNotFoundError: it holds none.
        ValueError: it cannot be read.
    """
    saved = read_json(folder / PLAN_FILE, made_by=MADE_BY)
    path = folder / TABLE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it is written by `{MADE_BY}`")
    try:
        table = map_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete the output folder and run again"
        ) from error
    return Plan(table, saved["parts"], saved["fingerprint"], saved["recipe_key"])


def planned_files(plan: Plan) -> Iterable[tuple[str, str, str | None]]:
    """(sample_id, path, sha256) of each clip in the order of the plan."""
    columns = plan.table.select(["sample_id", "path", "video_sha256"])
    for rows in columns.to_batches(max_chunksize=ROWS_PER_CHUNK):
        names, paths, hashes = (rows.column(i).to_pylist() for i in range(3))
        yield from zip(names, map(os.fsdecode, paths), hashes, strict=True)
