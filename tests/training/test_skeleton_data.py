from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets_build import schema
from datasets_build.bodies import centred
from datasets_build.dataset import joints_of, open_dataset
from datasets_build.joints import NTU_25, UCLA_20
from datasets_build.protocols import GENERIC, NTU, protocol_named
from training import loading, skeleton_data
from training.config import DataConfig
from training.loading import load_split, one_clip
from training.skeleton_data import SkeletonStore, training_problems
from training.streams import apply_stream
from training.transforms import NTU_DRAWS, StoredClips, ntu_view, sample_draws, sample_key

CPU = torch.device("cpu")
XSUB = protocol_named("ntu60-xsub")


def load(folder: Path, split: Any = "train", **changes: Any) -> SkeletonStore:
    keywords = {k: changes.pop(k) for k in ("with_captions", "prompt_ids") if k in changes}
    config = DataConfig(dataset=folder, protocol="ntu60-xsub", num_frames=16, **changes)
    return load_split(open_dataset(folder), XSUB, split, config, device=CPU, **keywords)


def words(texts: list[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A tokenizer that gives every text its number and one token a word."""
    tokens = torch.zeros(len(texts), max_tokens, dtype=torch.long)
    mask = torch.zeros(len(texts), max_tokens, dtype=torch.bool)
    for i, text in enumerate(texts):
        tokens[i, : len(text.split())] = i
        mask[i, : len(text.split())] = True
    return tokens, mask


def test_splits_follow_the_protocol_and_share_no_sample(dataset_folder: Path) -> None:
    train, test = load(dataset_folder), load(dataset_folder, "test")
    assert len(train) == 24
    assert len(test) == 12
    assert not set(train.sample_ids) & set(test.sample_ids)
    assert all("P003" in name for name in test.sample_ids)


def test_a_batch_equals_the_transforms_of_each_clip_alone(dataset_folder: Path) -> None:
    store = load(dataset_folder, stream="bone-motion")
    picks = store.shuffled(5, 2).part(3, 10)
    batch = store.batch(picks, seed=5, epoch=2, training=True)
    rows = {
        row[schema.SAMPLE_ID]: row
        for table in open_dataset(dataset_folder).tables()
        for row in table.to_pylist()
    }
    for i, at in enumerate(picks.index):
        row = rows[store.sample_ids[at]]
        joints = centred(joints_of(row, NTU_25))  # (M, T, V, C)
        x = torch.zeros(1, 2, *joints.shape[1:])
        x[0, : len(joints)] = torch.from_numpy(joints)
        key = torch.tensor([sample_key(row[schema.SAMPLE_ID])])
        draws = sample_draws(5, 2, key, NTU_DRAWS)
        length = torch.tensor([joints.shape[1]])
        x = ntu_view(x, length, num_frames=16, training=True, draws=draws)
        x = apply_stream(x, NTU_25, "bone-motion")
        torch.testing.assert_close(batch.x[i], x[0])
        assert batch.label[i] == row[schema.LABEL]


def test_the_memory_mapped_store_gives_the_same_batches(dataset_folder: Path) -> None:
    resident, mapped = load(dataset_folder), load(dataset_folder, resident_gib=0)
    assert resident.is_resident
    assert not mapped.is_resident
    for store_epoch in (0, 1):
        left = resident.batch(
            resident.shuffled(0, store_epoch).part(0, 9), epoch=store_epoch, training=True
        )
        right = mapped.batch(
            mapped.shuffled(0, store_epoch).part(0, 9), epoch=store_epoch, training=True
        )
        assert torch.equal(left.x, right.x)
        assert torch.equal(left.label, right.label)


def test_order_depends_on_seed_and_epoch_alone(dataset_folder: Path) -> None:
    store = load(dataset_folder)
    first = store.shuffled(0, 3).index
    store.shuffled(0, 4)
    assert np.array_equal(first, store.shuffled(0, 3).index)
    assert sorted(first) == list(range(24))
    assert not np.array_equal(first, store.shuffled(0, 4).index)
    assert not np.array_equal(first, store.shuffled(1, 3).index)


def test_repeated_samples_get_other_draws_in_each_pass(dataset_folder: Path) -> None:
    store = load(dataset_folder, repeat=3)
    picks = store.shuffled(0, 0)
    assert len(picks) == store.num_picks == 72
    first = np.flatnonzero(picks.index == 0)
    assert len(first) == 3
    x = store.batch(picks, training=True).x[torch.from_numpy(first)]
    assert not torch.equal(x[0], x[1])
    assert not torch.equal(x[1], x[2])


def test_augmentation_moves_on_with_the_epoch_and_stands_still_in_tests(
    dataset_folder: Path,
) -> None:
    store = load(dataset_folder)
    picks = store.in_order()
    epochs = [store.batch(picks, epoch=e, training=True).x for e in (0, 1)]
    assert not torch.equal(*epochs)
    tests = [store.batch(picks, epoch=e, training=False).x for e in (0, 1)]
    assert torch.equal(*tests)


def test_the_unseen_body_is_zero_or_a_copy(dataset_folder: Path) -> None:
    joints = np.random.default_rng(0).normal(size=(1, 20, 25, 3)).astype(np.float32)
    config = DataConfig(dataset=dataset_folder, protocol="ntu60-xsub", num_frames=16)
    for policy in ("zeros", "copy"):
        store = one_clip(
            joints, name="a", skeleton=NTU_25, config=config, second_body=policy, device=CPU
        )
        x = store.batch(store.in_order(), training=False).x
        expected = x[:, 0] if policy == "copy" else torch.zeros_like(x[:, 0])
        assert torch.equal(x[:, 1], expected)
        assert x[:, 0].abs().sum() > 0


def test_only_the_second_of_three_bodies_is_a_copy(dataset_folder: Path) -> None:
    skeleton = replace(NTU_25, name="three bodies", num_bodies=3)
    config = DataConfig(dataset=dataset_folder, protocol="ntu60-xsub", num_frames=16)
    for num_seen in (1, 2):
        rng = np.random.default_rng(num_seen)
        joints = rng.normal(size=(num_seen, 20, 25, 3)).astype(np.float32)
        store = one_clip(
            joints, name="a", skeleton=skeleton, config=config, second_body="copy", device=CPU
        )
        x = store.batch(store.in_order(), training=False).x[0]  # (M, T, V, C)
        assert torch.equal(x[0], x[1]) == (num_seen == 1)
        assert torch.count_nonzero(x[1]) > 0
        assert torch.count_nonzero(x[2]) == 0


@pytest.mark.parametrize("view", ["ntu", "ucla"])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_one_long_clip_does_not_make_a_whole_batch_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: Any, is_mapped: bool
) -> None:
    skeleton = NTU_25 if view == "ntu" else UCLA_20
    limit = 1 << 20  # bytes: 2 clips of 800 frames in NTU's layout
    monkeypatch.setattr(skeleton_data, "_PADDED_BYTES", limit)
    lengths = np.array([20] * 30 + [800] + [20] * 30)
    shape = (int(lengths.sum()), skeleton.num_joints, 3)
    rows: Any = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if is_mapped:
        rows.tofile(tmp_path / "rows")
        rows = np.memmap(tmp_path / "rows", np.float32, shape=shape)
    store = SkeletonStore(
        rows if is_mapped else torch.from_numpy(rows),
        sample_ids=[f"take {i}" for i in range(len(lengths))],
        labels=np.arange(len(lengths)),
        num_frames=lengths,
        num_bodies=np.ones_like(lengths),
        skeleton=skeleton,
        config=DataConfig(dataset=tmp_path, protocol="own", num_frames=16, view=view),
        second_body="zeros",
        device=CPU,
    )
    sizes: list[int] = []
    original = StoredClips.frames

    def spied(self: StoredClips, index: torch.Tensor) -> torch.Tensor:
        x = original(self, index)
        sizes.append(x.nbytes)
        return x

    monkeypatch.setattr(StoredClips, "frames", spied)
    for training in (True, False):
        batch = store.batch(store.in_order(), training=training)
        assert batch.label.tolist() == list(range(len(lengths)))
        for i in (0, 29, 30, 31, 60):
            alone = store.batch(store.picks(np.array([i])), training=training)
            torch.testing.assert_close(batch.x[i], alone.x[0], rtol=0, atol=1e-6)
    # NTU's view gathers no frame but those that it mixes: 16 a body.
    frames = 16 * skeleton.num_bodies * len(lengths)
    assert max(sizes) <= (limit if view == "ucla" else frames * skeleton.num_joints * 3 * 4)


@pytest.mark.parametrize("resident_gib", [8.0, 0.0])
@pytest.mark.parametrize("training", [True, False])
def test_batches_made_ahead_are_the_same(
    dataset_folder: Path, resident_gib: float, training: bool
) -> None:
    store = load(dataset_folder, resident_gib=resident_gib, with_captions=True, stream="bone")
    store.tokenise(words, 40)
    picks = store.shuffled(3, 1)
    parts = [picks.part(at, at + 7) for at in range(0, 24, 7)]
    made = list(store.batches(parts, seed=3, epoch=1, training=training))
    assert [len(batch.label) for batch in made] == [7, 7, 7, 3]
    for part, batch in zip(parts, made, strict=True):
        alone = store.batch(part, seed=3, epoch=1, training=training)
        assert torch.equal(batch.x, alone.x)
        assert torch.equal(batch.label, alone.label)
        assert torch.equal(batch.sample_key, alone.sample_key)
        assert batch.tokens is not None
        assert alone.tokens is not None
        assert torch.equal(batch.tokens, alone.tokens)


def test_batches_made_ahead_may_be_left_unused_and_report_what_went_wrong(
    dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = load(dataset_folder, resident_gib=0)
    parts = [store.in_order().part(at, at + 5) for at in range(0, 20, 5)]
    for batch in store.batches(parts, training=False):
        assert len(batch.label) == 5
        break
    assert not list(store.batches([], training=False))

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(StoredClips, "frames", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        next(store.batches(parts, training=False))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident_gib", [8.0, 0.0])
def test_a_training_batch_on_the_gpu_equals_the_cpus_and_waits_for_nothing(
    dataset_folder: Path, resident_gib: float
) -> None:
    config = DataConfig(
        dataset=dataset_folder,
        protocol="ntu60-xsub",
        num_frames=16,
        stream="bone-motion",
        resident_gib=resident_gib,
    )
    dataset, gpu = open_dataset(dataset_folder), torch.device("cuda")
    stores = [load_split(dataset, XSUB, "train", config, device=where) for where in (CPU, gpu)]
    x = [store.batch(store.shuffled(0, 0), training=True).x.cpu() for store in stores]
    torch.testing.assert_close(x[1], x[0], rtol=1e-5, atol=1e-5)
    picks = stores[1].shuffled(0, 1)
    parts = [picks.part(at, at + 8) for at in range(0, 24, 8)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = [batch.x for batch in stores[1].batches(parts, epoch=1, training=True)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    again = stores[1].batch(picks, epoch=1, training=True).x
    torch.testing.assert_close(torch.cat(made), again)


def test_joints_without_an_ancestor_follow_the_recipes_convention(dataset_folder: Path) -> None:
    zero, keep = (
        load(dataset_folder, stream="bone2", **changes) for changes in ({}, {"orphan": "keep"})
    )
    joint = load(dataset_folder)
    x = [s.batch(s.in_order(), training=False).x for s in (zero, keep, joint)]
    orphans = [joint for joint in range(25) if joint + 1 in (2, 3, 5, 9, 21)]
    others = [joint for joint in range(25) if joint not in orphans]
    assert torch.count_nonzero(x[0][..., orphans, :]) == 0
    assert torch.equal(x[1][..., orphans, :], x[2][..., orphans, :])
    assert torch.equal(x[0][..., others, :], x[1][..., others, :])


def test_validation_subjects_leave_the_training_split(dataset_folder: Path) -> None:
    chosen = {"validation_subjects": (2,)}
    everything = load(dataset_folder)
    train, validation = (load(dataset_folder, split, **chosen) for split in ("train", "validation"))
    assert sorted(train.sample_ids + validation.sample_ids) == sorted(everything.sample_ids)
    assert all("P002" in name for name in validation.sample_ids)
    assert not any("P002" in name for name in train.sample_ids)
    assert (
        load(dataset_folder, "test", **chosen).sample_ids == load(dataset_folder, "test").sample_ids
    )
    with pytest.raises(AssertionError, match="captions of test samples"):
        load(dataset_folder, "validation", with_captions=True, **chosen)


def test_validation_subjects_that_do_not_fit_are_refused(
    make_dataset: Callable[..., Path], dataset_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="there is no validation split"):
        load(dataset_folder, "validation")
    with pytest.raises(ValueError, match=r"names 3, whom no training sample.*subjects are 1, 2"):
        load(dataset_folder, validation_subjects=(2, 3))
    with pytest.raises(ValueError, match="names every training subject"):
        load(dataset_folder, validation_subjects=(1, 2))

    def nobody(row: dict[str, Any]) -> None:
        row[schema.DATASET] = GENERIC
        row[schema.CAMERA_ID] = row[schema.SUBJECT_ID]
        row[schema.SUBJECT_ID] = None

    folder = make_dataset(tmp_path / "nobody", change=nobody, family=GENERIC)
    protocol = replace(
        XSUB, dataset=GENERIC, split_by="camera_id", train_values=frozenset({1, 2}), action_ids=None
    )
    config = DataConfig(dataset=folder, protocol="own", validation_subjects=(1,))
    with pytest.raises(ValueError, match="have no subject ids"):
        load_split(open_dataset(folder), protocol, "train", config, device=CPU)


@pytest.mark.parametrize("family", [GENERIC, NTU])
def test_a_frame_without_anybody_stays_empty_but_for_ctr_gcns_habit(
    make_dataset: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    """One body, 16 frames that the view leaves as they are, the sixth all zeros."""
    joints = np.random.default_rng(0).normal(1, 0.1, (1, 16, 25, 3)).astype(np.float32)
    joints[0, 5] = 0
    chosen = "S001C001P003R002A008"

    def change(row: dict[str, Any]) -> None:
        row[schema.DATASET] = family
        if row[schema.SAMPLE_ID] == chosen:
            row[schema.NUM_FRAMES], row[schema.NUM_BODIES] = 16, 1
            row[schema.JOINTS] = joints.reshape(-1)

    folder = make_dataset(tmp_path / "data", change=change, family=family)
    dataset = open_dataset(folder)
    protocol = replace(XSUB, dataset=family)
    config = DataConfig(dataset=folder, protocol=XSUB.name, num_frames=16)
    store = load_split(dataset, protocol, "test", config, device=CPU, sample_ids=[chosen])
    x = store.batch(store.in_order(), training=False).x[0, 0].numpy()  # (T, V, C)
    origin = joints[0, 0, NTU_25.centre]
    np.testing.assert_allclose(x[4], joints[0, 4] - origin, atol=1e-6)
    empty = np.zeros(3) if family == GENERIC else -origin
    np.testing.assert_allclose(x[5], np.broadcast_to(empty, (25, 3)), atol=1e-6)


def test_captions_are_drawn_anew_each_epoch_and_trimmed_to_the_batch(dataset_folder: Path) -> None:
    store = load(dataset_folder, with_captions=True)
    store.tokenise(words, 40)
    chosen = []
    for epoch in range(4):
        picks = store.shuffled(0, epoch)
        batch = store.batch(picks, epoch=epoch, training=True)
        assert batch.tokens is not None
        assert batch.tokens.dtype == torch.int64
        assert batch.token_mask is not None
        longest = max(len(text.split()) for texts in store.texts or [] for text in texts)
        assert batch.tokens.shape[1] == longest
        for i, at in enumerate(picks.index):
            assert batch.tokens[i, 0] // 2 == at  # two captions a sample, numbered in order
        chosen.append(batch.tokens[np.argsort(picks.index), 0] % 2)
    assert not torch.equal(chosen[0], chosen[1])
    again = store.batch(store.shuffled(0, 0), epoch=0, training=True)
    assert again.tokens is not None
    assert torch.equal(again.tokens[np.argsort(store.shuffled(0, 0).index), 0] % 2, chosen[0])


def test_only_captions_of_the_chosen_prompts_are_read(dataset_folder: Path) -> None:
    store = load(dataset_folder, with_captions=True, prompt_ids=("p1",))
    assert store.texts is not None
    assert all(len(texts) == 1 and texts[0].endswith("again.") for texts in store.texts)


def test_captions_of_test_samples_are_never_read(dataset_folder: Path) -> None:
    with pytest.raises(AssertionError, match="captions of test samples"):
        load(dataset_folder, "test", with_captions=True)
    assert load(dataset_folder, "test").texts is None
    train = load(dataset_folder, with_captions=True)
    assert "POISON" not in " ".join(text for texts in train.texts or [] for text in texts)


def test_captions_of_other_samples_do_not_become_text(
    dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    original = loading._captions

    def spied(*given: Any) -> dict[str, list[str]]:
        texts = original(*given)
        found.extend(texts)
        return texts

    monkeypatch.setattr(loading, "_captions", spied)
    store = load(dataset_folder, with_captions=True, validation_subjects=(2,))
    assert found == store.sample_ids


def test_joints_that_are_no_numbers_are_named(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    def spoil(row: dict[str, Any]) -> None:
        if row[schema.SAMPLE_ID] == "S001C001P002R001A010":
            row[schema.JOINTS][5] = np.nan

    folder = make_dataset(tmp_path / "nan", change=spoil)
    with pytest.raises(ValueError, match="S001C001P002R001A010"):
        load(folder)
    with pytest.raises(ValueError, match="S001C001P002R001A010"):
        load(folder, "validation", validation_subjects=(2,))
    for split in ("train", "test"):  # no sample of theirs, though in the same part
        store = load(folder, split, validation_subjects=(2,))
        assert store.batch(store.in_order(), training=False).x.isfinite().all()


def test_labels_out_of_range_and_empty_classes_are_found_before_training(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    def too_high(row: dict[str, Any]) -> None:
        row[schema.LABEL] += 1

    store = load(make_dataset(tmp_path / "labels", change=too_high))
    (problem,) = training_problems(store, ["a", "b", "c"], allow_empty_classes=False)
    assert "label 3" in problem
    names = ["a", "b", "c", "d", "never seen"]
    (problem,) = training_problems(store, names, allow_empty_classes=False)
    assert "2 of 5 classes have no training sample (a, never seen)" in problem
    assert not training_problems(store, names, allow_empty_classes=True)


def test_missing_captions_are_found_before_training(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    store = load(make_dataset(tmp_path / "mute", captions="none"), with_captions=True)
    (problem,) = training_problems(store, ["a", "b", "c"], allow_empty_classes=False)
    assert "24 of 24 training samples have no caption" in problem


def test_a_protocol_of_another_data_set_is_refused(dataset_folder: Path) -> None:
    config = DataConfig(dataset=dataset_folder, protocol="nw-ucla")
    with pytest.raises(ValueError, match="nw-ucla"):
        load_split(
            open_dataset(dataset_folder), protocol_named("nw-ucla"), "train", config, device=CPU
        )


def test_an_empty_split_is_refused(dataset_folder: Path) -> None:
    config = DataConfig(dataset=dataset_folder, protocol="ntu60-xview")
    xview = protocol_named("ntu60-xview")
    with pytest.raises(ValueError, match="no train sample"):
        load_split(open_dataset(dataset_folder), xview, "train", config, device=CPU)
