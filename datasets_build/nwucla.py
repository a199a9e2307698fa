"""Northwestern-UCLA: reader of its JSON clips, its names, and its reference normalisation.

Source: the 1,484 files of `all_sqe` that the CTR-GCN family uses:
{"file_name": name, "skeletons": [T][20][3], "label": 1..10}, Kinect v1 joints in metres.

Letters: M bodies (1), T frames, V joints (20), C coordinates (3).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np

from datasets_build.sources import ClipError

NUM_JOINTS = 20
CENTRE = 1  # the spine
# The action numbers in the file names, in label order: 7 and 10 are not used.
ACTION_IDS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)
MAX_FRAMES = 3_000  # our choice; the longest clip has 201
MAX_JSON_BYTES = 2 * 1024 * 1024  # our choice: JSON takes up to 30 times its size in memory
MAX_DIGITS = 30  # our choice: of a whole number; coordinates are below MAX_COORDINATE_M
MAX_COORDINATE_M = 1_000.0  # our choice, as for NTU

_NAME = re.compile(r"a(\d{2})_s(\d{2})_e(\d{2})_v(\d{2})")


@dataclass(frozen=True, order=True)
class NwUclaName:
    """The four ids of a sample; its text form is the sample_id. The camera is called view there."""

    action_id: int
    subject_id: int
    repetition_id: int
    camera_id: int

    def __str__(self) -> str:
        return (
            f"a{self.action_id:02d}_s{self.subject_id:02d}"
            f"_e{self.repetition_id:02d}_v{self.camera_id:02d}"
        )


def parse_nwucla_name(text: str) -> NwUclaName | None:
    """The ids at the start of a file name or path, or None where the name is not NW-UCLA's."""
    name = text.replace("\\", "/").rsplit("/", 1)[-1]
    match = _NAME.match(name)
    if match is None or (len(name) > match.end() and name[match.end()] not in "._-"):
        return None
    return NwUclaName(*(int(group) for group in match.groups()))


def read_nwucla(data: bytes) -> np.ndarray:
    """Parse the content of one JSON clip.

    Returns:
        (1, T, 20, 3) float32, metres in the sensor's coordinates, as published.

    Raises:
        ClipError: with reason empty, too_large, not_json, repeated_key, no_frames, bad_count,
            wrong_joint_count, bad_number, not_finite or out_of_range.
    """
    if not data.strip():
        raise ClipError("empty", "the file has no content")
    if len(data) > MAX_JSON_BYTES:
        raise ClipError("too_large", f"{len(data)} bytes; at most {MAX_JSON_BYTES} can be true")
    try:
        value = json.loads(data, object_pairs_hook=_without_repeats, parse_int=_short_int)
    except ClipError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON or bad UTF-8
        raise ClipError("not_json", f"{error}") from error
    frames = value.get("skeletons") if isinstance(value, dict) else None
    if not isinstance(frames, list) or not frames:
        raise ClipError("no_frames", 'there is no list "skeletons" with at least one frame')
    if len(frames) > MAX_FRAMES:
        raise ClipError("bad_count", f"{len(frames)} frames; at most {MAX_FRAMES} can be true")
    _check_shape(frames)
    joints = np.array(frames, dtype=np.float64)  # (T, V, C)
    if not np.isfinite(joints).all():
        raise ClipError("not_finite", "a joint has a coordinate that is NaN or infinite")
    furthest = float(np.abs(joints).max())
    if furthest > MAX_COORDINATE_M:
        raise ClipError("out_of_range", f"a joint has a coordinate of {furthest:.6g} m")
    return joints.astype(np.float32)[None]  # (1, T, V, C)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ClipError("repeated_key", "an object has the same key twice")
    return value


def _short_int(text: str) -> int:
    """Python takes a time that grows with the square of the number of digits."""
    if len(text) > MAX_DIGITS:
        raise ClipError("bad_number", f"a whole number of {len(text)} digits")
    return int(text)


def _check_shape(frames: list[object]) -> None:
    for t, frame in enumerate(frames):
        if not isinstance(frame, list) or len(frame) != NUM_JOINTS:
            num = len(frame) if isinstance(frame, list) else "no list of"
            raise ClipError("wrong_joint_count", f"frame {t} has {num} joints, not {NUM_JOINTS}")
        for joint in frame:
            if (
                not isinstance(joint, list)
                or [type(x) in (int, float) for x in joint] != [True] * 3
            ):
                raise ClipError("bad_number", f"a joint of frame {t} is not three numbers")


def published_coordinates(joints: np.ndarray) -> np.ndarray:
    """The float64 numbers that stand in the files, from the float32 that a data set stores.

    The files give at most six significant digits, which float32 carries without loss; rounding to
    six digits brings them back, so that results equal those computed from the files to 1e-15.
    """
    exact = joints.astype(np.float64)
    size = np.abs(exact)
    exponent = np.floor(np.log10(np.where(size > 0, size, 1.0)))
    # Divide by a power of ten that is itself exact: the quotient is then the nearest float64.
    scale = 10.0 ** np.clip(5 - exponent, 0, 22)
    result: np.ndarray = np.round(exact * scale) / scale
    return result


def nwucla_normalised(joints: np.ndarray) -> np.ndarray:
    """A clip centred and scaled as CTR-GCN's NW-UCLA loader does it (without its training draws).

    The spine of frame 0 becomes the origin; then each axis is stretched to [-1, 1] over all frames
    and joints. An axis without extent, where the original divides by zero, becomes 0.

    Args:
        joints: (M, T, V, C), as stored.

    Returns:
        (M, T, V, C) float64.
    """
    clip = published_coordinates(joints)
    clip = clip - clip[0, 0, CENTRE]
    lowest = clip.min(axis=(0, 1, 2))  # (C,)
    extent = clip.max(axis=(0, 1, 2)) - lowest
    unit = (clip - lowest) / np.where(extent > 0, extent, 1.0)
    return np.where(extent > 0, unit * 2 - 1, 0.0)
