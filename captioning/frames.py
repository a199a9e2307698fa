"""Exactly the planned frames of a video, decoded in order and brought to the planned size.

Seeking is what returns wrong frames (decord's `get_batch` gives frame 95 for frame 102 of a real
NTU clip), so every reader here decodes from the first frame on and counts. Nothing in this module
needs torch: it runs in the decoding processes.

Legend: T frames, C = 3 colours, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

FRAME_RULE = "evenly spaced from the first to the last frame, rounded half up"
RESIZE_RULE = "PIL bicubic with antialiasing, RGB uint8"


class VideoError(Exception):
    """A video cannot be decoded as planned; the message is the reason that its row carries."""


def evenly_spaced(num_available: int, num_frames: int) -> tuple[int, ...]:
    """Frame indices i * (num_available - 1) / (num_frames - 1), rounded: both ends are taken.

    Halves are rounded up, in integer arithmetic. A clip with fewer frames repeats some of them.

    Args:
        num_available: frames that the clip has, at least 1.
        num_frames: how many are wanted, at least 2.
    """
    steps = num_frames - 1
    return tuple((2 * i * (num_available - 1) + steps) // (2 * steps) for i in range(num_frames))


def read_frames(
    path: Path, indices: Sequence[int], *, height: int, width: int, reader: str = "pyav"
) -> NDArray[np.uint8]:
    """Decode a video from its first frame to the last one wanted, and resize the wanted ones.

    Args:
        path: the video.
        indices: 0-based frame numbers, not decreasing; a number may repeat.
        height: H of the result in pixels.
        width: W of the result in pixels.
        reader: a key of READERS.

    Returns:
        uint8 RGB, (T, C, H, W), T = len(indices).

    Raises:
        VideoError: it cannot be opened or decoded, or ends before the last frame wanted.
    """
    if not indices or any(later < earlier for earlier, later in pairwise(indices)):
        raise ValueError(f"frame indices must not decrease, given: {list(indices)}")
    wanted = set(indices)
    resized: dict[int, NDArray[np.uint8]] = {}
    num_decoded = 0
    for index, picture in enumerate(READERS[reader](path)):
        num_decoded = index + 1
        if index in wanted:
            image = Image.fromarray(picture()).resize((width, height), Image.Resampling.BICUBIC)
            resized[index] = np.asarray(image)  # (H, W, C)
        if index == indices[-1]:
            break
    if num_decoded <= indices[-1]:
        raise VideoError(
            f"frame {indices[-1]} was planned, but only {num_decoded} frames decode with {reader}"
        )
    clip = np.stack([resized[index] for index in indices])  # (T, H, W, C)
    return np.ascontiguousarray(clip.transpose(0, 3, 1, 2))  # (T, C, H, W)


def reason_of(error: BaseException) -> str:
    """An av, decord or system error as one line without the path."""
    text = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]


# A decoded picture that is converted to RGB (H, W, C) only when it is wanted.
Picture = Callable[[], NDArray[np.uint8]]


def _decode_with_pyav(path: Path) -> Iterator[Picture]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("the file holds no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError("the file's video codec is unknown")
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                yield lambda frame=frame: frame.to_ndarray(format="rgb24")  # type: ignore[misc]
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(reason_of(error)) from error


def _decode_with_decord(path: Path) -> Iterator[Picture]:
    import decord  # has no wheel on some platforms; `check_reader` says so before a run

    try:
        video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        for _ in range(len(video)):
            frame = video.next()
            yield lambda frame=frame: frame.asnumpy()  # type: ignore[misc]
    except (decord.DECORDError, RuntimeError, OSError, StopIteration) as error:
        raise VideoError(reason_of(error)) from error


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "pyav": _decode_with_pyav,
    "decord": _decode_with_decord,
}


def check_reader(reader: str) -> None:
    """Make sure that a reader is installed.

    Raises:
        ValueError: it is not.
    """
    if reader == "decord":
        try:
            import decord  # noqa: F401  (only whether it is there)
        except ImportError as error:
            raise ValueError(
                "reader 'decord' is not installed (it has wheels for x86-64 Linux only); "
                "use reader 'pyav', which returns the same frames"
            ) from error
