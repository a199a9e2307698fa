"""Which splits into seen and unseen classes a zero-shot sweep trains; imports no torch.

OUT/UNSEEN/stage-zero and OUT/UNSEEN/stage-one are the run folders of a split; UNSEEN is made of the
action_ids that it leaves out, such as A001-A009.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets_build.dataset import SkeletonDataset
from datasets_build.settings import parse_assignment
from training.command_config import ZeroShotConfig, ZeroShotSweepConfig
from training.config import TrainConfig
from training.recipe_files import load_recipe
from training.unseen_classes import unseen_labels

STAGES = ("stage-zero", "stage-one")
_MOST_SPLITS = 2000  # all pairs of 60 classes are 1770; our choice
_OWN_KEYS = {
    "out": "--out",
    "data.dataset": "--data",
    "data.unseen_classes": "--splits",
    "method.init_from": "stage zero of each split",
}


@dataclass(frozen=True)
class PlannedSplit:
    """The two runs of one choice of unseen classes.

    Attributes:
        name: its folder.
        unseen: names of the unseen classes, in label order.
        stages: the resolved recipes; the second starts from the first.
        score: what is asked of the second.
    """

    name: str
    unseen: tuple[str, ...]
    stages: tuple[TrainConfig, TrainConfig]
    score: ZeroShotConfig

    def __str__(self) -> str:
        return f"without {' and '.join(self.unseen)}"


def plan_splits(config: ZeroShotSweepConfig, dataset: SkeletonDataset) -> list[PlannedSplit]:
    """Choose the unseen classes of every split and resolve its recipes.

    Raises:
        ValueError: a recipe, an assignment or a class is wrong, or there are too many splits.
        FileNotFoundError: a recipe is not there.
    """
    if config.splits is not None:
        chosen = [tuple(sorted(unseen_labels(dataset.classes, s))) for s in config.splits]
    else:
        chosen = draw_splits(dataset.num_classes, config.num_unseen, most=config.num_splits)
    plans = [_planned(config, dataset, labels) for labels in dict.fromkeys(chosen)]
    for stage, wanted in zip(plans[0].stages, ("classify", "hocslm"), strict=True):
        if stage.method.name != wanted:
            raise ValueError(
                f"{stage.out.name} needs a recipe of method {wanted!r}, given one of "
                f"{stage.method.name!r}; give --stage-zero and --stage-one such recipes"
            )
    return plans


def draw_splits(num_classes: int, num_unseen: int, *, most: int | None) -> list[tuple[int, ...]]:
    """The labels that each split leaves out: all choices, or the first so many, in a seeded order.

    So that the splits of a sweep that is cut short are a fair sample of all.

    Raises:
        ValueError: no class is left to train on, or there are too many splits.
    """
    if num_unseen >= num_classes:
        raise ValueError(
            f"{num_unseen} of {num_classes} classes cannot be left out; leave some to train on"
        )
    num_all = math.comb(num_classes, num_unseen)
    if min(num_all, most or num_all) > _MOST_SPLITS:
        raise ValueError(
            f"{num_unseen} of {num_classes} classes can be chosen in {num_all:,} ways; give "
            f"--splits a number up to {_MOST_SPLITS}, or the splits themselves"
        )
    rng = np.random.default_rng(0)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < min(num_all, most or num_all):
        labels = rng.choice(num_classes, num_unseen, replace=False)
        found[tuple(sorted(labels.tolist()))] = None
    return list(found)


def _planned(
    config: ZeroShotSweepConfig, dataset: SkeletonDataset, labels: Sequence[int]
) -> PlannedSplit:
    entries = [dataset.classes[label] for label in labels]
    name = "-".join(f"A{entry.action_id:03d}" for entry in entries)
    folders = [config.out / name / stage for stage in STAGES]
    action_ids = tuple(entry.action_id for entry in entries)
    zero = _stage(config, 0, folders[0], action_ids, init_from=None)
    one = _stage(config, 1, folders[1], action_ids, init_from=folders[0])
    score = ZeroShotConfig(run=folders[1], texts=config.texts, device=one.loop.device)
    return PlannedSplit(name, tuple(entry.name for entry in entries), (zero, one), score)


def _stage(
    config: ZeroShotSweepConfig,
    number: int,
    folder: Path,
    action_ids: tuple[int, ...],
    *,
    init_from: Path | None,
) -> TrainConfig:
    """The resolved recipe of one stage."""
    resolved = load_recipe(
        (config.stage_zero, config.stage_one)[number],
        _assignments_for(STAGES[number], config.assignments),
        {
            "out": folder,
            "data": {"dataset": config.dataset, "unseen_classes": action_ids},
            "method": {"init_from": init_from},
            "loop": {"device": config.device},
        },
    )
    return resolved.sharing_cores(config.jobs)


def _assignments_for(stage: str, assignments: Sequence[str]) -> list[str]:
    """The assignments without a stage before them, and those of this stage, in their order."""
    found = []
    for text in assignments:
        before, colon, rest = text.partition(":")
        has_stage = bool(colon) and "=" not in before
        if has_stage and before not in STAGES:
            raise ValueError(f"--set {text}: {before!r} is no stage; there are {', '.join(STAGES)}")
        own = rest if has_stage else text
        key = ".".join(parse_assignment(own)[0])
        if key in _OWN_KEYS:
            raise ValueError(f"--set {text}: a zero-shot sweep is told that by {_OWN_KEYS[key]}")
        if not has_stage or before == stage:
            found.append(own)
    return found
