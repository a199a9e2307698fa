"""An .npz file of one's own recordings: its arrays, and its joints one sample at a time.

Letters: N samples, M bodies, T frames, V joints, C channels, R rows of (V, C).
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np

from datasets_build import schema
from datasets_build.generic_shapes import ClipShapes, shaped
from datasets_build.layouts import MAX_BODIES
from datasets_build.npz_files import ArrayRows, member_names, open_member
from datasets_build.ntu import MAX_FRAMES
from datasets_build.pickled_arrays import check_text
from datasets_build.sources import ClipError

_MAX_TEXT = 1_000  # characters; our choice, so that a header cannot ask for gigabytes


class NpzTable:
    """An .npz file with an entry a sample in each array but "joints".

    Attributes:
        path: the file.
        names: of its arrays.
        num_samples: N.
    """

    def __init__(self, path: Path) -> None:
        """See `generic.open_generic`."""
        self.path = path
        self.names = frozenset(member_names(path))
        self._joints: ArrayRows | None = None
        self.num_samples = -1
        if schema.SAMPLE_ID in self.names:  # its absence is found out where columns are asked for
            self.num_samples = len(self._array(schema.SAMPLE_ID))

    def texts(self, name: str) -> list[str | None]:
        """An array of text.

        Raises:
            ValueError: it holds something else, or cannot be read.
        """
        values = self._array(name)
        if values.dtype.kind != "U":
            raise ValueError(f"{self.path}: array {name!r} holds {values.dtype}; expected str")
        try:
            check_text(values)
        except ValueError as error:
            raise ValueError(f"{self.path}: array {name!r} is not text ({error})") from error
        texts: list[str | None] = values.tolist()
        return texts

    def numbers(self, name: str) -> np.ndarray:
        """(N,) whole or floating numbers, NaN where nothing stands.

        Raises:
            ValueError: it holds something else, or cannot be read.
        """
        values = self._array(name)
        if values.dtype.kind not in "iuf":
            raise ValueError(
                f"{self.path}: array {name!r} holds {values.dtype}; expected whole numbers"
            )
        return values

    def open_joints(self, shapes: ClipShapes) -> NpzJoints:
        """A reader of the array "joints".

        Raises:
            ValueError: it is of no form that is known.
        """
        self._joints = open_member(self.path, schema.JOINTS)
        return NpzJoints(self._joints, shapes, num_samples=self.num_samples)

    def close(self) -> None:
        """Let go of the file."""
        if self._joints is not None:
            self._joints.close()

    def _array(self, name: str) -> np.ndarray:
        """A member with one entry a sample."""
        member = open_member(self.path, name)
        try:
            if len(member.shape) != 1 or member.row_bytes > 4 * _MAX_TEXT:
                raise ValueError(
                    f"{self.path}: array {name!r} is {member.shape} of {member.dtype}; expected "
                    "one number or short text a sample"
                )
            values: np.ndarray = member.rows(0, member.shape[0])
        finally:
            member.close()
        if self.num_samples not in (-1, len(values)):
            raise ValueError(
                f"{self.path}: array {name!r} has {len(values)} entries for {self.num_samples} "
                "sample_ids"
            )
        return values


class NpzJoints:
    """The joints of an .npz: padded (N, M, T, V, C), or ragged rows (R, V, C) in order."""

    def __init__(self, rows: ArrayRows, shapes: ClipShapes, *, num_samples: int) -> None:
        """See `NpzTable.open_joints`."""
        self._rows = rows
        self._shapes = shapes
        where, shape = f"{rows.path}: array 'joints'", rows.shape
        skeleton, num_frames = shapes.skeleton, shapes.num_frames
        ends = (skeleton.num_joints, skeleton.num_channels)
        if len(shape) not in (3, 5) or shape[-2:] != ends or rows.dtype.kind not in "iuf":
            raise ValueError(
                f"{where} is {shape} of {rows.dtype}; layout {skeleton.name} expects numbers of "
                f"shape (N, M, T, {ends[0]}, {ends[1]}), or (R, {ends[0]}, {ends[1]})"
            )
        if num_frames is None:
            raise ValueError(f"{rows.path} has no array 'num_frames'; an .npz needs it")
        self._is_padded = len(shape) == 5
        if self._is_padded:
            if shape[0] != num_samples or shape[1] > MAX_BODIES or shape[2] > MAX_FRAMES:
                raise ValueError(
                    f"{where} is {shape}; expected N = {num_samples} samples (as many as "
                    f"sample_ids), at most {MAX_BODIES} bodies and {MAX_FRAMES} frames"
                )
            return
        bodies = shapes.num_bodies or [1] * num_samples
        counts = (m * t for m, t in zip(bodies, num_frames, strict=True))
        self._starts = list(accumulate(counts, initial=0))
        if self._starts[-1] != shape[0]:
            raise ValueError(
                f"{where} has {shape[0]} rows, but num_bodies x num_frames makes {self._starts[-1]}"
            )

    def read(self, index: int) -> np.ndarray:
        """(M, T, V, C) of a sample, as the file holds them; fast when asked in ascending order.

        Raises:
            ClipError: they cannot be read, or have another shape.
        """
        held = self._rows.shape[1:3] if self._is_padded else (1, 0)
        wanted = self._shapes.of(index, num_bodies=held[0])
        if self._is_padded and (wanted[0] > held[0] or wanted[1] > held[1]):
            raise ClipError(
                "bad_count",
                f"{wanted[1]} frames of {wanted[0]} bodies; the array has room for {held[1]} of "
                f"{held[0]}",
            )
        try:
            if self._is_padded:
                clip: np.ndarray = self._rows.rows(index, index + 1)[0, : wanted[0], : wanted[1]]
                return clip
            start = self._starts[index]
            return shaped(self._rows.rows(start, start + wanted[0] * wanted[1]), wanted)
        except (ValueError, OSError) as error:
            raise ClipError("cannot_read", str(error)) from error
