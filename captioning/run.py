"""Stage one, `hoc caption`: probe the videos, plan, run the batches, write shards and index.

A stopped run goes on where it was when it is called again with the same settings; the bytes of its
shards do not depend on stops, restarts or on how many processes worked on it. Every planned (clip,
prompt) ends as exactly one row, failures too. What is measured stands in manifest.json only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from captioning.config import CaptionConfig
from captioning.decode_pool import DecodePool
from captioning.engines.interface import Engine
from captioning.execute import Session, probe_function
from captioning.frames import check_reader
from captioning.inputs import Video, collect_videos
from captioning.journal import FAILED_STATUSES
from captioning.plan import MADE_BY, TABLE_FILE, Plan, drop_plan, load_plan, save_plan
from captioning.planning import Planner, make_plan, recipe_of
from captioning.probe import probe_videos
from captioning.prompt_files import Prompt, read_prompts
from captioning.results import (
    INDEX_FILE,
    LOCK_FILE,
    MANIFEST_FILE,
    due_attempt,
    forget_damaged,
    is_whole,
    recorded_config,
    unfinished_shards,
    write_index,
    writing,
)
from datasets_build.locks import BusyError, locked
from datasets_build.manifest import differing_parts, read_json
from datasets_build.progress import Progress

log = logging.getLogger(__name__)

PROBE_FILE = "probe.jsonl"

# Works on the given shards of a run in other processes; captioning/devices.py, ray_cluster.py.
# Arguments: settings, plan, shards, the round of tries, progress.
Distribute = Callable[[CaptionConfig, Plan, Sequence[int], int, Progress], None]


@dataclass(frozen=True)
class CaptionSummary:
    """How a run ended.

    Attributes:
        folder: the run's folder.
        index: its index.json, which lists the shards; not there while shards are missing.
        manifest: its manifest.json.
        num_videos: input files.
        num_unusable: of them, those that the probe found a problem with.
        num_shards: of the whole run.
        num_rows: rows of all shards, one a (video, prompt).
        counts: rows by status, only those that occur.
        failures: the first 20 rows without a caption, as (sample_id, status, reason).
        missing_shards: shards that are left to other processes or calls; the run is whole without.
        was_finished: there was nothing left to do.
        seconds: of this call.
        clips_per_s: clips that this call put through the model, over the seconds that its batches
            took, without loading the model; None where there was none, or others did the work.
        waited_share: share of those seconds in which the engine waited for frames.
    """

    folder: Path
    index: Path
    manifest: Path
    num_videos: int
    num_unusable: int
    num_shards: int
    num_rows: int
    counts: dict[str, int]
    failures: list[tuple[str, str, str]]
    missing_shards: list[int]
    was_finished: bool
    seconds: float
    clips_per_s: float | None
    waited_share: float | None

    @property
    def num_failed(self) -> int:
        """Rows without a caption."""
        return sum(self.counts.get(status, 0) for status in FAILED_STATUSES)

    @property
    def paths(self) -> dict[str, Path]:
        """Where the results lie."""
        return {"captions": self.folder, "index": self.index, "manifest": self.manifest}

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        return values | {name: str(values[name]) for name in ("folder", "index", "manifest")}


@dataclass(frozen=True)
class Prepared:
    """A planned run in this process.

    Attributes:
        engine: not loaded yet.
        prompts: sorted by id.
        planner: decides on single clips.
        plan: of all clips.
    """

    engine: Engine
    prompts: tuple[Prompt, ...]
    planner: Planner
    plan: Plan


def make_engine(config: CaptionConfig, *, plans_only: bool = False) -> Engine:
    """The engine that the settings describe; one that only plans needs no GPU for device "cuda".

    Raises:
        FileNotFoundError: no such model.
        ValueError: the model, device or server does not fit.
    """
    if config.engine == "server":
        from captioning.engines.server_engine import ServerEngine

        return ServerEngine(config)
    from captioning.engines.transformers_engine import TransformersEngine

    return TransformersEngine(config, plans_only=plans_only)


def run(
    config: CaptionConfig,
    progress: Progress,
    *,
    engine: Engine | None = None,
    share: tuple[int, int] | None = None,
    distribute: Distribute | None = None,
    repeats: Mapping[str, Any] | None = None,
    plan_only: bool = False,
) -> CaptionSummary:
    """Caption videos into `config.out`.

    Args:
        config: the settings.
        progress: is told the stages "probe" and "caption".
        engine: what generates; None makes the engine that the settings describe.
        share: (i, n): of the shards only i, i + n, i + 2 n ...; shards that other processes work
            on are then left to them. None takes all shards.
        distribute: lets other processes do the work; None does it in this one.
        repeats: the manifest of a run that this one must repeat.
        plan_only: stop after the plan.

    Raises:
        FileNotFoundError: no such video folder, prompt or model.
        ValueError: a setting does not fit, `out` holds another run, or `repeats` is another run.
        OSError: the disk is full; what was finished is kept.
        RuntimeError: the engine fails on every batch or mixes up its answers.
    """
    started = time.monotonic()
    with (
        DecodePool(config.num_decoders, timeout_s=config.decode_timeout_s) as pool,
        prepared_run(
            config,
            progress,
            engine=engine,
            pool=pool,
            repeats=repeats,
            plans_only=plan_only or distribute is not None,
        ) as prepared,
    ):
        plan, folder = prepared.plan, config.out
        if plan_only:
            return _summary(folder, plan, started=started)
        attempt = due_attempt(folder, plan, max_attempts=config.max_attempts)
        session = session_of(config, prepared, pool, progress, attempt=attempt)
        due = [shard for shard in range(plan.num_shards) if session.is_due(shard)]
        if is_whole(folder, plan) and not due:
            return _summary(folder, plan, started=started, was_finished=True)
        for problem in forget_damaged(folder, plan):
            log.warning("written anew from the journal: %s", problem)
        first, step = share or (0, 1)
        chosen = range(first, plan.num_shards, step)
        if step > plan.num_shards:
            progress.message(
                f"the run has {plan.num_shards} shards for {step} jobs, so some have nothing to "
                "do; a shard holds whole batches: lower rows_per_shard, or batch_tokens too"
            )
        todo = [s for s in chosen if session.is_due(s)] if distribute is not None else list(chosen)
        progress.start("caption", sum(map(plan.num_clips_of, todo)), unit="clips")
        if distribute is None:
            session.run_shards(todo, wait=share is None)
        elif todo:
            distribute(config, plan, todo, attempt, progress)
        progress.finish()
    if not unfinished_shards(folder, plan):
        write_index(folder, plan)
    return _summary(folder, plan, started=started, session=session)


@contextmanager
def prepared_run(
    config: CaptionConfig,
    progress: Progress,
    *,
    engine: Engine | None,
    pool: DecodePool,
    repeats: Mapping[str, Any] | None = None,
    save: bool = True,
    plans_only: bool = False,
) -> Iterator[Prepared]:
    """Probe and plan, or find the same plan in `config.out`; at the end close the engine.

    Args:
        config: the settings.
        progress: is told the stage "probe".
        engine: its facts are taken, its weights are not loaded; it stays open. None makes one.
        pool: probes the files.
        repeats: the manifest of a run that the plan must repeat.
        save: write the plan down; else only what was probed is remembered.
        plans_only: nothing will be captioned here.

    Raises:
        FileNotFoundError: see `run`.
        ValueError: see `run`.
    """
    check_reader(config.reader)
    prompts = read_prompts(config.prompts)
    videos = _collect(config)
    check_output(config.out)
    chosen = engine or make_engine(config, plans_only=plans_only)
    try:
        yield _prepare(
            config,
            progress,
            videos,
            engine=chosen,
            prompts=prompts,
            pool=pool,
            repeats=repeats,
            save=save,
        )
    finally:
        if engine is None:
            chosen.close()


def _prepare(
    config: CaptionConfig,
    progress: Progress,
    videos: list[Video],
    *,
    engine: Engine,
    prompts: tuple[Prompt, ...],
    pool: DecodePool,
    repeats: Mapping[str, Any] | None,
    save: bool,
) -> Prepared:
    engine.facts()  # a wrong model is noticed before hours of probing
    folder = config.out
    folder.mkdir(parents=True, exist_ok=True)
    with _only_planner(folder, progress):
        with writing(folder / PROBE_FILE):
            probes: pa.Table = probe_videos(
                videos,
                folder / PROBE_FILE,
                pool,
                progress,
                allow_truncated=config.allow_truncated,
                probe=probe_function(config),
            )
        planner = Planner(config, engine, prompts)
        recipe = recipe_of(config, planner, engine)
        with writing(folder / TABLE_FILE):
            plan = make_plan(
                videos, probes, config, planner, recipe=recipe, prompts=prompts, folder=folder
            )
            if repeats is not None:
                _refuse_another(plan, repeats, folder)
            if save:
                plan = save_plan(plan, folder, settings=recorded_config(config))
            else:
                drop_plan(folder)
    return Prepared(engine, prompts, planner, plan)


def join_run(
    config: CaptionConfig,
    progress: Progress,
    pool: DecodePool,
    *,
    attempt: int = 1,
    engine: Engine | None = None,
) -> Session:
    """A session on the plan that `config.out` holds, for a process that shares a run with others.

    Raises:
        ValueError: this process would caption in another way than planned.
    """
    plan = load_plan(config.out)
    engine = engine or make_engine(config)
    prompts = read_prompts(config.prompts)
    planner = Planner(config, engine, prompts)
    recipe = recipe_of(config, planner, engine)
    names = differing_parts(recipe, {name: plan.parts[name] for name in recipe})
    if names:
        raise ValueError(
            f"this process would not caption as {config.out} was planned (different: "
            f"{', '.join(names)}); use the same version and kind of device for all of a run"
        )
    prepared = Prepared(engine, prompts, planner, plan)
    return session_of(config, prepared, pool, progress, attempt=attempt, is_sharing=True)


def session_of(
    config: CaptionConfig,
    prepared: Prepared,
    pool: DecodePool,
    progress: Progress,
    *,
    attempt: int = 1,
    is_sharing: bool = False,
) -> Session:
    """A session of this process on a prepared run."""
    return Session(
        config=config,
        folder=config.out,
        engine=prepared.engine,
        prompts=prepared.prompts,
        plan=prepared.plan,
        planner=prepared.planner,
        pool=pool,
        progress=progress,
        attempt=attempt,
        is_sharing=is_sharing,
    )


def _collect(config: CaptionConfig) -> list[Video]:
    chosen: dict[str, Any] = {
        "filters": config.filters,
        "pilot": config.pilot,
        "limit": config.limit,
    }
    if config.render:
        from captioning.drawing import collect_skeletons

        return collect_skeletons(config.videos, **chosen)
    return collect_videos(
        config.videos, **chosen, id_column=config.id_column, path_column=config.path_column
    )


@contextmanager
def _only_planner(folder: Path, progress: Progress) -> Iterator[None]:
    """The lock under which a folder is probed and planned; others wait and then find the plan."""
    lock = folder / LOCK_FILE
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, wait=False))
        except BusyError:
            progress.message(f"waiting: another process is probing or planning in {folder}")
            stack.enter_context(locked(lock, wait=True))
        yield


def check_output(folder: Path) -> None:
    """Make sure that captions may be written into a folder.

    Raises:
        ValueError: it is a file, or holds something else of ours.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output {folder} is a file; give a folder")
    for name, kind in (("dataset.json", "data set"), ("metrics.jsonl", "training run")):
        if (folder / name).exists():
            raise ValueError(f"{folder} holds a {kind}; give another output folder")


def _refuse_another(plan: Plan, repeats: Mapping[str, Any], folder: Path) -> None:
    names = differing_parts(plan.parts, repeats["parts"])
    if names:
        drop_plan(folder)
        raise ValueError(
            f"the run of that manifest cannot be repeated here (different: {', '.join(names)}); "
            "give --videos where the same files lie, and the same model, versions and kind of "
            "device; to caption in this other way, give the settings without --manifest"
        )


def _summary(
    folder: Path,
    plan: Plan,
    *,
    started: float,
    was_finished: bool = False,
    session: Session | None = None,
) -> CaptionSummary:
    missing = unfinished_shards(folder, plan)
    result: dict[str, Any] = {"num_rows": 0, "counts": {}, "failures": []}
    if not missing and (folder / MANIFEST_FILE).is_file():
        result = read_json(folder / MANIFEST_FILE, made_by=MADE_BY)["result"]
    num_clips = session.num_generated_clips if session else 0
    return CaptionSummary(
        folder=folder,
        index=folder / INDEX_FILE,
        manifest=folder / MANIFEST_FILE,
        num_videos=plan.num_clips,
        num_unusable=plan.num_clips - plan.table["problem_status"].null_count,
        num_shards=plan.num_shards,
        num_rows=result["num_rows"],
        counts=result["counts"],
        failures=[(name, status, reason) for name, status, reason in result["failures"]],
        missing_shards=missing,
        was_finished=was_finished,
        seconds=time.monotonic() - started,
        clips_per_s=num_clips / session.busy_s if session and num_clips else None,
        waited_share=session.wait_s / session.busy_s if session and num_clips else None,
    )
