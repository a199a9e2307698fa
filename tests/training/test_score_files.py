"""Scores for other projects' ensembles: joined back by position they give the same accuracy."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets_build import schema
from datasets_build.ctrgcn import export_ctrgcn
from datasets_build.dataset import open_dataset
from datasets_build.joints import UCLA_20
from datasets_build.pickles import read_pickle
from datasets_build.progress import SilentProgress
from datasets_build.protocols import PROTOCOLS
from datasets_build.pyskl import export_pyskl
from training import evaluate, train
from training.command_config import EvaluateConfig
from training.config import TrainConfig
from training.score_files import export_scores
from training.scores import read_scores

UCLA_NAMES = [f"a{a:02d}_s{s:02d}_e{e:02d}_v{v:02d}" for a in (1, 2) for s in (1, 2)
              for e in (0, 1) for v in (1, 2, 3)]  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(recipe: Callable[..., TrainConfig], shared: Path) -> Path:
    """One run, scored on both splits, for this file."""
    config = recipe(loop={"epochs": 2}).model_copy(update={"out": shared / "run"})
    if not (config.out / "metrics-train.json").is_file():
        train.run(config, SilentProgress())
        for split in ("test", "train"):
            evaluate.run(
                EvaluateConfig(run=config.out, split=split, device="cpu"),  # type: ignore[arg-type]
                SilentProgress(),
            )
    return config.out


def arrays(value: Any) -> Any:
    """What read_pickle gave, with its arrays read."""
    if isinstance(value, dict):
        return {key: arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [arrays(item) for item in value]
    return value.read()


def top1(run: Path, split: str) -> float:
    name = "metrics.json" if split == "test" else f"metrics-{split}.json"
    share: float = json.loads((run / name).read_text())["top1"]
    return share


def test_scores_of_a_part_of_the_training_split_are_for_no_other_ensemble(
    run: Path, tmp_path: Path
) -> None:
    record = json.loads((run / "config.json").read_text())
    record["settings"]["data"]["validation_subjects"] = [1]
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="scores of a part of the training split"):
        export_scores(tmp_path, tmp_path / "s.pkl", format="ctrgcn-pkl", split="train")


@pytest.mark.parametrize("split", ["test", "train"])
def test_ctrgcn_scores_stand_beside_the_labels_of_our_arrays(
    split: str, run: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(dataset_folder)
    protocol = PROTOCOLS["ntu60-xsub"]
    export_ctrgcn(dataset, tmp_path / "x.npz", protocol=protocol, progress=SilentProgress())
    summary = export_scores(run, tmp_path / "s.pkl", format="ctrgcn-pkl", split=split)  # type: ignore[arg-type]
    scores = arrays(read_pickle(tmp_path / "s.pkl"))
    assert list(scores) == [f"{split}_{i}" for i in range(summary.num_samples[split])]
    # As CTR-GCN's ensemble.py does it.
    with np.load(tmp_path / "x.npz") as file:
        labels = np.where(file[f"y_{split}"] > 0)[1]
    assert len(labels) == len(scores)
    right = [
        int(np.argmax(r) == label) for (_, r), label in zip(scores.items(), labels, strict=True)
    ]
    assert np.mean(right) == pytest.approx(top1(run, split))
    names = (tmp_path / "x.names.txt").read_text().split()
    names = names[-len(labels) :] if split == "test" else names[: len(labels)]
    ours, _, logits = read_scores(run / f"scores-{split}.parquet")
    columns = [7, 9, 22]  # A008, A010 and A023 of 60
    assert "does not know 57" in " ".join(summary.notes)
    for name, row in zip(names, scores.values(), strict=True):
        assert row.shape == (60,)
        assert np.array_equal(row[columns], logits[ours.index(name)])
        assert row.min() == row[columns].min()


def test_pyskl_scores_stand_beside_the_annotations(
    run: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(dataset_folder)
    export_pyskl(
        dataset,
        tmp_path / "a.pkl",
        protocols=[PROTOCOLS["ntu60-xsub"]],
        progress=SilentProgress(),
    )
    export_scores(run, tmp_path / "s.pkl", format="pyskl-pkl")
    scores = arrays(read_pickle(tmp_path / "s.pkl"))
    # As PYSKL's PoseDataset takes the annotations of a split.
    value = read_pickle(tmp_path / "a.pkl")
    chosen = set(value["split"]["xsub_val"])
    labels = [a["label"] for a in value["annotations"] if a["frame_dir"] in chosen]
    assert len(scores) == len(labels) == 12
    assert np.mean([np.argmax(r) == label for r, label in zip(scores, labels, strict=True)]) == (
        pytest.approx(top1(run, "test"))
    )
    assert all(row.shape == (60,) and abs(row.sum() - 1) < 1e-5 for row in scores)
    export_scores(run, tmp_path / "t.pkl", format="pyskl-pkl", order=tmp_path / "a.pkl")
    assert (tmp_path / "t.pkl").read_bytes() == (tmp_path / "s.pkl").read_bytes()


@pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")
def test_python_itself_loads_what_is_written(run: Path, tmp_path: Path) -> None:
    for format in ("ctrgcn-pkl", "pyskl-pkl"):
        export_scores(run, tmp_path / "s.pkl", format=format)  # type: ignore[arg-type]
        loaded = pickle.loads((tmp_path / "s.pkl").read_bytes())
        rows = loaded.values() if isinstance(loaded, dict) else loaded
        assert all(isinstance(row, np.ndarray) and row.dtype == np.float32 for row in rows)
        assert isinstance(loaded, dict) == (format == "ctrgcn-pkl")


def test_an_order_of_ones_own_is_kept(run: Path, tmp_path: Path) -> None:
    names, _, logits = read_scores(run / "scores-test.parquet")
    others = read_scores(run / "scores-train.parquet")[0]
    wanted = names[::-1]
    (tmp_path / "o.txt").write_text("\n".join([*others, *wanted]) + "\n")
    summary = export_scores(run, tmp_path / "s.pkl", format="ctrgcn-pkl", order=tmp_path / "o.txt")
    scores = list(arrays(read_pickle(tmp_path / "s.pkl")).values())
    assert np.array_equal(np.array(scores)[:, [7, 9, 22]], logits[::-1])
    assert "in the order of o.txt" in summary.notes
    for text, said in (
        ("\n".join(wanted[1:]), f"does not name {wanted[0]}"),
        ("\n".join([*wanted, wanted[0]]), "names a sample twice"),
        ("\n".join([wanted[0], "S001C001P003R009A008", *wanted[1:]]), "at position 1, which is"),
    ):
        (tmp_path / "o.txt").write_text(text)
        with pytest.raises(ValueError, match=said):
            export_scores(run, tmp_path / "x.pkl", format="ctrgcn-pkl", order=tmp_path / "o.txt")
    (tmp_path / "o.pkl").write_bytes(pickle.dumps([{"label": 1}]))
    with pytest.raises(ValueError, match=r"no list of samples with a file_name or frame_dir"):
        export_scores(run, tmp_path / "x.pkl", format="ctrgcn-pkl", order=tmp_path / "o.pkl")
    with pytest.raises(FileNotFoundError, match=r"gone\.txt does not exist"):
        export_scores(run, tmp_path / "x.pkl", format="ctrgcn-pkl", order=tmp_path / "gone.txt")
    assert not (tmp_path / "x.pkl").exists()


def test_nwucla_scores_follow_the_list_that_the_ensemble_reads(
    recipe: Callable[..., TrainConfig], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for name in UCLA_NAMES:
        action, view = int(name[1:3]), int(name[-1])
        joints = rng.normal(action, 1, (1, 9, 20, 3)).astype(np.float32)
        rows.append(
            {
                schema.SAMPLE_ID: name, schema.DATASET: "nw-ucla", schema.LABEL: action - 1,
                schema.ACTION_ID: action, schema.CAMERA_ID: view, schema.SUBJECT_ID: int(name[5:7]),
                schema.REPETITION_ID: int(name[9:11]), schema.NUM_FRAMES: 9, schema.NUM_BODIES: 1,
                schema.JOINTS: joints.reshape(-1), schema.CAPTIONS: [],
            }
        )  # fmt: skip
    data = write_rows(
        tmp_path / "d", rows, family="nw-ucla", skeleton=UCLA_20, classes=[(1, "one"), (2, "two")]
    )
    config = recipe(
        data={"dataset": data, "protocol": "nw-ucla", "view": "ucla"}, loop={"epochs": 1}
    )
    train.run(config, SilentProgress())
    evaluate.run(EvaluateConfig(run=config.out, device="cpu"), SilentProgress())
    path = tmp_path / "s.pkl"
    with pytest.raises(ValueError, match=r"data/NW-UCLA/val_label\.pkl and joins by position"):
        export_scores(config.out, path, format="ctrgcn-pkl")
    test = [name for name in UCLA_NAMES if name.endswith("v03")]
    listed = [test[i] for i in rng.permutation(len(test))]
    infos = [{"file_name": name, "length": 9, "label": int(name[1:3])} for name in listed]
    (tmp_path / "val_label.pkl").write_bytes(pickle.dumps(infos))
    export_scores(config.out, path, format="ctrgcn-pkl", order=tmp_path / "val_label.pkl")
    scores = arrays(read_pickle(path))
    assert list(scores) == listed
    right = [
        r.argmax() == info["label"] - 1 for r, info in zip(scores.values(), infos, strict=True)
    ]
    assert np.mean(right) == pytest.approx(top1(config.out, "test"))
    assert all(row.shape == (10,) for row in scores.values())


def test_a_protocol_from_a_file_of_its_own_is_found_again(
    recipe: Callable[..., TrainConfig], run: Path, tmp_path: Path
) -> None:
    rule = tmp_path / "mine.toml"
    rule.write_text(
        'name = "mine"\ndataset = "ntu"\nnum_classes = 60\nsplit_by = "subject_id"\n'
        "train = [1, 2]\ntest = [3]\n"
    )
    config = recipe(data={"protocol": str(rule)}, loop={"epochs": 1})
    train.run(config, SilentProgress())
    evaluate.run(EvaluateConfig(run=config.out, device="cpu"), SilentProgress())
    export_scores(config.out, tmp_path / "s.pkl", format="pyskl-pkl")
    assert len(arrays(read_pickle(tmp_path / "s.pkl"))) == 12
    rule.write_text(rule.read_text().replace("[3]", "[3, 4]"))
    with pytest.raises(ValueError, match="mine"):
        export_scores(config.out, tmp_path / "t.pkl", format="pyskl-pkl")


def test_scores_that_were_replaced_are_not_exported(run: Path, tmp_path: Path) -> None:
    path = run / "scores-test.parquet"
    before = path.read_bytes()
    path.write_bytes((run / "scores-train.parquet").read_bytes())
    with pytest.raises(ValueError, match="its sha256 differs"):
        export_scores(run, tmp_path / "s.pkl", format="pyskl-pkl")
    path.write_bytes(before)


def test_another_data_set_and_a_run_without_scores_are_refused(
    run: Path, make_dataset: Callable[..., Path], tmp_path: Path, recipe: Callable[..., TrainConfig]
) -> None:
    other = make_dataset(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"other is another data set, or was built anew"):
        export_scores(run, tmp_path / "s.pkl", format="ctrgcn-pkl", dataset=other)
    config = recipe(out="fresh", loop={"epochs": 1})
    train.run(config, SilentProgress())
    with pytest.raises(FileNotFoundError, match="score the run first with `hoc evaluate"):
        export_scores(config.out, tmp_path / "s.pkl", format="pyskl-pkl")
    assert not (tmp_path / "s.pkl").exists()
