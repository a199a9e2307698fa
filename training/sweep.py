"""A table of runs: rows x streams x seeds are trained, scored and summed. `run` is `hoc sweep`.

OUT/ROW/STREAM-seedK are run folders as `hoc train` writes them, OUT/ROW/ensemble-STREAMS-RULE-seedK
what `hoc ensemble` writes; OUT/SWEEP.md, .csv and .json are replaced after every run that ends. A
stopped sweep goes on with the same command: finished runs are found, begun ones resumed. A run that
fails stands in the table with its sentence, and so do those that would have started from it; the
others go on.

Ensembles: equal weights, and one rule fixed beforehand, positions 1.5 and motions 1
(InfoGCN's). Nothing is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from datasets_build.dataset import SkeletonDataset, open_dataset
from datasets_build.manifest import read_json, sha256_file
from datasets_build.progress import Progress, SilentProgress
from training import ensemble, evaluate, train
from training.checkpoint import LAST, MODEL_FILE, read_request
from training.command_config import EnsembleConfig, EvaluateConfig, Rule, SweepConfig
from training.execution import release_memory
from training.run_table import makers, problem_of
from training.scores import SCORES_SHA256, metrics_file, scores_file
from training.side_by_side import Turn, refuse_torchrun, side_by_side
from training.streams import STREAMS, is_motion
from training.sweep_check import check_sweep
from training.sweep_plan import PlannedRun, SweepPlan, plan_sweep
from training.sweep_results import EnsembleResult, Reached, RunResult, SweepSummary

# How streams are summed, in folder names, and what the table calls it.
RULES: dict[Rule, str] = {"equal": "sum 1:1", "position-motion": "sum 1.5:1"}


def run(config: SweepConfig, progress: Progress) -> SweepSummary:
    """Train, score and sum every run of a sweep that is not there yet.

    Args:
        config: which sweep, data, streams and seeds.
        progress: told of every run.

    Raises:
        ValueError: a recipe, a switch, the protocol or a start is wrong, or captions are missing;
            before anything is trained.
        FileNotFoundError: the data set, a recipe or a language model is not there; as early.
    """
    refuse_torchrun()
    plan = plan_sweep(config)
    dataset = open_dataset(config.dataset)
    protocols = check_sweep(plan, dataset)
    sweep = _Sweep(config, plan, dataset, ", ".join(protocols))
    sweep.run(progress)
    return sweep.summary()


class _Sweep:
    """The results of one call of `run`, in the order in which they came."""

    def __init__(
        self, config: SweepConfig, plan: SweepPlan, dataset: SkeletonDataset, protocol: str
    ) -> None:
        self.config = config
        self.plan = plan
        self.dataset = dataset
        self.protocol = protocol
        self.results: dict[Path, RunResult] = {}
        self.ensembles: dict[Path, EnsembleResult] = {}

    def run(self, progress: Progress) -> None:
        """Runs that are finished first, so that the table has them; then the others."""
        runs = self.plan.runs
        finished = [run for run in runs if run.config.is_trained]
        if finished:
            progress.message(f"{len(finished)} of {len(runs)} runs are already trained")
        for planned in finished:
            if self._turn(planned) == "now":  # else its start must be trained again
                self._take(measure(planned, SilentProgress()), progress)
        left = [planned for planned in runs if planned.config.out not in self.results]
        if self.config.jobs > 1 and len(left) > 1:
            self._side_by_side(left, progress)
            return
        for planned in left:
            if self._turn(planned) == "now":
                progress.message(f"[{len(self.results) + 1}/{len(runs)}] {planned}")
                result = measure(planned, progress)
                progress.finish()
                self._take(result, progress)

    def summary(self) -> SweepSummary:
        """What there is so far, in the order of the plan."""
        results = [self.results.get(planned.config.out) for planned in self.plan.runs]
        return SweepSummary(
            folder=self.config.out,
            plan=self.plan,
            dataset=self.dataset.name,
            dataset_fingerprint=self.dataset.fingerprint,
            protocol=self.protocol,
            runs=tuple(result for result in results if result is not None),
            ensembles=tuple(self.ensembles.values()),
        )

    def _side_by_side(self, left: Sequence[PlannedRun], progress: Progress) -> None:
        progress.start("sweep", len(left), unit="runs")
        jobs = self.config.jobs
        with closing(side_by_side(measure, left, jobs=jobs, turn=self._turn)) as events:
            for event in events:
                planned, before = left[event.number], len(self.results)
                if event.kind == "advance":
                    progress.advance(0, note=f"{planned}: {event.note}")
                elif event.kind == "message":
                    progress.message(f"{planned}: {event.value}")
                elif event.kind in ("done", "failed"):  # failed: its process was killed
                    is_killed = event.kind == "failed"
                    self._take(
                        _failed(planned, event.value) if is_killed else event.value, progress
                    )
                    ended = list(self.results.values())[before:]  # with those that it failed
                    num_failed = sum(result.reached is None for result in ended)
                    progress.advance(len(ended), num_failed=num_failed)
        progress.finish()

    def _turn(self, planned: PlannedRun) -> Turn:
        """Whether a run may begin: not before the one that it starts from, nor twice."""
        if planned.config.out in self.results:
            return "never"
        if planned.start is None or planned.start.config.out in self.results:
            return "now"
        return "later"

    def _take(self, result: RunResult, progress: Progress) -> None:
        """Keep the result of a run; where it failed, so have those that start from it."""
        self.results[result.folder] = result
        if result.reached is None:
            progress.message(f"{result.name} failed: {result.problem}")
            for planned in self.plan.runs:
                if planned.start is not None and planned.start.config.out == result.folder:
                    error = ValueError(f"it starts from {result.name}, which failed")
                    self._take(_failed(planned, error), progress)
        else:
            progress.message(f"{result.name}: {result.reached.top1:.2%}")
            self._ensembles(result)
        self.summary().write()

    def _ensembles(self, result: RunResult) -> None:
        """Sum the streams of a row and seed of the table, where this was the last one."""
        if not any(row.in_table for row in self.plan.rows if row.name == result.row):
            return
        group = [
            self.results.get(planned.config.out)
            for planned in self.plan.runs
            if (planned.row, planned.seed) == (result.row, result.seed)
        ]
        members = [member for member in group if member is not None and member.reached is not None]
        if len(members) < max(2, len(group)):
            return
        num_motions = sum(is_motion(member.stream) for member in members)
        for rule, shown in RULES.items():
            if rule != "equal" and num_motions in (0, len(members)):
                continue  # the same weights for all
            what = "all" if set(self.plan.streams) == set(STREAMS) else "+".join(self.plan.streams)
            folder = self.config.out / result.row / f"ensemble-{what}-{rule}-seed{result.seed}"
            runs = tuple(member.folder for member in members)
            settings = EnsembleConfig(runs=runs, rule=rule, out=folder)
            summary = ensemble.run(settings, SilentProgress())
            weights = {member.stream: member.weight for member in summary.members}
            found = summary.accuracy
            reached = Reached(found.top1, found.top5, found.mean_class)
            self.ensembles[folder] = EnsembleResult(
                result.row, result.seed, shown, weights, folder, reached
            )


def measure(planned: PlannedRun, progress: Progress) -> RunResult:
    """Train and score one run, or find it trained and scored; an error becomes part of the result.

    Args:
        planned: which run.
        progress: told of every logged step and scored batch.
    """
    config = planned.config
    try:
        if config.loop.compile != "no":
            torch.compiler.reset()  # its limit on recompilations counts over all runs of a process
        trained = train.run(config, progress)
        reached = _scored_before(config.out)
        if reached is None:
            settings = EvaluateConfig(run=config.out, device=config.loop.device)
            found = evaluate.run(settings, progress).accuracy
            reached = Reached(found.top1, found.top5, found.mean_class)
    except Exception as error:
        return _failed(planned, error)
    finally:
        release_memory()
    return RunResult(
        planned.row,
        planned.stream,
        planned.seed,
        config.out,
        reached=reached,
        epochs=trained.epochs,
        train_seconds=trained.seconds,
        samples_per_s=trained.samples_per_s,
        made_by=makers(config.out),
    )


def _failed(planned: PlannedRun, error: Exception) -> RunResult:
    problem, traceback = problem_of(error)
    return RunResult(
        planned.row,
        planned.stream,
        planned.seed,
        planned.config.out,
        problem=problem,
        traceback=traceback,
        made_by=makers(planned.config.out),
    )


def _scored_before(folder: Path) -> Reached | None:
    """The test accuracies in a run folder, where they are of its present weights and own data."""
    path, scores = metrics_file(folder, "test"), scores_file(folder, "test")
    if not path.is_file() or not scores.is_file():
        return None
    found = read_json(path, made_by="hoc evaluate")
    _, request = read_request(folder)
    now = {
        "weights_sha256": sha256_file(folder / LAST / MODEL_FILE),
        "dataset_fingerprint": request["dataset_fingerprint"],
        "protocol": request["protocol"],
        SCORES_SHA256: sha256_file(scores),
    }
    if any(found.get(key) != value for key, value in now.items()):
        return None
    return Reached(found["top1"], found["top5"], found["mean_class"])
