"""Reader of NTU RGB+D `.skeleton` files: one track of joints a body; every defect has a name.

The format (NTU RGB+D, Kinect v2): a line with the number of frames; per frame a line with the
number of bodies; per body a line of ten fields that starts with the body's id, a line with the
number of joints (25), and 25 lines of twelve fields: x y z in metres, depth x y, colour x y,
orientation w x y z, and the tracking state (0 not tracked, 1 inferred, 2 tracked).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import csv

from datasets_build.sources import ClipError

NUM_JOINTS = 25
MAX_FRAMES = 30_000  # our choice: 1,000 s at 30 frames/s; the longest NTU clip has about 300 frames
MAX_LINES = 2_000_000  # our choice: MAX_FRAMES frames with two bodies have 1,650,000
MAX_BODIES_A_FRAME = 12  # our choice: twice what a Kinect v2 tracks
MAX_BODIES = 200  # our choice: a sensor that loses a body gives it a new id, but not so often
MAX_COORDINATE_M = 1_000.0  # our choice: a Kinect sees 8 m; keeps every square finite in float32

_NEWLINE, _RETURN = b"\n\r"
_BODY_COUNTS = {
    f"{num}{end}".encode(): num for num in range(MAX_BODIES_A_FRAME + 1) for end in ("\n", "\r\n")
}
_JOINT_COUNTS = {f"{NUM_JOINTS}{end}".encode() for end in ("\n", "\r\n")}
_FIELDS = tuple(f"f{i}" for i in range(12))
_WANTED = {
    "f0": pa.float64(), "f1": pa.float64(), "f2": pa.float64(), "f11": pa.int8(),
}  # fmt: skip


@dataclass(frozen=True)
class BodyTrack:
    """What one body id did.

    Attributes:
        body_id: the sensor's id, as written.
        frames: (T_b,) int32, 0-based frame indices of the file, ascending.
        joints: (T_b, 25, 3) float32, metres in the sensor's coordinates.
        tracking: (T_b, 25) int8, 0 not tracked, 1 inferred, 2 tracked.
    """

    body_id: str
    frames: np.ndarray
    joints: np.ndarray
    tracking: np.ndarray


@dataclass(frozen=True)
class Recording:
    """One `.skeleton` file.

    Attributes:
        num_frames: frames the file declares and holds, those without a body included.
        bodies: tracks in the order in which their ids first appear; never empty.
    """

    num_frames: int
    bodies: tuple[BodyTrack, ...]


class _Lines:
    """Where the lines of a file begin, found all at once; they are cut out when they are needed."""

    def __init__(self, data: bytes) -> None:
        content = np.frombuffer(data, np.uint8)
        is_newline = content == _NEWLINE
        self.num_lines = int(np.count_nonzero(is_newline)) + (content[-1] != _NEWLINE)
        if self.num_lines > MAX_LINES:
            raise ClipError("bad_count", f"{self.num_lines} lines; at most {MAX_LINES} can be true")
        ends = np.flatnonzero(is_newline)
        if len(ends) < self.num_lines:
            ends = np.append(ends, len(data))
        if np.count_nonzero(content == _RETURN) != np.count_nonzero(content[ends - 1] == _RETURN):
            raise ClipError("not_text", "a carriage return stands inside a line")
        self.data = data
        self.starts: list[int] = [0, *(ends + 1).tolist()]  # and, last of all, the end

    def count(self, at: int, what: str, highest: int) -> int:
        """The whole number that stands alone on a line."""
        text = b""
        if at < self.num_lines:
            text = self.data[self.starts[at] : self.starts[at + 1]].strip()
        if not text and at >= self.num_lines - 1:
            raise ClipError("truncated", f"the file ends where a number of {what} should stand")
        if not text.isdigit():
            raise ClipError(
                "bad_count", f"line {at + 1} should be a number of {what}, it is {_shown(text)}"
            )
        if len(text) > 9 or int(text) > highest:
            raise ClipError(
                "bad_count",
                f"line {at + 1} says {_shown(text)} {what}; at most {highest} can be true",
            )
        return int(text)


def read_skeleton(data: bytes) -> Recording:
    """Parse the content of one `.skeleton` file.

    Raises:
        ClipError: with reason empty, not_text, truncated, bad_count, wrong_joint_count, bad_number,
            not_finite, out_of_range, trailing_data or no_body.
    """
    if not data.strip():
        raise ClipError("empty", "the file has no content")
    if b"\0" in data:
        raise ClipError("not_text", "the file has zero bytes; a .skeleton file is plain text")
    lines = _Lines(data)
    starts, num_lines = lines.starts, lines.num_lines
    num_frames = lines.count(0, "frames", MAX_FRAMES)
    ids: list[bytes] = []
    frames: list[int] = []
    blocks: list[bytes] = []  # the 25 joint lines of each body and frame
    at = 1
    for frame in range(num_frames):
        # A line with its end, as nearly all files write it; else the longer way.
        line = data[starts[at] : starts[at + 1]] if at < num_lines else b""
        num_bodies = _BODY_COUNTS.get(line)
        if num_bodies is None:
            num_bodies = lines.count(at, "bodies", MAX_BODIES_A_FRAME)
        at += 1
        for _ in range(num_bodies):
            end = at + 2 + NUM_JOINTS
            if end > num_lines:
                raise ClipError(
                    "truncated", f"the file ends in frame {frame} of {num_frames} (from 0)"
                )
            header = data[starts[at] : starts[at + 1]].split(None, 1)
            if not header:
                raise ClipError("truncated", f"line {at + 1} should start with a body id")
            if data[starts[at + 1] : starts[at + 2]] not in _JOINT_COUNTS:
                _check_joint_count(lines, at + 1)
            ids.append(header[0])
            frames.append(frame)
            blocks.append(data[starts[at + 2] : starts[end]])
            at = end
    if data[starts[at] :].strip():
        raise ClipError(
            "trailing_data", f"text follows the {num_frames} frames that line 1 announces"
        )
    if not ids:
        raise ClipError("no_body", f"no body in any of the {num_frames} frames")
    if len(set(ids)) > MAX_BODIES:
        raise ClipError("bad_count", f"{len(set(ids))} body ids; at most {MAX_BODIES} can be true")
    joints, tracking = _parse_joints(b"".join(blocks), num_lines=len(ids) * NUM_JOINTS)
    return Recording(num_frames, _tracks(ids, np.array(frames, np.int32), joints, tracking))


def _check_joint_count(lines: _Lines, at: int) -> None:
    num_joints = lines.count(at, "joints", 1_000)
    if num_joints != NUM_JOINTS:
        raise ClipError(
            "wrong_joint_count",
            f"line {at + 1} says {num_joints} joints, NTU RGB+D has {NUM_JOINTS}",
        )


def _parse_joints(text: bytes, *, num_lines: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, 25, 3) float32 metres and (R, 25) int8 tracking states from R x 25 joint lines."""
    try:
        table = _parse_csv(text)
    except pa.ArrowInvalid:
        try:  # once more with tabs, double and trailing spaces put right
            table = _parse_csv(b"\n".join(b" ".join(line.split()) for line in text.split(b"\n")))
        except pa.ArrowInvalid as error:
            raise _joint_line_error(text) from error
    if table.num_rows != num_lines:
        raise ClipError("truncated", f"{table.num_rows} joint lines of {num_lines} are not blank")
    xyz = np.stack([table[name].to_numpy() for name in ("f0", "f1", "f2")], axis=1)
    if not np.isfinite(xyz).all():
        raise ClipError("not_finite", "a joint has a coordinate that is NaN or infinite")
    furthest = float(np.abs(xyz).max())
    if furthest > MAX_COORDINATE_M:
        raise ClipError("out_of_range", f"a joint has a coordinate of {furthest:.6g} m")
    joints = xyz.astype(np.float32).reshape(-1, NUM_JOINTS, 3)  # (R, 25, 3)
    return joints, table["f11"].to_numpy().reshape(-1, NUM_JOINTS)


def _parse_csv(text: bytes) -> pa.Table:
    """Arrow's CSV reader takes half the time of a split in Python, and counts the fields."""
    return csv.read_csv(
        pa.BufferReader(text),
        read_options=csv.ReadOptions(column_names=_FIELDS, use_threads=False),
        parse_options=csv.ParseOptions(delimiter=" ", quote_char=False),
        convert_options=csv.ConvertOptions(
            include_columns=list(_WANTED), column_types=_WANTED, null_values=[]
        ),
    )


def _joint_line_error(text: bytes) -> ClipError:
    """What is wrong with joint lines that Arrow does not read."""
    for line in text.splitlines():
        if not line.isascii():
            return ClipError("not_text", f"a joint line is not plain text: {_shown(line)}")
        if len(line.split()) != len(_FIELDS):
            return ClipError("truncated", f"a joint line has not 12 fields: {_shown(line)}")
    return ClipError("bad_number", "a joint line holds something else than numbers")


def _tracks(
    ids: list[bytes], frames: np.ndarray, joints: np.ndarray, tracking: np.ndarray
) -> tuple[BodyTrack, ...]:
    rows_of: dict[bytes, list[int]] = {}
    for row, body_id in enumerate(ids):
        rows_of.setdefault(body_id, []).append(row)
    return tuple(
        BodyTrack(_shown(body_id), frames[rows], joints[rows], tracking[rows])
        for body_id, rows in rows_of.items()
    )


def _shown(text: bytes) -> str:
    """At most 40 characters of it, printable."""
    return text[:40].decode("ascii", "backslashreplace")
