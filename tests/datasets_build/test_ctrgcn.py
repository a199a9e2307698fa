"""CTR-GCN's arrays: equal to the original's, in its order, and read back to the same clips."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datasets_build import schema
from datasets_build.bodies import BodySettings, centred
from datasets_build.build import run
from datasets_build.config import BuildConfig
from datasets_build.ctrgcn import export_ctrgcn, open_ctrgcn, original_order
from datasets_build.dataset import ClassEntry, SkeletonDataset, joints_of_table, open_dataset
from datasets_build.joints import COCO_17, NTU_25, UCLA_20, Skeleton
from datasets_build.progress import SilentProgress
from datasets_build.protocols import (
    NTU,
    Protocol,
    ids_of_name,
    listed_missing,
    protocol_named,
)
from datasets_build.shards import write_shard
from datasets_build.sources import ClipError

# Subjects 1 and 2 train, 3 and 6 test in cross-subject; camera 1 tests in cross-view.
NAMES = [
    f"S{setup:03d}C{camera:03d}P{subject:03d}R001A{action:03d}"
    for setup, camera, subject, action in (
        (1, 1, 2, 4), (1, 2, 1, 60), (1, 2, 3, 7), (2, 1, 1, 5), (2, 3, 6, 9), (3, 2, 2, 1),
    )
]  # fmt: skip


def walk(seed: int, num_frames: int = 8, num_bodies: int = 1, joints: int = 25) -> np.ndarray:
    """(M, T, V, 3) float32, in the sensor's coordinates."""
    rng = np.random.default_rng(seed)
    shape = (num_bodies, num_frames, joints, 3)
    return (rng.normal(0, 0.4, shape) + np.array([0, 0, 3])).astype(np.float32)


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., SkeletonDataset]:
    """A data set of given clips by sample_id, in parts of three rows."""

    def make(
        clips: Mapping[str, np.ndarray], *, skeleton: Skeleton = NTU_25, num_classes: int = 60
    ) -> SkeletonDataset:
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        rows: list[dict[str, Any]] = []
        for name in sorted(clips):
            ids = ids_of_name(name)
            assert ids is not None
            rows.append(
                {
                    schema.SAMPLE_ID: name,
                    schema.DATASET: ids.dataset,
                    schema.LABEL: ids.action_id - 1,
                    schema.ACTION_ID: ids.action_id,
                    schema.SETUP_ID: ids.setup_id,
                    schema.CAMERA_ID: ids.camera_id,
                    schema.SUBJECT_ID: ids.subject_id,
                    schema.REPETITION_ID: ids.repetition_id,
                    schema.NUM_FRAMES: clips[name].shape[1],
                    schema.NUM_BODIES: clips[name].shape[0],
                    schema.JOINTS: clips[name].reshape(-1),
                    schema.CAPTIONS: [],
                }
            )
        tables = [
            pa.Table.from_pylist(rows[at : at + 3], schema.DATASET_SCHEMA)
            for at in range(0, len(rows), 3)
        ]
        return SkeletonDataset(
            folder=folder,
            name="small",
            format="ntu",
            family=rows[0][schema.DATASET],
            skeleton=skeleton,
            classes=tuple(ClassEntry(i, i + 1, f"action {i}") for i in range(num_classes)),
            num_rows=len(rows),
            num_captions=0,
            bodies=BodySettings(),
            fingerprint="",
            shards=tuple(
                write_shard(folder / f"part-{i:05d}.arrow", table) for i, table in enumerate(tables)
            ),
        )

    return make


def export(
    dataset: SkeletonDataset, path: Path, protocol: str | Protocol = "ntu60-xsub"
) -> dict[str, np.ndarray]:
    """What np.load makes of the exported file, and the names beside it."""
    found = protocol_named(protocol) if isinstance(protocol, str) else protocol
    summary = export_ctrgcn(dataset, path, protocol=found, progress=SilentProgress())
    with np.load(path) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    assert list(arrays) == ["x_train", "y_train", "x_test", "y_test"]
    assert summary.num_samples == {split: len(arrays[f"x_{split}"]) for split in ("train", "test")}
    assert summary.num_bytes == path.stat().st_size
    names = path.with_suffix(".names.txt").read_text(encoding="ascii").splitlines()
    return {**arrays, "names": np.array(names)}


@pytest.fixture
def golden_set(shared, tmp_path) -> SkeletonDataset:
    """A data set of the 33 golden sequences."""
    (tmp_path / "skeletons").mkdir()
    with tarfile.open(shared / "data/golden/ntu_skeletons.tar.xz") as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            content = archive.extractfile(member).read()
            (tmp_path / "skeletons" / Path(member.name).name).write_bytes(content)
    run(BuildConfig(skeletons=(tmp_path / "skeletons",), out=tmp_path / "set", shard_rows=10))
    return open_dataset(tmp_path / "set")


def test_golden_sequences_are_exported_as_ctrgcns_scripts_write_them(shared, golden_set, tmp_path):
    arrays = export(golden_set, tmp_path / "ntu.npz")
    golden = np.load(shared / "data/golden/ntu_ctrgcn_preprocessed.npz")
    ids = {name: ids_of_name(name) for name in golden.files}
    protocol = protocol_named("ntu60-xsub")
    names: list[str] = []
    for wanted in (True, False):
        part = [n for n, found in ids.items() if (protocol.split(found) == "train") == wanted]
        names += sorted(part, key=lambda name: (ids[name].subject_id, name))
    assert arrays["names"].tolist() == names
    x = np.concatenate([arrays["x_train"], arrays["x_test"]])
    y = np.concatenate([arrays["y_train"], arrays["y_test"]])
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((33, 300, 150), "float32", (33, 60), "float64")
    for name, row, label in zip(names, x, y, strict=True):
        expected = golden[name]
        assert np.abs(row[: len(expected)] - expected).max() <= 1e-6, name
        assert not row[len(expected) :].any()
        assert (label == np.eye(60)[ids[name].action_id - 1]).all()


@pytest.mark.parametrize("has_names", [True, False])
def test_golden_sequences_go_out_and_in_and_out_again_bit_by_bit(has_names, golden_set, tmp_path):
    for protocol in ("ntu60-xsub", "ntu60-xview", "ntu120-xsub", "ntu120-xset"):
        path = tmp_path / f"{protocol}.npz"
        export(golden_set, path, protocol)
        names = path.with_suffix(".names.txt") if has_names else None
        run(BuildConfig(skeletons=(path,), names=names, out=tmp_path / protocol))
        again = open_dataset(tmp_path / protocol)
        assert again.family == ("ntu" if has_names else "generic")
        own = protocol if has_names else again.protocol("original")
        export(again, tmp_path / "again.npz", own)
        assert (tmp_path / "again.npz").read_bytes() == path.read_bytes(), protocol


@pytest.mark.parametrize(("num_classes", "unseen"), [(60, "zeros"), (61, "copy"), (120, "copy")])
@pytest.mark.parametrize("is_one_hot", [True, False])
def test_what_stands_for_an_unseen_body_is_the_habit_of_the_number_of_classes(
    num_classes, unseen, is_one_hot, tmp_path
):
    x = np.random.default_rng(0).normal(size=(3, 10, 2, 75)).astype(np.float32)
    x[0, :, 1] = 0
    x[1, :, 1] = x[1, :, 0]
    y = np.array([0, 1, num_classes - 1])
    path = save(
        tmp_path / "a.npz",
        x_train=x.reshape(3, 10, 150),
        y_train=np.eye(num_classes)[y] if is_one_hot else y,
        y_test=np.eye(num_classes)[[1]] if is_one_hot else y[1:2],
    )
    source = open_ctrgcn(path, names=None, class_names=None)
    joints = [source.clip(index).joints for index in range(3)]
    assert [len(bodies) for bodies in joints] == ([1, 2, 2] if unseen == "zeros" else [2, 1, 2])
    for bodies, row in zip(joints, x, strict=True):
        expected = row.reshape(10, 2, 25, 3).transpose(1, 0, 2, 3)
        assert np.array_equal(bodies, expected[: len(bodies)])
    source.close()


def test_class_names_tell_how_many_classes_labels_are_of(tmp_path):
    x = np.ones((3, 10, 150), np.float32)  # the second body is a copy
    labels = {"y_train": np.array([0, 1, 2]), "y_test": np.array([1])}
    path = save(tmp_path / "a.npz", x_train=x, **labels)
    for num_classes, num_bodies in ((60, 2), (61, 1)):
        names = tuple(f"act {i}" for i in range(num_classes))
        source = open_ctrgcn(path, names=None, class_names=names)
        assert len(source.clip(0).joints) == num_bodies
        source.close()


def test_order_is_by_subject_camera_or_setup_then_by_name():
    rows = [ids for ids in map(ids_of_name, NAMES) if ids is not None]
    assert original_order(rows, protocol_named("ntu60-xsub")) == {
        "train": [1, 3, 0, 5], "test": [2, 4],
    }  # fmt: skip
    assert original_order(rows, protocol_named("ntu60-xview")) == {
        "train": [1, 2, 5, 4], "test": [0, 3],
    }  # fmt: skip
    assert original_order(rows[::-1], protocol_named("ntu120-xset")) == {
        "train": [2, 1], "test": [5, 4, 3, 0],
    }  # fmt: skip
    listed = replace(
        protocol_named("ntu60-xsub"),
        name="mine",
        split_by="sample_id",
        train_values=frozenset((NAMES[4], NAMES[2])),
        test_values=frozenset((NAMES[0],)),
    )
    assert original_order(rows, listed) == {"train": [2, 4], "test": [0]}
    with pytest.raises(ValueError, match="ntu60-oneshot is one-shot"):
        original_order(rows, protocol_named("ntu60-oneshot"))


def test_export_and_import_give_the_clips_back(dataset, tmp_path):
    clips = {name: walk(i, 5 + i, 1 + i % 2) for i, name in enumerate(NAMES)}
    clips["S001C001P001R001A061"] = walk(9)  # not of the protocol
    arrays = export(dataset(clips), tmp_path / "a.npz")
    assert arrays["x_train"].shape == (4, 300, 150)
    own_order = arrays["names"].tolist()
    missing = sorted(listed_missing(NTU))[:5]
    for names in (own_order, sorted([*clips, *missing, "a01_s01_e00_v01", "notes"])):
        source = open_ctrgcn(tmp_path / "a.npz", names=names, class_names=None)
        assert (source.dataset, source.skeleton, source.splits) == (NTU, NTU_25, ())
        rows = source.rows()
        assert [row.sample_id for row in rows] == own_order
        assert all(row.ids == ids_of_name(row.sample_id) for row in rows)
        for row in [*rows, rows[0]]:
            clip = source.clip(row.index)
            assert np.array_equal(clip.joints, centred(clips[row.sample_id]))
            assert clip.num_source_frames is None
        source.close()


def test_without_names_samples_are_numbered_and_keep_their_split(dataset, tmp_path):
    export(dataset({name: walk(i) for i, name in enumerate(NAMES)}), tmp_path / "a.npz")
    source = open_ctrgcn(tmp_path / "a.npz", names=None, class_names=None)
    assert source.dataset == "generic"
    assert [row.sample_id for row in source.rows()] == [
        *(f"train-{i:05d}" for i in range(4)), "test-00000", "test-00001",
    ]  # fmt: skip
    assert [row.ids.action_id for row in source.rows()] == [60, 5, 4, 1, 7, 9]
    assert source.class_names[:2] == ("class 0", "class 1")
    assert len(source.class_names) == 60
    (split,) = source.splits
    assert (split.name, split.test) == ("original", ("test-00000", "test-00001"))
    source.close()
    names = tuple(f"act {i}" for i in range(60))
    source = open_ctrgcn(tmp_path / "a.npz", names=None, class_names=names)
    assert source.class_names == names
    source.close()
    with pytest.raises(ValueError, match="has 60 classes, but 59 class names"):
        open_ctrgcn(tmp_path / "a.npz", names=None, class_names=names[:-1])


def test_a_split_of_ones_own_comes_back_with_the_names(dataset, tmp_path):
    mine = replace(
        protocol_named("ntu60-xsub"),
        name="mine",
        train_values=frozenset((3, 2)),
        test_values=frozenset((1, 6)),
    )
    data = dataset({name: walk(i) for i, name in enumerate(NAMES)})
    names = export(data, tmp_path / "a.npz", mine)["names"].tolist()
    source = open_ctrgcn(tmp_path / "a.npz", names=names, class_names=None)
    (split,) = source.splits
    assert [*split.train, *split.test] == names
    assert {ids_of_name(name).subject_id for name in split.train} == {2, 3}
    source.close()


def test_the_120_classes_hold_a_copy_of_an_only_body(dataset, tmp_path):
    names = ["S018C001P001R001A061", "S018C001P001R001A120", "S018C001P003R001A001"]
    two = walk(1, num_bodies=2)
    two[1] = 0  # a second body whose frames all went to the first
    clips = {names[0]: walk(0), names[1]: two, names[2]: walk(2)}
    data = dataset(clips, num_classes=120)
    arrays = export(data, tmp_path / "a.npz", "ntu120-xsub")
    train = arrays["x_train"].reshape(2, 300, 2, 25, 3)
    assert arrays["names"].tolist() == names
    assert np.array_equal(train[0, :, 1], train[0, :, 0])
    assert train[0].any()
    assert not train[1, :, 1].any()
    assert arrays["y_train"].shape == (2, 120)
    assert arrays["y_train"].argmax(axis=1).tolist() == [60, 119]
    source = open_ctrgcn(tmp_path / "a.npz", names=names, class_names=None)
    assert source.clip(0).joints.shape == (1, 8, 25, 3)
    source.close()
    zeros = export(
        replace(data, bodies=BodySettings(second_body="zeros")), tmp_path / "b.npz", "ntu120-xsub"
    )
    assert not zeros["x_train"].reshape(2, 300, 2, 75)[:, :, 1].any()


def test_names_never_stand_beside_arrays_of_another_export(dataset, tmp_path, monkeypatch):
    path, names = tmp_path / "a.npz", tmp_path / "a.names.txt"
    data = dataset({name: walk(i) for i, name in enumerate(NAMES)})
    protocol = protocol_named("ntu60-xview")
    old = export(data, path)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def interrupt(target: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(target, stop)
            with pytest.raises(KeyboardInterrupt):
                export_ctrgcn(data, path, protocol=protocol, progress=SilentProgress())

    before = path.read_bytes()
    interrupt("datasets_build.ctrgcn._write_clips")  # long before anything is in place
    assert path.read_bytes() == before
    assert names.read_text().split() == old["names"].tolist()
    interrupt("datasets_build.manifest.os.fsync")  # the last before the arrays are in place
    assert path.read_bytes() == before
    assert not names.exists()
    interrupt("datasets_build.ctrgcn.write_bytes_atomic")  # the first thereafter
    assert path.read_bytes() != before
    assert not names.exists()


def test_a_place_that_is_none_is_refused_before_a_part_is_read(dataset, tmp_path):
    data = replace(dataset({NAMES[0]: walk(0)}), folder=tmp_path / "no parts here")
    (tmp_path / "file").write_bytes(b"")
    for path, message in (
        (tmp_path / "set", "set is a folder; give the name of a file"),
        (tmp_path / "none" / "a.npz", "none; make that folder first"),
        (tmp_path / "file" / "a.npz", "file; make that folder first"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            export(data, path)


def test_equal_data_give_equal_files(dataset, tmp_path):
    data = dataset({name: walk(i) for i, name in enumerate(NAMES)})
    for name in ("a", "b"):
        export(data, tmp_path / f"{name}.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_arrays_are_as_wide_as_the_longest_clip(dataset, tmp_path):
    data = dataset({NAMES[0]: walk(0, 301), NAMES[2]: walk(1)})
    protocol = protocol_named("ntu60-xsub")
    path = tmp_path / "a.npz"
    summary = export_ctrgcn(data, path, protocol=protocol, progress=SilentProgress())
    assert any("301 frames" in note for note in summary.notes)
    with np.load(path) as loaded:
        assert loaded["x_test"].shape == (1, 301, 150)
        assert not loaded["x_test"][0, 8:].any()


def test_other_layouts_of_three_coordinates_are_written_with_their_own_width(dataset, tmp_path):
    clips = {f"a{a:02d}_s01_e00_v{v:02d}": walk(a + v, joints=20) for a in (1, 12) for v in (2, 3)}
    data = dataset(clips, skeleton=UCLA_20)
    arrays = export(data, tmp_path / "a.npz", "nw-ucla")
    assert arrays["x_train"].shape == (2, 300, 60)
    assert arrays["y_train"].argmax(axis=1).tolist() == [0, 9]  # label 9 is action 12
    with pytest.raises(ValueError, match=r"x_train is \(2, 300, 60\).*\(N, T, 150\)"):
        open_ctrgcn(tmp_path / "a.npz", names=None, class_names=None)
    with pytest.raises(ValueError, match="2-D with a score"):
        export(replace(data, skeleton=COCO_17), tmp_path / "b.npz", "nw-ucla")
    assert not (tmp_path / "b.npz").exists()


def test_what_the_arrays_cannot_hold_is_refused(dataset, tmp_path):
    crowd = dataset({NAMES[0]: walk(0), NAMES[1]: walk(1, num_bodies=3)})
    with pytest.raises(ValueError, match=f"{NAMES[1]} has 3 bodies"):
        export(crowd, tmp_path / "a.npz")
    with pytest.raises(ValueError, match="no sample of protocol ntu60-xsub"):
        export(dataset({"S018C001P001R001A061": walk(0)}), tmp_path / "a.npz")
    with pytest.raises(ValueError, match="protocol nw-ucla is for"):
        export(crowd, tmp_path / "a.npz", "nw-ucla")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def save(path: Path, **changes: np.ndarray) -> Path:
    """A file of three training samples (actions 1, 2, 3) and a test one (action 2)."""
    clips = np.zeros((4, 10, 150), np.float32)
    clips[:, :6] = np.random.default_rng(0).normal(size=(4, 6, 150))
    y = np.eye(60)[[0, 1, 2, 1]]
    arrays = {"x_train": clips[:3], "y_train": y[:3], "x_test": clips[3:], "y_test": y[3:]}
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})
    return path


OWN_NAMES = [f"S001C001P{p:03d}R001A{a:03d}" for p, a in ((1, 1), (1, 2), (2, 3), (3, 2))]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (OWN_NAMES[:3], r"ntu60-xsub: 3 \+ 0 samples, the arrays have 3 \+ 1"),
        ([*OWN_NAMES[:3], "S001C001P003R001A009"], "row 0: 1, but S001C001P003R001A009 is 8"),
        (["clip 1", "clip 2"], "no order of the 0 NTU names fits"),
        (OWN_NAMES[::-1][:3], "Tried:"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_ctrgcn(save(tmp_path / "a.npz"), names=names, class_names=None)


def test_arrays_made_with_the_listed_missing_samples_in_are_matched(tmp_path):
    listed = "S001C002P005R002A008"
    assert listed in listed_missing(NTU)
    train = [OWN_NAMES[0], OWN_NAMES[1], listed]  # subjects 1, 1, 5
    y = {"y_train": np.eye(60)[[0, 1, 7]], "y_test": np.eye(60)[[1]]}
    path = save(tmp_path / "a.npz", **y)
    names = [listed, OWN_NAMES[3], *OWN_NAMES[:2], "S018C001P001R001A061"]
    source = open_ctrgcn(path, names=names, class_names=None)
    assert [row.sample_id for row in source.rows()] == [*train, OWN_NAMES[3]]
    source.close()
    other = save(tmp_path / "b.npz", **{**y, "y_test": np.eye(60)[[3]]})
    with pytest.raises(ValueError, match=r"fits as it stands") as caught:
        open_ctrgcn(other, names=names, class_names=None)
    assert "the .names.txt beside an export of ours" in str(caught.value)
    assert "ntu60-xsub: 2 + 1 samples" in str(caught.value)
    assert "ntu60-xsub with the listed missing samples in: 1 labels" in str(caught.value)


def test_orders_that_fit_with_and_without_the_listed_missing_are_refused(tmp_path):
    listed = "S001C002P005R002A008"
    path = save(tmp_path / "a.npz", y_train=np.eye(60)[[7] * 3], y_test=np.eye(60)[[7]])
    # Subject 41 belongs to cross-view only: 3 + 1 there without the listed sample, and 3 + 1 in
    # cross-subject with it.
    names = [f"S001C00{c}P0{p}R001A008" for c, p in ((2, "01"), (3, "02"), (2, "41"), (1, "03"))]
    with pytest.raises(
        ValueError, match=r"several orders.*xsub with the listed missing.*; .*xview"
    ):
        open_ctrgcn(path, names=[*reversed(names), listed], class_names=None)


def test_an_order_is_taken_only_where_no_other_fits(tmp_path):
    path = save(
        tmp_path / "a.npz", y_train=np.eye(60)[[0, 0, 0]], y_test=np.eye(60)[[0]]
    )  # one class: cross-subject and cross-view agree with every label
    names = [f"S001C00{c}P00{p}R001A001" for c, p in ((1, 1), (2, 1), (2, 3), (3, 2))]
    with pytest.raises(ValueError, match=r"several orders.*xsub.*xview"):
        open_ctrgcn(path, names=names, class_names=None)


def test_whole_numbers_are_labels_too(tmp_path):
    labels = {"y_train": np.array([0, 1, 2]), "y_test": np.array([1])}
    path = save(tmp_path / "a.npz", **labels)
    source = open_ctrgcn(path, names=None, class_names=None)
    assert source.class_names == ("class 0", "class 1", "class 2")
    source.close()
    source = open_ctrgcn(path, names=sorted(OWN_NAMES), class_names=None)
    assert [row.sample_id for row in source.rows()] == OWN_NAMES
    source.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "has no x_test, but"),
        ({"y_test": np.eye(60)[[1, 2]]}, r"x_test is .* but y_test has 2 rows"),
        ({"y_test": np.eye(20)[[1]]}, "y_train has 60 and y_test 20 classes"),
        ({"y_train": np.eye(60)[[0, 1, 2]] * 2}, "row 0 is not one-hot"),
        ({"y_train": np.eye(60)[[0, 1, 2]] + np.eye(60)[[0, 1, 5]]}, "row 0 is not one-hot"),
        ({"y_train": np.full((3, 60), np.nan)}, "row 0 is not one-hot"),
        ({"y_train": np.array([0, 1, -2]), "y_test": np.array([0])}, "row 2 is -2, not a label"),
        ({"y_train": np.array([0, 1, 2.0]), "y_test": np.array([0])}, "whole numbers"),
        ({"y_train": np.zeros((3, 10_001))}, "10001 classes; at most"),
        ({"x_train": np.zeros((3, 10, 150), int)}, "is expected: 2 bodies"),
        ({"x_train": np.zeros((3, 3, 10, 25, 2))}, "is expected: 2 bodies"),
        ({"x_test": np.zeros((1, 60_000, 150), np.float32)}, "a clip is larger than"),
        (
            {
                "x_train": np.zeros((0, 9, 150)), "y_train": np.zeros((0, 60)),
                "x_test": np.zeros((0, 9, 150)), "y_test": np.zeros((0, 60)),
            },
            "holds no samples",
        ),
    ],
)  # fmt: skip
def test_other_arrays_are_refused_with_a_sentence(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_ctrgcn(save(tmp_path / "a.npz", **changes), names=None, class_names=None)


def test_clips_without_usable_numbers_are_named(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 10, 150))  # float64, two bodies
    x[0] = 0
    x[1, 3, 77] = np.nan
    x[2, 9:] = 0
    x_test = np.full((1, 10, 150), 1e300)
    source = open_ctrgcn(
        save(tmp_path / "a.npz", x_train=x, x_test=x_test), names=None, class_names=None
    )
    for index, reason in ((0, "no_frames"), (1, "not_finite"), (3, "not_finite")):
        with pytest.raises(ClipError) as caught:
            source.clip(index)
        assert caught.value.reason == reason
    joints = source.clip(2).joints
    assert (joints.shape, joints.dtype) == ((2, 9, 25, 3), "float32")
    source.close()


def test_a_compressed_file_is_read_alike(tmp_path):
    plain = open_ctrgcn(save(tmp_path / "a.npz"), names=None, class_names=None)
    with np.load(tmp_path / "a.npz") as loaded:
        np.savez_compressed(tmp_path / "b.npz", **loaded)
    packed = open_ctrgcn(tmp_path / "b.npz", names=None, class_names=None)
    for index in (0, 1, 2, 3, 0):
        assert np.array_equal(plain.clip(index).joints, packed.clip(index).joints)
    plain.close()
    packed.close()


def test_the_exported_file_builds_the_same_clips_again(dataset, tmp_path):
    clips = {name: walk(i, 5 + i) for i, name in enumerate(NAMES)}
    export(dataset(clips), tmp_path / "a.npz")
    config = BuildConfig(
        skeletons=(tmp_path / "a.npz",),
        names=tmp_path / "a.names.txt",
        out=tmp_path / "again",
    )
    assert run(config).num_rows == len(NAMES)
    again = open_dataset(tmp_path / "again")
    (table,) = again.tables()
    assert again.family == NTU
    names = table[schema.SAMPLE_ID].to_pylist()
    assert sorted(names) == sorted(NAMES)
    for name, joints in zip(names, joints_of_table(table, NTU_25), strict=True):
        assert np.array_equal(joints, centred(clips[name]))
    export(again, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_all_available_ntu_names_are_found_in_the_originals_order(shared):
    with gzip.open(shared / "data/ntu/ntu120_available_samples.txt.gz", "rt") as file:
        rows = [ids for ids in map(ids_of_name, file.read().split()) if ids is not None]
    for protocol, num_train, num_test in (
        ("ntu60-xsub", 40_091, 16_487),
        ("ntu120-xset", 54_468, 59_477),
    ):
        order = original_order(rows, protocol_named(protocol))
        assert {split: len(found) for split, found in order.items()} == {
            "train": num_train, "test": num_test,
        }  # fmt: skip
        split_by = protocol_named(protocol).split_by
        for found in order.values():
            keys = [(getattr(rows[at], split_by), rows[at].sample_id) for at in found]
            assert keys == sorted(keys)
