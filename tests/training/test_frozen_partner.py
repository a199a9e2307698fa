"""Which weights of a language model a run stands for, and when they are needed at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from datasets_build.progress import SilentProgress
from training.command_config import DescribeConfig, EvaluateConfig
from training.config import TrainConfig
from training.describe import run as describe
from training.evaluate import run as evaluate
from training.models.language_model import FrozenLanguageModel
from training.train import run

Recipe = Callable[..., TrainConfig]


@pytest.fixture
def partner(language_model_folder: Path, tmp_path: Path) -> Path:
    """A language model of the test's own, whose weights it may change."""
    return Path(shutil.copytree(language_model_folder, tmp_path / "partner"))


@pytest.fixture
def trained(recipe: Recipe, hocslm: dict[str, Any], partner: Path) -> TrainConfig:
    method = {**hocslm, "language_model": str(partner)}
    config = recipe(loop={"epochs": 1}, method=method)
    run(config, SilentProgress())
    return config


def change_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + 1}, path, metadata={"format": "pt"})


def test_other_weights_of_the_language_model_are_another_run(
    trained: TrainConfig, partner: Path
) -> None:
    assert run(trained, SilentProgress()).steps  # found finished
    change_weights(partner)
    with pytest.raises(ValueError, match="language_model_weights: "):
        run(trained, SilentProgress())
    with pytest.raises(ValueError, match="was trained with other weights of language model"):
        describe(DescribeConfig(run=trained.out, every=True, device="cpu"), SilentProgress())


def test_a_language_model_that_was_moved_is_the_same(trained: TrainConfig, partner: Path) -> None:
    elsewhere = partner.rename(partner.with_name("elsewhere"))
    method = trained.method.model_copy(update={"language_model": str(elsewhere)})
    moved = trained.model_copy(update={"method": method})
    assert run(moved, SilentProgress()).steps == run(moved, SilentProgress()).steps


def test_memory_is_saved_without_beginning_anew(trained: TrainConfig) -> None:
    method = trained.method.model_copy(update={"gradient_checkpointing": True})
    assert trained.model_copy(update={"method": method}).request() == trained.request()


def test_class_scores_need_no_language_model(trained: TrainConfig, partner: Path) -> None:
    shutil.rmtree(partner)
    evaluate(EvaluateConfig(run=trained.out, device="cpu"), SilentProgress())
    assert (trained.out / "metrics.json").is_file()


def test_without_the_caption_loss_neither_captions_nor_weights_are_read(
    recipe: Recipe,
    hocslm: dict[str, Any],
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_captions(row: dict[str, Any]) -> None:
        row["captions"] = []

    mute = make_dataset(tmp_path / "mute", change=no_captions)
    monkeypatch.setattr(FrozenLanguageModel, "load", lambda *_, **__: pytest.fail("loaded"))
    method = {**hocslm, "lambda_gen": 0.0}
    config = recipe(data={"dataset": mute}, loop={"epochs": 1}, method=method)
    assert run(config, SilentProgress()).steps
    with pytest.raises(ValueError, match="it learned no text"):
        describe(DescribeConfig(run=config.out, every=True, device="cpu"), SilentProgress())
