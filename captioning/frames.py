"""Exactly the planned frames of a video: decoded in order, upright, brought to the planned size.

Seeking is what returns wrong frames (decord's `get_batch` gives frame 95 for frame 102 of a real
NTU clip), so both readers here decode from the first frame on and count. Any other reader, and any
seeking, is first to be tested on the files in question: `hoc probe --audit-reader` does that (see
captioning/reader_audit.py), and a run takes none but these two.

Nothing in this module needs torch: it runs in the decoding processes.

Legend: T frames, C = 3 colours, H and W pixels.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

FRAME_RULE = "evenly spaced from the first to the last frame, rounded half up; turned upright"
RESIZE_RULE = "FFmpeg swscale, bicubic, exact rounding, full chroma; RGB uint8"
# From the decoded picture to the small RGB one in a step: a tenth of the time of converting first
# and resizing with PIL, within a grey level of it. The flags are swscale's ACCURATE_RND, BITEXACT
# (the same bits on every processor) and FULL_CHR_H_INT (colours at the size of the result).
_SCALING = int(Interpolation.BICUBIC) | 0x40000 | 0x80000 | 0x2000


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
    path: str, indices: Sequence[int], *, height: int, width: int, reader: str = "pyav"
) -> NDArray[np.uint8]:
    """Decode a video from its first frame to the last one wanted, and resize the wanted ones.

    Every frame comes to the size given, also where a video changes its size on the way. Pixels are
    taken to be square.

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
            resized[index] = picture(height, width)  # (H, W, C)
        if index == indices[-1]:
            break
    if num_decoded <= indices[-1]:
        raise VideoError(
            f"frame {indices[-1]} was planned, but only {num_decoded} frames decode with {reader}"
        )
    clip = np.stack([resized[index] for index in indices])  # (T, H, W, C)
    return np.ascontiguousarray(clip.transpose(0, 3, 1, 2))  # (T, C, H, W)


def reason_of(error: BaseException) -> str:
    """An av, decord or system error as one line without the path, the same at every run."""
    text = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {_DECORD_NOISE.sub('', text)}"[:300]


# "[07:05:48] /a/video_reader.cc:737: [/proc/self/fd/9]": time of day, line of decord's source, file
_DECORD_NOISE = re.compile(r"^\[[\d:]+\] \S+:\d+: |\[?/proc/self/fd/\d+\]?")


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream that a player would show, to be decoded by one thread.

    Raises:
        VideoError: there is none, or its codec is unknown.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise VideoError("the file holds no video stream")
    assert isinstance(stream, av.VideoStream)
    if stream.codec_context is None:
        raise VideoError("the file's video codec is unknown")
    # The parallelism is in the number of processes.
    stream.codec_context.thread_count = 1
    return stream


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Height and width of a frame after it is turned upright."""
    is_lying = _turn_of(frame)[0, 0] == 0
    return (frame.width, frame.height) if is_lying else (frame.height, frame.width)


def _turn_of(frame: av.VideoFrame) -> NDArray[np.int64]:
    """How the file wants its pictures shown, as phones write it: quarter turns and mirrorings.

    Returns:
        (2, 2), entries -1, 0, 1: the pixel at (x, y) goes to (x, y) @ turn, up to a shift. The
        identity where the file says nothing, or asks for other angles, which no camera writes.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is not None:
        a, b, _, c, d = struct.unpack("5i", bytes(data)[:20])
        turn = np.sign([[a, b], [c, d]])
        if np.array_equal(turn @ turn.T, np.eye(2)):
            return turn
    return np.eye(2, dtype=np.int64)


def _turned(picture: NDArray[np.uint8], turn: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A picture (H, W, C) after a turn as `_turn_of` describes it."""
    if turn[0, 0] == 0:
        picture = picture.swapaxes(0, 1)  # (W, H, C)
    columns, rows = turn.sum(axis=0)
    return picture[::rows, ::columns]


# A decoded picture; it becomes upright RGB (H, W, C) of a height and width only when it is wanted.
Picture = Callable[[int, int], NDArray[np.uint8]]


def _shrink(
    frame: av.VideoFrame,
    turn: NDArray[np.int64],
    scaler: VideoReformatter,
    height: int,
    width: int,
) -> NDArray[np.uint8]:
    """A frame turned and brought to a size, RGB (H, W, C)."""
    if turn[0, 0] == 0:  # it lies on its side
        height, width = width, height
    small = scaler.reformat(
        frame, width=width, height=height, format="rgb24", interpolation=_SCALING
    )
    return _turned(np.asarray(small.to_ndarray(), dtype=np.uint8), turn)


def _decode_with_pyav(path: str) -> Iterator[Picture]:
    try:
        with av.open(path) as container:
            turn, scaler = None, VideoReformatter()
            for frame in container.decode(video_stream(container)):
                turn = _turn_of(frame) if turn is None else turn
                yield partial(_shrink, frame, turn, scaler)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(reason_of(error)) from error


def _decode_with_decord(path: str) -> Iterator[Picture]:
    turn, scaler = _turn_left_by_decord(path), VideoReformatter()

    def shrink(frame: Any, height: int, width: int) -> NDArray[np.uint8]:
        pixels = np.ascontiguousarray(pixels_of_decord(frame))
        picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        return _shrink(picture, turn, scaler, height, width)

    with reading_with_decord(path) as video:
        for _ in range(len(video)):
            yield partial(shrink, video.next())


@contextmanager
def reading_with_decord(path: str, *, fault_tolerance: float = 1e-9) -> Iterator[Any]:
    """A file as a decord.VideoReader of one thread.

    Args:
        path: the video.
        fault_tolerance: the share of frames that decord may fill in with copies of others where
            they are missing; as good as none unless told otherwise, -1 for any (its own default).

    Raises:
        VideoError: it cannot be opened, or what is done with it fails.
    """
    import decord  # has no wheel on some platforms; `check_reader` says so before a run

    decord.logging.set_level(decord.logging.QUIET)
    try:
        # By number, because decord takes only names that are UTF-8.
        with open(path, "rb") as file:
            name = f"/proc/self/fd/{file.fileno()}"
            video = decord.VideoReader(name, num_threads=1, fault_tol=fault_tolerance)
        yield video
    except (
        *(decord.DECORDError, decord.DECORDLimitReachedError),
        *(AssertionError, OSError, RuntimeError, StopIteration),
    ) as error:
        raise VideoError(reason_of(error)) from error


def pixels_of_decord(frame: Any) -> NDArray[np.uint8]:
    """A frame of decord as RGB (H, W, C); of narrow ones it returns the memory with its padding."""
    pixels = frame.asnumpy()
    height, width = pixels.shape[:2]
    return pixels.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def _turn_left_by_decord(path: str) -> NDArray[np.int64]:
    """What is left to turn: decord itself turns MP4 and MOV, but mirrors nothing."""
    try:
        with av.open(path) as container:
            frame = next(container.decode(video_stream(container)))
            is_turned = "mp4" in container.format.name
    except (av.error.FFmpegError, OSError, StopIteration, ValueError) as error:
        raise VideoError(reason_of(error)) from error
    turn = _turn_of(frame)
    if not is_turned:
        return turn
    a, b = turn[0]
    return np.array([[a, b], [-b, a]]).T @ turn  # the inverse of its turn, then ours


READERS: dict[str, Callable[[str], Iterator[Picture]]] = {
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
