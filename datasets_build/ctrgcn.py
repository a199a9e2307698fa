"""CTR-GCN's arrays, x_train, y_train, x_test and y_test in one .npz: read and written.

Source: the data/ntu and data/ntu120 scripts of CTR-GCN (github Uason-Chen/CTR-GCN; SGN, InfoGCN,
HD-GCN and many more share them). x is (N, T, M*V*C), each clip centred and padded with zeros to
T = 300 frames; y is one-hot. The arrays hold no names, their order tells who is who: the training
subjects (cameras, setups) one after the other, inside each the samples by name; then the test ones.
Where one body was seen, the second is zeros in NTU60's arrays and a copy of the first in NTU120's.

Letters: N samples, M bodies, T frames, V joints, C coordinates, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from datasets_build import schema
from datasets_build.bodies import SecondBody, centred, with_second_body
from datasets_build.ctrgcn_samples import (
    SPLITS,
    checked_num_classes,
    find_samples,
    is_published_split,
    original_order,
    read_labels,
)
from datasets_build.dataset import SkeletonDataset, joints_of_table
from datasets_build.joints import NTU_25, Skeleton
from datasets_build.manifest import write_bytes_atomic
from datasets_build.npz_files import (
    ArrayRows,
    ExportSummary,
    NpzArray,
    NpzWriter,
    member_names,
    open_member,
)
from datasets_build.packed import ListedSplit, PackedSource
from datasets_build.progress import Progress
from datasets_build.protocols import GENERIC, PROTOCOLS, Protocol, SampleIds, class_list
from datasets_build.sources import MAX_CLIP_BYTES, Clip, ClipError

NUM_FRAMES = 300  # max_frame of the original: the longest of NTU's clips
_WIDTH = NTU_25.num_bodies * NTU_25.num_joints * NTU_25.num_channels  # 150
_MAX_NTU60_CLASSES = 60  # arrays of more classes are taken to have NTU120's second body
_PIECE_BYTES = 1 << 24  # our choice: labels are read and written in pieces of about this size


class CtrgcnSource(PackedSource):
    """An opened .npz of CTR-GCN's arrays.

    The coordinates are those of the file, which the original has centred already; centring them
    once more, as training does, changes nothing.
    """

    def __init__(
        self,
        path: Path,
        x: dict[str, ArrayRows],
        *,
        samples: list[SampleIds],
        num_classes: int,
        class_names: tuple[str, ...] | None,
        splits: tuple[ListedSplit, ...],
    ) -> None:
        """See `open_ctrgcn`; `samples` are the training ones, then the test ones."""
        super().__init__(path, samples, skeleton=NTU_25, class_names=class_names, splits=splits)
        self._x = x
        self._unseen: SecondBody = "zeros" if num_classes <= _MAX_NTU60_CLASSES else "copy"

    def clip(self, index: int) -> Clip:
        """The frames up to the last that is not all zeros.

        The second body is left out where it is what the scripts put for an unseen one: zeros in
        arrays of up to 60 classes, a copy of the first in arrays of more. A copy in the former
        and zeros in the latter are kept as a second body.

        Raises:
            ClipError: reason not_finite or no_frames.
        """
        num_train = len(self._x["train"])
        split, at = ("train", index) if index < num_train else ("test", index - num_train)
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, see below
            row = self._x[split].rows(at, at + 1)[0].astype(np.float32, copy=False)  # (T, 150)
        if not np.isfinite(row).all():
            raise ClipError("not_finite", f"row {at} of x_{split} holds NaN or infinite numbers")
        seen = np.flatnonzero(row.any(axis=1))
        if not seen.size:
            raise ClipError("no_frames", f"row {at} of x_{split} is zeros only")
        shape = (-1, NTU_25.num_bodies, NTU_25.num_joints, NTU_25.num_channels)
        joints = row[: seen[-1] + 1].reshape(shape).transpose(1, 0, 2, 3)  # (M, T, V, C)
        if np.array_equal(joints, with_second_body(joints[:1], self._unseen)):
            joints = joints[:1]
        return Clip(np.ascontiguousarray(joints), None)

    def close(self) -> None:
        """See packed.PackedSource."""
        for array in self._x.values():
            array.close()


def open_ctrgcn(
    path: Path, *, names: Sequence[str] | None, class_names: tuple[str, ...] | None
) -> CtrgcnSource:
    """Open CTR-GCN's arrays and find out who is who.

    With names, the order of the arrays is looked for: as the names stand, or the original's order
    of one of NTU's protocols over the names that are usable (not on the list of missing skeletons,
    actions of the arrays' classes). It is taken only where the number of samples and every label
    agree, and no other order does. Without names the samples become "train-00000" and so on, of the
    family "generic". A split that none of NTU's protocols makes comes along as "original".

    The number of classes (one-hot columns, else the class names, else the greatest label + 1) tells
    what stands for an unseen second body, see `CtrgcnSource.clip`; so an export of the built data
    set holds the same numbers again.

    Args:
        path: the .npz file.
        names: sample names, for example the list of all available NTU samples.
        class_names: in label order; without them NTU's own, or "class 0" and so on.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other arrays, damaged ones, labels that are none, or names that do not fit.
    """
    path = Path(path)
    missing = {f"{x}_{split}" for split in SPLITS for x in "xy"} - set(member_names(path))
    if missing:
        raise ValueError(
            f"{path} has no {' and no '.join(sorted(missing))}, but {member_names(path)}; "
            "CTR-GCN's scripts write x_train, y_train, x_test and y_test; arrays of one's own are "
            "read with --format generic"
        )
    labels, columns = read_labels(path)
    num_classes = checked_num_classes(path, labels, columns=columns, class_names=class_names)
    num_train = len(labels["train"])
    splits: tuple[ListedSplit, ...]
    if names is None:
        samples = _numbered(labels)
        splits = (_listed(samples, num_train),)
        class_names = class_names or tuple(f"class {label}" for label in range(num_classes))
    else:
        samples = find_samples(names, labels, path=path, num_classes=columns)
        is_known = is_published_split(samples, num_train)
        splits = () if is_known else (_listed(samples, num_train),)
    x = _open_x(path, {split: len(array) for split, array in labels.items()})
    return CtrgcnSource(
        path,
        x,
        samples=samples,
        num_classes=num_classes,
        class_names=class_names,
        splits=splits,
    )


def _open_x(path: Path, num_samples: dict[str, int]) -> dict[str, ArrayRows]:
    """x_train and x_test.

    Raises:
        ValueError: another shape than (N, T, 150), or not the N of the labels.
    """
    with ExitStack() as stack:
        arrays = {split: stack.enter_context(open_member(path, f"x_{split}")) for split in SPLITS}
        for split, x in arrays.items():
            shown = f"{path}: x_{split} is {x.shape} of {x.dtype}"
            if len(x.shape) != 3 or x.shape[2] != _WIDTH or x.dtype.kind != "f":
                raise ValueError(
                    f"{shown}; (N, T, {_WIDTH}) of float32 is expected: 2 bodies of NTU's 25 joints"
                )
            if x.row_bytes > MAX_CLIP_BYTES:
                raise ValueError(f"{shown}: a clip is larger than {MAX_CLIP_BYTES} bytes; none is")
            if len(x) != num_samples[split]:
                raise ValueError(f"{shown}, but y_{split} has {num_samples[split]} rows")
        stack.pop_all()
    return arrays


def _numbered(labels: dict[str, np.ndarray]) -> list[SampleIds]:
    """Samples without names: their split and row."""
    width = max(5, *(len(str(len(array) - 1)) for array in labels.values()))
    return [
        SampleIds(GENERIC, action_id=int(label) + 1, sample_id=f"{split}-{row:0{width}d}")
        for split in SPLITS
        for row, label in enumerate(labels[split])
    ]


def _listed(samples: list[SampleIds], num_train: int) -> ListedSplit:
    names = [str(ids.sample_id) for ids in samples]
    return ListedSplit("original", tuple(names[:num_train]), tuple(names[num_train:]))


def export_ctrgcn(
    dataset: SkeletonDataset, path: Path, *, protocol: Protocol, progress: Progress
) -> ExportSummary:
    """Write a data set as CTR-GCN's arrays, and beside them `NAME.names.txt`, a sample a line.

    x is (N, T, M*V*C) float32 in the order of `original_order`: the bodies as they are stored,
    centred, an unseen second body as the protocol has it, padded with zeros to 300 frames (or to
    the longest clip). y is one-hot float64. Layouts other than ntu-25 are written alike, with their
    own M, V and 3 coordinates. The parts of the data set are read twice, one at a time; every
    sample's row is written at its place. Names of an earlier export are removed before its arrays
    are replaced, so that none ever stand beside other arrays.

    Args:
        dataset: of 3-D joints.
        path: the .npz to write; a file of that name is replaced when all is done.
        protocol: decides what is training and test, the order, the classes and the second body.
        progress: told of every sample.

    Raises:
        FileNotFoundError: the folder to write to, or a part, is not there.
        ValueError: the path is a folder, 2-D joints, a one-shot protocol, more bodies in a clip
            than the layout has, no sample in the protocol, or a damaged part.
    """
    path = Path(path)
    skeleton = dataset.skeleton
    dataset.check_protocol(protocol)
    if skeleton.joint_dims != 3 or skeleton.has_score:
        raise ValueError(
            f"{dataset.folder} has joints of layout {skeleton.name} ({skeleton.joint_dims}-D"
            f"{' with a score' if skeleton.has_score else ''}); CTR-GCN's arrays hold 3-D "
            "coordinates and nothing else; choose --format pyskl-pkl or inputs"
        )
    writer = NpzWriter(path)  # refuses a place that is none, before the parts are read
    samples, num_frames = _read_samples(dataset, protocol)
    order = original_order(samples, protocol)
    places = {split: _places(order[split], len(samples)) for split in SPLITS}
    longest = max((num_frames[at] for at in order["train"] + order["test"]), default=0)
    if not longest:
        raise ValueError(f"{dataset.folder} has no sample of protocol {protocol.name}")
    second_body = dataset.second_body_for(protocol)
    label_of = label_of_action(dataset, protocol)
    shape = (max(longest, NUM_FRAMES), skeleton.num_bodies * skeleton.num_joints * 3)
    progress.start("exporting samples", sum(map(len, order.values())))
    names_path = path.with_suffix(".names.txt")
    with writer:
        with ExitStack() as stack:
            x: dict[str, NpzArray] = {}
            for split in SPLITS:
                num = len(order[split])
                x[split] = stack.enter_context(writer.array(f"x_{split}", (num, *shape), "<f4"))
                with writer.array(f"y_{split}", (num, len(label_of)), "<f8") as y:
                    _write_labels(y, [label_of[samples[at].action_id] for at in order[split]])
            _write_clips(x, dataset, places=places, second_body=second_body, progress=progress)
        names_path.unlink(missing_ok=True)  # a kill must not leave names beside other arrays
    names = [f"{samples[at].sample_id}\n" for split in SPLITS for at in order[split]]
    write_bytes_atomic(names_path, "".join(names).encode())
    progress.finish()
    return ExportSummary(
        path,
        num_samples={split: len(order[split]) for split in SPLITS},
        num_bytes=path.stat().st_size,
        notes=_notes(order, path=path, longest=longest),
    )


def _read_samples(
    dataset: SkeletonDataset, protocol: Protocol
) -> tuple[list[SampleIds], list[int]]:
    """Ids and number of frames of every sample, in the order of the parts.

    Raises:
        ValueError: a clip of the protocol with more bodies than its layout has.
    """
    samples: list[SampleIds] = []
    num_frames: list[int] = []
    for table in dataset.tables(columns=schema.ID_COLUMNS):
        for row in table.to_pylist():
            ids = SampleIds.of_row(row)
            num_bodies = row[schema.NUM_BODIES]
            if num_bodies > dataset.skeleton.num_bodies and protocol.split(ids) is not None:
                raise ValueError(
                    f"{ids.sample_id} has {num_bodies} bodies; CTR-GCN's arrays of "
                    f"{dataset.skeleton.name} have room for {dataset.skeleton.num_bodies}, and "
                    "which to leave out is not ours to choose"
                )
            samples.append(ids)
            num_frames.append(row[schema.NUM_FRAMES])
    return samples, num_frames


def _places(positions: list[int], num_samples: int) -> np.ndarray:
    """For each sample of the data set its row in an array, -1 where it has none."""
    places = np.full(num_samples, -1)
    places[positions] = np.arange(len(positions))
    return places


def label_of_action(dataset: SkeletonDataset, protocol: Protocol) -> dict[int, int]:
    """The label of every action: of the benchmark's class list, else the data set's own."""
    if PROTOCOLS.get(protocol.name) == protocol:
        actions = [action for action, _ in class_list(protocol.dataset, protocol.num_classes)]
    else:
        actions = [entry.action_id for entry in dataset.classes]
    return {action: label for label, action in enumerate(actions)}


def _write_labels(y: NpzArray, labels: list[int]) -> None:
    """Append one-hot rows (n, K)."""
    num_columns = y.shape[1]
    step = max(1, _PIECE_BYTES // (8 * num_columns))
    for at in range(0, len(labels), step):
        piece = np.array(labels[at : at + step])
        one_hot = np.zeros((len(piece), num_columns))
        one_hot[np.arange(len(piece)), piece] = 1
        y.append(one_hot)


def _write_clips(
    x: dict[str, NpzArray],
    dataset: SkeletonDataset,
    *,
    places: dict[str, np.ndarray],
    second_body: SecondBody,
    progress: Progress,
) -> None:
    """Put every clip that has a place into its row; one pass over the parts."""
    first = 0
    for table in dataset.tables(columns=(schema.NUM_FRAMES, schema.NUM_BODIES, schema.JOINTS)):
        clips = joints_of_table(table, dataset.skeleton)
        num_written = 0
        for at, joints in enumerate(clips, start=first):
            for split in SPLITS:
                if places[split][at] >= 0:
                    frames = _frames(joints, dataset.skeleton, second_body)
                    x[split].put(int(places[split][at]), frames)
                    num_written += 1
        first += len(clips)
        progress.advance(num_written)


def _frames(joints: np.ndarray, skeleton: Skeleton, second_body: SecondBody) -> np.ndarray:
    """(T, M*V*C) of (m, T, V, C): centred, then unseen bodies filled in."""
    joints = centred(joints, centre=skeleton.centre, as_original=skeleton == NTU_25)
    if skeleton.num_bodies > 1:
        joints = with_second_body(joints, second_body)
    _, num_frames, *rest = joints.shape
    frames = np.zeros((num_frames, skeleton.num_bodies, *rest), dtype=np.float32)  # (T, M, V, C)
    frames[:, : len(joints)] = joints.transpose(1, 0, 2, 3)
    return frames.reshape(num_frames, -1)  # (T, M*V*C)


def _notes(order: dict[str, list[int]], *, path: Path, longest: int) -> tuple[str, ...]:
    names = path.with_suffix(".names.txt").name
    notes = [f"{names} names the samples in the order of the arrays, training first"]
    if longest > NUM_FRAMES:
        notes.append(
            f"the arrays have {longest} frames, those of the longest clip; CTR-GCN's have "
            f"{NUM_FRAMES}"
        )
    notes += [f"there is no {split} sample" for split in SPLITS if not order[split]]
    return tuple(notes)
