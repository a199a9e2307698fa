"""One's own recordings in a Parquet or .npz file as a packed source (docs/own-recordings.md).

Letters: N samples, M bodies, T frames, V joints, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets_build import schema
from datasets_build.generic_npz import NpzTable
from datasets_build.generic_parquet import ParquetTable
from datasets_build.generic_shapes import MAX_ID_LENGTH, ClipShapes, check_numbers, is_name
from datasets_build.layouts import MAX_CLASSES, LayoutFile, nearest
from datasets_build.packed import PackedSource
from datasets_build.protocols import GENERIC, SampleIds
from datasets_build.sources import Clip, ClipError

CLASS = "class"
NUM_SOURCE_FRAMES = "num_source_frames"

Table = ParquetTable | NpzTable  # alike: a table with one entry a sample in each column
_TABLES: dict[str, type[ParquetTable] | type[NpzTable]] = {
    ".parquet": ParquetTable,
    ".npz": NpzTable,
}
_HIGHEST = 2**31 - 1  # a data set's columns are int32
_NUM_SHOWN = 5
_IDS = (schema.SUBJECT_ID, schema.CAMERA_ID, schema.SETUP_ID, schema.REPETITION_ID)


class GenericSource(PackedSource):
    """One's own recordings."""

    def __init__(self, table: Table, layout: LayoutFile) -> None:
        """See `open_generic`."""
        _check_columns(table)
        sample_ids = _sample_ids(table)
        labels, class_names = _labels(table, layout.class_names)
        ids = {name: _optional(table, name) for name in _IDS}
        samples = [
            SampleIds(
                GENERIC,
                label + 1,
                sample_id=sample_id,
                **{name: values[index] for name, values in ids.items()},
            )
            for index, (sample_id, label) in enumerate(zip(sample_ids, labels, strict=True))
        ]
        super().__init__(table.path, samples, skeleton=layout.skeleton, class_names=class_names)
        self._table = table
        self._num_source_frames = _optional(table, NUM_SOURCE_FRAMES, lowest=1)
        self._image_sizes = _image_sizes(table)
        shape_columns = (schema.NUM_FRAMES, schema.NUM_BODIES)
        num_frames, num_bodies = (
            _complete(table, name) if name in table.names else None for name in shape_columns
        )
        self._joints = table.open_joints(ClipShapes(layout.skeleton, num_frames, num_bodies))

    def clip(self, index: int) -> Clip:
        """The sample at a position; fast when asked in ascending order.

        Bodies whose numbers are all zero were not there and are not stored.

        Raises:
            ClipError: with reason no_image_size, cannot_read, bad_shape, bad_count, not_finite,
                out_of_range, no_body or too_many_bodies.
        """
        if self.skeleton.joint_dims == 2 and self._image_sizes[index] is None:
            raise ClipError(
                "no_image_size",
                "joints in pixels need the size of their picture; add image_width and image_height",
            )
        joints = self._joints.read(index)
        check_numbers(joints, self.skeleton)
        joints = joints[joints.any(axis=(1, 2, 3))]
        if not len(joints):
            raise ClipError("no_body", "all numbers are zero, so nobody is seen in any frame")
        if len(joints) > self.skeleton.num_bodies:
            raise ClipError(
                "too_many_bodies",
                f"{len(joints)} bodies; layout {self.skeleton.name} says num_bodies = "
                f"{self.skeleton.num_bodies}",
            )
        return Clip(
            np.ascontiguousarray(joints, np.float32),
            self._num_source_frames[index],
            self._image_sizes[index],
        )

    def close(self) -> None:
        """Let go of the file."""
        self._table.close()


def open_generic(path: Path, *, layout: LayoutFile) -> GenericSource:
    """Open a .parquet or .npz file of recordings and read all of it but the joints.

    Args:
        path: the file; docs/own-recordings.md lists its columns.
        layout: the joints that it has. Where it names no classes, the distinct names in the column
            "class", sorted, are the classes of this file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, lacks a column, or holds ids or labels that cannot be used.
    """
    table = _opened_table(path)
    try:
        return GenericSource(table, layout)
    except BaseException:
        table.close()
        raise


def _opened_table(path: Path) -> Table:
    """Open a .parquet or .npz file.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is of another kind, or cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give a .parquet or .npz file")
    if path.suffix.lower() not in _TABLES:
        raise ValueError(
            f"{path} ends neither in .parquet nor in .npz; give one's own recordings in one of "
            "these (docs/own-recordings.md)"
        )
    return _TABLES[path.suffix.lower()](path)


def _check_columns(table: Table) -> None:
    for name in (schema.SAMPLE_ID, schema.JOINTS):
        if name not in table.names:
            raise ValueError(
                f"{table.path} has no column {name!r}{nearest(name, table.names)}; its columns "
                f"are {', '.join(sorted(table.names))} (docs/own-recordings.md)"
            )
    if not table.num_samples:
        raise ValueError(f"{table.path} holds no sample")
    given = [name for name in (schema.LABEL, CLASS) if name in table.names]
    if len(given) != 1:
        raise ValueError(
            f"{table.path} has {' and '.join(given) or 'no column'} to tell the action; give "
            "either 'label' (0-based numbers) or 'class' (names)"
        )


def _sample_ids(table: Table) -> list[str]:
    """The column sample_id.

    Raises:
        ValueError: names that no file could have.
    """
    names = table.texts(schema.SAMPLE_ID)
    good = [name for name in names if name is not None and _is_sample_id(name)]
    if len(good) != len(names):
        bad = [(row, name) for row, name in enumerate(names) if not _is_sample_id(name or "")]
        raise ValueError(
            f"{table.path}: {len(bad)} values of sample_id cannot be used, {_shown(bad)}; they "
            f"name files, so they must have 1 .. {MAX_ID_LENGTH} printable characters and no "
            "'/' or '\\'"
        )
    return good


def _is_sample_id(name: str) -> bool:
    return is_name(name) and not {"/", "\\"} & set(name) and name not in (".", "..")


def _labels(table: Table, class_names: tuple[str, ...] | None) -> tuple[list[int], tuple[str, ...]]:
    """The label of every sample and the class names in label order.

    Raises:
        ValueError: a label or a name that is no class.
    """
    if CLASS in table.names:
        return _labels_of_names(table, class_names)
    highest = (len(class_names) if class_names else MAX_CLASSES) - 1
    labels = _complete(table, schema.LABEL, highest=highest)
    return labels, class_names or tuple(f"class {label}" for label in range(max(labels) + 1))


def _labels_of_names(
    table: Table, class_names: tuple[str, ...] | None
) -> tuple[list[int], tuple[str, ...]]:
    names = [name or "" for name in table.texts(CLASS)]
    if class_names is None:
        known = tuple(sorted({name for name in names if name.strip() and name.isprintable()}))
        if len(known) > MAX_CLASSES:
            raise ValueError(
                f"{table.path}: column 'class' has {len(known)} distinct names; at most "
                f"{MAX_CLASSES} classes are taken"
            )
    else:
        known = class_names
    label_of = {name: label for label, name in enumerate(known)}
    bad = [(row, name) for row, name in enumerate(names) if name not in label_of]
    if bad:
        raise ValueError(
            f"{table.path}: {len(bad)} values of class are no class name, {_shown(bad)}"
            f"{nearest(bad[0][1], known)}"
        )
    return [label_of[name] for name in names], known


def _image_sizes(table: Table) -> list[tuple[int, int] | None]:
    """(width, height) of every sample's picture in pixels, None where it is not told."""
    widths = _optional(table, schema.IMAGE_WIDTH, lowest=1)
    heights = _optional(table, schema.IMAGE_HEIGHT, lowest=1)
    sizes: list[tuple[int, int] | None] = []
    for row, (width, height) in enumerate(zip(widths, heights, strict=True)):
        if (width is None) != (height is None):
            raise ValueError(
                f"{table.path}: row {row} has image_width {width} and image_height {height}; give "
                "both or neither"
            )
        sizes.append(None if width is None or height is None else (width, height))
    return sizes


def _optional(table: Table, name: str, *, lowest: int = 0) -> list[int | None]:
    """A column of whole numbers, None where nothing stands; all None where there is no column."""
    if name not in table.names:
        return [None] * table.num_samples
    values = _checked(table, name, lowest=lowest, highest=_HIGHEST, is_required=False)
    is_missing = np.isnan(values)
    return [
        None if missing else int(value) for value, missing in zip(values, is_missing, strict=True)
    ]


def _complete(table: Table, name: str, *, highest: int = _HIGHEST) -> list[int]:
    """A column of whole numbers from 0 on, one in every row."""
    values = _checked(table, name, lowest=0, highest=highest, is_required=True)
    numbers: list[int] = values.astype(np.int64).tolist()
    return numbers


def _checked(
    table: Table, name: str, *, lowest: int, highest: int, is_required: bool
) -> np.ndarray:
    """(N,) float64 numbers of a column, NaN where nothing stands.

    Raises:
        ValueError: names rows that hold something else than a whole number within the bounds.
    """
    values = table.numbers(name).astype(np.float64)  # exact within the bounds
    is_good = (values >= lowest) & (values <= highest) & (values == np.floor(values))
    if not is_required:
        is_good |= np.isnan(values)
    if not is_good.all():
        rows = np.flatnonzero(~is_good)
        bad = [(int(row), float(values[row])) for row in rows[:_NUM_SHOWN]]
        raise ValueError(
            f"{table.path}: {len(rows)} values of {name} cannot be used, {_shown(bad)}; expected "
            f"whole numbers {lowest} .. {highest}{'' if is_required else ' or nothing'}"
        )
    return values


def _shown(values: Sequence[tuple[int, object]]) -> str:
    """Rows and what they hold, the first few of them."""
    return ", ".join(f"row {row}: {str(value)[:60]!r}" for row, value in values[:_NUM_SHOWN])
