"""`hoc build-dataset`: skeletons and captions become part-*.arrow and, last of all, dataset.json.

The build is cut into parts by the sorted list of sample_ids (packed sources: by the order of their
rows), so the bytes do not depend on the number of processes or on interruptions; only "environment"
in dataset.json tells two runs apart.
Each finished part is noted in a journal with its hash; an interrupted build goes on from there.
left_out.parquet is written whether the build succeeds or stops.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_build.build_journal import BuildJournal
from datasets_build.build_record import (
    JOURNAL_FILE,
    LEFT_OUT_FILE,
    finished_before,
    refuse_strange_folder,
    write_left_out,
    write_record,
)
from datasets_build.config import BuildConfig
from datasets_build.inventory import taken_inventory
from datasets_build.join import LeftOut, Plan, make_plan
from datasets_build.packed import PackedSource
from datasets_build.part_pool import built_parts
from datasets_build.parts import PartJob, PartResult, build_part
from datasets_build.progress import Progress, SilentProgress
from datasets_build.protocols import SplitCounts

_NUM_NAMED = 5  # ids that an error message shows of each kind


@dataclass(frozen=True)
class BuildSummary:
    """What a build did.

    Attributes:
        folder: the data set's folder.
        name: its name.
        format: what the sources hold, a word of --format.
        family: of its samples: "ntu", "nw-ucla" or "generic".
        num_rows: samples in it.
        num_captions: captions in it.
        num_classes: classes in its class list.
        num_parts: part files.
        num_parts_kept: of these, taken over from an interrupted or finished earlier run.
        left_out: number of samples left out, by reason.
        protocols: train and test counts under every protocol that its samples belong to.
        fingerprint: identifies the content.
        duration_s: wall time of this run.
    """

    folder: Path
    name: str
    format: str
    family: str
    num_rows: int
    num_captions: int
    num_classes: int
    num_parts: int
    num_parts_kept: int
    left_out: dict[str, int]
    protocols: list[SplitCounts]
    fingerprint: str
    duration_s: float


def run(config: BuildConfig, progress: Progress | None = None) -> BuildSummary:
    """Build a data set, or go on with an interrupted build of the same one.

    Raises:
        FileNotFoundError: a source or a caption run is not there.
        ValueError: nothing to build; samples would be left out for a reason that `allow` does not
            name; the output folder holds another build, or another process builds there.
    """
    progress = progress or SilentProgress()
    started = time.monotonic()
    progress.start("listing skeletons and captions", None)
    refuse_strange_folder(config.out, config.skeletons)
    with taken_inventory(config) as inventory:
        plan = make_plan(config, inventory)
        jobs = _jobs(config, plan)
        record = finished_before(config, plan, jobs)
        if record is None:
            config.out.mkdir(parents=True, exist_ok=True)
            with BuildJournal(config.out / JOURNAL_FILE) as journal:
                record = finished_before(config, plan, jobs)  # by another process, meanwhile
                num_kept = len(jobs)
                if record is None:
                    record, num_kept = _build(config, plan, jobs, journal, progress)
                journal.remove()
        else:
            progress.message(f"{config.out} is already built from the same input; nothing to do")
            progress.finish()
            num_kept = len(record["shards"])
            (config.out / JOURNAL_FILE).unlink(missing_ok=True)  # a kill can have left it
    return _summary(config.out, record, num_kept=num_kept, started=started)


def _build(
    config: BuildConfig,
    plan: Plan,
    jobs: Sequence[PartJob],
    journal: BuildJournal,
    progress: Progress,
) -> tuple[dict[str, Any], int]:
    """Make the parts that are wanting and the record; the record and the number of parts kept."""
    _refuse(config, plan.left_out)
    results = journal.finished_parts(jobs)
    num_kept = len(results)
    progress.start("reading skeletons", len(plan.samples))
    for job in jobs:
        if job.number in results:
            progress.advance(len(job.samples), num_failed=len(results[job.number].left_out))
    to_do = [job for job in jobs if job.number not in results]
    num_workers = 1 if plan.inventory.packed else config.num_workers(len(plan.samples))
    for job, result in _built(to_do, num_workers, plan.inventory.packed):
        journal.append(result)
        results[result.number] = result
        progress.advance(len(job.samples), num_failed=len(result.left_out))
    progress.finish()
    parts = [results[number] for number in sorted(results)]
    left_out = plan.left_out + [entry for part in parts for entry in part.left_out]
    _refuse(config, left_out)
    if not any(part.shard for part in parts):
        raise ValueError(
            f"no sample is left to build {config.name!r} from: {_kinds(left_out)}; "
            f"the reasons are in {config.out / LEFT_OUT_FILE}"
        )
    _refuse_empty_classes(config, plan, parts)
    return write_record(config, plan, jobs, parts, left_out), num_kept


def _refuse_empty_classes(config: BuildConfig, plan: Plan, parts: Sequence[PartResult]) -> None:
    """`classes = "present"` numbers classes before a sample is read; each must keep one."""
    if config.classes != "present":
        return
    unread = {entry.sample_id for part in parts for entry in part.left_out}
    kept = {sample.label for sample in plan.samples if sample.sample_id not in unread}
    empty = [entry.name for entry in plan.classes if entry.label not in kept]
    if empty:
        raise ValueError(
            f"no sample of {', '.join(empty)} could be used, so with --classes present there is no "
            f"such class (the reasons are in {config.out / LEFT_OUT_FILE}); take these samples out "
            "of the sources, or build with --classes all"
        )


def _jobs(config: BuildConfig, plan: Plan) -> list[PartJob]:
    step = config.shard_rows
    inventory = plan.inventory
    packed_sha256 = tuple(
        source["listing_sha256"] for source in inventory.sources if inventory.packed
    )
    return [
        PartJob(
            number,
            config.out,
            inventory.format,
            inventory.family,
            tuple(plan.samples[number * step : (number + 1) * step]),
            config.bodies,
            config.frame_tolerance,
            packed_sha256,
        )
        for number in range(-(-len(plan.samples) // step))
    ]


def _built(
    jobs: Sequence[PartJob], num_workers: int, packed: Mapping[Path, PackedSource]
) -> Iterator[tuple[PartJob, PartResult]]:
    """Every job's result as it comes."""
    if min(num_workers, len(jobs)) > 1:
        yield from built_parts(jobs, num_workers)
    else:
        for job in jobs:
            yield job, build_part(job, packed)


def _refuse(config: BuildConfig, left_out: Sequence[LeftOut]) -> None:
    """Write the list of what is left out, and stop where a reason for it is not allowed."""
    write_left_out(config.out / LEFT_OUT_FILE, left_out)
    sentences = []
    words = []
    for reason, num in sorted(Counter(entry.reason for entry in left_out).items()):
        if reason == "listed-missing" or reason in config.allow:
            continue
        entries = [entry for entry in left_out if entry.reason == reason]
        named = ", ".join(entry.sample_id for entry in entries[:_NUM_NAMED])
        more = ", ..." if num > _NUM_NAMED else ""
        sentences.append(f"  {reason}: {num} ({named}{more}); first: {entries[0].detail}")
        words.append(f"--allow {reason}")
    if sentences:
        hint = (
            "\n--keep-uncaptioned lets samples without a caption enter with an empty list."
            if "--allow no-caption" in words
            else ""
        )
        raise ValueError(
            f"samples of {config.name!r} would be left out:\n"
            + "\n".join(sentences)
            + f"\nAll of them are in {config.out / LEFT_OUT_FILE}. Put them right, or build "
            f"without them: {' '.join(words)}.{hint}"
        )


def _kinds(left_out: Sequence[LeftOut]) -> str:
    counts = sorted(Counter(entry.reason for entry in left_out).items())
    return ", ".join(f"{num} {reason}" for reason, num in counts) or "nothing was found"


def _summary(
    folder: Path, record: dict[str, Any], *, num_kept: int, started: float
) -> BuildSummary:
    counts = record["counts"]
    return BuildSummary(
        folder=folder,
        name=record["name"],
        format=record["format"],
        family=record["family"],
        num_rows=counts["num_rows"],
        num_captions=counts["num_captions"],
        num_classes=len(record["classes"]),
        num_parts=len(record["shards"]),
        num_parts_kept=num_kept,
        left_out=counts["left_out"],
        protocols=[SplitCounts(**count) for count in counts["protocols"]],
        fingerprint=record["fingerprint"],
        duration_s=time.monotonic() - started,
    )
