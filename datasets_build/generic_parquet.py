"""A Parquet file of one's own recordings: its columns, and its joints a few rows at a time.

Letters: N samples, M bodies, T frames, V joints, C channels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets_build import schema
from datasets_build.generic_shapes import ClipShapes, shaped
from datasets_build.sources import ClipError

_ROWS_A_BATCH = 16  # our choice: some 10 MB of long recordings
_BUFFER_BYTES = 1 << 20  # our choice; without one pyarrow takes a row group's column at once


class ParquetTable:
    """A Parquet file with a row a sample.

    Attributes:
        path: the file.
        names: of its columns.
        num_samples: N.
    """

    def __init__(self, path: Path) -> None:
        """See `generic.open_generic`."""
        self.path = path
        with _explained(path):
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            self._schema = self._file.schema_arrow
        self.names = frozenset(self._schema.names)
        self.num_samples: int = self._file.metadata.num_rows

    def texts(self, name: str) -> list[str | None]:
        """A column of text, None where nothing stands.

        Raises:
            ValueError: it holds something else, or cannot be read.
        """
        kind = self._type(name)
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(f"{self.path}: column {name!r} holds {kind}; expected text")
        values: list[str | None] = self._column(name).to_pylist()
        return values

    def numbers(self, name: str) -> np.ndarray:
        """(N,) whole or floating numbers, NaN where nothing stands.

        Raises:
            ValueError: it holds something else, or cannot be read.
        """
        kind = self._type(name)
        if not _is_number(kind):
            raise ValueError(f"{self.path}: column {name!r} holds {kind}; expected whole numbers")
        values: np.ndarray = self._column(name).to_numpy()
        return values

    def open_joints(self, shapes: ClipShapes) -> ParquetJoints:
        """A reader of the column "joints".

        Raises:
            ValueError: it is of no form that is known.
        """
        kind, depth = self._type(schema.JOINTS), 0
        while _is_list(kind):
            kind, depth = kind.value_type, depth + 1
        if depth not in (1, 3, 4) or not _is_number(kind):
            raise ValueError(
                f"{self.path}: column 'joints' holds {self._type(schema.JOINTS)}; expected lists "
                "of numbers: flat, [T][V][C] or [M][T][V][C]"
            )
        if depth == 1 and shapes.num_frames is None:
            raise ValueError(
                f"{self.path} has no column 'num_frames'; 'joints' holds flat lists, which need it"
            )
        return ParquetJoints(self._file, shapes)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _type(self, name: str) -> pa.DataType:
        found = self._schema.get_all_field_indices(name)
        if len(found) != 1:
            raise ValueError(f"{self.path} has {len(found)} columns {name!r}; it needs one")
        return self._schema.field(found[0]).type

    def _column(self, name: str) -> pa.ChunkedArray:
        with _explained(self.path):
            column = self._file.read(columns=[name], use_threads=False).column(0)
            column.validate(full=True)
        if len(column) != self.num_samples:
            raise ValueError(
                f"{self.path}: column {name!r} has {len(column)} of {self.num_samples} rows; "
                "write the file anew"
            )
        return column


class ParquetJoints:
    """The joints of a Parquet file: row group by row group, a few rows at a time."""

    def __init__(self, file: pq.ParquetFile, shapes: ClipShapes) -> None:
        """See `ParquetTable.open_joints`."""
        self._file = file
        self._shapes = shapes
        groups = range(file.metadata.num_row_groups)
        sizes = (file.metadata.row_group(group).num_rows for group in groups)
        self._starts = list(accumulate(sizes, initial=0))  # of the row groups
        self._broken: dict[int, str] = {}  # row groups that cannot be read
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.Array | None = None
        self._first = 0  # row of the file at which the batch begins

    def read(self, index: int) -> np.ndarray:
        """(M, T, V, C) of a sample, as the file holds them; fast when asked in ascending order.

        Raises:
            ClipError: they cannot be read, or have another shape.
        """
        group = bisect_right(self._starts, index) - 1
        if group in self._broken:
            raise ClipError("cannot_read", self._broken[group])
        try:
            row = self._row(group, index)
        except (pa.ArrowException, OSError, ValueError) as error:
            self._group = -1
            self._broken[group] = f"row group {group} cannot be read ({error})"
            raise ClipError("cannot_read", self._broken[group]) from error
        if not row.is_valid:
            raise ClipError("bad_shape", "there are no joints")
        numbers, shape = _unnested(row.values)
        if len(shape) == 1:
            return shaped(numbers, self._shapes.of(index))
        num_bodies, num_frames = shape[0] if len(shape) == 4 else 1, shape[-3]
        wanted = self._shapes.of(index, num_bodies=num_bodies, num_frames=num_frames)
        found = (num_bodies, *shape[-3:])
        if found != wanted:
            raise ClipError("bad_shape", f"joints are {found}, expected {wanted} (M, T, V, C)")
        return shaped(numbers, wanted)

    def _row(self, group: int, index: int) -> pa.Scalar:
        if group != self._group or index < self._first:
            self._batches = self._file.iter_batches(
                _ROWS_A_BATCH, row_groups=[group], columns=[schema.JOINTS], use_threads=False
            )
            self._group, self._first, self._batch = group, self._starts[group], None
        while self._batch is None or index >= self._first + len(self._batch):
            self._first += 0 if self._batch is None else len(self._batch)
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError("it has fewer rows than the file says")
            batch.validate(full=True)
            self._batch = batch.column(0)
        return self._batch[index - self._first]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); write it anew") from error


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _unnested(values: pa.Array) -> tuple[np.ndarray, tuple[int, ...]]:
    """The numbers of nested lists in C order, NaN for null, and the lists' lengths by level."""
    shape = [len(values)]
    while _is_list(values.type):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise ClipError(
                "bad_shape", f"the lists at level {len(shape) + 1} of joints differ in length"
            )
        shape.append(lengths[0])
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False), tuple(shape)
