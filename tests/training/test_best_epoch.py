from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from datasets_build.manifest import sha256_file
from datasets_build.progress import SilentProgress
from training import best_epoch
from training.best_epoch import forget_best, load_best, read_best, save_best
from training.command_config import EvaluateConfig
from training.config import TrainConfig
from training.evaluate import run as evaluate
from training.train import run


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"head.weight": torch.full((2, 3), value).t(), "bn.count": torch.tensor(int(value))}


def test_only_better_epochs_replace_the_best_and_equal_ones_do_not(tmp_path: Path) -> None:
    kept = [
        save_best(tmp_path, weights(epoch), epoch=epoch, value=value, split="validation")
        for epoch, value in ((1, 0.5), (2, 0.4), (3, 0.75), (4, 0.75))
    ]
    assert kept == [True, False, True, False]
    best = read_best(tmp_path)
    assert (best.epoch, best.value, best.split) == (3, 0.75, "validation")
    found, saved = load_best(tmp_path)
    assert found == best
    assert all(torch.equal(saved.tensors[name], value) for name, value in weights(3).items())
    assert (saved.sha256, saved.epoch) == (sha256_file(best.path), 3)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["model.safetensors"]


def test_best_weights_that_a_run_replaces_meanwhile_are_all_of_one_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_best(tmp_path, weights(1), epoch=1, value=0.1, split="test")

    def replacing(path: Path) -> dict[str, torch.Tensor]:
        found = load_file(path)
        save_best(tmp_path, weights(2), epoch=2, value=0.2, split="test")
        return found

    monkeypatch.setattr(best_epoch, "load_file", replacing)
    best, saved = load_best(tmp_path)
    assert best.epoch == saved.epoch == 2
    assert torch.equal(saved.tensors["bn.count"], torch.tensor(2))
    assert saved.sha256 == sha256_file(best.path)


def test_the_label_says_what_was_looked_at(tmp_path: Path) -> None:
    save_best(tmp_path / "a", weights(1), epoch=1, value=0.5, split="validation")
    save_best(tmp_path / "b", weights(1), epoch=1, value=0.5, split="test")
    assert read_best(tmp_path / "a").label == "best epoch on the validation split"
    label = read_best(tmp_path / "b").label
    assert label == "best epoch on the test split: chosen by looking at test data"


def test_a_run_that_goes_on_from_an_earlier_epoch_ends_with_the_same_best(tmp_path: Path) -> None:
    values = (0.1, 0.6, 0.3, 0.9, 0.9, 0.2)
    ends = []
    for name, restarts in (("whole", ()), ("killed", ((5, 3), (2, 1)))):
        folder = tmp_path / name
        epoch, left = 0, list(restarts)
        while epoch < len(values):
            epoch += 1
            save_best(folder, weights(epoch), epoch=epoch, value=values[epoch - 1], split="test")
            if left and left[-1][0] == epoch:
                _, epoch = left.pop()
                forget_best(folder, after=epoch)
        ends.append((read_best(folder).epoch, read_best(folder).value))
    assert ends == [(4, 0.9), (4, 0.9)]


def test_weights_of_an_epoch_that_the_run_has_not_trained_are_dropped(tmp_path: Path) -> None:
    save_best(tmp_path, weights(3), epoch=3, value=0.9, split="test")
    forget_best(tmp_path, after=3)
    assert read_best(tmp_path).epoch == 3
    forget_best(tmp_path, after=2)
    with pytest.raises(FileNotFoundError, match="kept no best epoch"):
        read_best(tmp_path)


def test_best_weights_that_are_not_there_or_damaged_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="kept no best epoch"):
        read_best(tmp_path)
    forget_best(tmp_path, after=0)
    save_best(tmp_path, weights(1), epoch=1, value=0.5, split="test")
    path = tmp_path / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="is damaged"):
        read_best(tmp_path)


def test_a_run_keeps_the_epoch_that_scored_best_and_evaluation_labels_it(
    recipe: Callable[..., TrainConfig],
) -> None:
    config = recipe(loop={"epochs": 3, "evaluate_every_epochs": 1, "keep_best_epoch": True})
    run(config, SilentProgress())
    lines = [json.loads(x) for x in (config.out / "metrics.jsonl").read_text().splitlines()]
    scores = [line["test/top1"] for line in lines if "test/top1" in line]
    best = read_best(config.out)
    assert best.value == pytest.approx(max(scores), abs=1e-5)
    assert best.epoch == scores.index(max(scores)) + 1
    summary = evaluate(EvaluateConfig(run=config.out, weights="best"), SilentProgress())
    assert summary.accuracy.top1 == pytest.approx(best.value)
    metrics = json.loads((config.out / "metrics-test-best-epoch.json").read_text())
    assert "chosen by looking at test data" in metrics["weights"]


def test_a_best_epoch_without_evaluations_is_refused(recipe: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ValueError, match="keep_best_epoch needs evaluate_every_epochs"):
        recipe(loop={"keep_best_epoch": True})
