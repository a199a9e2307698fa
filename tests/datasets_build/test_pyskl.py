"""PYSKL's annotation file: read as it is documented, and written so that PYSKL reads it."""

from __future__ import annotations

import logging
import os
import pickle
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datasets_build import schema
from datasets_build.bodies import BodySettings
from datasets_build.dataset import ClassEntry, SkeletonDataset
from datasets_build.joints import COCO_17, NTU_25, UCLA_20, Skeleton
from datasets_build.ntu import MAX_COORDINATE_M
from datasets_build.nwucla import ACTION_IDS as NW_UCLA_ACTION_IDS
from datasets_build.packed import ListedSplit
from datasets_build.progress import SilentProgress
from datasets_build.protocols import GENERIC, NTU, NW_UCLA, Protocol, ids_of_name, protocol_named
from datasets_build.pyskl import MAX_BODIES, PysklSource, export_pyskl, open_pyskl
from datasets_build.shards import write_shard
from datasets_build.sources import ClipError

# Subject 1 trains and subject 3 tests in cross-subject; camera 1 tests in cross-view.
NTU_NAMES = ("S001C001P001R001A001", "S001C002P003R001A004", "S002C003P003R002A060")


def walk(seed: int, shape: tuple[int, ...] = (1, 6, 25, 3)) -> np.ndarray:
    """Seeded joints of a shape (M, T, V, C), none of them at zero."""
    return np.random.default_rng(seed).uniform(0.5, 3.5, shape).astype(np.float32)


def annotation(name: str, label: int, keypoint: Any = None, **others: Any) -> dict[str, Any]:
    """One entry of "annotations"."""
    keypoint = walk(7) if keypoint is None else keypoint
    return {
        "frame_dir": name,
        "label": label,
        "total_frames": keypoint.shape[1] if isinstance(keypoint, np.ndarray) else 6,
        "keypoint": keypoint,
        **others,
    }


def flat(name: str, label: int, **others: Any) -> dict[str, Any]:
    """An annotation of 2-D joints as PYSKL's HRNet files have them."""
    given: dict[str, Any] = {
        "keypoint": walk(label, (2, 5, 17, 2)).astype(np.float16) * 100,
        "keypoint_score": walk(label, (2, 5, 17)).astype(np.float16),
        "img_shape": (1080, 1920),
        "original_shape": (1080, 1920),
        **others,
    }
    return annotation(name, label, **given)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., PysklSource]:
    """Opens what a writer of PYSKL's files would write, in the protocol that mmcv uses."""

    def make(value: Any, *, protocol: int = 2, **options: Any) -> PysklSource:
        path = tmp_path / "annotations.pkl"
        path.write_bytes(pickle.dumps(value, protocol))
        return open_pyskl(path, **{"layout": None, "class_names": None, **options})

    return make


def generic(*labels: int, **others: Any) -> list[dict[str, Any]]:
    return [annotation(f"clip_{i}", label, **others) for i, label in enumerate(labels)]


def reason_of(source: PysklSource, index: int = 0) -> str:
    with pytest.raises(ClipError) as caught:
        source.clip(index)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("protocol", range(6))
def test_ntu_file_gives_ids_and_joints(opened, protocol):
    names = [NTU_NAMES[0], f"nturgb+d_skeletons/{NTU_NAMES[1]}.skeleton", NTU_NAMES[2]]
    joints = [walk(i, (1 + i % 2, 5 + i, 25, 3)).astype(np.float16) for i in range(3)]
    value = {
        "split": {"xsub_train": names[:1], "xsub_val": names[1:]},
        "annotations": [
            annotation(name, label, keypoint)
            for name, label, keypoint in zip(names, (0, 3, 59), joints, strict=True)
        ],
    }
    source = opened(value, protocol=protocol)
    assert (source.dataset, source.skeleton, source.class_names) == (NTU, NTU_25, None)
    assert source.splits == ()
    rows = source.rows()
    assert [row.sample_id for row in rows] == list(NTU_NAMES)
    assert [row.ids for row in rows] == [ids_of_name(name) for name in NTU_NAMES]
    assert [row.index for row in rows] == [0, 1, 2]
    for row, expected in zip(rows, joints, strict=True):
        clip = source.clip(row.index)
        assert clip.joints.dtype == np.float32
        assert np.array_equal(clip.joints, expected.astype(np.float32))
        assert clip.image_size is None
        assert clip.num_source_frames is None  # frames without a body are not in the file


def test_bare_list_of_older_files_is_read(opened):
    source = opened(generic(0, 1))
    assert [row.sample_id for row in source.rows()] == ["clip_0", "clip_1"]
    assert source.splits == ()


def test_flat_joints_carry_scores_and_the_size_of_the_picture(opened):
    value = [flat("a/b", 0), flat("c", 1, original_shape=(1, 1)), flat("d", 1, img_shape=None)]
    source = opened({"annotations": value, "split": {}})
    assert (source.dataset, source.skeleton) == (GENERIC, COCO_17)
    assert source.rows()[0].sample_id == "a/b"
    for index, given in enumerate(value):
        clip = source.clip(index)
        assert np.array_equal(clip.joints[..., :2], given["keypoint"].astype(np.float32))
        assert np.array_equal(clip.joints[..., 2], given["keypoint_score"].astype(np.float32))
        assert clip.image_size == (1920, 1080)
        assert clip.num_source_frames == 5


def test_frames_that_were_left_out_leave_the_length_of_the_video_open(opened):
    assert opened([flat("a", 0, total_frames=9)]).clip(0).num_source_frames is None


def test_flat_joints_without_scores_are_certain(opened):
    clip = opened([flat("a", 0, keypoint_score=None)]).clip(0)
    assert clip.joints.shape == (2, 5, 17, 3)
    assert (clip.joints[..., 2] == 1).all()


def test_flat_joints_without_the_size_of_the_picture_are_a_defect(opened):
    source = opened([flat("a", 0), flat("b", 0, img_shape=None, original_shape=None)])
    assert source.clip(0).image_size == (1920, 1080)
    with pytest.raises(ClipError, match=r"no_image_size: .*add 'img_shape', its .height, width."):
        source.clip(1)


def test_layout_is_chosen_by_joints_or_given(opened):
    assert opened(generic(0, keypoint=walk(0, (1, 2, 20, 3)))).skeleton == UCLA_20
    own = replace(NTU_25, name="mine")
    assert opened(generic(0), layout=own).skeleton == own
    plain = replace(COCO_17, name="no-scores", has_score=False)
    assert opened([flat("a", 0)], layout=plain).clip(0).joints.shape == (2, 5, 17, 2)
    with pytest.raises(ValueError, match=r"33 joints of 3 coordinates; .* needs --layout"):
        opened(generic(0, keypoint=walk(0, (1, 2, 33, 3))))
    with pytest.raises(ValueError, match="25 joints of 2 coordinates"):
        opened(generic(0, keypoint=walk(0, (1, 2, 25, 2))))
    with pytest.raises(ValueError, match=r"25 joints of 3 .* the layout ucla-20 has 20 of 3"):
        opened(generic(0), layout=UCLA_20)


def test_bodies_that_are_never_seen_are_left_out(opened):
    joints = walk(0, (4, 3, 25, 3))
    joints[1] = joints[3] = 0
    assert np.array_equal(opened(generic(0, keypoint=joints)).clip(0).joints, joints[[0, 2]])
    joints[0] = 0
    assert np.array_equal(opened(generic(0, keypoint=joints)).clip(0).joints, joints[[2]])
    assert opened(generic(0, keypoint=joints * 0)).clip(0).joints.shape == (1, 3, 25, 3)
    scored = flat("a", 0)
    scored["keypoint"][1] = 0  # a score alone is no body
    assert opened([scored]).clip(0).joints.shape == (1, 5, 17, 3)


def test_defects_of_one_sample_have_their_own_names(opened):
    good = annotation("good", 0)

    def reason(keypoint: Any, **others: Any) -> str:
        return reason_of(opened([good, annotation("bad", 0, keypoint, **others)]), 1)

    joints = walk(1)
    for value in (np.nan, np.inf, -np.inf):
        bad = joints.copy()
        bad[0, 2, 5, 1] = value
        assert reason(bad) == "not_finite"
    assert reason(joints.astype(np.float64) * 1e300) == "not_finite"
    assert reason(joints * MAX_COORDINATE_M) == "out_of_range"
    assert reason(joints[:, :, :20]) == "bad_shape"
    assert reason(joints[..., :2]) == "bad_shape"
    assert reason(joints[0]) == "bad_shape"
    assert reason(joints.tolist()) == "bad_shape"
    assert reason(joints[:, :0]) == "no_frames"
    assert reason(joints[:0]) == "no_body"
    assert reason(np.zeros((MAX_BODIES + 1, 1, 25, 3), np.float16)) == "bad_count"
    assert reason(np.zeros((1, 30_001, 25, 3), np.float16)) == "bad_count"
    assert reason(joints.astype("U8")) == "bad_number"
    missing = {key: value for key, value in good.items() if key != "keypoint"}
    assert reason_of(opened([good, missing]), 1) == "no_keypoints"

    def flat_reason(**others: Any) -> str:
        return reason_of(opened([flat("bad", 0, **others)]))

    assert flat_reason(keypoint_score=np.ones((2, 5, 16), np.float32)) == "bad_shape"
    assert flat_reason(keypoint_score=[1.0]) == "bad_shape"
    assert flat_reason(keypoint_score=np.full((2, 5, 17), np.nan)) == "not_finite"
    assert flat_reason(keypoint=np.full((2, 5, 17, 2), 200_000.0)) == "out_of_range"
    assert flat_reason(img_shape=(0, 5)) == "bad_image_size"
    assert flat_reason(img_shape=("a", 5)) == "bad_image_size"


def test_content_of_another_size_than_its_shape_is_a_defect(tmp_path):
    path = tmp_path / "damaged.pkl"
    data = pickle.dumps(generic(0, keypoint=walk(0, (1, 6, 25, 3))), 2)
    path.write_bytes(data.replace(b"K\x01K\x06K\x19K\x03t", b"K\x01K\x07K\x19K\x03t"))
    source = open_pyskl(path, layout=None, class_names=None)
    assert reason_of(source) == "bad_number"


def test_labels_must_agree_with_the_names_of_a_known_family(opened):
    with pytest.raises(ValueError, match=r"S001C002P003R001A004 has the label 4.*is label 3"):
        opened([annotation(NTU_NAMES[0], 0), annotation(NTU_NAMES[1], 4)])
    ucla = {"keypoint": walk(0, (1, 2, 20, 3))}
    source = opened([annotation("a08_s01_e00_v01", 6, **ucla)])  # there is no action 7
    assert (source.dataset, source.skeleton, source.class_names) == (NW_UCLA, UCLA_20, None)
    with pytest.raises(ValueError, match=r"a08_s01_e00_v01 has the label 7.*is label 6"):
        opened([annotation("a08_s01_e00_v01", 7, **ucla)])
    with pytest.raises(ValueError, match="whose class names are known"):
        opened([annotation(NTU_NAMES[0], 0)], class_names=("drink water",))


def test_names_of_several_kinds_are_read_as_generic(opened, caplog):
    source = opened([annotation(NTU_NAMES[0], 0), annotation("own", 1)])
    assert source.dataset == GENERIC
    assert [row.ids.action_id for row in source.rows()] == [1, 2]
    assert "mixes names of several kinds (1 ntu, 1 generic)" in caplog.text


def test_generic_labels_start_at_zero_and_leave_none_out(opened):
    source = opened(generic(0, 2, 1, 1))
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert [row.ids.action_id for row in source.rows()] == [1, 3, 2, 2]
    assert opened(generic(0, np.int64(1))).rows()[1].ids.action_id == 2
    names = ("a", "b", "c", "d")
    assert opened(generic(1, 3), class_names=names).class_names == names
    with pytest.raises(ValueError, match=r"no sample of label 0 \(labels are 0-based\)"):
        opened(generic(1, 2))
    with pytest.raises(ValueError, match="no sample of label 1;"):
        opened(generic(0, 2))
    with pytest.raises(ValueError, match="label 4, but there are 4 class names"):
        opened(generic(0, 4), class_names=names)
    for bad in (-1, 10**9):
        with pytest.raises(ValueError, match=r"annotation 1 \(clip_1\) has the label"):
            opened(generic(0, bad))
    for bad in (1.0, "1", None, [1], True):
        with pytest.raises(ValueError, match=r"annotation 1 \(b\) has a \w+ as its 'label'"):
            opened([annotation("a", 0), {**annotation("b", 0), "label": bad}])


def test_samples_that_are_there_twice_are_both_listed(opened):
    assert [row.sample_id for row in opened(generic(0, 0) + generic(0)).rows()] == [
        "clip_0", "clip_1", "clip_0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no annotation file"),
        ({"annotations": []}, "no annotation file"),
        ({"split": {}}, "no annotation file"),
        ({"annotations": generic(0), "split": ["train"]}, "no annotation file"),
        (7, "no annotation file"),
        ([annotation("a", 0), None], "annotation 1 is a NoneType"),
        ([{"label": 0}], "annotation 0 has no 'frame_dir'"),
        ([{**annotation("a", 0), "frame_dir": 5}], "annotation 0 has no 'frame_dir'"),
        ([annotation("a", 0), annotation("", 0)], "annotation 1 has no 'frame_dir'"),
        ([annotation("a/b", 0), annotation("a\nb", 0)], r"annotation 1 has the frame_dir 'a\\nb';"),
        ([annotation("\x1b[2J", 0)], r"frame_dir '\\x1b\[2J'; .*1 .. 200 printable characters"),
        ([annotation(" a", 0)], "no space around it"),
        ([annotation("x" * 200, 0), annotation("x" * 201, 0)], "annotation 1 has the frame_dir"),
        ([annotation(f"{'x/' * 100}{NTU_NAMES[0]}", 0)], "annotation 0 has the frame_dir"),
        ([{"frame_dir": "a", "label": 0}], "keep the joints elsewhere"),
        ([{"frame_dir": "a", "label": os.system}], "Nothing in it was run"),
    ],
)
def test_other_files_are_refused_with_a_sentence(opened, value, message):
    with pytest.raises(ValueError, match=message):
        opened(value)


def test_splits_that_pair_up_become_protocols(opened, caplog):
    names = [f"clip_{i}" for i in range(4)]
    value = {
        "annotations": generic(0, 1, 0, 1),
        "split": {
            "train": names[:2], "val": tuple(names[2:]),
            "train1": np.array(names[:1]), "test1": names[1:],
            "xsub_train": names[::2], "xsub_val": set(names[1::2]),
            "My Lab_train": [np.str_(name) for name in names[:3]], "My Lab_test": names[3:],
        },
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert opened(value, protocol=4).splits == (
            ListedSplit("default", tuple(names[:2]), tuple(names[2:])),
            ListedSplit("split1", tuple(names[:1]), tuple(names[1:])),
            ListedSplit("xsub", ("clip_0", "clip_2"), ("clip_1", "clip_3")),
            ListedSplit("my-lab", tuple(names[:3]), tuple(names[3:])),
        )
    assert not caplog.text


def test_splits_that_cannot_be_used_are_left_out_and_told(opened, caplog):
    names = [f"clip_{i}" for i in range(4)]
    value = {
        "annotations": generic(0, 1, 0, 1),
        "split": {
            "train": names[:2], "val": names[2:3], "test": names[3:],
            "a_train": names, "b_val": names, "fold": names, 5: names,
            "c_train": names[:2], "c_test": names[1:],
            "d_train": names[:2], "d_test": 7,
            "e_train": [*names[:2], "elsewhere"], "e_val": names[3:],
            "f_train": ["elsewhere"], "f_val": names,
        },
    }  # fmt: skip
    assert opened(value).splits == (
        ListedSplit("default", tuple(names[:2]), tuple(names[3:])),
        ListedSplit("e", tuple(names[:2]), tuple(names[3:])),
    )
    for message in (
        "split default has train, val and test; val is left out",
        "split a is left out: it has only train",
        "split b is left out: it has only val",
        "split 'fold' is left out",
        "split 5 is left out",
        "split c is left out: 1 samples, such as clip_1, are in both train and test",
        "split 'd_test' is left out",
        "1 samples of split e_train have no annotation",
        "split f is left out: it has only val",
    ):
        assert message in caplog.text


def walks(*names: str) -> list[dict[str, Any]]:
    """Annotations of named samples, whose labels are those of the benchmark."""
    ucla = {name: walk(0, (1, 2, 20, 3)) for name in names if name.startswith("a")}
    return [annotation(name, int(name[-3:]) - 1) for name in names if name not in ucla] + [
        annotation(name, NW_UCLA_ACTION_IDS.index(int(name[1:3])), joints)
        for name, joints in ucla.items()
    ]


def test_splits_of_a_benchmark_come_along_unless_a_published_protocol_makes_them(opened, caplog):
    a, b, c = names = NTU_NAMES  # subjects 1, 3, 3; cameras 1, 2, 3; setups 1, 1, 2
    split = {
        "xsub_train": [a], "xsub_val": [c, b],  # as published
        "xview_train": [b, c], "xview_val": [a],
        "xset_train": [c], "xset_val": [a, b, "S003C001P001R001A001"],
        "train": [b], "val": [a],  # not all of cross-view
        "turned_train": [a], "turned_test": [b, c, b],  # cross-subject under another name
        "ntu60-xsub_train": [a, b], "ntu60-xsub_val": [c],
        "train1": [c], "test1": [b],
    }  # fmt: skip
    assert opened({"annotations": walks(*names), "split": split}).splits == (
        ListedSplit("default", (b,), (a,)),
        ListedSplit("pyskl-ntu60-xsub", (a, b), (c,)),
        ListedSplit("split1", (c,), (b,)),
    )
    assert "1 samples of split xset_val have no annotation" in caplog.text
    ucla = ("a01_s01_e00_v01", "a08_s01_e00_v03", "a02_s02_e00_v02")
    both = {"nw-ucla_train": ucla[:1], "nw-ucla_val": ucla[1:],
            "train": ucla[::2], "val": ucla[1:2]}  # fmt: skip
    assert opened({"annotations": walks(*ucla), "split": both}).splits == (
        ListedSplit("pyskl-nw-ucla", ucla[:1], ucla[1:]),
    )


def test_splits_of_a_benchmark_name_samples_by_their_ids(opened):
    files = [f"nturgb+d_skeletons/{name}.skeleton" for name in NTU_NAMES]
    annotations = [{**a, "frame_dir": f} for a, f in zip(walks(*NTU_NAMES), files, strict=True)]
    split = {"mine_train": files[:1], "mine_val": files[1:2], "xsub_train": files[:1],
             "xsub_val": files[1:]}  # fmt: skip
    assert opened({"annotations": annotations, "split": split}).splits == (
        ListedSplit("mine", NTU_NAMES[:1], NTU_NAMES[1:2]),
    )


def test_a_split_that_cannot_be_read_is_told_with_its_file(tmp_path):
    path = tmp_path / "damaged.pkl"
    value = {"annotations": walks(*NTU_NAMES), "split": {"my_train": np.array(["\U0010fffe"])}}
    data = pickle.dumps(value, 4)
    damages = {
        "which is no character": data.replace(b"\xfe\xff\x10\0", b"\xfe\xff\xff\0"),
        "takes 16 bytes, its content has 4": data.replace(b"\x02U1", b"\x02U4"),
    }
    for message, damaged in damages.items():
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"damaged\.pkl: split 'my_train' .*{message}"):
            open_pyskl(path, layout=None, class_names=None)


@dataclass(frozen=True)
class InMemory(SkeletonDataset):
    """A data set whose parts are made when they are asked for."""

    parts: Callable[[], Iterator[pa.Table]] | None = None

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        assert self.parts is not None
        for table in self.parts():
            yield table if columns is None else table.select(list(columns))


def table_of(
    clips: Mapping[str, np.ndarray], image_size: tuple[int | None, int | None] = (None, None)
) -> pa.Table:
    """Rows of a data set; generic names end in their label."""
    rows = []
    for name, joints in clips.items():
        ids = ids_of_name(name)
        action_id = int(name[-1]) + 1 if ids is None else ids.action_id
        rows.append(
            {
                schema.SAMPLE_ID: name,
                schema.DATASET: GENERIC if ids is None else ids.dataset,
                schema.LABEL: action_id - 1,
                schema.ACTION_ID: action_id,
                schema.SETUP_ID: ids and ids.setup_id,
                schema.CAMERA_ID: ids and ids.camera_id,
                schema.SUBJECT_ID: ids and ids.subject_id,
                schema.REPETITION_ID: ids and ids.repetition_id,
                schema.NUM_FRAMES: joints.shape[1],
                schema.NUM_BODIES: joints.shape[0],
                schema.IMAGE_WIDTH: image_size[0],
                schema.IMAGE_HEIGHT: image_size[1],
                schema.JOINTS: joints.reshape(-1),
                schema.CAPTIONS: [],
            }
        )
    return pa.Table.from_pylist(rows, schema.DATASET_SCHEMA)


def dataset_of(folder: Path, *tables: pa.Table, skeleton: Skeleton = NTU_25) -> SkeletonDataset:
    """A data set of some parts on the disk."""
    return SkeletonDataset(
        folder=folder,
        name="small",
        format="ntu",
        family=tables[0][schema.DATASET][0].as_py(),
        skeleton=skeleton,
        classes=tuple(ClassEntry(i, i + 1, f"action {i}") for i in range(60)),
        num_rows=sum(table.num_rows for table in tables),
        num_captions=0,
        bodies=BodySettings(),
        fingerprint="",
        shards=tuple(write_shard(folder / f"part-{i}.arrow", t) for i, t in enumerate(tables)),
    )


def as_pyskl_loads(path: Path, split: str | None) -> list[dict[str, Any]]:
    """What PoseDataset.load_pkl_annotations makes of a file."""
    with path.open("rb") as file:
        data = pickle.load(file)
    if split is None:
        return data
    return [entry for entry in data["annotations"] if entry["frame_dir"] in data["split"][split]]


NTU_CLIPS = {name: walk(i, (1 + i % 2, 5 + i, 25, 3)) for i, name in enumerate(NTU_NAMES)}


def test_export_is_what_pyskl_reads(tmp_path):
    clips = list(NTU_CLIPS.items())
    dataset = dataset_of(tmp_path, table_of(dict(clips[:2])), table_of(dict(clips[2:])))
    path = tmp_path / "ntu60.pkl"
    protocols = [protocol_named("ntu60-xsub"), protocol_named("ntu60-xview")]
    summary = export_pyskl(dataset, path, protocols=protocols, progress=SilentProgress())
    assert summary.num_samples == {"xsub_train": 1, "xsub_val": 2, "xview_train": 2, "xview_val": 1}
    assert (summary.path, summary.num_bytes) == (path, path.stat().st_size)
    assert [a["frame_dir"] for a in as_pyskl_loads(path, "xsub_val")] == list(NTU_NAMES[1:])
    (first,) = as_pyskl_loads(path, "xview_val")
    assert {key: first[key] for key in ("frame_dir", "label", "total_frames")} == {
        "frame_dir": NTU_NAMES[0], "label": 0, "total_frames": 5,
    }  # fmt: skip
    assert set(first) == {"frame_dir", "label", "total_frames", "keypoint", "num_bodies"}
    assert first["keypoint"].dtype == np.float32
    assert np.array_equal(first["keypoint"], NTU_CLIPS[NTU_NAMES[0]])
    assert not list(tmp_path.glob("*.tmp"))


def test_own_export_is_read_back_equal(tmp_path):
    path = tmp_path / "ntu.pkl"
    unseen = walk(5, (2, 6, 25, 3))
    unseen[1] = 0  # as CTR-GCN's rules leave it in some clips
    clips = {**NTU_CLIPS, NTU_NAMES[2]: unseen}
    dataset = dataset_of(tmp_path, table_of(clips))
    export_pyskl(
        dataset, path, protocols=[protocol_named("ntu120-xset")], progress=SilentProgress()
    )
    source = open_pyskl(path, layout=None, class_names=None)
    assert [row.sample_id for row in source.rows()] == list(NTU_CLIPS)
    assert [row.ids.action_id for row in source.rows()] == [1, 4, 60]
    for row in source.rows():
        assert np.array_equal(source.clip(row.index).joints, clips[row.sample_id])


@pytest.mark.parametrize("names", [NTU_NAMES[1:], ("a08_s01_e00_v01", "a12_s01_e00_v03")])
def test_a_set_of_the_classes_present_is_exported_with_the_labels_of_the_benchmark(tmp_path, names):
    skeleton, num_classes = (NTU_25, 120) if names[0].startswith("S") else (UCLA_20, 10)
    table = table_of({name: walk(0, (1, 4, skeleton.num_joints, 3)) for name in names})
    at = table.schema.get_field_index(schema.LABEL)
    field = table.schema.field(at)
    table = table.set_column(at, field, pa.array([0, 1], field.type))
    classes = tuple(
        ClassEntry(label, action_id, "")
        for label, action_id in enumerate(table[schema.ACTION_ID].to_pylist())
    )
    dataset = replace(dataset_of(tmp_path, table, skeleton=skeleton), classes=classes)
    summary = export_pyskl(dataset, tmp_path / "a.pkl", protocols=[], progress=SilentProgress())
    labels = [entry["label"] for entry in as_pyskl_loads(tmp_path / "a.pkl", None)]
    assert labels == ([3, 59] if num_classes == 120 else [6, 9])
    assert sum(f"of all its {num_classes} classes" in note for note in summary.notes) == 1
    source = open_pyskl(tmp_path / "a.pkl", layout=None, class_names=None)
    assert [row.sample_id for row in source.rows()] == list(names)


def test_a_generic_set_is_exported_with_its_own_labels(tmp_path):
    dataset = dataset_of(tmp_path, table_of({"clip 2": walk(0), "clip 0": walk(1)}))
    summary = export_pyskl(dataset, tmp_path / "a.pkl", protocols=[], progress=SilentProgress())
    labels = [entry["label"] for entry in as_pyskl_loads(tmp_path / "a.pkl", None)]
    assert labels == [2, 0]
    assert not any("benchmark" in note for note in summary.notes)


def test_flat_joints_are_exported_with_scores_and_size_and_read_back_equal(tmp_path):
    clips = {f"own clip {i}": walk(i, (2, 4, 17, 3)) for i in range(3)}
    dataset = dataset_of(tmp_path, table_of(clips, (640, 480)), skeleton=COCO_17)
    mine = Protocol(
        "my-split", GENERIC, 3, "", "", None, "sample_id",
        train_values=frozenset({"own clip 0", "own clip 2"}), test_values=frozenset({"own clip 1"}),
    )  # fmt: skip
    path = tmp_path / "flat.pkl"
    export_pyskl(dataset, path, protocols=[mine], progress=SilentProgress())
    (second,) = as_pyskl_loads(path, "my-split_val")
    assert second["keypoint"].shape == (2, 4, 17, 2)
    assert second["keypoint_score"].shape == (2, 4, 17)
    assert second["img_shape"] == second["original_shape"] == (480, 640)
    source = open_pyskl(path, layout=None, class_names=None)
    assert source.splits == (
        ListedSplit("my-split", ("own clip 0", "own clip 2"), ("own clip 1",)),
    )
    for row in source.rows():
        clip = source.clip(row.index)
        assert np.array_equal(clip.joints, clips[row.sample_id])
        assert clip.image_size == (640, 480)


def test_flat_joints_without_scores_are_exported_as_certain(tmp_path):
    skeleton = replace(COCO_17, name="no-scores", has_score=False)
    clips = {"clip 0": walk(0, (1, 4, 17, 2))}
    dataset = dataset_of(tmp_path, table_of(clips), skeleton=skeleton)
    path = tmp_path / "flat.pkl"
    summary = export_pyskl(dataset, path, protocols=[], progress=SilentProgress())
    (only,) = as_pyskl_loads(path, None)
    assert (only["keypoint_score"] == 1).all()
    assert "img_shape" not in only
    assert any("bare list" in note for note in summary.notes)
    sized = dataset_of(tmp_path, table_of(clips, (640, 480)), skeleton=skeleton)
    export_pyskl(sized, path, protocols=[], progress=SilentProgress())
    source = open_pyskl(path, layout=skeleton, class_names=None)
    assert np.array_equal(source.clip(0).joints, clips["clip 0"])


def test_one_shot_exemplars_have_a_list_of_their_own(tmp_path):
    names = ("S001C003P008R001A001", "S002C001P001R001A001", "S002C001P001R001A002")
    dataset = dataset_of(tmp_path, table_of({name: walk(0) for name in names}))
    summary = export_pyskl(
        dataset,
        tmp_path / "oneshot.pkl",
        protocols=[protocol_named("ntu60-oneshot")],
        progress=SilentProgress(),
    )
    assert summary.num_samples == {
        "ntu60-oneshot_train": 1, "ntu60-oneshot_val": 1, "ntu60-oneshot_exemplar": 1,
    }  # fmt: skip


def test_exports_that_cannot_be_are_refused(tmp_path):
    dataset = dataset_of(tmp_path, table_of(NTU_CLIPS))

    def export(file: str, *protocols: str) -> None:
        found = [protocol_named(name) for name in protocols]
        export_pyskl(dataset, tmp_path / file, protocols=found, progress=SilentProgress())

    with pytest.raises(ValueError, match="ntu60-xsub and ntu120-xsub would both be"):
        export("a.pkl", "ntu60-xsub", "ntu120-xsub")
    with pytest.raises(ValueError, match="nw-ucla is for nw-ucla samples"):
        export("a.pkl", "nw-ucla")
    with pytest.raises(ValueError, match=r"does not end in \.pkl"):
        export("a.npz", "ntu60-xsub")
    with pytest.raises(FileNotFoundError, match="make that folder first"):
        export("none/a.pkl", "ntu60-xsub")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-0.arrow"]


def test_damaged_part_leaves_no_export_and_the_older_one_as_it_was(tmp_path):
    dataset = dataset_of(tmp_path, table_of(NTU_CLIPS))
    path = tmp_path / "a.pkl"
    path.write_bytes(b"older")
    (tmp_path / "part-0.arrow").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="not a readable Arrow stream"):
        export_pyskl(dataset, path, protocols=[], progress=SilentProgress())
    assert path.read_bytes() == b"older"
    assert not list(tmp_path.glob("*.tmp"))


def test_export_takes_no_more_memory_for_a_larger_set(tmp_path):
    clip = walk(0, (2, 100, 25, 3))

    def most(num_parts: int) -> int:
        def parts() -> Iterator[pa.Table]:
            for part in range(num_parts):
                yield table_of({f"S001C001P001R{part:03d}A{i:03d}": clip for i in range(1, 21)})

        base = dataset_of(tmp_path, table_of(NTU_CLIPS))
        dataset = InMemory(**{**vars(base), "num_rows": 20 * num_parts}, parts=parts)
        tracemalloc.start()
        export_pyskl(
            dataset,
            tmp_path / "large.pkl",
            protocols=[protocol_named("ntu60-xsub")],
            progress=SilentProgress(),
        )
        num_most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return num_most

    few, many = most(2), most(20)
    assert (tmp_path / "large.pkl").stat().st_size == pytest.approx(400 * clip.nbytes, rel=0.02)
    assert many < few + 400 * 200  # the names of the samples; a clip has 60,000 bytes
