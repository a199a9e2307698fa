from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from datasets_build.manifest import sha256_file, write_json
from datasets_build.progress import SilentProgress
from training import ensemble
from training.checkpoint import Checkpoint, model_path, save_checkpoint
from training.command_config import EnsembleConfig
from training.scores import metrics_file, read_scores, scores_file, write_scores

CLASSES = [{"label": i, "action_id": i + 1, "name": f"class {i}"} for i in range(3)]


def make_run(
    folder: Path,
    ids: list[str],
    labels: list[int],
    scores: Any,
    *,
    split: str = "test",
    **changes: Any,
) -> Path:
    folder.mkdir(exist_ok=True)
    write_scores(scores_file(folder, split), ids, np.array(labels), np.array(scores, np.float32))
    record = {
        "classes": CLASSES,
        "protocol": "ntu60-xsub",
        "dataset": "small",
        "dataset_fingerprint": "f",
        "stream": "joint",
        "weights": "last epoch",
        "top1": 0.5,
        "scores_sha256": sha256_file(scores_file(folder, split)),
    }
    write_json(metrics_file(folder, split), {**record, **changes})
    return folder


def vouch_for(folder: Path, split: str = "test") -> None:
    """As `hoc evaluate` does for the scores that it wrote."""
    record = json.loads(metrics_file(folder, split).read_text())
    record["scores_sha256"] = sha256_file(scores_file(folder, split))
    write_json(metrics_file(folder, split), record)


def run(*folders: Path, **changes: Any) -> ensemble.EnsembleSummary:
    out = folders[0].parent / "sum"
    return ensemble.run(EnsembleConfig(runs=folders, out=out, **changes), SilentProgress())


def test_scores_join_by_sample_id_and_not_by_position(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x", "y"], [0, 1], [[1, 0, 0], [0, 0, 2]])
    # The same samples, kept in another order on disk.
    b = make_run(tmp_path / "b", ["x", "y"], [0, 1], [[1, 0, 0], [0, 3, 0]])
    import pyarrow.parquet as pq

    table = pq.read_table(b / "scores-test.parquet")
    pq.write_table(table.take([1, 0]), b / "scores-test.parquet")
    vouch_for(b)
    summary = run(a, b)
    ids, labels, scores = read_scores(tmp_path / "sum" / "scores-test.parquet")
    assert ids == ["x", "y"]
    assert labels.tolist() == [0, 1]
    assert scores.tolist() == [[2, 0, 0], [0, 3, 2]]
    assert summary.accuracy.top1 == 1.0


def test_weights_multiply_the_scores_and_are_written_down(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x"], [1], [[1, 0, 0]])
    b = make_run(tmp_path / "b", ["x"], [1], [[0, 0.8, 0]], stream="bone")
    assert run(a, b).accuracy.top1 == 0.0
    assert run(a, b, weights=(1.0, 1.5)).accuracy.top1 == 1.0
    record = json.loads((tmp_path / "sum" / "ensemble.json").read_text())
    assert [(m["stream"], m["weight"]) for m in record["members"]] == [("joint", 1), ("bone", 1.5)]
    assert record["weights"] == "given"


def test_unequal_sets_are_refused_with_counts_and_an_example(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x", "y"], [0, 1], [[1, 0, 0], [0, 1, 0]])
    b = make_run(tmp_path / "b", ["x", "z"], [0, 1], [[1, 0, 0], [0, 1, 0]])
    with pytest.raises(ValueError, match="1 are only in the first and 1 only in the second") as e:
        run(a, b)
    assert "example y" in str(e.value)


def test_other_labels_classes_protocols_or_data_are_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x"], [0], [[1, 0, 0]])
    label = make_run(tmp_path / "label", ["x"], [2], [[1, 0, 0]])
    with pytest.raises(ValueError, match=r"has label 0 in .* and 2 in"):
        run(a, label)
    order = make_run(tmp_path / "order", ["x"], [0], [[1, 0, 0]], classes=CLASSES[::-1])
    with pytest.raises(ValueError, match="other classes, or in another order"):
        run(a, order)
    data = make_run(tmp_path / "data", ["x"], [0], [[1, 0, 0]], dataset_fingerprint="g")
    with pytest.raises(ValueError, match="dataset_fingerprint is f there and g here"):
        run(a, data)


def test_a_run_that_was_not_evaluated_is_named(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x"], [0], [[1, 0, 0]])
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match="score the run first with `hoc evaluate"):
        run(a, tmp_path / "b")


def test_an_ensemble_is_no_member(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x"], [0], [[1, 0, 0]])
    run(a)
    with pytest.raises(ValueError, match="sum is an ensemble; give its members"):
        ensemble.run(
            EnsembleConfig(runs=(tmp_path / "sum", a), out=tmp_path / "next"), SilentProgress()
        )


def test_the_folder_of_a_run_is_not_written_to(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, ["x"], [0], [[1, 0, 0]]) for name in "ab")
    other = make_run(tmp_path / "other", ["x"], [0], [[1, 0, 0]])
    (other / "config.json").write_text("{}")
    for out in (tmp_path / "b" / ".." / "a", other):
        before = (out / "scores-test.parquet").read_bytes()
        with pytest.raises(ValueError, match="is a run, whose scores"):
            ensemble.run(EnsembleConfig(runs=(a, b), out=out), SilentProgress())
        assert (out / "scores-test.parquet").read_bytes() == before
        assert not (out / "ensemble.json").exists()


def test_only_an_ensemble_of_the_same_runs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    a, b, c = (make_run(root / name, ["x"], [0], [[1, 0, 0]]) for name in "abc")
    run(a, b)
    run(b, a, weights=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"holds the ensemble of other runs \(.*b, .*a\)"):
        run(a, c)
    record = json.loads((root / "sum" / "ensemble.json").read_text())
    assert record["scores_sha256"] == sha256_file(root / "sum" / "scores-test.parquet")
    root.rename(tmp_path / "moved")  # the runs go with it
    monkeypatch.chdir(tmp_path / "moved")
    run(Path("a"), Path("b"))
    path = Path("sum/ensemble.json")
    record = json.loads(path.read_text())
    for member in record["members"]:
        del member["place"]  # as an earlier version wrote it
    path.write_text(json.dumps(record))
    run(Path("a"), Path("b"))


def test_an_ensemble_of_another_split_has_a_file_of_its_own(tmp_path: Path) -> None:
    runs = []
    for name in "ab":
        runs.append(make_run(tmp_path / name, ["x"], [0], [[1, 0, 0]]))
        make_run(tmp_path / name, ["y", "z"], [0, 1], [[1, 0, 0], [1, 0, 0]], split="train")
    run(*runs)
    before = (tmp_path / "sum" / "ensemble.json").read_bytes()
    run(*runs, split="train")
    assert (tmp_path / "sum" / "ensemble.json").read_bytes() == before
    record = json.loads((tmp_path / "sum" / "ensemble-train.json").read_text())
    assert (record["split"], record["top1"]) == ("train", 0.5)
    other = make_run(tmp_path / "c", ["x"], [0], [[1, 0, 0]])
    (tmp_path / "sum" / "ensemble.json").unlink()
    with pytest.raises(ValueError, match="holds the ensemble of other runs"):
        run(runs[0], other)
    with pytest.raises(ValueError, match="is an ensemble; give its members"):
        run(runs[0], tmp_path / "sum")


def test_scores_that_are_not_those_of_the_evaluation_are_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x"], [0], [[1, 0, 0]], scores_sha256="0" * 64)
    with pytest.raises(ValueError, match=r"its sha256 differs.*hoc evaluate .*a --split test"):
        run(a)


def make_searchable(root: Path, *, noise: tuple[float, ...] = (0.2, 1.5, 4.0)) -> list[Path]:
    """Runs of growing noise; the wrong one shouts. Test labels are of no use for the validation."""
    rng = np.random.default_rng(0)
    runs = []
    labels = {split: rng.integers(0, 3, num) for split, num in (("validation", 60), ("test", 40))}
    for i, level in enumerate(noise):
        for split, own in labels.items():
            scores = np.eye(3)[own] * (1 + i) + rng.normal(0, level * (1 + i), (len(own), 3))
            ids = [f"{split}{n:03d}" for n in range(len(own))]
            changes = {"validation_subjects": [2], "stream": ("joint", "bone", "bone-motion")[i]}
            run_folder = make_run(root / f"run{i}", ids, list(own), scores, split=split, **changes)
        runs.append(run_folder)
    return runs


def test_searched_weights_come_from_the_validation_split_alone(tmp_path: Path) -> None:
    runs = make_searchable(tmp_path)
    first = run(*runs, search_weights=True)
    record = json.loads((tmp_path / "sum" / "ensemble.json").read_text())
    assert record["weights"] == "searched on validation"
    assert record["validation"]["num_samples"] == 60
    assert record["validation"]["subjects"] == [2]
    assert record["validation"]["top1"] > record["validation"]["top1_of_equal_weights"]
    assert record["num_samples"] == 40
    weights = [member["weight"] for member in record["members"]]
    assert weights[0] > weights[2]
    # Test scores under which the first run is useless and the last one right: the same weights.
    for i, folder in enumerate(runs):
        ids, labels, _ = read_scores(folder / "scores-test.parquet")
        scores = np.eye(3)[labels] * (i - 1)
        write_scores(folder / "scores-test.parquet", ids, labels, scores)
        vouch_for(folder)
    again = run(*runs, search_weights=True)
    assert [m.weight for m in again.members] == [m.weight for m in first.members] == weights


def test_a_search_moves_no_weight_without_a_hit_more() -> None:
    scores = np.stack([np.eye(3) * 5, np.eye(3), -np.eye(3)])
    assert ensemble.search_weights(scores, np.arange(3)) == (1.0, 1.0, 1.0)
    wrong = np.stack([np.eye(3), -1.1 * np.eye(3)])
    assert ensemble.search_weights(wrong, np.arange(3)) == (1.2, 1.0)


def test_a_search_without_a_common_validation_split_is_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x"], [0], [[1, 0, 0]])
    with pytest.raises(ValueError, match="trained on all training subjects"):
        run(a, search_weights=True)
    b = make_run(tmp_path / "b", ["x"], [0], [[1, 0, 0]], validation_subjects=[1])
    c = make_run(tmp_path / "c", ["x"], [0], [[1, 0, 0]], validation_subjects=[2])
    with pytest.raises(ValueError, match=r"left subjects \[1\] out.*c \[2\]"):
        run(b, c, search_weights=True)
    with pytest.raises(FileNotFoundError, match=r"hoc evaluate .*b --split validation"):
        run(b, search_weights=True)
    assert not (tmp_path / "sum").exists()


def test_only_one_way_to_weights_can_be_given(tmp_path: Path) -> None:
    for changes in (
        {"weights": (1.0,), "search_weights": True},
        {"weights": (1.0,), "rule": "position-motion"},
        {"rule": "position-motion", "search_weights": True},
        {"search_weights": True, "split": "validation"},
    ):
        with pytest.raises(ValueError, match=r"give one of weights|give another split"):
            run(tmp_path / "a", **changes)


def test_the_stated_rule_gives_positions_more_than_motions(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x"], [0], [[1, 0, 0]], stream="bone2")
    b = make_run(tmp_path / "b", ["x"], [0], [[0, 1.2, 0]], stream="joint-motion")
    assert run(a, b).accuracy.top1 == 0.0
    summary = run(a, b, rule="position-motion")
    assert summary.accuracy.top1 == 1.0
    assert [m.weight for m in summary.members] == [1.5, 1.0]
    record = json.loads((tmp_path / "sum" / "ensemble.json").read_text())
    assert record["weights"] == "rule: positions 1.5, motions 1"


def test_probabilities_do_not_let_a_run_with_great_logits_decide_alone(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x"], [0], [[3, 0, 0]])
    b = make_run(tmp_path / "b", ["x"], [0], [[2, 1, 1]])
    c = make_run(tmp_path / "c", ["x"], [0], [[0, 50, 0]])
    assert run(a, b, c).accuracy.top1 == 0.0
    assert run(a, b, c, combine="probabilities").accuracy.top1 == 1.0
    _, _, scores = read_scores(tmp_path / "sum" / "scores-test.parquet")
    exp = np.exp
    first = exp(3) / (exp(3) + 2) + exp(2) / (exp(2) + 2 * exp(1))
    assert scores[0, 0] == pytest.approx(first, rel=1e-6)
    assert scores.sum() == pytest.approx(3.0, rel=1e-6)


def test_scores_of_weights_that_were_trained_on_since_are_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", ["x"], [0], [[1, 0, 0]])
    for value in (0.0, 1.0):
        save_checkpoint(a, Checkpoint(1, 1, {}, {"w": torch.full((1,), value)}))
        if value == 0.0:
            make_run(a, ["x"], [0], [[1, 0, 0]], weights_sha256=sha256_file(model_path(a)))
            run(a)
    with pytest.raises(ValueError, match="trained on since its test split was scored"):
        run(a)


def test_the_command_says_where_the_weights_are_from(tmp_path: Path) -> None:
    runs = [str(folder) for folder in make_searchable(tmp_path)]
    out = ["--out", str(tmp_path / "sum")]
    shown = CliRunner().invoke(
        app, ["ensemble", *runs, "--search-weights", *out], env={"COLUMNS": "200"}
    )
    assert shown.exit_code == 0, shown.output
    assert "weights: searched on validation" in shown.output
    assert "of 60 validation samples" in shown.output
    rule = ["--rule", "position-motion", "--combine", "probabilities", "--json"]
    found = json.loads(CliRunner().invoke(app, ["ensemble", *runs, *rule, *out]).stdout)
    assert found["weights"] == "rule: positions 1.5, motions 1"
    assert [member["weight"] for member in found["members"]] == [1.5, 1.5, 1.0]
