"""Which frames a reader that seeks really returns, compared with what it decodes in order.

A reader that is asked for frame 102 and jumps there may return frame 95, and nothing says so (as
decord does on a real NTU clip). Here a reader is asked for the frames that a plan would take, and
each answer is looked up, bit by bit, among the frames that the same reader gives from the first to
the last. So neither another decoder's rounding nor a picture that stands still counts as an error.
It is asked several times, each time anew, because its threads may race: decord errs on the last
frames of H.264 with B-frames in about one call of three, and not in the others.

No caption is made with any of this: a run reads in order (see captioning/frames.py). It tells
whether another tool may be used on the same files.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioning.decode_pool import DecodePool
from captioning.frames import (
    VideoError,
    evenly_spaced,
    pixels_of_decord,
    reading_with_decord,
    reason_of,
)
from captioning.inputs import Video
from datasets_build.progress import Progress

NUM_TRIES = 5  # our choice: shows an error that comes in one call of three with 87 %

# One row a video. problem: why it was not or not wholly tried; num_in_order: frames that the reader
# gives from the first on, at most as many as the video has; num_asked: frames that it is asked for;
# wrong: those of them that did not come, with the one that came instead (null where it is none of
# the video's) and how many times.
AUDIT_SCHEMA = pa.schema(
    [
        ("problem", pa.string()),
        ("num_in_order", pa.int32()),
        ("num_asked", pa.int32()),
        ("wrong", pa.list_(pa.struct([(n, pa.int32()) for n in ("asked", "got", "num_times")]))),
    ]
)

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SeekingReader:
    """A reader to be audited.

    Attributes:
        module: what is imported.
        package: what is installed for it.
        in_order: path -> the frames from the first to the last.
        at: path and 0-based indices -> the frame of each, None where the reader gives none.
    """

    module: str
    package: str
    in_order: Callable[[str], Iterator[Picture]]
    at: Callable[[str, Sequence[int]], Iterator[Picture | None]]


def _decord_in_order(path: str) -> Iterator[Picture]:
    with reading_with_decord(path) as video:
        for _ in range(len(video)):
            yield pixels_of_decord(video.next())


def _decord_at(path: str, indices: Sequence[int]) -> Iterator[Picture | None]:
    with reading_with_decord(path, fault_tolerance=-1) as video:  # as everyone calls it
        yield from video.get_batch(list(indices)).asnumpy()


def _opencv_in_order(path: str) -> Iterator[Picture]:
    import cv2

    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    while (answer := video.read())[0]:
        yield answer[1]


def _opencv_at(path: str, indices: Sequence[int]) -> Iterator[Picture | None]:
    import cv2

    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    for index in indices:
        video.set(cv2.CAP_PROP_POS_FRAMES, index)
        is_read, picture = video.read()
        yield picture if is_read else None


def _torchcodec_in_order(path: str) -> Iterator[Picture]:
    from torchcodec import _core
    from torchcodec.decoders import VideoDecoder

    # Its public calls look every frame up by its time; this one alone takes the next.
    decoder = VideoDecoder(path)._decoder
    while True:
        try:
            yield _core.get_next_frame(decoder)[0].numpy()
        except IndexError:
            return


def _torchcodec_at(path: str, indices: Sequence[int]) -> Iterator[Picture | None]:
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(path)
    for index in indices:
        try:
            yield video[index].numpy()
        except (IndexError, RuntimeError):
            yield None


SEEKING_READERS = {
    "decord": SeekingReader("decord", "decord", _decord_in_order, _decord_at),
    "opencv": SeekingReader("cv2", "opencv-python-headless", _opencv_in_order, _opencv_at),
    "torchcodec": SeekingReader("torchcodec", "torchcodec", _torchcodec_in_order, _torchcodec_at),
}


def check_seeking_reader(name: str) -> None:
    """Make sure that a reader is one of SEEKING_READERS and installed.

    Raises:
        ValueError: it is not.
    """
    if name not in SEEKING_READERS:
        raise ValueError(f"no reader {name!r} to audit; choose from {', '.join(SEEKING_READERS)}")
    reader = SEEKING_READERS[name]
    try:
        import_module(reader.module)
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            f"the reader {name} cannot be audited, because it is not installed ({error}); "
            f"install it with `pip install {reader.package}`"
        ) from error


def audit_video(
    path: str, *, reader: str, num_available: int, num_frames: int, num_tries: int
) -> dict[str, Any]:
    """Ask a reader for evenly spaced frames of one file; runs in a decoding process.

    Args:
        path: the video.
        reader: a key of SEEKING_READERS.
        num_available: frames that the video really has, at least 1 (`Probe.num_frames`).
        num_frames: how many to ask for; of a shorter video all.
        num_tries: how many times to open the file and ask for them.

    Returns:
        The fields of AUDIT_SCHEMA.
    """
    tried = SEEKING_READERS[reader]
    indices = sorted(set(evenly_spaced(num_available, num_frames)))
    audit: dict[str, Any] = {"problem": None, "num_in_order": 0, "num_asked": 0}
    places: defaultdict[bytes, list[int]] = defaultdict(list)  # of each picture in the video
    wrong: Counter[tuple[int, int | None]] = Counter()
    try:
        for index, picture in enumerate(islice(tried.in_order(path), num_available)):
            places[_digest(picture)].append(index)
            audit["num_in_order"] = index + 1
        if audit["num_in_order"] < num_available:
            audit["problem"] = f"{audit['num_in_order']} of {num_available} frames come in order"
        audit["num_asked"] = len(indices)
        for _ in range(num_tries):
            for index, answer in zip(indices, tried.at(path, indices), strict=True):
                same = [] if answer is None else places.get(_digest(answer), [])
                if index not in same:
                    distances = {abs(place - index): place for place in same}
                    wrong[index, distances[min(distances)] if same else None] += 1
    except VideoError as error:
        audit["problem"] = str(error)
    except Exception as error:  # whatever a reader of others comes up with is a result
        audit["problem"] = reason_of(error)
    audit["wrong"] = [
        {"asked": asked, "got": got, "num_times": wrong[asked, got]}
        for asked, got in sorted(wrong, key=lambda pair: (pair[0], pair[1] or 0))
    ]
    return audit


def _digest(picture: Picture) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(picture).data).digest()


def audit_videos(
    videos: Sequence[Video],
    probes: pa.Table,
    pool: DecodePool,
    progress: Progress,
    *,
    reader: str,
    num_frames: int,
    num_tries: int = NUM_TRIES,
) -> pa.Table:
    """Audit a reader on all videos that the probe found readable, in parallel.

    Args:
        videos: what to read.
        probes: PROBE_SCHEMA, a row for each of them (probe.probe_videos).
        pool: does the work.
        progress: is told a stage "audit".
        reader: a key of SEEKING_READERS; see `check_seeking_reader`.
        num_frames: see `audit_video`.
        num_tries: see `audit_video`.

    Returns:
        AUDIT_SCHEMA, one row for each video, in the same order; a video with a problem of its own
        carries that.
    """
    columns = (probes[name].to_pylist() for name in ("problem", "num_frames"))
    rows = [
        {"problem": problem, "num_available": count if problem is None else None}
        for problem, count in zip(*columns, strict=True)
    ]
    call = partial(audit_video, reader=reader, num_frames=num_frames, num_tries=num_tries)
    calls = (
        (number, partial(call, video.path, num_available=row["num_available"]))
        for number, (video, row) in enumerate(zip(videos, rows, strict=True))
        if row["num_available"]
    )
    progress.start("audit", sum(row["problem"] is None for row in rows), unit="videos")
    for number, outcome in pool.outcomes(calls):
        rows[number] = outcome.value or {"problem": outcome.problem}
        progress.advance(num_failed=int(rows[number]["problem"] is not None))
    progress.finish()
    return pa.Table.from_pylist(rows, AUDIT_SCHEMA)
