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


class Counting(SilentProgress):
    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        self.total = total

    def advance(self, num_done: int = 1, **_: Any) -> None:
        self.done += num_done


def test_runs_side_by_side_end_with_the_weights_of_runs_one_by_one(recipe: Recipe) -> None:
    configs = [recipe("a", loop={"seed": 1, "num_threads": 1}), recipe("b", loop={"seed": 2})]
    progress = Counting()
    summaries = train_side_by_side(configs, progress)
    assert [summary.folder for summary in summaries] == [config.out for config in configs]
    assert progress.total
    assert progress.done == progress.total
    alone = recipe("alone", loop={"seed": 1, "num_threads": 1})
    run(alone, SilentProgress())
    one, two = load_weights(configs[0].out), load_weights(alone.out)
    assert all(torch.equal(one[name], two[name]) for name in one)
    again = train_side_by_side(configs, Counting())
    assert all(summary.already_finished for summary in again)


def test_the_error_of_a_run_is_raised_here(recipe: Recipe) -> None:
    wrong = recipe("wrong", data={"protocol": "no-such"})
    with pytest.raises(ValueError, match="no-such"):
        train_side_by_side([recipe("right"), wrong], SilentProgress())
