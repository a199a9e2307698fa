"""`hoc caption --dry-run`: what a run will be and how long it will take, from two timed batches."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioning.config import CaptionConfig
from captioning.decode_pool import DecodePool
from captioning.engines.interface import Engine
from captioning.execute import Session
from captioning.journal import Row
from captioning.plan import Plan
from captioning.run import prepared_run, session_of
from datasets_build import schema
from datasets_build.progress import Progress


@dataclass(frozen=True)
class TimedBatch:
    """One batch that was really decoded and generated.

    Attributes:
        num_clips: its clips.
        decode_s: seconds until all of them were decoded, by all decoding processes.
        generate_s: seconds that the engine took.
        generated_tokens: that came out.
    """

    num_clips: int
    decode_s: float
    generate_s: float
    generated_tokens: int


@dataclass(frozen=True)
class Estimate:
    """What `--dry-run` prints.

    Attributes:
        num_videos: inputs.
        problems: inputs that cannot be captioned, by status.
        num_requests: (clip, prompt) pairs for the model.
        num_batches: planned batches, those without frames included.
        num_shards: planned shards.
        prompt_tokens: of all requests, visual ones included.
        max_new_tokens: the most that may come out.
        load_s: seconds to load the model.
        batches: what was timed.
        clips_per_s: from the fuller of them: clips over the longer of decoding and generating,
            which overlap; over their sum where both need the CPU.
        hours: for all clips at that rate, on this machine alone.
        peak_memory_bytes: of the device while the batches ran.
        peak_host_bytes: of this process, without its decoders.
        disk_bytes: of the finished run with its journals.
    """

    num_videos: int
    problems: dict[str, int]
    num_requests: int
    num_batches: int
    num_shards: int
    prompt_tokens: int
    max_new_tokens: int
    load_s: float
    batches: list[TimedBatch]
    clips_per_s: float | None
    hours: float | None
    peak_memory_bytes: int | None
    peak_host_bytes: int
    disk_bytes: int | None


def estimate(
    config: CaptionConfig,
    progress: Progress,
    *,
    engine: Engine | None = None,
    repeats: Mapping[str, Any] | None = None,
) -> Estimate:
    """Probe and plan without saving the plan, and time two batches from the middle of it.

    Raises:
        FileNotFoundError: see `captioning.run.run`.
        ValueError: see `captioning.run.run`.
        RuntimeError: a batch cannot be captioned, or not as a whole for want of memory.
    """
    with (
        DecodePool(config.num_decoders, timeout_s=config.decode_timeout_s) as pool,
        prepared_run(
            config, progress, engine=engine, pool=pool, repeats=repeats, save=False
        ) as prepared,
    ):
        return _estimate(session_of(config, prepared, pool, progress))


def _estimate(session: Session) -> Estimate:
    plan, config, num_prompts = session.plan, session.config, len(session.prompts)
    statuses = Counter(plan.table["problem_status"].to_pylist())
    num_good = statuses.pop(None, 0)
    chosen = _middle_batches(plan, num_good)
    started = time.monotonic()
    if chosen:
        session.engine.load()
    load_s = time.monotonic() - started
    rows: list[Row] = []
    session.progress.start("time", len(chosen), unit="batches")
    batches = []
    for number in chosen:
        batches.append(_timed(session, number, rows))
        session.progress.advance()
    session.progress.finish()
    # The fuller one; of two equal ones the second, because the first also warms up.
    fullest = max(reversed(batches), key=lambda batch: batch.num_clips, default=None)
    clips_per_s = _rate(fullest, session) if fullest else None
    return Estimate(
        num_videos=plan.num_clips,
        problems=dict(sorted(statuses.items())),
        num_requests=num_good * num_prompts,
        num_batches=plan.num_batches,
        num_shards=plan.num_shards,
        prompt_tokens=pc.sum(pc.list_flatten(plan.table["prompt_tokens"])).as_py() or 0,
        max_new_tokens=num_good * num_prompts * config.max_new_tokens,
        load_s=load_s,
        batches=batches,
        clips_per_s=clips_per_s,
        hours=num_good / clips_per_s / 3600 if clips_per_s else None,
        peak_memory_bytes=session.engine.peak_memory_bytes(),
        peak_host_bytes=_peak_host_bytes(),
        disk_bytes=_disk_bytes(rows, plan, num_prompts) if rows else None,
    )


def _middle_batches(plan: Plan, num_good: int) -> list[int]:
    """Two batches from the middle of those that have frames, or as many as there are."""
    num_usable = 0
    while num_good > 0:  # batches with frames come first
        num_good -= plan.num_clips_in(num_usable)
        num_usable += 1
    first = max(0, num_usable // 2 - 1)
    return list(range(num_usable))[first : first + 2]


def _timed(session: Session, number: int, rows: list[Row]) -> TimedBatch:
    clips = session.plan.batch(number)
    started = time.monotonic()
    decoded, problems = session.decode(clips)
    generating = time.monotonic()
    batch_rows = session.answer(clips, decoded, problems, attempt=1)
    ended = time.monotonic()
    answered = [row for row in batch_rows if row[schema.GENERATED_TOKENS] is not None]
    if decoded and not answered:
        raise RuntimeError(f"a batch cannot be captioned: {batch_rows[0][schema.REASON]}")
    if session.splits:
        raise RuntimeError(
            f"a batch of {session.splits[0]} clips does not fit into memory; lower batch_tokens "
            f"({session.config.batch_tokens})"
        )
    rows += batch_rows
    return TimedBatch(
        num_clips=len(decoded),
        decode_s=round(generating - started, 3),
        generate_s=round(ended - generating, 3),
        generated_tokens=sum(row[schema.GENERATED_TOKENS] or 0 for row in batch_rows),
    )


def _rate(batch: TimedBatch, session: Session) -> float | None:
    shares_cpu = session.engine.hardware().get("device") == "cpu"
    seconds = (
        batch.decode_s + batch.generate_s if shares_cpu else max(batch.decode_s, batch.generate_s)
    )
    return batch.num_clips / seconds if seconds else None


def _disk_bytes(rows: list[Row], plan: Plan, num_prompts: int) -> int:
    """Journal and shard bytes of these rows, for all rows; and the plan."""
    journal = len("\n".join(json.dumps(row) for row in rows))
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=schema.CAPTION_SCHEMA)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    share = plan.num_clips * num_prompts / len(rows)
    return int((journal + sink.getvalue().size) * share) + plan.table.nbytes


def _peak_host_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
