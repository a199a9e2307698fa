from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from datasets_build.progress import SilentProgress
from training.checkpoint import load_weights
from training.config import TrainConfig
from training.side_by_side import train_side_by_side
from training.train import run

Recipe = Callable[..., TrainConfig]

# Most of the time goes into starting processes, each of which loads torch: 3 s.
SMALL: dict[str, dict[str, Any]] = {
    "data": {"num_frames": 8},
    "model": {"base_channels": 4, "switches": {"num_subsets": 1}},
}


class Counting(SilentProgress):
    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        self.total = total

    def advance(self, num_done: int = 1, **_: Any) -> None:
        self.done += num_done


def test_runs_side_by_side_end_with_the_weights_of_runs_one_by_one(recipe: Recipe) -> None:
    configs = [recipe(f"run{seed}", loop={"epochs": 1, "seed": seed}, **SMALL) for seed in (1, 2)]
    progress = Counting()
    summaries = train_side_by_side(configs, progress)
    assert [summary.folder for summary in summaries] == [config.out for config in configs]
    assert progress.total
    assert progress.done == progress.total
    alone = recipe("alone", loop={"epochs": 1, "seed": 1}, **SMALL)
    run(alone, SilentProgress())
    one, two, other = (
        load_weights(folder) for folder in (configs[0].out, alone.out, configs[1].out)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    (again,) = train_side_by_side(configs[:1], Counting())
    assert again.already_finished


def test_the_error_of_a_run_is_raised_here(recipe: Recipe) -> None:
    wrong = recipe("wrong", data={"protocol": "no-such"})
    with pytest.raises(ValueError, match="no-such"):
        train_side_by_side([recipe("right"), wrong], SilentProgress())
