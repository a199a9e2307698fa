"""`hoc build-dataset`: skeletons and captions become part-*.arrow and, last of all, dataset.json.

The build is cut into parts by the sorted list of sample_ids (packed sources: by the order of their
rows), so the bytes do not depend on the number of processes or on interruptions; only "environment"
in dataset.json tells two runs apart.
Each finished part is noted in a journal with its hash; an interrupted build goes on from there.
left_out.parquet is written whether the build succeeds or stops.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_build import schema
from datasets_build.build_journal import BuildJournal, refuse_other_request
from datasets_build.caption_runs import Caption
from datasets_build.card import write_card
from datasets_build.config import BuildConfig
from datasets_build.dataset import DATASET_FILE, MADE_BY
from datasets_build.inventory import taken_inventory
from datasets_build.join import LeftOut, Plan, make_plan
from datasets_build.manifest import (
    environment,
    fingerprint,
    read_json,
    sha256_bytes,
    sha256_file,
    write_bytes_atomic,
    write_json,
)
from datasets_build.packed import PackedSource
from datasets_build.parts import PartJob, PartResult, build_part
from datasets_build.progress import Progress, SilentProgress
from datasets_build.protocol_files import FOLDER as PROTOCOLS_FOLDER
from datasets_build.protocol_files import write_protocol
from datasets_build.protocols import PROTOCOLS, SplitCounts, count_splits
from datasets_build.shards import index_entries

LEFT_OUT_FILE = "left_out.parquet"
HELD_OUT_FILE = "held-out-captions.parquet"
JOURNAL_FILE = "build-journal.jsonl"

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
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"{config.out} is a file; give a folder for the data set with --out")
    with taken_inventory(config) as inventory:
        plan = make_plan(config, inventory)
        request = _request(config, plan)
        record = _finished_before(config.out, request)
        if record is not None:
            progress.message(f"{config.out} is already built from the same input; nothing to do")
            progress.finish()
            num_kept = len(record["shards"])
        else:
            config.out.mkdir(parents=True, exist_ok=True)
            with BuildJournal(config.out / JOURNAL_FILE, request) as journal:
                record, num_kept = _build(config, plan, request, journal, progress)
                journal.remove()
    return _summary(config.out, record, num_kept=num_kept, started=started)


def _build(
    config: BuildConfig,
    plan: Plan,
    request: dict[str, Any],
    journal: BuildJournal,
    progress: Progress,
) -> tuple[dict[str, Any], int]:
    """Make the parts that are wanting and the record; the record and the number of parts kept."""
    _refuse(config, plan.left_out)
    jobs = _jobs(config, plan)
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
    record = _record(config, plan, request, parts, left_out)
    if plan.held_out:
        write_held_out(config.out / HELD_OUT_FILE, plan.held_out)
    for protocol in plan.protocols:
        if protocol.name not in PROTOCOLS:
            write_protocol(config.out / PROTOCOLS_FOLDER, protocol)
    write_card(config.out, record)
    write_json(config.out / DATASET_FILE, record)
    return record, num_kept


def _request(config: BuildConfig, plan: Plan) -> dict[str, Any]:
    """What decides the rows: two builds with equal requests give equal part files."""
    inventory = plan.inventory
    return {
        "schema_version": schema.DATASET_SCHEMA_VERSION,
        "name": config.name,
        "format": inventory.format,
        "family": inventory.family,
        "skeleton": inventory.skeleton.as_json(),
        "class_names": inventory.class_names and list(inventory.class_names),
        "skeletons": [source["listing_sha256"] for source in inventory.sources],
        "captions": [source["shards_sha256"] for source in plan.caption_sources],
        "own_protocols": {
            protocol.name: protocol.fingerprint
            for protocol in plan.protocols
            if protocol.name not in PROTOCOLS
        },
        "options": {
            "classes": config.classes,
            "prompts": sorted(config.prompts),
            "hold_out": sorted(config.hold_out),
            "keep_uncaptioned": config.keep_uncaptioned,
            "accept_truncated": config.accept_truncated,
            "frame_tolerance": config.frame_tolerance,
            "use_missing_list": config.use_missing_list,
            "bodies": config.bodies.model_dump(),
            "shard_rows": config.shard_rows,
        },
    }


def _finished_before(folder: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """dataset.json of an earlier, finished build of the same request; None where there is none.

    Raises:
        ValueError: the folder holds a build of something else, or parts that nothing lists.
    """
    path = folder / DATASET_FILE
    if not path.is_file():
        strays = sorted(folder.glob("part-*.arrow")) if folder.is_dir() else []
        if strays and not (folder / JOURNAL_FILE).is_file():
            raise ValueError(
                f"{folder} holds {len(strays)} part files such as {strays[0].name} but neither "
                f"{DATASET_FILE} nor {JOURNAL_FILE}; choose another --out or remove them"
            )
        return None
    record = read_json(path, made_by=MADE_BY)
    refuse_other_request(
        folder,
        request,
        record.get("fingerprint_parts", {}).get("request", {}),
        "a finished data set",
    )
    for entry in record["shards"]:
        part = folder / entry["file"]
        if not part.is_file() or sha256_file(part) != entry["sha256"]:
            raise ValueError(
                f"{part} is missing or not what {DATASET_FILE} lists; "
                f"remove {folder} and build anew"
            )
    return dict(record)


def _jobs(config: BuildConfig, plan: Plan) -> list[PartJob]:
    step = config.shard_rows
    return [
        PartJob(
            number,
            config.out,
            plan.inventory.format,
            plan.inventory.family,
            tuple(plan.samples[number * step : (number + 1) * step]),
            config.bodies,
            config.frame_tolerance,
        )
        for number in range(-(-len(plan.samples) // step))
    ]


def _built(
    jobs: Sequence[PartJob], num_workers: int, packed: Mapping[Path, PackedSource]
) -> Iterator[tuple[PartJob, PartResult]]:
    """Every job's result as it comes; a window of jobs bounds what waits in memory."""
    num_workers = min(num_workers, len(jobs))
    if num_workers <= 1:
        for job in jobs:
            yield job, build_part(job, packed)
        return
    # spawn: the caller may have loaded torch, whose threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(jobs))
    running: dict[Future[PartResult], PartJob] = {}
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < 2 * num_workers:
                    job = waiting.pop()
                    running[pool.submit(build_part, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died, most likely for want of memory; run the same command again "
                "with fewer workers or a smaller shard_rows: finished parts are kept"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


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


def write_left_out(path: Path, left_out: Sequence[LeftOut]) -> None:
    """left_out.parquet: sample_id, reason, detail, sorted."""
    rows = sorted(left_out, key=lambda entry: (entry.sample_id, entry.reason, entry.detail))
    columns: dict[str, list[str]] = {
        schema.SAMPLE_ID: [entry.sample_id for entry in rows],
        schema.REASON: [entry.reason for entry in rows],
        "detail": [entry.detail for entry in rows],
    }
    _write_parquet(path, columns)


def write_held_out(path: Path, held_out: Sequence[tuple[str, Caption]]) -> None:
    """held-out-captions.parquet: sample_id, prompt_id, text, request_key, sorted.

    Nothing of this project reads it: it is there for whoever wants to look at the captions of test
    samples.
    """
    rows = sorted(held_out)
    columns = {
        schema.SAMPLE_ID: [sample_id for sample_id, _ in rows],
        schema.PROMPT_ID: [caption.prompt_id for _, caption in rows],
        schema.TEXT: [caption.text for _, caption in rows],
        schema.REQUEST_KEY: [caption.request_key for _, caption in rows],
    }
    _write_parquet(path, columns)


def _write_parquet(path: Path, columns: Mapping[str, list[str]]) -> None:
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes_atomic(path, sink.getvalue().to_pybytes())


def _kinds(left_out: Sequence[LeftOut]) -> str:
    counts = sorted(Counter(entry.reason for entry in left_out).items())
    return ", ".join(f"{num} {reason}" for reason, num in counts) or "nothing was found"


def _record(
    config: BuildConfig,
    plan: Plan,
    request: dict[str, Any],
    parts: Sequence[PartResult],
    left_out: Sequence[LeftOut],
) -> dict[str, Any]:
    """The content of dataset.json."""
    shards = [part.shard for part in parts if part.shard is not None]
    inventory = plan.inventory
    unread = {entry.sample_id for part in parts for entry in part.left_out}
    samples = [sample for sample in plan.samples if sample.sample_id not in unread]
    counts = count_splits([sample.ids for sample in samples], plan.protocols)
    prompts = Counter(caption.prompt_id for sample in samples for caption in sample.captions)
    content = sha256_bytes("".join(part.content_sha256 for part in parts).encode())
    fingerprint_parts = {"request": request, "shards": [shard.sha256 for shard in shards]}
    return {
        "schema_version": schema.DATASET_SCHEMA_VERSION,
        "name": config.name,
        "format": inventory.format,
        "family": inventory.family,
        "skeleton": inventory.skeleton.as_json(),
        "classes": [asdict(entry) for entry in plan.classes],
        "options": request["options"],
        "allow": sorted(config.allow),
        "sources": {
            "skeletons": inventory.sources,
            "captions": plan.caption_sources,
            "content_sha256": content,
        },
        "counts": {
            "num_found": len(inventory.samples) + len(inventory.nameless),
            "num_rows": len(samples),
            "num_frames": sum(part.num_frames for part in parts),
            "num_two_bodies": sum(part.num_two_bodies for part in parts),
            "num_captions": sum(part.num_captions for part in parts),
            "num_held_out_captions": len(plan.held_out),
            "num_planned_uncaptioned": plan.num_uncaptioned,
            "prompts": dict(sorted(prompts.items())),
            "left_out": dict(sorted(Counter(entry.reason for entry in left_out).items())),
            "protocols": [asdict(c) for c in counts if c.num_outside < len(samples)],
        },
        "fingerprint_parts": fingerprint_parts,
        "fingerprint": fingerprint(fingerprint_parts),
        "shards": index_entries(shards),
        "environment": environment(),
    }


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
