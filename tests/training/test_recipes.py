from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datasets_build.progress import SilentProgress
from datasets_build.protocols import protocol_named
from training.build import MODELS
from training.config import RECIPES_FOLDER, TrainConfig, load_recipe, recipe_names
from training.train import run

FLAGS = {"out": "runs/a", "data": {"dataset": "data/a"}}


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_valid_and_names_things_that_exist(name: str) -> None:
    config = load_recipe(name, flags=FLAGS)
    protocol_named(config.data.protocol)
    assert config.model.name in MODELS


@pytest.mark.parametrize("name", recipe_names())
def test_first_comment_of_a_recipe_tells_command_hardware_and_expectation(name: str) -> None:
    lines = (RECIPES_FOLDER / f"{name}.toml").read_text().splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line)
    text = " ".join(comment)
    assert f"hoc train --recipe {name}" in text
    assert "Hardware" in text
    assert "Expected" in text


def test_debug_twin_of_the_parent_recipe_runs_and_its_first_loss_is_pinned(
    dataset_folder: Path, tmp_path: Path
) -> None:
    config = load_recipe(
        "ntu60-xsub-hglnet",
        [
            "data.num_frames=16",
            "model.base_channels=8",
            "loop.epochs=1",
            "loop.batch_size=8",
            "loop.mixed_precision=no",
            "loop.deterministic=true",
            "loop.log_every_steps=1",
        ],
        {
            "out": str(tmp_path / "run"),
            "data": {"dataset": str(dataset_folder)},
            "loop": {"device": "cpu", "num_threads": 1},
        },
    )
    summary = run(config, SilentProgress())
    assert summary.steps == 3
    # ln 3 is the loss of three equal logits; the head starts small but not at zero.
    assert 0.5 < summary.metrics["train/loss"] < 3.5


def test_recipes_of_tests_are_like_the_shipped_ones(recipe: Callable[..., TrainConfig]) -> None:
    assert recipe().request().keys() == load_recipe("demo", flags=FLAGS).request().keys()
