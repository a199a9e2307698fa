"""Zero-shot over many choices of unseen classes. `run` is what `hoc zero-shot-sweep` calls.

For every split stage zero is trained on the seen classes, stage one from it, and its run is asked
for the unseen ones. zero-shot-sweep.json, .csv and .md are replaced after every split. A stopped
sweep goes on with the same command; a split that fails stands in the table with its sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import torch

from datasets_build.dataset import SkeletonDataset, open_dataset
from datasets_build.progress import Progress, SilentProgress
from training import train, zero_shot
from training.class_sentences import ClassSentences, read_class_sentences
from training.command_config import ZeroShotSweepConfig
from training.config import TrainConfig
from training.execution import release_memory
from training.run_table import MadeBy, makers, problem_of
from training.side_by_side import refuse_torchrun, side_by_side
from training.zero_shot_plan import PlannedSplit, plan_splits
from training.zero_shot_results import SplitResult, ZeroShotSweepSummary


def run(config: ZeroShotSweepConfig, progress: Progress) -> ZeroShotSweepSummary:
    """Train and score every split that is not there yet.

    Args:
        config: which data, recipes, splits and texts.
        progress: told of every split.

    Raises:
        ValueError: a recipe, a class, the data or a table of texts is wrong; before anything is
            trained.
        FileNotFoundError: the data set, a recipe, a model or a table is not there.
    """
    refuse_torchrun()
    dataset = open_dataset(config.dataset)
    plans = plan_splits(config, dataset)
    sentences = read_class_sentences(config.texts, dataset)
    finished = [plan for plan in plans if _is_scored(plan, dataset)]
    left = [plan for plan in plans if plan not in finished]
    if finished:
        progress.message(f"{len(finished)} of {len(plans)} splits were scored before")
    if left:
        _check(left[0])
    results: dict[str, SplitResult] = {}
    for group, jobs, told in ((finished, 1, SilentProgress()), (left, config.jobs, progress)):
        for result in _measured(group, jobs, told):
            results[result.name] = result
            progress.message(str(result))
            _summary(config, dataset, plans, sentences, results).write()
    return _summary(config, dataset, plans, sentences, results)


def _is_scored(plan: PlannedSplit, dataset: SkeletonDataset) -> bool:
    """Whether a split was scored, with these texts and the weights that its run has."""
    try:
        return zero_shot.scored_before(plan.score, dataset) is not None
    except (FileNotFoundError, ValueError):
        return False  # and told when it is measured


def measure(plan: PlannedSplit, progress: Progress) -> SplitResult:
    """Train and score one split, or find it scored; an error becomes part of the result.

    Args:
        plan: which split.
        progress: told of every logged step and scored batch.
    """
    seconds = 0.0
    try:
        for stage in plan.stages:
            seconds += train.run(stage, progress).seconds
            release_memory()  # a language model, and the next one is loaded soon
        dataset = open_dataset(plan.stages[1].data.dataset)
        result = zero_shot.scored_before(plan.score, dataset)
        result = result or zero_shot.run(plan.score, progress)
    except Exception as error:
        return _failed(plan, error)
    finally:
        release_memory()
    return SplitResult(
        plan.name, plan.unseen, plan.score.run, result, seconds, made_by=_made_by(plan)
    )


def _measured(
    plans: Sequence[PlannedSplit], jobs: int, progress: Progress
) -> Iterator[SplitResult]:
    """The results of splits as they come: one by one, or several at a time."""
    if jobs == 1 or len(plans) < 2:
        for number, plan in enumerate(plans, start=1):
            progress.message(f"[{number}/{len(plans)}] {plan}")
            result = measure(plan, progress)
            progress.finish()
            yield result
        return
    progress.start("zero-shot sweep", len(plans), unit="splits")
    with closing(side_by_side(measure, plans, jobs=jobs)) as events:
        for event in events:
            plan = plans[event.number]
            if event.kind == "advance":
                progress.advance(0, note=f"{plan.name}: {event.note}")
            elif event.kind == "message":
                progress.message(f"{plan.name}: {event.value}")
            elif event.kind in ("done", "failed"):  # failed: its process was killed
                is_done = event.kind == "done"
                result = event.value if is_done else _failed(plan, event.value)
                yield result
                progress.advance(num_failed=result.result is None)
    progress.finish()


def _failed(plan: PlannedSplit, error: Exception) -> SplitResult:
    problem, traceback = problem_of(error)
    return SplitResult(
        plan.name,
        plan.unseen,
        plan.score.run,
        problem=problem,
        traceback=traceback,
        made_by=_made_by(plan),
    )


def _made_by(plan: PlannedSplit) -> tuple[MadeBy, ...]:
    return tuple(dict.fromkeys(by for stage in plan.stages for by in makers(stage.out)))


def _check(plan: PlannedSplit) -> None:
    """Do all that comes before the first step of both stages, so that no stage zero is in vain.

    Raises:
        ValueError, FileNotFoundError: see training.train.run; or stage one cannot start from stage
            zero.
    """
    zero, one = plan.stages
    for key in ("stream", "protocol"):
        ours, theirs = getattr(one.data, key), getattr(zero.data, key)
        if ours != theirs:
            raise ValueError(
                f"stage-one has data.{key} {ours!r} and stage-zero, which it starts from, "
                f"{theirs!r}; give both the same (--set data.{key}=VALUE is for both)"
            )
    shapes = [_encoder_shapes(stage) for stage in plan.stages]
    release_memory()  # its room is for the runs, which may be other processes
    if shapes[0] != shapes[1]:
        raise ValueError(
            "stage-one starts from stage-zero, whose network is another one; give both the same "
            "[model] settings (--set model.KEY=VALUE is for both)"
        )


def _encoder_shapes(stage: TrainConfig) -> dict[str, torch.Size]:
    """Shapes of the encoder of a stage that was prepared as if it started from nothing."""
    alone = stage.method.model_copy(update={"init_from": None, "freeze": ()})
    config = stage.model_copy(update={"method": alone})
    state = train.prepare(config, train.open_asked(config)).method.saved_state()
    return {name: value.shape for name, value in state.items() if name.startswith("encoder.")}


def _summary(
    config: ZeroShotSweepConfig,
    dataset: SkeletonDataset,
    plans: Sequence[PlannedSplit],
    sentences: ClassSentences,
    results: dict[str, SplitResult],
) -> ZeroShotSweepSummary:
    """What there is so far, in the order of the plan."""
    return ZeroShotSweepSummary(
        folder=config.out,
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        num_classes=dataset.num_classes,
        num_unseen=len(plans[0].unseen),
        num_planned=len(plans),
        recipes=(config.stage_zero, config.stage_one),
        protocol=plans[0].stages[1].data.protocol,
        language_model=str(plans[0].stages[1].method.language_model),
        sentences=sentences.as_json(),
        splits=tuple(results[plan.name] for plan in plans if plan.name in results),
    )
