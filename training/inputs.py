"""Exactly what a model sees at test time, as an .npz: for other programs, and for checks of parity.

Shapes: n samples of a split, M bodies, T frames, V joints, C channels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from datasets_build.dataset import SkeletonDataset
from datasets_build.npz_files import ExportSummary, NpzWriter
from datasets_build.progress import Progress
from datasets_build.protocols import NW_UCLA, Protocol, Split
from datasets_build.settings import resolve
from training.config import DataConfig, Orphan, Stream, View
from training.loading import part_stores, read_index

# T of each view where none is asked for: CTR-GCN's window sizes.
NUM_FRAMES: dict[View, int] = {"ntu": 64, "ucla": 52}
_BATCH_BYTES = 1 << 25  # inputs made at once; our choice


def default_view(family: str) -> View:
    """The view that a family of samples has where none is asked for."""
    return "ucla" if family == NW_UCLA else "ntu"


def export_inputs(
    dataset: SkeletonDataset,
    path: Path,
    *,
    protocol: Protocol,
    split: Split,
    stream: Stream,
    view: View | None = None,
    num_frames: int | None = None,
    orphan: Orphan = "zero",
    progress: Progress,
) -> ExportSummary:
    """Write the test inputs of one split and stream: sample_id, label, x.

    The samples go through the store that training and evaluation read, in the fixed view of tests,
    and stand in the order of the data set's rows (packed sources keep the order of their file). No
    more than a part of the data set is in memory at a time. Captions are not read.

    Args:
        dataset: the opened data set.
        path: the .npz to write: sample_id (n,) unicode, label (n,) int64, x (n, M, T, V, C)
            float32.
        protocol: what splits it.
        split: "test", "exemplar" (one-shot protocols), or "train": training samples as a test would
            show them, without augmentation.
        stream: one of training.streams.STREAMS.
        view: whose cropping; None: `default_view`.
        num_frames: T; None: that of the view, see NUM_FRAMES.
        orphan: what a joint without a parent or grandparent becomes, see training.streams.
        progress: told of every batch.

    Raises:
        FileNotFoundError: the folder of `path` is not there.
        ValueError: a choice is not known, the split is empty, or the view is not for this layout.
    """
    if split not in get_args(Split):
        raise ValueError(f"split {split!r} is not known; choose {', '.join(get_args(Split))}")
    view = view or default_view(dataset.family)
    values = {
        "dataset": dataset.folder,
        "protocol": protocol.name,
        "stream": stream,
        "view": view,
        "num_frames": num_frames if num_frames is not None else NUM_FRAMES.get(view, 64),
        "orphan": orphan,
    }
    config = resolve(DataConfig, values, source="an export of inputs")
    index = read_index(dataset, protocol, split, view=config.view)
    n, skeleton = len(index), dataset.skeleton
    shape = (n, skeleton.num_bodies, config.num_frames, skeleton.num_joints, skeleton.num_channels)
    text = f"<U{max(map(len, index))}"
    step = max(1, _BATCH_BYTES // (4 * math.prod(shape[1:])))
    progress.start("export", n)
    with NpzWriter(path) as writer:
        with writer.array("sample_id", (n,), text) as names:
            names.append(np.array(list(index), text))
        with writer.array("label", (n,), np.int64) as labels:
            labels.append(np.array([entry.label for entry in index.values()]))
        with writer.array("x", shape, np.float32) as inputs:
            for store in part_stores(dataset, protocol, index, config, device=torch.device("cpu")):
                for batch in store.test_batches(step):
                    inputs.append(batch.x.numpy())  # (N, M, T, V, C)
                    progress.advance(len(batch.label))
    progress.finish()
    notes = [f"{stream} stream in the {view} view of {config.num_frames} frames"]
    if orphan == "keep":
        notes.append("joints without an ancestor keep their coordinates")
    if split == "train":
        notes.append("training samples are given as a test would show them, without augmentation")
    return ExportSummary(path, {split: n}, path.stat().st_size, tuple(notes))
