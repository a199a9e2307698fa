"""PYSKL's annotation file, one pickle of splits and samples: read and written.

Source: tools/data/README.md of PYSKL (github kennymckormick/pyskl) and its PoseDataset:
{"split": {name: [frame_dir, ...]}, "annotations": [{"frame_dir", "label" (0-based),
"total_frames", "keypoint" (M, T, V, 2 or 3), for 2-D joints also "keypoint_score" (M, T, V),
"img_shape" and "original_shape" (height, width)}, ...]}; older files are the list alone.

Letters: M bodies, T frames, V joints, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets_build import schema
from datasets_build.dataset import SkeletonDataset, joints_of_table
from datasets_build.generic_shapes import MAX_ID_LENGTH, check_numbers, is_name
from datasets_build.joints import SKELETONS, Skeleton
from datasets_build.layouts import MAX_CLASSES
from datasets_build.manifest import replaced_file
from datasets_build.npz_files import ExportSummary
from datasets_build.ntu import MAX_FRAMES
from datasets_build.packed import ListedSplit, PackedSource
from datasets_build.pickled_arrays import StoredArray
from datasets_build.pickles import pickled, read_pickle
from datasets_build.progress import Progress
from datasets_build.protocols import GENERIC, Protocol, SampleIds
from datasets_build.pyskl_samples import (
    benchmark_labels,
    check_labels,
    checked_class_names,
    known_samples,
    listed_splits,
    split_names,
)
from datasets_build.sources import Clip, ClipError

MAX_BODIES = 100  # our choice: detectors find some tens of people in a crowd
MAX_IMAGE_PX = 100_000  # our choice: wider than any picture

# Ours, beside PYSKL's keys, which does not mind it. CTR-GCN's rules leave a second body without a
# frame in some clips, and it is not the same as none: see SkeletonDataset.second_body_for.
_NUM_BODIES = "num_bodies"


class PysklSource(PackedSource):
    """An opened annotation file; its joints stay in the file.

    It may be used by several processes, and holds no open file.
    """

    def __init__(
        self,
        path: Path,
        annotations: list[dict[str, Any]],
        *,
        samples: list[SampleIds],
        skeleton: Skeleton,
        class_names: tuple[str, ...] | None,
        splits: tuple[ListedSplit, ...],
    ) -> None:
        """See `open_pyskl`; `samples` are the ids of the annotations."""
        super().__init__(path, samples, skeleton=skeleton, class_names=class_names, splits=splits)
        self._annotations = annotations

    def clip(self, index: int) -> Clip:
        """The joints of one annotation, without bodies that are zeros in every frame.

        An annotation of our own export says how many bodies it has, seen or not: all of them stay.
        Where the layout has scores and the file has none, they are 1.

        Raises:
            ClipError: with reason no_keypoints, bad_shape, bad_count, no_body, no_frames,
                bad_number, not_finite, out_of_range, bad_image_size or no_image_size.
        """
        annotation = self._annotations[index]
        skeleton = self.skeleton
        keypoint = annotation.get("keypoint")
        if keypoint is None:
            raise ClipError(
                "no_keypoints", "no 'keypoint' (PYSKL's Kinetics files keep them elsewhere)"
            )
        shape = _checked_shape(keypoint, skeleton)
        channels = [_numbers(keypoint)]
        if skeleton.has_score:
            channels.append(_scores(annotation.get("keypoint_score"), shape[:3])[..., None])
        joints = np.concatenate(channels, axis=-1)  # (M, T, V, C)
        check_numbers(joints, skeleton)
        seen = np.flatnonzero(joints[..., : skeleton.joint_dims].any(axis=(1, 2, 3)))
        if annotation.get(_NUM_BODIES) == len(joints):
            seen = np.arange(len(joints))
        num_frames = shape[1]
        # PYSKL's 3-D files leave out frames without a body and count what is left (its
        # ntu_preproc.py), so only 2-D ones tell how long the video is.
        is_counted = skeleton.joint_dims == 2 and annotation.get("total_frames") == num_frames
        return Clip(
            joints[seen] if seen.size else joints[:1],
            num_source_frames=num_frames if is_counted else None,
            image_size=_image_size(annotation) if skeleton.joint_dims == 2 else None,
        )

    def close(self) -> None:
        """See packed.PackedSource."""
        self._annotations = []


def open_pyskl(
    path: Path, *, layout: Skeleton | None, class_names: tuple[str, ...] | None
) -> PysklSource:
    """Open an annotation file of PYSKL, without its joints.

    Where every frame_dir is an NTU name the family is "ntu", likewise "nw-ucla". All others are
    "generic": the frame_dir is the sample_id. The splits of the file come along, but those that a
    published protocol makes (see pyskl_samples.listed_splits).

    Args:
        path: the .pkl.
        layout: of the joints; by default the built-in one with as many joints and coordinates.
        class_names: in label order, for generic samples; by default "class 0" and so on.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no annotation file, its joints are not the layout's, or its labels cannot
            be used.
    """
    path = Path(path)
    annotations, split = _content(path, read_pickle(path))
    names = [annotation["frame_dir"] for annotation in annotations]
    labels = [annotation["label"] for annotation in annotations]
    skeleton = _skeleton(path, annotations, layout)
    samples, family = known_samples(path, names)
    if family == GENERIC:
        samples = [
            SampleIds(GENERIC, action_id=label + 1, sample_id=name)
            for name, label in zip(names, labels, strict=True)
        ]
        class_names = checked_class_names(path, labels, class_names)
    else:
        if class_names is not None:
            raise ValueError(
                f"{path} holds {family} samples, whose class names are known; give none"
            )
        check_labels(path, samples, labels)
    return PysklSource(
        path,
        annotations,
        samples=samples,
        skeleton=skeleton,
        class_names=class_names,
        splits=listed_splits(path, split, dict(zip(names, samples, strict=True))),
    )


def _content(path: Path, value: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The annotations, each with a frame_dir and a label, and the splits."""
    split: Any = {}
    if isinstance(value, dict) and "annotations" in value:
        value, split = value["annotations"], value.get("split") or {}
    if not isinstance(value, list) or not value or not isinstance(split, dict):
        raise ValueError(
            f"{path} is no annotation file of PYSKL: expected a dict with the list 'annotations' "
            "and the dict 'split', or a list of annotations, with at least one of them"
        )
    for index, annotation in enumerate(value):
        where = f"{path}: annotation {index}"
        if not isinstance(annotation, dict):
            raise ValueError(f"{where} is a {type(annotation).__name__}, not a dict")
        name, label = annotation.get("frame_dir"), annotation.get("label")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where} has no 'frame_dir', the name of its sample")
        if not is_name(name):
            raise ValueError(
                f"{where} has the frame_dir {name[:60]!r}; a sample's name has 1 .. "
                f"{MAX_ID_LENGTH} printable characters and no space around it"
            )
        if isinstance(label, bool) or not isinstance(label, int | np.integer):
            raise ValueError(
                f"{where} ({name}) has a {type(label).__name__} as its 'label', not a whole number"
            )
        if not 0 <= label < MAX_CLASSES:
            raise ValueError(
                f"{where} ({name}) has the label {label}; 0 to {MAX_CLASSES - 1} are taken"
            )
        # Plain ones of NumPy's text and numbers, which some writers leave there.
        annotation["frame_dir"], annotation["label"] = str(name), int(label)
    return value, split


def _skeleton(
    path: Path, annotations: Sequence[Mapping[str, Any]], layout: Skeleton | None
) -> Skeleton:
    """The layout given, or the built-in one that the first joints fit.

    Raises:
        ValueError: the first joints are not the layout's, or there is none that they fit.
    """
    arrays = (annotation.get("keypoint") for annotation in annotations)
    shape = next((x.shape for x in arrays if isinstance(x, StoredArray) and len(x.shape) == 4), ())
    if not shape:
        raise ValueError(
            f"{path}: none of its {len(annotations)} annotations has a 'keypoint' array of "
            "(bodies, frames, joints, coordinates); PYSKL's Kinetics files keep the joints "
            "elsewhere and cannot be read"
        )
    num_joints, num_coordinates = shape[2:]
    for skeleton in SKELETONS.values() if layout is None else [layout]:
        if (skeleton.num_joints, skeleton.joint_dims) == (num_joints, num_coordinates):
            return skeleton
    found = f"{path} has {num_joints} joints of {num_coordinates} coordinates"
    if layout is None:
        known = ", ".join(f"{s.num_joints} of {s.joint_dims}" for s in SKELETONS.values())
        raise ValueError(f"{found}; {known} are known, any other needs --layout FILE.toml")
    raise ValueError(
        f"{found}, the layout {layout.name} has {layout.num_joints} of {layout.joint_dims}"
    )


def _checked_shape(keypoint: Any, skeleton: Skeleton) -> tuple[int, ...]:
    """The shape of 'keypoint', (M, T, V, 2 or 3)."""
    wanted = f"(M, T, {skeleton.num_joints}, {skeleton.joint_dims})"
    if not isinstance(keypoint, StoredArray):
        raise ClipError("bad_shape", f"'keypoint' is a {type(keypoint).__name__}, not an array")
    shape = keypoint.shape
    if len(shape) != 4 or shape[2:] != (skeleton.num_joints, skeleton.joint_dims):
        raise ClipError("bad_shape", f"'keypoint' is {shape}; {wanted} is expected")
    if shape[0] > MAX_BODIES or shape[1] > MAX_FRAMES:
        raise ClipError(
            "bad_count",
            f"{shape[0]} bodies and {shape[1]} frames; at most {MAX_BODIES} and {MAX_FRAMES} can "
            "be true",
        )
    if not shape[0] or not shape[1]:
        reason = "no_frames" if shape[0] else "no_body"
        raise ClipError(reason, f"'keypoint' is {shape}; {wanted} is expected")
    return shape


def _scores(scores: Any, shape: tuple[int, ...]) -> np.ndarray:
    """(M, T, V) float32 of 'keypoint_score', or ones."""
    if scores is None:
        return np.ones(shape, np.float32)
    if not isinstance(scores, StoredArray) or scores.shape != shape:
        shown = scores.shape if isinstance(scores, StoredArray) else type(scores).__name__
        raise ClipError("bad_shape", f"'keypoint_score' is {shown}; {shape} is expected")
    return _numbers(scores)


def _numbers(array: StoredArray) -> np.ndarray:
    """The array as float32; what float32 cannot hold becomes infinite."""
    if array.dtype.kind not in "fiu":
        raise ClipError("bad_number", f"an array has items of type {array.dtype}, not numbers")
    try:
        with np.errstate(over="ignore"):
            return array.read().astype(np.float32)
    except (ValueError, OSError) as error:
        raise ClipError("bad_number", str(error)) from error


def _image_size(annotation: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) of the picture that 2-D joints lie in."""
    size = annotation.get("img_shape") or annotation.get("original_shape")
    if size is None:
        raise ClipError(
            "no_image_size",
            "joints in pixels need the size of their picture; add 'img_shape', its (height, width)",
        )
    is_pair = isinstance(size, tuple | list) and len(size) == 2
    if not is_pair or not all(
        isinstance(n, int | np.integer) and 1 <= n <= MAX_IMAGE_PX for n in size
    ):
        raise ClipError(
            "bad_image_size",
            f"the picture's (height, width) is not two numbers 1 .. {MAX_IMAGE_PX}",
        )
    return int(size[1]), int(size[0])


def export_pyskl(
    dataset: SkeletonDataset, path: Path, *, protocols: Sequence[Protocol], progress: Progress
) -> ExportSummary:
    """Write a data set as the annotation file that PYSKL reads, in one pass over its parts.

    Joints are float32 as they are stored, neither centred (PYSKL does that when it loads) nor
    filled up with a second body; nothing is lost, while PYSKL's own files are float16. Python 3
    loads the file with any NumPy. Labels are the benchmark's for NTU's and NW-UCLA's samples, which
    tell their actions in their names; of others those of the data set.

    Args:
        dataset: every sample of it is written, in its order.
        path: the .pkl to write; a file of that name is replaced when all is done.
        protocols: each becomes a split as PYSKL spells it (see pyskl_samples.split_names); none
            gives the bare list of annotations.
        progress: told of every sample.

    Raises:
        FileNotFoundError: the folder to write to, or a part, is not there.
        ValueError: a path that PYSKL refuses, a protocol for other samples, two protocols of one
            split name, or a damaged part.
    """
    path = Path(path)
    if path.suffix != ".pkl":
        raise ValueError(f"{path} does not end in .pkl; PYSKL reads no other file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} does not exist; make that folder first")
    for protocol in protocols:
        dataset.check_protocol(protocol)
    names = split_names(protocols)
    splits: dict[str, list[str]] = {name: [] for of in names for name in of.values()}
    annotations = _annotations(dataset, protocols, names=names, splits=splits, progress=progress)
    progress.start("exporting samples", dataset.num_rows)
    with replaced_file(path) as file:
        # The splits come last: they fill up while the annotations are written.
        value = {"annotations": annotations, "split": splits} if protocols else annotations
        file.writelines(pickled(value))
    progress.finish()
    return ExportSummary(
        path,
        num_samples={name: len(samples) for name, samples in splits.items()},
        num_bytes=path.stat().st_size,
        notes=_notes(dataset, splits),
    )


def _annotations(
    dataset: SkeletonDataset,
    protocols: Sequence[Protocol],
    *,
    names: Sequence[Mapping[str, str]],
    splits: dict[str, list[str]],
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """The annotation of every sample; its name enters the splits it belongs to."""
    columns = [name for name in schema.DATASET_SCHEMA.names if name != schema.CAPTIONS]
    label_of = label_of_action(dataset)
    for table in dataset.tables(columns):
        rows = table.drop_columns([schema.JOINTS]).to_pylist()
        clips = joints_of_table(table, dataset.skeleton)
        for row, joints in zip(rows, clips, strict=True):
            for protocol, names_of in zip(protocols, names, strict=True):
                part = protocol.split_of_row(row)
                if part is not None:
                    splits[names_of[part]].append(row[schema.SAMPLE_ID])
            label = label_of[row[schema.ACTION_ID]]
            yield _annotation(row, joints, label=label, skeleton=dataset.skeleton)
        progress.advance(table.num_rows)


def label_of_action(dataset: SkeletonDataset) -> dict[int, int]:
    """action_id to the label that is written."""
    if dataset.family == GENERIC:
        return {entry.action_id: entry.label for entry in dataset.classes}
    return benchmark_labels(dataset.family)


def _annotation(
    row: Mapping[str, Any], joints: np.ndarray, *, label: int, skeleton: Skeleton
) -> dict[str, Any]:
    dims = skeleton.joint_dims
    annotation = {
        "frame_dir": row[schema.SAMPLE_ID],
        "label": label,
        "total_frames": row[schema.NUM_FRAMES],
        "keypoint": joints[..., :dims],  # (M, T, V, 2 or 3)
        _NUM_BODIES: len(joints),
    }
    if skeleton.has_score:
        annotation["keypoint_score"] = joints[..., dims]  # (M, T, V)
    elif dims == 2:  # PYSKL asks for scores of all 2-D joints
        annotation["keypoint_score"] = np.ones(joints.shape[:3], np.float32)
    if row[schema.IMAGE_HEIGHT] is not None:
        size = (row[schema.IMAGE_HEIGHT], row[schema.IMAGE_WIDTH])
        annotation["img_shape"] = annotation["original_shape"] = size
    return annotation


def _notes(dataset: SkeletonDataset, splits: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    notes = [f"{dataset.num_rows} annotations; joints are float32 (PYSKL's own files: float16)"]
    if not splits:
        notes.append("no protocol was given: the file is a bare list, read it with split=None")
    label_of = label_of_action(dataset)
    if any(label_of.get(entry.action_id) != entry.label for entry in dataset.classes):
        notes.append(
            f"labels are the benchmark's, of all its {len(label_of)} classes; the data set numbers "
            f"its {dataset.num_classes} classes in another way"
        )
    notes += [f"there is no sample in {name}" for name, samples in splits.items() if not samples]
    return tuple(notes)
