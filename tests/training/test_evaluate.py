from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from datasets_build.dataset import open_dataset
from datasets_build.manifest import sha256_file
from datasets_build.progress import SilentProgress
from training import evaluate, loop, train
from training.best_epoch import save_best
from training.build import build_method, read_run
from training.checkpoint import load_checkpoint, load_weights, model_path, save_checkpoint
from training.command_config import EvaluateConfig
from training.config import TrainConfig
from training.evaluate import load_run
from training.loading import load_split
from training.methods.method import Method
from training.metrics import accuracy, confusion_matrix, top_k_share, worst_pairs
from training.scores import read_evaluation, read_scores, write_scores


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
    assert record["validation_subjects"] == []
    digest = hashlib.sha256(model_path(trained).read_bytes()).hexdigest()
    assert record["weights_sha256"] == digest
    with (trained / "confusion-test.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == ["sit down", "clapping", "hand waving"]
    assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == 12
    assert (trained / "confusion-test.png").read_bytes().startswith(b"\x89PNG")
    assert all(path.is_file() for path in summary.files)


def test_scores_are_told_by_the_weights_that_gave_them_while_the_run_goes_on(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_checkpoint(trained)
    sha256 = sha256_file(model_path(trained))

    def meanwhile(*arguments: Any, **options: Any) -> Method:
        zeros = {name: torch.zeros_like(value) for name, value in before.weights.items()}
        save_checkpoint(trained, replace(before, weights=zeros, epoch=5))
        return build_method(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "build_method", meanwhile)
        summary = evaluate.run(EvaluateConfig(run=trained, device="cpu"), SilentProgress())
    record = json.loads((trained / "metrics.json").read_text())
    assert (record["weights_sha256"], record["epochs"]) == (sha256, 6)
    assert summary.weights == "last epoch"
    now = evaluate.run(EvaluateConfig(run=trained, device="cpu"), SilentProgress())
    assert now.weights == "unfinished run: 5 of 6 epochs are done"
    save_checkpoint(trained, before)


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


def files_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_test_samples_of_another_protocol_that_the_run_was_trained_on_are_refused(
    trained: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    before = files_of(trained)
    xview = {"run": trained, "protocol": "ntu60-xview", "device": "cpu"}  # all 36 are its test
    said = r"trained on 24 of the 36 test samples of ntu60-xview \(for example S001C001P001R001A008"
    with pytest.raises(ValueError, match=said):
        evaluate.run(EvaluateConfig.model_validate(xview), SilentProgress())
    other = make_dataset(tmp_path / "other", seed=1)  # the same recordings, read otherwise
    with pytest.raises(ValueError, match=said):
        evaluate.run(EvaluateConfig.model_validate({**xview, "dataset": other}), SilentProgress())
    assert files_of(trained) == before


def test_validation_subjects_were_not_trained_on(recipe: Callable[..., TrainConfig]) -> None:
    config = recipe(data={"validation_subjects": (2,)}, loop={"epochs": 1})
    train.run(config, SilentProgress())
    with pytest.raises(ValueError, match="trained on 12 of the 36 test samples"):
        evaluate.run(
            EvaluateConfig(run=config.out, protocol="ntu60-xview", device="cpu"), SilentProgress()
        )


def test_results_under_another_protocol_or_data_set_have_files_of_their_own(
    trained: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    evaluate.run(EvaluateConfig(run=trained, device="cpu"), SilentProgress())
    before = files_of(trained)
    other = make_dataset(tmp_path / "other", seed=1)
    data = f"small-{open_dataset(other).fingerprint[:8]}"
    for options, stem in (
        ({"protocol": "ntu120-xsub"}, "test-ntu120-xsub"),
        ({"dataset": other}, f"test-{data}"),
        ({"protocol": "ntu120-xsub", "dataset": other}, f"test-ntu120-xsub-{data}"),
        ({"protocol": "ntu120-xsub", "split": "train"}, "train-ntu120-xsub"),
    ):
        values = {"run": trained, "device": "cpu", **options}
        summary = evaluate.run(EvaluateConfig.model_validate(values), SilentProgress())
        assert {path.name for path in summary.files} == {
            f"scores-{stem}.parquet",
            f"metrics-{stem}.json",
            f"confusion-{stem}.csv",
            f"confusion-{stem}.png",
        }
        record = json.loads((trained / f"metrics-{stem}.json").read_text())
        assert record["protocol"] == options.get("protocol", "ntu60-xsub")
    assert {name: files_of(trained)[name] for name in before} == before
    same = {
        "run": trained,
        "protocol": "ntu60-xsub",
        "dataset": read_run(trained).config.data.dataset,
    }
    summary = evaluate.run(
        EvaluateConfig.model_validate({**same, "device": "cpu"}), SilentProgress()
    )
    assert summary.files[1].name == "metrics.json"
    assert set(files_of(trained)) - set(before), "the files above were new"


def test_a_body_that_was_not_seen_is_what_it_was_in_training_whatever_the_protocol(
    trained: Path,
) -> None:
    loaded = load_run(trained, dataset=None, protocol="ntu120-xsub", device="cpu")
    config = loaded.record.config.data
    plain = load_split(loaded.dataset, loaded.protocol, "test", config, device=loaded.device)
    for store, is_copy in ((loaded.store("test"), False), (plain, True)):  # "copy" is NTU120's
        x = store.batch(store.in_order(), training=False).x  # (N, 2, T, V, C)
        unseen = x[torch.from_numpy(store.bodies == 1), 1]
        assert len(unseen)
        assert bool(unseen.any()) == is_copy


def test_scores_that_were_changed_since_are_refused(trained: Path) -> None:
    evaluate.run(EvaluateConfig(run=trained, device="cpu"), SilentProgress())
    found = read_evaluation(trained, "test")
    assert found.record["scores_sha256"] == sha256_file(trained / "scores-test.parquet")
    write_scores(trained / "scores-test.parquet", found.sample_ids, found.labels, -found.scores)
    with pytest.raises(ValueError, match=r"is not the file that metrics\.json was written with"):
        read_evaluation(trained, "test")


def test_there_is_no_validation_split_without_validation_subjects(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"no validation split.*data\.validation_subjects"):
        evaluate.run(
            EvaluateConfig(run=trained, split="validation", device="cpu"), SilentProgress()
        )


def test_a_run_with_validation_subjects_logs_and_scores_them_and_trains_on_the_others(
    recipe: Callable[..., TrainConfig],
) -> None:
    config = recipe(
        data={"validation_subjects": (2,), "stream": "bone", "orphan": "keep"},
        loop={"evaluate_every_epochs": 1},
    )
    assert config.request()["data"]["validation_subjects"] == [2]
    assert config.request()["data"]["orphan"] == "keep"
    assert train.run(config, SilentProgress()).num_samples == 12
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    logged = [line["val/top1"] for line in lines if "val/top1" in line]
    assert len(logged) == 2
    assert not any("test/top1" in line for line in lines), "the test split is not looked at"
    summary = evaluate.run(
        EvaluateConfig(run=config.out, split="validation", device="cpu"), SilentProgress()
    )
    assert summary.accuracy.num_samples == 12
    assert summary.accuracy.top1 == pytest.approx(logged[-1], rel=1e-5)
    ids, _, _ = read_scores(config.out / "scores-validation.parquet")
    assert all("P002" in name for name in ids)
    record = json.loads((config.out / "metrics-validation.json").read_text())
    assert record["validation_subjects"] == [2]


def test_results_of_the_best_epoch_have_files_of_their_own_and_say_how_it_was_chosen(
    trained: Path,
) -> None:
    evaluate.run(EvaluateConfig(run=trained, device="cpu"), SilentProgress())
    last = (trained / "metrics.json").read_bytes()
    with pytest.raises(FileNotFoundError, match="kept no best epoch"):
        evaluate.run(EvaluateConfig(run=trained, weights="best", device="cpu"), SilentProgress())
    weights = load_weights(trained)
    weights["encoder.head.weight"] = torch.zeros_like(weights["encoder.head.weight"])
    save_best(trained, weights, epoch=4, value=0.75, split="test")
    summary = evaluate.run(
        EvaluateConfig(run=trained, weights="best", device="cpu"), SilentProgress()
    )
    assert summary.epochs == 4
    assert {path.name for path in summary.files} == {
        "scores-test-best-epoch.parquet",
        "metrics-test-best-epoch.json",
        "confusion-test-best-epoch.csv",
        "confusion-test-best-epoch.png",
    }
    record = json.loads((trained / "metrics-test-best-epoch.json").read_text())
    assert record["weights"] == "best epoch on the test split: chosen by looking at test data"
    assert record["epochs"] == 4
    scores = read_scores(trained / "scores-test-best-epoch.parquet")[2]
    assert (scores == scores[0]).all(), "the scores are those of the headless best weights"
    assert (trained / "metrics.json").read_bytes() == last


def test_scores_of_a_run_that_is_not_finished_say_so(
    recipe: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(loop={"epochs": 3})
    train_epoch = loop._Fit._train_epoch

    def stops_before_the_third(self: loop._Fit, epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        train_epoch(self, epoch)

    monkeypatch.setattr(loop._Fit, "_train_epoch", stops_before_the_third)
    with pytest.raises(KeyboardInterrupt):
        train.run(config, SilentProgress())
    summary = evaluate.run(EvaluateConfig(run=config.out, device="cpu"), SilentProgress())
    assert summary.weights == "unfinished run: 2 of 3 epochs are done"


def test_the_command_scores_several_runs_and_shows_each_class(trained: Path) -> None:
    runs = [str(trained), str(trained)]
    plain = CliRunner().invoke(app, ["evaluate", *runs, "--device", "cpu"], env={"COLUMNS": "200"})
    assert plain.exit_code == 0, plain.output
    assert plain.stdout.count("top-1") == 1, "one table for all"
    assert plain.stderr.count(f"{trained}: top-1 ") == 2
    assert "ntu60-xsub, test split, last epoch" in plain.stdout
    shown = CliRunner().invoke(
        app, ["evaluate", *runs, "--device", "cpu", "--per-class"], env={"COLUMNS": "200"}
    )
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("clapping") >= 2
    assert "epoch 6 (last epoch)" in shown.output
    assert "mean per class" in shown.output
    as_json = CliRunner().invoke(app, ["evaluate", *runs, "--device", "cpu", "--json"])
    found = json.loads(as_json.stdout)
    assert [entry["run"] for entry in found] == runs
    assert found[0]["samples_per_class"] == {"sit down": 4, "clapping": 4, "hand waving": 4}
    alone = CliRunner().invoke(app, ["evaluate", runs[0], "--device", "cpu", "--json"])
    assert json.loads(alone.stdout) == found[0]


def test_a_run_that_cannot_be_scored_does_not_hide_the_others(
    trained: Path, tmp_path: Path
) -> None:
    runs = [str(tmp_path / "no-run"), str(trained)]
    shown = CliRunner().invoke(app, ["evaluate", *runs, "--device", "cpu"], env={"COLUMNS": "200"})
    assert shown.exit_code == 2
    assert str(trained) in shown.stdout
    assert f"not scored: {tmp_path}/no-run: " in shown.stderr
    assert "1 of 2 runs were not scored" in shown.stderr
    as_json = CliRunner().invoke(app, ["evaluate", *runs, "--device", "cpu", "--json"])
    assert as_json.exit_code == 2
    assert [entry["run"] for entry in json.loads(as_json.stdout)] == [str(trained)]


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


def test_a_run_whose_data_set_is_not_where_it_was_says_so_and_takes_it_from_elsewhere(
    recipe: Callable[..., TrainConfig],
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(Path("data"))
    config = recipe(data={"dataset": Path("data")}, loop={"epochs": 1})
    train.run(config, SilentProgress())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = CliRunner().invoke(app, ["evaluate", str(config.out)])
    assert done.exit_code == 2
    assert f"was trained on is not at {tmp_path / 'elsewhere' / 'data'}; " in done.stderr
    arguments = ["evaluate", str(config.out), "--data", "../data", "--json"]
    assert CliRunner().invoke(app, arguments).exit_code == 0


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
    assert found.samples_per_class == {"a": 1, "b": 3}
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
