from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets_build.manifest import write_json
from datasets_build.progress import SilentProgress
from training import ensemble
from training.config import EnsembleConfig
from training.evaluate import read_scores, write_scores

CLASSES = [{"label": i, "action_id": i + 1, "name": f"class {i}"} for i in range(3)]


def make_run(folder: Path, ids: list[str], labels: list[int], scores: Any, **changes: Any) -> Path:
    folder.mkdir()
    write_scores(
        folder / "scores-test.parquet", ids, np.array(labels), np.array(scores, np.float32)
    )
    record = {
        "classes": CLASSES,
        "protocol": "ntu60-xsub",
        "dataset": "small",
        "dataset_fingerprint": "f",
        "stream": "joint",
        "top1": 0.5,
    }
    write_json(folder / "metrics.json", {**record, **changes})
    return folder


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
