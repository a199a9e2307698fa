"""training.inputs: what a model sees at test time, against CTR-GCN's own inputs and arithmetic."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from datasets_build import schema
from datasets_build.build import run as build
from datasets_build.config import BuildConfig
from datasets_build.dataset import SkeletonDataset, open_dataset
from datasets_build.npz_files import ExportSummary
from datasets_build.progress import SilentProgress
from training import inputs
from training.config import DataConfig
from training.inputs import export_inputs
from training.loading import load_split
from training.streams import STREAMS

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN = SHARED / "data/golden"
NUM_CLIPS = 47

# protocols.md section 6, CTR-GCN's pairs (child, parent), 1-based; the root's bone is 0.
NTU_BONES = (
    (1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10),
    (12, 11), (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19),
    (22, 23), (23, 8), (24, 25), (25, 12),
)  # fmt: skip
# protocols.md section 7, the grandparents of the same tree; joints without one become 0.
NTU_SECOND_BONES = (
    (1, 21), (4, 21), (6, 21), (7, 5), (8, 6), (10, 21), (11, 9), (12, 10), (13, 2), (14, 1),
    (15, 13), (16, 14), (17, 2), (18, 1), (19, 17), (20, 18), (22, 8), (23, 7), (24, 12), (25, 11),
)  # fmt: skip


def exported(dataset: SkeletonDataset, path: Path, **options: Any) -> dict[str, np.ndarray]:
    """The arrays of an export of the test split, unless options say otherwise."""
    export(dataset, path, **options)
    with np.load(path) as arrays:
        return dict(arrays)


def export(dataset: SkeletonDataset, path: Path, **options: Any) -> ExportSummary:
    values: dict[str, Any] = {"protocol": "ntu60-xsub", "split": "test", "stream": "joint"}
    values |= options
    protocol = dataset.protocol(values.pop("protocol"))
    return export_inputs(dataset, path, protocol=protocol, progress=SilentProgress(), **values)


@pytest.fixture(scope="module")
def nwucla(tmp_path_factory: pytest.TempPathFactory) -> SkeletonDataset:
    """The real NW-UCLA, built from its zip."""
    source = SHARED / "data/nw-ucla/all_sqe.zip"
    if not source.is_file():
        pytest.skip(f"real data is not there: {source}")
    out = tmp_path_factory.mktemp("nw-ucla") / "data"
    build(BuildConfig(skeletons=(source,), out=out, name="nw-ucla", workers=1))
    return open_dataset(out)


@pytest.fixture(scope="module")
def ntu(tmp_path_factory: pytest.TempPathFactory) -> SkeletonDataset:
    """The 33 sequences that CTR-GCN's preprocessing was run on, built from their files."""
    if not GOLDEN.is_dir():
        pytest.skip(f"real data is not there: {GOLDEN}")
    folder = tmp_path_factory.mktemp("ntu")
    with tarfile.open(GOLDEN / "ntu_skeletons.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    source = folder / "ntu_skeletons"
    build(BuildConfig(skeletons=(source,), out=folder / "data", workers=1))
    return open_dataset(folder / "data")


@pytest.mark.parametrize("stream", ["joint", "bone", "joint-motion", "bone-motion"])
def test_nwucla_inputs_equal_ctr_gcns_own(
    nwucla: SkeletonDataset, tmp_path: Path, stream: str
) -> None:
    golden = np.load(GOLDEN / "nwucla_ctrgcn_test_inputs.npz")
    ours = exported(nwucla, tmp_path / "inputs.npz", protocol="nw-ucla", stream=stream)
    assert ours["x"].shape == (464, 1, 52, 20, 3)
    place = {name: i for i, name in enumerate(ours["sample_id"])}
    at = [place[name] for name in golden["sample_id"]]
    assert len(at) == NUM_CLIPS
    assert np.array_equal(ours["label"][at], golden["label"])
    theirs = golden[stream.replace("-", "_")].transpose(0, 2, 3, 1)[:, None]  # (n, 1, T, V, C)
    worst = np.abs(ours["x"][at].astype(float) - theirs).max()
    assert worst <= 1e-6, f"{stream}: {worst}"


@pytest.mark.parametrize("resident_gib", [8.0, 0.0])
def test_what_is_exported_is_what_a_trained_model_is_given(
    nwucla: SkeletonDataset, tmp_path: Path, resident_gib: float
) -> None:
    ours = exported(nwucla, tmp_path / "inputs.npz", protocol="nw-ucla", stream="bone-motion")
    config = DataConfig(
        dataset=nwucla.folder,
        protocol="nw-ucla",
        stream="bone-motion",
        view="ucla",
        num_frames=52,
        resident_gib=resident_gib,
    )
    protocol = nwucla.protocol("nw-ucla")
    store = load_split(nwucla, protocol, "test", config, device=torch.device("cpu"))
    assert store.is_resident == (resident_gib > 0)
    x = store.batch(store.in_order(), training=False).x
    assert np.array_equal(ours["x"], x.numpy())


def ntu_by_hand(clip: np.ndarray, stream: str) -> np.ndarray:
    """protocols.md section 3 for a test sample: (T, 150) of CTR-GCN's arrays to (M, 64, V, C)."""
    x = clip.reshape(len(clip), 2, 25, 3).transpose(3, 0, 2, 1)  # (C, T, V, M)
    valid = int((x.sum(axis=(0, 2, 3)) != 0).sum())
    bias = int((1 - 0.95) * valid / 2)
    cut = torch.from_numpy(np.ascontiguousarray(x[:, bias : valid - bias]))
    C, T, V, M = cut.shape
    flat = cut.permute(0, 2, 3, 1).reshape(1, 1, C * V * M, T)
    flat = interpolate(flat, size=(C * V * M, 64), mode="bilinear", align_corners=False)
    x = flat.view(C, V, M, 64).permute(2, 3, 1, 0).numpy()  # (M, 64, V, C)
    pairs = {"bone": NTU_BONES, "bone2": NTU_SECOND_BONES}.get(stream.removesuffix("-motion"))
    if pairs is not None:
        bones = np.zeros_like(x)
        for child, ancestor in pairs:
            bones[:, :, child - 1] = x[:, :, child - 1] - x[:, :, ancestor - 1]
        x = bones
    if stream.endswith("-motion"):
        moved = np.zeros_like(x)
        moved[:, :-1] = x[:, 1:] - x[:, :-1]
        x = moved
    return x


@pytest.mark.parametrize("stream", STREAMS)
def test_ntu_inputs_equal_ctr_gcns_arithmetic_on_its_own_arrays(
    ntu: SkeletonDataset, tmp_path: Path, stream: str
) -> None:
    golden = np.load(GOLDEN / "ntu_ctrgcn_preprocessed.npz")
    num = 0
    for split in ("train", "test"):
        ours = exported(ntu, tmp_path / f"{split}.npz", split=split, stream=stream)
        assert ours["x"].shape[1:] == (2, 64, 25, 3)
        for sample_id, label, x in zip(ours["sample_id"], ours["label"], ours["x"], strict=True):
            assert label == int(sample_id[-3:]) - 1
            worst = np.abs(x - ntu_by_hand(golden[sample_id], stream)).max()
            assert worst <= 1e-6, f"{sample_id} {stream}: {worst}"
            num += 1
    assert num == len(golden.files) == 33


def test_an_export_is_what_the_store_gives_sample_by_sample(
    dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advances: list[int] = []
    monkeypatch.setattr(SilentProgress, "advance", lambda _, num, note="": advances.append(num))
    monkeypatch.setattr(inputs, "_BATCH_BYTES", 5 * 2 * 16 * 25 * 3 * 4, raising=False)
    dataset = open_dataset(dataset_folder)
    path = tmp_path / "inputs.npz"
    summary = export(dataset, path, stream="bone-motion", num_frames=16)
    arrays = np.load(path)
    assert sorted(arrays.files) == ["label", "sample_id", "x"]
    assert summary.num_samples == {"test": 12}
    assert sum(advances) == 12
    assert max(advances) == 5
    assert summary.num_bytes == path.stat().st_size
    config = DataConfig(
        dataset=dataset_folder, protocol="ntu60-xsub", stream="bone-motion", num_frames=16
    )
    protocol = dataset.protocol("ntu60-xsub")
    store = load_split(dataset, protocol, "test", config, device=torch.device("cpu"))
    assert arrays["sample_id"].tolist() == store.sample_ids == sorted(store.sample_ids)
    assert arrays["label"].dtype == np.int64
    assert arrays["x"].dtype == np.float32
    for i in range(len(store)):
        batch = store.batch(store.picks(np.array([i])), training=False)
        assert np.array_equal(arrays["x"][i], batch.x[0].numpy())
        assert arrays["label"][i] == batch.label[0]


def test_the_training_split_is_shown_as_a_test_would(dataset_folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(dataset_folder)
    summary = export(dataset, tmp_path / "a.npz", split="train")
    assert summary.num_samples == {"train": 24}
    assert "without augmentation" in " ".join(summary.notes)
    export(dataset, tmp_path / "b.npz", split="train")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_captions_are_never_read(
    dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns_read: list[str] = []
    original = SkeletonDataset.tables

    def spied(dataset: SkeletonDataset, columns: list[str]) -> Any:
        columns_read.extend(columns)
        return original(dataset, columns)

    monkeypatch.setattr(SkeletonDataset, "tables", spied)
    for split in ("train", "test"):
        export(open_dataset(dataset_folder), tmp_path / "inputs.npz", split=split)
    assert schema.JOINTS in columns_read
    assert schema.CAPTIONS not in columns_read


def test_the_exemplars_of_a_one_shot_protocol_are_a_split_of_their_own(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    def novel(row: dict[str, Any]) -> None:
        subject = 8 if row[schema.SUBJECT_ID] == 3 else row[schema.SUBJECT_ID]
        row[schema.SUBJECT_ID], row[schema.CAMERA_ID] = subject, 3
        row[schema.ACTION_ID] = 1 if row[schema.ACTION_ID] == 8 else row[schema.ACTION_ID]

    dataset = open_dataset(make_dataset(tmp_path / "data", change=novel))
    arrays = exported(dataset, tmp_path / "a.npz", protocol="ntu60-oneshot", split="exemplar")
    assert arrays["sample_id"].tolist() == ["S001C001P003R001A008"]
    assert len(exported(dataset, tmp_path / "b.npz", protocol="ntu60-oneshot")["x"]) == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": "bones"}, "stream.*bone2-motion.*'bones'"),
        ({"split": "validation"}, "'validation'.*train, test, exemplar"),
        ({"split": "exemplar"}, "no exemplar sample under protocol ntu60-xsub"),
        ({"view": "front"}, "view.*ucla.*'front'"),
        ({"view": "ucla"}, 'view "ucla" is for one body.*ntu-25 has 2 bodies'),
        ({"num_frames": 1}, "num_frames.*2"),
        ({"orphan": "root"}, "orphan.*zero.*keep.*'root'"),
    ],
)
def test_what_cannot_be_exported_gets_a_sentence_and_no_file(
    dataset_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export(open_dataset(dataset_folder), tmp_path / "inputs.npz", **options)
    assert not list(tmp_path.iterdir())
