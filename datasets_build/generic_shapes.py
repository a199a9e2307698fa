"""What a sample of somebody's own may hold: its name, and the shape and the numbers of its joints.

Letters: M bodies, T frames, V joints, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets_build.joints import Skeleton
from datasets_build.layouts import MAX_BODIES
from datasets_build.ntu import MAX_COORDINATE_M, MAX_FRAMES
from datasets_build.sources import ClipError

MAX_COORDINATE_PX = 100_000.0  # our choice: wider than any picture; its square is exact in float32
MAX_ID_LENGTH = 200  # our choice: file systems take 255 bytes, and suffixes follow


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


def is_name(name: str) -> bool:
    """Whether a name is printable, of a usual length and without spaces around it."""
    return 0 < len(name) <= MAX_ID_LENGTH and name == name.strip() and name.isprintable()


def check_numbers(joints: np.ndarray, skeleton: Skeleton) -> None:
    """Refuse joints that are not numbers or lie beyond what a camera sees.

    Raises:
        ClipError: says where the first one is.
    """
    is_finite = np.isfinite(joints)
    if not is_finite.all():
        body, frame, joint, _ = (int(at) for at in np.argwhere(~is_finite)[0])
        raise ClipError(
            "not_finite",
            f"{skeleton.joints[joint]!r} of body {body} in frame {frame} (from 0) is NaN, infinite "
            "or null; write zeros into frames without a body",
        )
    limit, unit = (MAX_COORDINATE_M, "m") if skeleton.joint_dims == 3 else (MAX_COORDINATE_PX, "px")
    furthest = max(float(joints.max()), -float(joints.min()))
    if furthest > limit:
        raise ClipError("out_of_range", f"a joint has a coordinate of {furthest:.6g} {unit}")
