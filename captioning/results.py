"""What a caption run leaves: shards, a record beside each, and at the end manifest and index.

A shard is written by whoever worked on it; the manifest and then the index by whoever finds that
all shards are there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from captioning.config import CaptionConfig
from captioning.journal import FAILED_STATUSES, Journal
from captioning.plan import MADE_BY, PLAN_FILE, TABLE_FILE, Plan
from captioning.prompt_files import bundled_prompt_ids
from datasets_build import schema
from datasets_build.locks import BusyError, locked
from datasets_build.manifest import environment, read_json, sha256_file, write_json
from datasets_build.shards import ShardInfo, check_shards, index_entries, read_index, write_shard

INDEX_FILE = "index.json"
MANIFEST_FILE = "manifest.json"
LOCK_FILE = "lock"  # held while a folder is planned, and while its index is written
NUM_LISTED_FAILURES = 20


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard; the file `journal/00000.json`.

    Attributes:
        fingerprint: of the plan.
        attempt: rounds of tries that its rows had.
        entry: its line of the index.
        counts: rows by status.
        failed: sample_id and number of the try of every clip without a caption.
        failures: the first rows without a caption, as (sample_id, status, reason).
        prompt_tokens: that went in, visual ones included.
        generated_tokens: that came out.
        num_clips: clips that the model answered at the first try; the seconds are of those.
        generate_s: seconds that the engine worked on its batches.
        wait_s: seconds that the engine waited for their frames.
        hardware: what the engine ran on.
        environment: versions, platform and git commit.
    """

    fingerprint: str
    attempt: int
    entry: dict[str, Any]
    counts: dict[str, int]
    failed: dict[str, int]
    failures: list[list[str]]
    prompt_tokens: int
    generated_tokens: int
    num_clips: int
    generate_s: float
    wait_s: float
    hardware: dict[str, Any]
    environment: dict[str, Any]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in an OSError what was being written."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror} while writing {path}; finished batches are kept: "
            "cure this and run the same command again",
        ) from error


def journal_path(folder: Path, shard: int) -> Path:
    """The journal of a shard."""
    return folder / "journal" / f"{shard:05d}.jsonl"


def shard_path(folder: Path, shard: int) -> Path:
    """The Arrow file of a shard."""
    return folder / f"captions-{shard:05d}.arrow"


def write_result(
    folder: Path, plan: Plan, shard: int, *, journal: Journal, hardware: dict[str, Any]
) -> ShardRecord:
    """The shard from its journal in plan order, and then its record."""
    rows: list[dict[str, Any]] = []
    generate_s = wait_s = 0.0
    for batch in plan.batches_of(shard):
        record = journal.record_of(batch)
        rows += record["rows"]
        generate_s += record["generate_s"]
        wait_s += record["wait_s"]
    path = shard_path(folder, shard)
    with writing(path):
        info = write_shard(path, pa.Table.from_pylist(rows, schema=schema.CAPTION_SCHEMA))
    answered = [row for row in rows if row[schema.GENERATED_TOKENS] is not None]
    failed_rows = [row for row in rows if row[schema.STATUS] in FAILED_STATUSES]
    result = ShardRecord(
        fingerprint=plan.fingerprint,
        attempt=journal.attempt,
        entry=asdict(info),
        counts=dict(sorted(Counter(row[schema.STATUS] for row in rows).items())),
        failed=dict(sorted(journal.failed.items())),
        failures=[
            [row[schema.SAMPLE_ID], row[schema.STATUS], row[schema.REASON]]
            for row in failed_rows[:NUM_LISTED_FAILURES]
        ],
        prompt_tokens=sum(row[schema.PROMPT_TOKENS] or 0 for row in answered),
        generated_tokens=sum(row[schema.GENERATED_TOKENS] for row in answered),
        num_clips=len({row[schema.SAMPLE_ID] for row in answered if row[schema.ATTEMPTS] == 1}),
        generate_s=round(generate_s, 3),
        wait_s=round(wait_s, 3),
        hardware=hardware,
        environment=environment(),
    )
    record_path = journal_path(folder, shard).with_suffix(".json")
    with writing(record_path):
        write_json(record_path, asdict(result))
    return result


def read_result(folder: Path, plan: Plan, shard: int) -> ShardRecord | None:
    """The record of a finished shard of this plan; None where it is not finished."""
    path = journal_path(folder, shard).with_suffix(".json")
    if not path.is_file():
        return None
    values = read_json(path, made_by=MADE_BY)
    if values.get("fingerprint") != plan.fingerprint:
        return None
    record = ShardRecord(**values)
    arrow = folder / record.entry["file"]
    if not arrow.is_file() or arrow.stat().st_size != record.entry["num_bytes"]:
        return None
    return record


def unfinished_shards(folder: Path, plan: Plan) -> list[int]:
    """The shards that `write_result` has still to write."""
    return [s for s in range(plan.num_shards) if read_result(folder, plan, s) is None]


def due_attempt(folder: Path, plan: Plan, *, max_attempts: int) -> int:
    """The round of tries that a call makes: the first until all shards are finished, then the next.

    So a shard's failed clips are tried again by a later call only, not by a second process or by a
    call that goes on with a stopped one.
    """
    records = [read_result(folder, plan, shard) for shard in range(plan.num_shards)]
    if None in records:
        return 1
    return 1 + min(
        (
            record.attempt
            for record in records
            if record is not None
            and any(attempt < max_attempts for attempt in record.failed.values())
        ),
        default=0,
    )


def forget_damaged(folder: Path, plan: Plan) -> list[str]:
    """Remove the records of shards whose bytes are not as recorded, so that they are written anew.

    Returns:
        What was wrong, a sentence each.
    """
    problems = []
    for shard in range(plan.num_shards):
        record = read_result(folder, plan, shard)
        if record is None or not check_shards(folder, [ShardInfo(**record.entry)]):
            continue
        try:
            journal = Journal(journal_path(folder, shard), fingerprint=plan.fingerprint)
        except BusyError:
            continue  # somebody is writing it
        with closing(journal):
            record = read_result(folder, plan, shard)
            if record and (found := check_shards(folder, [ShardInfo(**record.entry)])):
                journal_path(folder, shard).with_suffix(".json").unlink()
                problems += found
    return problems


def is_whole(folder: Path, plan: Plan) -> bool:
    """Whether the index is there, lists this plan's shards as they were finished, and all hold."""
    index, manifest = folder / INDEX_FILE, folder / MANIFEST_FILE
    if not index.is_file() or not manifest.is_file():
        return False
    value = read_json(index, made_by=MADE_BY)
    if value.get("fingerprint") != plan.fingerprint:
        return False
    entries = read_index(index, made_by=MADE_BY)
    records = [read_result(folder, plan, shard) for shard in range(plan.num_shards)]
    finished = [ShardInfo(**record.entry) for record in records if record is not None]
    return finished == entries and not check_shards(folder, entries)


def write_index(folder: Path, plan: Plan) -> None:
    """The manifest and then the index over all shards; each shard is hashed before it is listed.

    Processes that end together write them one after the other.

    Raises:
        ValueError: a shard is not finished, or not as its record says.
    """
    with writing(folder / INDEX_FILE), locked(folder / LOCK_FILE, wait=True):
        _write_index(folder, plan)


def _write_index(folder: Path, plan: Plan) -> None:
    records = [read_result(folder, plan, shard) for shard in range(plan.num_shards)]
    finished = [record for record in records if record is not None]
    shards = [ShardInfo(**record.entry) for record in finished]
    problems = check_shards(folder, shards)
    problems += [f"shard {n} is not finished" for n, record in enumerate(records) if record is None]
    if problems:
        raise ValueError(
            f"{folder} is not complete: {'; '.join(problems[:5])}; "
            "run the command that captions it again"
        )
    counts: Counter[str] = Counter()
    for record in finished:
        counts.update(record.counts)
    failures = [failure for record in finished for failure in record.failures]
    generate_s = sum(record.generate_s for record in finished)
    wait_s = sum(record.wait_s for record in finished)
    num_clips = sum(record.num_clips for record in finished)
    num_rows = sum(shard.num_rows for shard in shards)
    assert num_rows == plan.num_clips * len(plan.parts["prompts"])
    plan_facts = read_json(folder / PLAN_FILE, made_by=MADE_BY)
    manifest = {
        "made_by": MADE_BY,
        "config": plan_facts["settings"],
        "fingerprint": plan.fingerprint,
        "parts": plan.parts,
        "plan": {
            "sha256": sha256_file(folder / TABLE_FILE),
            **{key: plan_facts[key] for key in ("num_clips", "num_batches", "num_shards")},
        },
        "environment": environment(),
        "shard_environments": _distinct(record.environment for record in finished),
        "hardware": _distinct(record.hardware for record in finished),
        "shards": index_entries(shards),
        "result": {
            "num_videos": plan.num_clips,
            "num_rows": num_rows,
            "counts": dict(sorted(counts.items())),
            "failures": failures[:NUM_LISTED_FAILURES],
        },
        "tokens": {
            "prompt": sum(record.prompt_tokens for record in finished),
            "generated": sum(record.generated_tokens for record in finished),
        },
        # Over all processes and restarts; without the loading of the model.
        "rates": {
            "clips": num_clips,
            "generate_s": round(generate_s, 3),
            "wait_for_frames_s": round(wait_s, 3),
            "clips_per_engine_s": round(num_clips / (generate_s + wait_s), 3)
            if num_clips
            else None,
        },
    }
    write_json(folder / MANIFEST_FILE, manifest)
    write_json(
        folder / INDEX_FILE,
        {
            "schema_version": schema.SCHEMA_VERSION,
            "fingerprint": plan.fingerprint,
            "num_rows": num_rows,
            "shards": index_entries(shards),
        },
    )


def check_finished(folder: Path) -> None:
    """Say what to do about a run that was planned but is not finished.

    Raises:
        ValueError: it is not finished.
    """
    if (folder / PLAN_FILE).is_file() and not (folder / INDEX_FILE).is_file():
        raise ValueError(
            f"{folder} is not finished; give its `hoc caption` command again, or "
            f"`hoc captions merge {folder}` to see what is missing"
        )


def recorded_config(config: CaptionConfig) -> dict[str, Any]:
    """The settings with whole paths, so that the run can be repeated from anywhere."""
    known = bundled_prompt_ids()
    prompts = [name if name in known else os.path.abspath(name) for name in config.prompts]
    model = os.path.abspath(config.model) if os.path.isdir(config.model) else config.model
    return config.model_dump(mode="json") | {
        "videos": [os.path.abspath(os.path.expanduser(source)) for source in config.videos],
        "prompts": prompts,
        "model": model,
        "out": os.path.abspath(config.out),
    }


def _distinct(values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
