"""What shape the joints of one's own recordings have: told by columns, checked for every sample.

Letters: M bodies, T frames, V joints, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets_build.joints import Skeleton
from datasets_build.layouts import MAX_BODIES
from datasets_build.ntu import MAX_FRAMES
from datasets_build.sources import ClipError


@dataclass(frozen=True)
class ClipShapes:
    """What shape each sample's joints have.

    Attributes:
        skeleton: tells V and C.
        num_frames: T of every sample; None where there is no such column.
        num_bodies: M of every sample; None where there is no such column.
    """

    skeleton: Skeleton
    num_frames: Sequence[int] | None
    num_bodies: Sequence[int] | None

    def of(self, index: int, *, num_bodies: int = 1, num_frames: int = 0) -> tuple[int, ...]:
        """(M, T, V, C) of a sample; the arguments stand for absent columns.

        Raises:
            ClipError: no clip can have so many frames or bodies.
        """
        bodies = num_bodies if self.num_bodies is None else self.num_bodies[index]
        frames = num_frames if self.num_frames is None else self.num_frames[index]
        if not (1 <= frames <= MAX_FRAMES and 1 <= bodies <= MAX_BODIES):
            raise ClipError(
                "bad_count",
                f"{frames} frames of {bodies} bodies; expected 1 .. {MAX_FRAMES} frames of "
                f"1 .. {MAX_BODIES} bodies",
            )
        return bodies, frames, self.skeleton.num_joints, self.skeleton.num_channels


def shaped(numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers as (M, T, V, C).

    Raises:
        ClipError: they are more or fewer.
    """
    if numbers.size != math.prod(shape):
        raise ClipError(
            "bad_shape",
            f"joints are {numbers.size} numbers, expected {math.prod(shape)} for {shape} "
            "(M, T, V, C)",
        )
    return numbers.reshape(shape)
