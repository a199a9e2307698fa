"""Skeletons instead of videos: `hoc caption --render` draws them and captions the drawings.

This module finds, probes and reads skeleton files as inputs.py, probe.py and frames.py do videos;
figures.py draws. The bodies are those that a data set gets, but they stay at their frames of the
recording: a frame that shows nobody is drawn empty, and frame numbers are the file's.

Letters: M bodies, T frames, V joints, C coordinates or colours, H and W pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioning.figure_view import Floats
from captioning.figures import draw
from captioning.frames import VideoError, reason_of
from captioning.inputs import Video, one_of_each, select_videos
from captioning.probe import Probe
from datasets_build.bodies import BodySettings, select_bodies
from datasets_build.formats import FORMATS, SkeletonFormat, find_clips
from datasets_build.ntu import read_skeleton
from datasets_build.protocols import NTU, NW_UCLA
from datasets_build.schema import STATUS_DECODE_ERROR
from datasets_build.sources import ClipError, ClipFile, read_clip

# Names the drawing in a run's fingerprint: raise the number when any pixel changes.
RENDER_RULE = "capsule figures in the sensor's view, version 1"

# our choice: square, because a standing person is high, and a walk or a pair is wide
NATIVE_HEIGHT = NATIVE_WIDTH = 448


@dataclass(frozen=True)
class Recorder:
    """What a format's files do not say of how they were recorded.

    Attributes:
        codec: what the probe calls the format.
        fps: frames a second.
        floor_slope: rise of the floor with distance in the sensor's coordinates.
    """

    codec: str
    fps: float
    floor_slope: float


RECORDERS = {
    NTU: Recorder("ntu-skeleton", fps=30.0, floor_slope=0.0),  # a Kinect v2 that looks level
    # The files hold chosen frames and no times. Measured on all 1,484: walkers take a step every
    # 7.2 frames and come 0.069 m further a frame, which is human walking at about 10 frames a
    # second and a sprint at 30; spines lean 11 to 14 degrees, so far down do the cameras look.
    NW_UCLA: Recorder("nw-ucla-json", fps=10.0, floor_slope=0.21),
}


def collect_skeletons(
    sources: Sequence[str],
    *,
    filters: Sequence[str] = (),
    pilot: int | None = None,
    limit: int | None = None,
) -> list[Video]:
    """Find the skeleton files of folders and zips, all of one format.

    Args:
        sources: folders (searched to the bottom) and zips of NTU .skeleton or NW-UCLA .json files.
        filters: see inputs.collect_videos, as `pilot` and `limit`.
        pilot: size of a balanced sample.
        limit: the most to keep in the end.

    Returns:
        At least one, sorted by sample_id. The sample_id is the NTU or NW-UCLA name; of another name
        the path inside the source. The path of a file inside a zip is "archive.zip!member".

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a source holds no skeletons, the formats are mixed, two files have one
            sample_id, or no file passes the filters.
    """
    paths = [Path(os.path.abspath(os.path.expanduser(source))) for source in sources]
    skeleton_format, files = find_clips(paths, "auto")
    videos = [
        Video(skeleton_format.sample_id(file.name) or os.path.splitext(file.member)[0], str(file))
        for file in files
    ]
    return select_videos(one_of_each(videos), filters=filters, pilot=pilot, limit=limit)


def probe_skeleton(path: str, *, allow_truncated: bool = False) -> Probe:
    """Hash a skeleton file and read it to its end; runs in a decoding process.

    A file that cannot be drawn is a result with a problem, not an exception.

    Args:
        path: a file, or "archive.zip!member".
        allow_truncated: makes no difference: a skeleton file that ends early cannot be read.
    """
    try:
        data = skeleton_content(path)
        facts: dict[str, Any] = {
            "num_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    except ClipError as error:
        return Probe(STATUS_DECODE_ERROR, _reason(error))
    try:
        skeleton_format = _format_of(path)
        recorder = RECORDERS[skeleton_format.name]
        facts |= {"codec": recorder.codec, "has_b_frames": False}
        num_frames = _read_bodies(data, skeleton_format).shape[1]
    except ClipError as error:
        return Probe(STATUS_DECODE_ERROR, _reason(error), **facts)
    return Probe(
        None,
        None,
        **facts,
        num_frames=num_frames,
        claimed_frames=num_frames,
        fps=recorder.fps,
        height=NATIVE_HEIGHT,
        width=NATIVE_WIDTH,
    )


def draw_frames(path: str, indices: Sequence[int], *, height: int, width: int) -> NDArray[np.uint8]:
    """Draw frames of a skeleton file, each once.

    Args:
        path: a file, or "archive.zip!member".
        indices: 0-based frame numbers, not decreasing; a number may repeat.
        height: H of the result in pixels.
        width: W of the result in pixels.

    Returns:
        uint8 RGB, (T, C, H, W), T = len(indices).

    Raises:
        VideoError: the file cannot be read, or ends before the last frame wanted.
    """
    if not indices or any(later < earlier for earlier, later in pairwise(indices)):
        raise ValueError(f"frame indices must not decrease, given: {list(indices)}")
    try:
        skeleton_format = _format_of(path)
        joints = _read_bodies(skeleton_content(path), skeleton_format)
    except ClipError as error:
        raise VideoError(_reason(error)) from error
    if joints.shape[1] <= indices[-1]:
        raise VideoError(
            f"frame {indices[-1]} was planned, but the skeletons have only {joints.shape[1]} frames"
        )
    frames = sorted(set(indices))
    drawn = draw(
        joints,
        skeleton_format.skeleton,
        frames,
        floor_slope=RECORDERS[skeleton_format.name].floor_slope,
        height=height,
        width=width,
    )
    return drawn[[frames.index(index) for index in indices]]  # (T, C, H, W)


def skeleton_content(path: str) -> bytes:
    """The bytes of a skeleton file, given as in `probe_skeleton`.

    Raises:
        ClipError: it cannot be read.
    """
    archive, member = _split(path)
    if member is None:
        folder, name = os.path.split(path)
        return read_clip(ClipFile(Path(folder), name, is_zipped=False, num_bytes=0))
    return read_clip(ClipFile(Path(archive), member, is_zipped=True, num_bytes=0))


def _split(path: str) -> tuple[str, str | None]:
    """The file on the disk and, where that is a zip, the member."""
    if not os.path.isfile(path):
        pieces = path.split("!")
        for i in range(1, len(pieces)):
            archive = "!".join(pieces[:i])
            if os.path.isfile(archive):
                return archive, "!".join(pieces[i:])
    return path, None


def _reason(error: ClipError) -> str:
    """One line without the path."""
    if error.__cause__ is not None and error.reason == "cannot_read":
        return f"the file cannot be read: {reason_of(error.__cause__)}"
    return str(error)


def _format_of(path: str) -> SkeletonFormat:
    for skeleton_format in FORMATS.values():
        if path.endswith(skeleton_format.suffix):
            return skeleton_format
    suffixes = " or ".join(skeleton_format.suffix for skeleton_format in FORMATS.values())
    raise ClipError("bad_name", f"the name of a skeleton file ends in {suffixes}")


def _read_bodies(data: bytes, skeleton_format: SkeletonFormat) -> Floats:
    """(M, T, V, C) of all frames of a recording, zeros where a body is not seen.

    Raises:
        ClipError: it cannot be read, or shows nobody.
    """
    if skeleton_format.name != NTU:
        joints: Floats = skeleton_format.read(data, BodySettings()).joints
        if not joints.any():
            raise ClipError("no_body_left", "no frame shows a body")
        return joints
    recording = read_skeleton(data)
    chosen = select_bodies(recording, BodySettings(keep_gaps=True))  # (M, T', V, C)
    seen = np.argwhere(chosen.any(axis=(2, 3)))  # body and frame of each pose
    # The selection begins where its first body comes in; that pose tells the recording's frame.
    body, frame = seen[seen[:, 1].argmin()]
    first = min(
        int(track.frames[row])
        for track in recording.bodies
        for row in np.flatnonzero((track.joints == chosen[body, frame]).all(axis=(1, 2)))
    ) - int(frame)
    joints = np.zeros((len(chosen), recording.num_frames, *chosen.shape[2:]), np.float32)
    joints[:, first : first + chosen.shape[1]] = chosen
    return joints
