"""Skeleton files that are in no data set, as a run sees them.

Letters: N samples, M bodies, T frames, V joints, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from datasets_build.formats import FORMATS, SkeletonFormat
from datasets_build.protocols import ids_of_name
from datasets_build.sources import ClipError, ClipFile, read_clip
from training.evaluate import LoadedRun
from training.loading import one_clip
from training.skeleton_data import SkeletonBatch


@dataclass(frozen=True)
class FileClip:
    """One file.

    Attributes:
        name: the file's name without its suffix.
        label: 0-based, where the name tells an action that the run knows.
        batch: the clip alone, as tests see it.
    """

    name: str
    label: int | None
    batch: SkeletonBatch


def read_file_clip(path: Path, loaded: LoadedRun) -> FileClip:
    """Read one clip: a .skeleton file of NTU RGB+D or a .json file of Northwestern-UCLA.

    Bodies are chosen as they were when the run's data set was built.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another kind or layout than the run's, or cannot be read.
    """
    record = loaded.record
    found = _format_of(path)
    if found.skeleton != record.skeleton:
        raise ValueError(
            f"{path} is a {found.suffix} file of layout {found.skeleton.name} "
            f"({found.skeleton.num_joints} joints), but {record.folder} was trained on layout "
            f"{record.skeleton.name} ({record.skeleton.num_joints} joints); give a file of that "
            "layout, or samples of the run's data set by their sample_id"
        )
    try:
        file = ClipFile(path.parent, path.name, is_zipped=False, num_bytes=path.stat().st_size)
        clip = found.read(read_clip(file), loaded.dataset.bodies)
    except ClipError as error:
        raise ValueError(f"{path} is not a readable {found.suffix} file: {error}") from error
    ids = ids_of_name(path.name)
    is_own = ids is not None and ids.dataset == loaded.dataset.family
    label_of = {entry["action_id"]: entry["label"] for entry in record.classes}
    store = one_clip(
        clip.joints,
        name=path.stem,
        skeleton=record.skeleton,
        config=record.config.data,
        second_body=record.second_body,
        device=loaded.device,
        family=loaded.dataset.family,
    )
    return FileClip(
        path.stem,
        label_of.get(ids.action_id) if ids is not None and is_own else None,
        store.batch(store.in_order(), training=False),
    )


def joined(clips: Sequence[FileClip]) -> SkeletonBatch:
    """The clips as one batch of N samples."""
    return SkeletonBatch(
        torch.cat([clip.batch.x for clip in clips]),  # (N, M, T, V, C)
        torch.cat([clip.batch.label for clip in clips]),
        torch.cat([clip.batch.sample_key for clip in clips]),
    )


def _format_of(path: Path) -> SkeletonFormat:
    """The format that a file's name tells.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no format's files end so.
    """
    known = " or ".join(f"{entry.suffix} ({name})" for name, entry in FORMATS.items())
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the path of a {known} file")
    for entry in FORMATS.values():
        if path.name.lower().endswith(entry.suffix):
            return entry
    raise ValueError(
        f"{path} is no skeleton file that can be read alone; give a {known} file, or build a data "
        "set of it (`hoc build-dataset`) and describe its samples"
    )
