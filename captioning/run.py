"""Stage one, `hoc caption`: probe the videos, plan, run the batches, write shards and index.

A stopped run goes on where it was when it is called again with the same settings; the bytes of its
shards do not depend on stops, restarts or the number of workers. Every planned (clip, prompt) ends
as exactly one row, failures too. What is measured (times, rates) stands in manifest.json only.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from captioning.config import CaptionConfig
from captioning.decode_pool import DecodePool
from captioning.engines.interface import Engine
from captioning.execute import Session
from captioning.frames import check_reader
from captioning.inputs import collect_videos
from captioning.journal import FAILED_STATUSES, Journal, only_run_in
from captioning.plan import Clip, Plan, make_plan, save_plan
from captioning.probe import probe_videos
from captioning.prompt_files import read_prompts
from datasets_build import schema
from datasets_build.manifest import environment, read_json, write_json
from datasets_build.progress import Progress
from datasets_build.shards import ShardInfo, check_shards, index_entries, read_index, write_shard

log = logging.getLogger(__name__)

NUM_LISTED_FAILURES = 20

INDEX_FILE = "index.json"
MANIFEST_FILE = "manifest.json"
MADE_BY = "hoc caption"


@dataclass(frozen=True)
class CaptionSummary:
    """How a run ended.

    Attributes:
        folder: the run's folder.
        index: its index.json, which lists the shards.
        manifest: its manifest.json.
        num_videos: input files.
        num_rows: rows of all shards, one a (video, prompt).
        counts: rows by status, only those that occur.
        failures: the first 20 rows without a caption, as (sample_id, status, reason).
        was_finished: there was nothing left to do.
        seconds: of this call.
        clips_per_s: clips that this call put through the model, over the seconds that its batches
            took, without loading the model; None where there was none.
    """

    folder: Path
    index: Path
    manifest: Path
    num_videos: int
    num_rows: int
    counts: dict[str, int]
    failures: list[tuple[str, str, str]]
    was_finished: bool
    seconds: float
    clips_per_s: float | None

    @property
    def paths(self) -> dict[str, Path]:
        """Where the results lie."""
        return {"captions": self.folder, "index": self.index, "manifest": self.manifest}

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        return values | {name: str(values[name]) for name in ("folder", "index", "manifest")}


def run(
    config: CaptionConfig, progress: Progress, *, engine: Engine | None = None
) -> CaptionSummary:
    """Caption videos into `config.out`.

    Args:
        config: the settings.
        progress: is told the stages "probe" and "caption".
        engine: what generates; None makes the engine that the settings describe.

    Raises:
        FileNotFoundError: no such video folder, prompt or model.
        ValueError: a setting does not fit, or `out` holds another run.
        OSError: the disk is full; what was finished is kept.
        RuntimeError: the engine fails on every batch or mixes up its answers.
    """
    started = time.monotonic()
    check_reader(config.reader)
    prompts = read_prompts(config.prompts)
    videos = collect_videos(config.videos, limit=config.limit)
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"the output {config.out} is a file; give a folder")
    if engine is None:
        from captioning.engines.transformers_engine import TransformersEngine

        engine = TransformersEngine(config)
    engine.facts()  # a wrong model is noticed before hours of probing
    config.out.mkdir(parents=True, exist_ok=True)
    with (
        only_run_in(config.out),
        DecodePool(config.num_workers, timeout_s=config.decode_timeout_s) as pool,
    ):
        cache = config.out / "probe.jsonl"
        with _writing(cache):
            probes = probe_videos(
                videos, cache, pool, progress, allow_truncated=config.allow_truncated
            )
        plan = make_plan(videos, probes, config, engine, prompts)
        with _writing(config.out / "plan.json"):
            save_plan(plan, config.out)
        with Journal(config.out / "journal.jsonl", fingerprint=plan.fingerprint) as journal:
            indexed_attempt = _indexed_attempt(config.out, plan)
            due = _clips_to_retry(plan, journal, config.max_attempts)
            if indexed_attempt == journal.attempt and not due:
                return _summary_of_finished(config.out, started)
            if indexed_attempt == journal.attempt:
                journal.begin_attempt(journal.attempt + 1)
            session = Session(config, engine, prompts, plan, journal, pool, progress)
            session.run_batches()
            session.retry(_clips_to_retry(plan, journal, journal.attempt))
            return _write_results(session, started)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in an OSError what was being written."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror} while writing {path}; finished batches are kept: "
            "cure this and run the same command again",
        ) from error


def _indexed_attempt(folder: Path, plan: Plan) -> int | None:
    """The attempt whose results the index lists; None where the folder is not whole."""
    path = folder / INDEX_FILE
    if not path.is_file() or not (folder / MANIFEST_FILE).is_file():
        return None
    index = read_json(path, made_by=MADE_BY)
    if index.get("fingerprint") != plan.fingerprint:
        return None
    if problems := check_shards(folder, read_index(path, made_by=MADE_BY)):
        log.warning("the shards are written anew from the journal: %s", "; ".join(problems))
        return None
    return int(index["attempt"])


def _clips_to_retry(plan: Plan, journal: Journal, max_attempts: int) -> list[Clip]:
    """Failed clips that were tried less than `max_attempts` times, in plan order."""
    due = {name for name, attempt in journal.failed.items() if attempt < max_attempts}
    if not due:
        return []
    return [clip for batch in plan.batches for clip in batch if clip.sample_id in due]


def _write_results(session: Session, started: float) -> CaptionSummary:
    """Shards from the journal in plan order, then the manifest, then the index."""
    folder, plan, journal = session.config.out, session.plan, session.journal
    shards: list[ShardInfo] = []
    counts: Counter[str] = Counter()
    failures: list[tuple[str, str, str]] = []
    for number, batches in enumerate(plan.shards):
        rows = [row for batch in batches for row in journal.rows_of(batch)]
        counts.update(row[schema.STATUS] for row in rows)
        failures += [
            (row[schema.SAMPLE_ID], row[schema.STATUS], row[schema.REASON])
            for row in rows
            if row[schema.STATUS] in FAILED_STATUSES
        ]
        path = folder / f"captions-{number:05d}.arrow"
        with _writing(path):
            shards.append(
                write_shard(path, pa.Table.from_pylist(rows, schema=schema.CAPTION_SCHEMA))
            )
    num_rows = sum(shard.num_rows for shard in shards)
    assert num_rows == plan.num_clips * len(session.prompts)
    seconds = time.monotonic() - started
    num_clips = session.num_generated_clips
    clips_per_s = num_clips / session.batches_s if num_clips and session.batches_s else None
    result = {
        "num_videos": plan.num_clips,
        "num_rows": num_rows,
        "counts": dict(sorted(counts.items())),
        "failures": failures[:NUM_LISTED_FAILURES],
    }
    with _writing(folder / INDEX_FILE):
        write_json(
            folder / MANIFEST_FILE,
            {
                "config": session.config.model_dump(mode="json"),
                "fingerprint": plan.fingerprint,
                "parts": plan.parts,
                "environment": environment(),
                "hardware": session.engine.hardware(),
                "shards": index_entries(shards),
                "result": result,
                # What this call did; the calls before it, if there were any, are not in it.
                "last_call": {
                    "seconds": seconds,
                    "clips": num_clips,
                    "clips_per_s": clips_per_s,
                    "prompt_tokens": session.num_prompt_tokens,
                    "generated_tokens": session.num_generated_tokens,
                    "load_s": session.load_s,
                    "generate_s": session.generate_s,
                    "wait_for_frames_s": session.wait_s,
                },
            },
        )
        write_json(
            folder / INDEX_FILE,
            {
                "schema_version": schema.SCHEMA_VERSION,
                "fingerprint": plan.fingerprint,
                "attempt": journal.attempt,
                "num_rows": num_rows,
                "shards": index_entries(shards),
            },
        )
    return _summary(folder, result, was_finished=False, seconds=seconds, clips_per_s=clips_per_s)


def _summary_of_finished(folder: Path, started: float) -> CaptionSummary:
    manifest = read_json(folder / MANIFEST_FILE, made_by=MADE_BY)
    return _summary(
        folder,
        manifest["result"],
        was_finished=True,
        seconds=time.monotonic() - started,
        clips_per_s=None,
    )


def _summary(
    folder: Path,
    result: dict[str, Any],
    *,
    was_finished: bool,
    seconds: float,
    clips_per_s: float | None,
) -> CaptionSummary:
    return CaptionSummary(
        folder=folder,
        index=folder / INDEX_FILE,
        manifest=folder / MANIFEST_FILE,
        num_videos=result["num_videos"],
        num_rows=result["num_rows"],
        counts=result["counts"],
        failures=[(name, status, reason) for name, status, reason in result["failures"]],
        was_finished=was_finished,
        seconds=seconds,
        clips_per_s=clips_per_s,
    )
