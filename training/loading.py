"""Splits of a data set read into SkeletonStores; captions of training samples alone.

Letters: M bodies, T frames, V joints, C channels, R rows of the store.

A store holds coordinates relative to something of the clip's own (coordinates.py). All else that a
view does follows batch by batch (transforms.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from datasets_build import schema
from datasets_build.bodies import SecondBody
from datasets_build.dataset import SkeletonDataset, joints_of_table
from datasets_build.joints import Skeleton
from datasets_build.protocols import GENERIC, Protocol, Split
from training.config import DataConfig
from training.coordinates import relative_joints
from training.skeleton_data import SkeletonStore
from training.unseen_classes import unseen_labels

# What a protocol parts the samples into, and "validation": the part of "train" that a recipe's
# data.validation_subjects take out of it.
AnySplit = Split | Literal["validation"]

_CLIP_COLUMNS = (
    schema.SAMPLE_ID,
    schema.NUM_FRAMES,
    schema.NUM_BODIES,
    schema.IMAGE_WIDTH,
    schema.IMAGE_HEIGHT,
    schema.JOINTS,
)


@dataclass(frozen=True, slots=True)
class SplitEntry:
    """A sample of a split: its label (0-based), T and M."""

    label: int
    num_frames: int
    num_bodies: int


def load_split(
    dataset: SkeletonDataset,
    protocol: Protocol,
    split: AnySplit,
    config: DataConfig,
    *,
    device: torch.device,
    with_captions: bool = False,
    prompt_ids: Sequence[str] = (),
    sample_ids: Sequence[str] | None = None,
    second_body: SecondBody | None = None,
) -> SkeletonStore:
    """Read one split of a data set, once.

    Args:
        dataset: the opened data set.
        protocol: what splits it.
        split: "train", "validation", "test", or "exemplar" (one-shot protocols).
        config: view, stream, validation subjects, unseen classes, where the joints lie.
        device: where batches are made.
        with_captions: also read the captions; for the training split only.
        prompt_ids: only captions of these prompts; empty: all.
        sample_ids: only these samples.
        second_body: what stands for a body that was not seen, for a model that was trained with
            it; None: what the data set and protocol say.

    Raises:
        ValueError: the split is empty or not there, the view is not for this layout, an unseen
            class is not known, joints are not finite or have no image size.
    """
    assert split == "train" or not with_captions, "captions of test samples are never read"
    index = read_index(
        dataset,
        protocol,
        split,
        view=config.view,
        sample_ids=sample_ids,
        validation_subjects=config.validation_subjects,
        unseen=unseen_labels(dataset.classes, config.unseen_classes),
    )
    num_rows = sum(entry.num_bodies * entry.num_frames for entry in index.values())
    shape = (num_rows, dataset.skeleton.num_joints, dataset.skeleton.num_channels)
    rows = _empty_rows(shape, config.resident_gib)
    target = rows if isinstance(rows, np.memmap) else rows.numpy()
    texts: dict[str, list[str]] | None = {} if with_captions else None
    _read_into(target, dataset, index, view=config.view, texts=texts, prompt_ids=prompt_ids)
    pa.default_memory_pool().release_unused()  # it keeps the room of the parts: tens of MB
    return _store(
        rows,
        index,
        skeleton=dataset.skeleton,
        config=config,
        second_body=second_body or dataset.second_body_for(protocol),
        device=device,
        texts=None if texts is None else [texts[name] for name in index],
    )


def part_stores(
    dataset: SkeletonDataset,
    protocol: Protocol,
    index: Mapping[str, SplitEntry],
    config: DataConfig,
    *,
    device: torch.device,
) -> Iterator[SkeletonStore]:
    """The samples of an index in stores of one part each: a pass that holds no more than a part.

    Args:
        dataset: the opened data set.
        protocol: what split it.
        index: from `read_index`; the stores hold its samples in its order.
        config: view and stream.
        device: where batches are made.

    Raises:
        ValueError: joints are not finite or have no image size.
    """
    for table in dataset.tables(_CLIP_COLUMNS):
        clips = dict(_relative_clips(table, dataset, index, view=config.view))
        if clips:
            rows = [clip.reshape(-1, *clip.shape[2:]) for clip in clips.values()]  # (M*T, V, C)
            yield _store(
                torch.from_numpy(np.concatenate(rows)),  # (R, V, C)
                {name: index[name] for name in clips},
                skeleton=dataset.skeleton,
                config=config,
                second_body=dataset.second_body_for(protocol),
                device=device,
            )


def read_index(
    dataset: SkeletonDataset,
    protocol: Protocol,
    split: AnySplit,
    *,
    view: str,
    sample_ids: Sequence[str] | None = None,
    validation_subjects: Collection[int] = (),
    unseen: Collection[int] = (),
) -> dict[str, SplitEntry]:
    """The samples of a split by sample_id, in the order of the parts; no joint is read.

    Args:
        dataset: the opened data set.
        protocol: what splits it.
        split: "train", "validation", "test" or "exemplar".
        view: that the samples are meant for.
        sample_ids: only these samples.
        validation_subjects: subjects whose "train" samples are "validation" instead.
        unseen: labels whose samples are in neither of these two.

    Raises:
        ValueError: the split is empty or not there, protocol or view are not for this data set, or
            a validation subject has no training sample.
    """
    dataset.check_protocol(protocol)
    _check_view(dataset.skeleton, view)
    if split == "validation" and not validation_subjects:
        raise ValueError(
            "there is no validation split: the run trained on all training subjects; train with "
            "data.validation_subjects = [...] to leave some out"
        )
    wanted = None if sample_ids is None else set(sample_ids)
    training_subjects: set[int | None] = set()
    index: dict[str, SplitEntry] = {}
    for table in dataset.tables(list(schema.ID_COLUMNS)):
        for row in table.to_pylist():
            name = row[schema.SAMPLE_ID]
            own = split_of(row, protocol, validation_subjects=validation_subjects, unseen=unseen)
            if own in ("train", "validation"):
                training_subjects.add(row[schema.SUBJECT_ID])
            if own != split or (wanted is not None and name not in wanted):
                continue
            if name in index:
                raise ValueError(f"{dataset.folder} holds sample {name} twice; build it anew")
            index[name] = SplitEntry(
                row[schema.LABEL], row[schema.NUM_FRAMES], row[schema.NUM_BODIES]
            )
    if split in ("train", "validation"):
        _check_validation(dataset, validation_subjects, training_subjects)
    if not index:
        raise ValueError(
            f"{dataset.folder} has no {split} sample under protocol {protocol.name} "
            f"({protocol.rule}); choose another protocol or add samples"
        )
    return index


def split_of(
    row: Mapping[str, Any],
    protocol: Protocol,
    *,
    validation_subjects: Collection[int] = (),
    unseen: Collection[int] = (),
) -> AnySplit | None:
    """The split that a run has a sample in; None: in none.

    Args:
        row: of a data set, with its ID_COLUMNS.
        protocol: what splits the data set.
        validation_subjects: see `read_index`.
        unseen: see `read_index`.
    """
    own = protocol.split_of_row(row)
    if own != "train":
        return own
    if row[schema.LABEL] in unseen:
        return None
    return "validation" if row[schema.SUBJECT_ID] in validation_subjects else "train"


def one_clip(
    joints: np.ndarray,
    *,
    name: str,
    skeleton: Skeleton,
    config: DataConfig,
    second_body: SecondBody,
    device: torch.device,
    family: str = GENERIC,
    image_size: tuple[int, int] | None = None,
) -> SkeletonStore:
    """A store of a single clip that is in no data set; its label is 0 and means nothing.

    Args:
        joints: (M, T, V, C), T >= 1, as a data set holds it.
        name: stands for the sample_id.
        skeleton: the layout.
        config: view, stream, frames.
        second_body: what stands for a body that was not seen.
        device: where batches are made.
        family: see `relative_joints`.
        image_size: see `relative_joints`.

    Raises:
        ValueError: the view is not for this layout, or a 2-D clip has no image size.
    """
    _check_view(skeleton, config.view)
    clip = relative_joints(
        joints,
        name=name,
        skeleton=skeleton,
        family=family,
        view=config.view,
        image_size=image_size,
    )
    return _store(
        torch.from_numpy(clip).flatten(0, 1),  # (R, V, C)
        {name: SplitEntry(0, clip.shape[1], clip.shape[0])},
        skeleton=skeleton,
        config=config,
        second_body=second_body,
        device=device,
    )


def _check_validation(
    dataset: SkeletonDataset, chosen: Collection[int], training_subjects: Collection[int | None]
) -> None:
    """Refuse validation subjects that no training sample is of, or that leave none to train on.

    Raises:
        ValueError: they are such.
    """
    known = sorted(subject for subject in training_subjects if subject is not None)
    if chosen and not known:
        raise ValueError(
            f"data.validation_subjects is {sorted(chosen)}, but the training samples of "
            f"{dataset.folder} have no subject ids; leave it out"
        )
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise ValueError(
            f"data.validation_subjects names {', '.join(map(str, unknown))}, whom no training "
            f"sample of {dataset.folder} shows; its training subjects are "
            f"{', '.join(map(str, known))}"
        )
    if known and not set(training_subjects) - set(chosen):
        raise ValueError(
            f"data.validation_subjects names every training subject of {dataset.folder}; leave "
            "some to train on"
        )


def _check_view(skeleton: Skeleton, view: str) -> None:
    """Refuse the NW-UCLA view for layouts that it is not made for.

    Raises:
        ValueError: it is such a layout.
    """
    is_fit = skeleton.num_bodies == 1 and skeleton.joint_dims == skeleton.num_channels == 3
    if view == "ucla" and not is_fit:
        raise ValueError(
            f'view "ucla" is for one body with 3 coordinates a joint, layout {skeleton.name} has '
            f"{skeleton.num_bodies} bodies with {skeleton.joint_dims} coordinates"
            f'{" and a score" if skeleton.has_score else ""}; use view "ntu"'
        )


def _store(
    rows: Tensor | np.memmap,
    index: Mapping[str, SplitEntry],
    *,
    skeleton: Skeleton,
    config: DataConfig,
    second_body: SecondBody,
    device: torch.device,
    texts: Sequence[Sequence[str]] | None = None,
) -> SkeletonStore:
    entries = index.values()
    return SkeletonStore(
        rows,
        sample_ids=list(index),
        labels=np.array([entry.label for entry in entries]),
        num_frames=np.array([entry.num_frames for entry in entries]),
        num_bodies=np.array([entry.num_bodies for entry in entries]),
        skeleton=skeleton,
        config=config,
        second_body=second_body,
        device=device,
        texts=texts,
    )


def _empty_rows(shape: tuple[int, int, int], resident_gib: float) -> Tensor | np.memmap:
    """Room for the rows (R, V, C) of a split: in memory, or in an unnamed file where too large."""
    if 4 * shape[0] * shape[1] * shape[2] <= resident_gib * 2**30:
        return torch.empty(shape)
    with tempfile.TemporaryFile(prefix="hoc-joints-") as file:  # the map keeps it alive
        return np.memmap(file, np.float32, mode="w+", shape=shape)


def _read_into(
    rows: np.ndarray,
    dataset: SkeletonDataset,
    index: Mapping[str, SplitEntry],
    *,
    view: str,
    texts: dict[str, list[str]] | None,
    prompt_ids: Sequence[str],
) -> None:
    """Fill the rows (R, V, C) with the clips of an index; texts with their captions, if given."""
    at = 0
    columns = _CLIP_COLUMNS if texts is None else (*_CLIP_COLUMNS, schema.CAPTIONS)
    for table in dataset.tables(columns):
        for _, clip in _relative_clips(table, dataset, index, view=view):
            count = clip.shape[0] * clip.shape[1]
            rows[at : at + count] = clip.reshape(count, *clip.shape[2:])  # (M*T, V, C)
            at += count
        if texts is not None:
            texts |= _captions(table, index, prompt_ids)
    assert at == len(rows), "the parts hold other rows than their ids say"


def _relative_clips(
    table: pa.Table, dataset: SkeletonDataset, index: Mapping[str, SplitEntry], *, view: str
) -> Iterator[tuple[str, np.ndarray]]:
    """The rows of a table that an index names: sample_id and `relative_joints`, one by one.

    Raises:
        ValueError: joints are not finite, or have no image size.
    """
    names, widths, heights = (
        table[column].to_pylist()
        for column in (schema.SAMPLE_ID, schema.IMAGE_WIDTH, schema.IMAGE_HEIGHT)
    )
    clips = joints_of_table(table, dataset.skeleton)
    # Asked of the whole table first: clip by clip only where one must be named.
    is_finite = all(np.isfinite(chunk.values).all() for chunk in table[schema.JOINTS].chunks)
    for name, clip, width, height in zip(names, clips, widths, heights, strict=True):
        if name not in index:
            continue
        if not is_finite and not np.isfinite(clip).all():
            raise ValueError(
                f"sample {name} of {dataset.folder} has joints that are not numbers; build the "
                "data set anew with `hoc build-dataset`"
            )
        relative = relative_joints(
            clip,
            name=name,
            skeleton=dataset.skeleton,
            family=dataset.family,
            view=view,
            image_size=(width, height) if width and height else None,
        )
        yield name, relative


def _captions(
    table: pa.Table, index: Mapping[str, SplitEntry], prompt_ids: Sequence[str]
) -> dict[str, list[str]]:
    """The captions of the rows of a table that an index names, of the chosen prompts or of all.

    Those of other rows become no Python text.
    """
    table = table.select([schema.SAMPLE_ID, schema.CAPTIONS])
    table = table.filter([name in index for name in table[schema.SAMPLE_ID].to_pylist()])
    names, captions = (column.to_pylist() for column in table.columns)
    return {
        name: [
            entry[schema.TEXT]
            for entry in entries
            if not prompt_ids or entry[schema.PROMPT_ID] in prompt_ids
        ]
        for name, entries in zip(names, captions, strict=True)
    }
