from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets_build.progress import SilentProgress
from training import evaluate, train
from training.config import EvaluateConfig, TrainConfig
from training.evaluate import read_scores
from training.metrics import accuracy, confusion_matrix, top_k_share, worst_pairs


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"root": tmp_path_factory.mktemp("runs")}


@pytest.fixture
def trained(recipe: Callable[..., TrainConfig], shared: dict[str, Path]) -> Path:
    """One run for this file."""
    config = recipe(loop={"epochs": 6}).model_copy(update={"out": shared["root"] / "run"})
    train.run(config, SilentProgress())
    return config.out


def test_evaluation_writes_scores_metrics_and_the_confusion_matrix(trained: Path) -> None:
    summary = evaluate.run(EvaluateConfig(run=trained, device="cpu"), SilentProgress())
    ids, labels, scores = read_scores(trained / "scores-test.parquet")
    assert ids == sorted(ids)
    assert scores.shape == (12, 3)
    assert summary.accuracy.num_samples == 12
    assert summary.accuracy.top1 == pytest.approx((scores.argmax(1) == labels).mean())
    record = json.loads((trained / "metrics.json").read_text())
    assert record["top1"] == pytest.approx(summary.accuracy.top1)
    assert record["weights"] == "last epoch"
    assert record["epochs"] == 6
    with (trained / "confusion-test.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == ["sit down", "clapping", "hand waving"]
    assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == 12
    assert (trained / "confusion-test.png").read_bytes().startswith(b"\x89PNG")
    assert all(path.is_file() for path in summary.files)


def test_evaluation_twice_gives_the_same_bytes_whatever_the_batch(trained: Path) -> None:
    found = []
    for batch_size in (64, 64, 5):
        evaluate.run(
            EvaluateConfig(run=trained, device="cpu", batch_size=batch_size), SilentProgress()
        )
        found.append(read_scores(trained / "scores-test.parquet")[2])
    assert np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2], rtol=1e-4, atol=1e-4)


def test_the_training_split_has_files_of_its_own(trained: Path) -> None:
    evaluate.run(EvaluateConfig(run=trained, split="train", device="cpu"), SilentProgress())
    assert len(read_scores(trained / "scores-train.parquet")[0]) == 24
    assert (trained / "metrics-train.json").is_file()


def test_a_data_set_of_another_class_order_is_refused(
    trained: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_dataset(tmp_path / "other", class_order=(1, 0, 2))
    with pytest.raises(ValueError, match=r"label 0 is 'sit down' \(A008\) there and 'clapping'"):
        evaluate.run(EvaluateConfig(run=trained, dataset=other, device="cpu"), SilentProgress())


def test_a_data_set_of_other_classes_is_refused(
    trained: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_dataset(tmp_path / "other", num_classes=4)
    with pytest.raises(ValueError, match="3 classes there and 4 here"):
        evaluate.run(EvaluateConfig(run=trained, dataset=other, device="cpu"), SilentProgress())


def test_a_folder_that_is_no_run_says_which_command_makes_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="hoc train"):
        evaluate.run(EvaluateConfig(run=tmp_path), SilentProgress())


def test_scores_that_are_not_there_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="hoc evaluate"):
        read_scores(tmp_path / "scores-test.parquet")
    (tmp_path / "scores-test.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a scores file"):
        read_scores(tmp_path / "scores-test.parquet")


def test_accuracies_of_a_hand_made_example() -> None:
    scores = np.array([[3, 1, 0], [0, 2, 1], [5, 4, 3], [0, 1, 2]], np.float32)
    labels = np.array([0, 1, 1, 1])
    found = accuracy(scores, labels, ["a", "b", "c"])
    assert found.top1 == 0.5
    assert found.top5 == 1.0
    assert found.per_class == {"a": 1.0, "b": pytest.approx(1 / 3)}
    assert found.mean_class == pytest.approx(2 / 3)
    matrix = confusion_matrix(scores, labels)
    assert matrix.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    first, second = worst_pairs(matrix, ["a", "b", "c"])
    assert (first.truth, first.taken_for, first.num_samples) == ("b", "a", 1)
    assert (second.truth, second.taken_for) == ("b", "c")
    assert second.share == pytest.approx(1 / 3)


def test_equal_scores_are_no_hit() -> None:
    scores = np.zeros((2, 10), np.float32)
    assert top_k_share(scores, np.array([0, 3]), 5) == 0.0


def test_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample"):
        accuracy(np.zeros((0, 3)), np.zeros(0, int), ["a", "b", "c"])
