"""What each video really holds: hash, exact frame count, rate, size, or why it is unreadable.

Headers are claims. The frames are counted by decoding all of them; what the container says of
itself only serves to notice a file that ends early. Results may be cached in a file, so that a
video is probed once as long as its size and modification time stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioning.decode_pool import DecodePool, Outcome
from captioning.frames import VideoError, reason_of, upright_size, video_stream
from captioning.inputs import Video
from datasets_build.progress import Progress
from datasets_build.schema import STATUS_DECODE_ERROR, STATUS_TIMEOUT

_VERSION = 2  # of the cache's lines; others are passed over
_ROWS_PER_BATCH = 16384  # our choice: probes that wait as Python objects to become Arrow memory
_RATE_TOLERANCE = 0.02  # our choice: more than what times in whole milliseconds are off


@dataclass(frozen=True, slots=True)
class Probe:
    """What is known of one file; the fields after `num_bytes` are None where it never came to that.

    Attributes:
        problem_status: None for a file that can be captioned, else the status that its row gets.
        problem: the reason in words, one line without the path.
        sha256: of the whole file.
        codec: FFmpeg's name, for example "h264".
        has_b_frames: whether frames are stored in another order than they are shown.
        num_frames: frames that decode.
        claimed_frames: what the container says, 0 where it does not say.
        fps: average frames a second; by the times of the frames where the header says otherwise.
        height: pixels of the first frame, upright.
        width: pixels of the first frame, upright.
    """

    problem_status: str | None
    problem: str | None
    num_bytes: int | None = None
    sha256: str | None = None
    codec: str | None = None
    has_b_frames: bool | None = None
    num_frames: int | None = None
    claimed_frames: int | None = None
    fps: float | None = None
    height: int | None = None
    width: int | None = None


# One row a video: the fields of Probe.
PROBE_SCHEMA = pa.schema(
    [
        ("problem_status", pa.string()),
        ("problem", pa.string()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("codec", pa.dictionary(pa.int32(), pa.string())),
        ("has_b_frames", pa.bool_()),
        ("num_frames", pa.int32()),
        ("claimed_frames", pa.int32()),
        ("fps", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)
_FIELDS = tuple(field.name for field in fields(Probe))


def probe_video(path: str, *, allow_truncated: bool = False) -> Probe:
    """Hash a file and decode it from end to end; runs in a decoding process.

    A file that cannot be captioned is a result with a problem, not an exception.
    """
    try:
        sha256, num_bytes = _hash_file(path)
    except OSError as error:
        return Probe(STATUS_DECODE_ERROR, f"the file cannot be read: {reason_of(error)}")
    except ValueError as error:
        return Probe(STATUS_DECODE_ERROR, str(error))
    facts: dict[str, Any] = {"num_bytes": num_bytes, "sha256": sha256}
    if num_bytes == 0:
        return Probe(STATUS_DECODE_ERROR, "the file is empty", **facts)
    try:
        problem = _decode_all(path, facts)
    except VideoError as error:
        problem = str(error)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        count = facts.get("num_frames")
        where = f"damaged: {count} frames decode, then" if count else "not a readable video:"
        problem = f"{where} {reason_of(error)}"
    if facts.get("num_frames") == 0:
        return Probe(STATUS_DECODE_ERROR, problem or "no frame decodes", **facts)
    if facts.get("fps") is None:
        return Probe(STATUS_DECODE_ERROR, problem or "the frame rate is unknown", **facts)
    if problem is not None and not allow_truncated:
        return Probe(STATUS_DECODE_ERROR, problem, **facts)
    return Probe(None, None, **facts)


def _hash_file(path: str) -> tuple[str, int]:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # a pipe would be waited for
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        raise ValueError(f"not a regular file but a {kinds.get(stat.S_IFMT(mode), 'device')}")
    digest = hashlib.sha256()
    num_bytes = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            num_bytes += len(piece)
    return digest.hexdigest(), num_bytes


def _decode_all(path: str, facts: dict[str, Any]) -> str | None:
    """Fill `facts` as decoding goes on; the reason why the file is not whole, or None."""
    with av.open(path) as container:
        stream = video_stream(container)
        context = stream.codec_context
        # The pictures are counted, not looked at: without the last step a fifth faster.
        context.options = {"skip_loop_filter": "all"}
        facts |= {
            "codec": context.codec.canonical_name,
            "claimed_frames": stream.frames,
            "num_frames": 0,
        }
        num_packets = num_corrupt = num_slots = 0
        times: list[int] = []
        try:
            for packet in container.demux(stream):
                num_packets += packet.size > 0
                num_corrupt += packet.is_corrupt
                num_slots = max(num_slots, (packet.dts or 0) + 1)
                for frame in packet.decode():
                    if facts["num_frames"] == 0:
                        facts["height"], facts["width"] = upright_size(frame)
                    facts["num_frames"] += 1
                    if frame.pts is not None:
                        times.append(frame.pts)
        finally:
            facts |= {"has_b_frames": bool(context.has_b_frames), "fps": _rate_of(stream, times)}
        form = container.format.name
    # AVI also counts the times at which nothing new is shown; a packet carries the number of its.
    claimed, num_found = facts["claimed_frames"], num_slots if form == "avi" else num_packets
    if num_found < claimed and ("mp4" not in form or _count_packets(path) < claimed):
        return f"truncated: header says {claimed} frames, {facts['num_frames']} decode"
    if "matroska" in form and facts["num_bytes"] < (num_bytes := _claimed_bytes(path)):
        return f"truncated: header says {num_bytes} bytes, {facts['num_frames']} frames decode"
    if num_corrupt:
        return f"damaged: {num_corrupt} of {num_packets} packets are cut short or corrupt"
    return None


def _rate_of(stream: av.VideoStream, times: Sequence[int]) -> float | None:
    """Frames a second: the header's number, unless the frames' own times contradict it."""
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    span = max(times) - min(times) if times else 0
    if span > 0 and stream.time_base:
        measured = (len(times) - 1) / float(span * stream.time_base)
        if not rate or abs(measured / float(rate) - 1) > _RATE_TOLERANCE:
            return measured
    return float(rate) if rate else None


def _count_packets(path: str) -> int:
    """Packets of an MP4 or MOV, also those that its edit list cuts off."""
    with av.open(path, options={"ignore_editlist": "1"}) as container:
        return sum(packet.size > 0 for packet in container.demux(video_stream(container)))


def _claimed_bytes(path: str) -> int:
    """The length that a Matroska or WebM file says it has; 0 where it does not say.

    It begins with two elements, EBML and Segment, each an id of four bytes and a size whose leading
    zero bits tell how many bytes it has (RFC 8794); all ones is an unknown size.
    """
    with open(path, "rb") as file:
        head = file.read(4096)
    position = 0
    for element_id in (b"\x1aE\xdf\xa3", b"\x18S\x80g"):
        if not head.startswith(element_id, position) or len(head) < position + 12:
            return 0
        width = 9 - head[position + 4].bit_length()
        position += 4 + width
        mask = (1 << 7 * width) - 1
        size = int.from_bytes(head[position - width : position], "big") & mask
        if size == mask:
            return 0
        start, position = position, position + size
    return start + size


def probe_videos(
    videos: Sequence[Video],
    cache: Path | None,
    pool: DecodePool,
    progress: Progress,
    *,
    allow_truncated: bool,
    probe: Callable[..., Probe] = probe_video,
) -> pa.Table:
    """Probe all videos, in parallel and only those that the cache does not know.

    Args:
        videos: what to probe.
        cache: a JSON lines file that is read and appended to; None: nothing is kept.
        pool: does the work.
        progress: is told a stage "probe".
        allow_truncated: see `probe_video`; part of what a cached result depends on.
        probe: a function of a module's top level that takes and returns what `probe_video` does;
            its name is part of what a cached result depends on.

    Returns:
        PROBE_SCHEMA, one row for each video, in the same order.
    """
    # A path counts once, under its number, however many videos name it.
    numbers: dict[str, int] = {}
    order = np.fromiter((numbers.setdefault(v.path, len(numbers)) for v in videos), np.int64)
    stamps = _stamps_of(numbers)
    key = f"{_VERSION}|{probe.__module__}.{probe.__qualname__}"
    key += "|truncated ok" if allow_truncated else "|whole"
    rows = _Rows(len(numbers))
    if cache is not None and cache.is_file():
        for number, values in _read_cache(cache, key, numbers, stamps, timeout_s=pool.timeout_s):
            rows.add(number, values)
    progress.start("probe", len(numbers), unit="videos")
    progress.advance(rows.num_known, num_failed=rows.num_problems)
    call = partial(probe, allow_truncated=allow_truncated)
    calls = (
        ((path, number), partial(call, path))
        for path, number in numbers.items()
        if number not in rows
    )
    with _open_cache(cache or Path(os.devnull)) as file:
        for (path, number), outcome in pool.outcomes(calls):
            result = probe_of(outcome)
            rows.add(number, astuple(result))
            size, mtime_ns = stamps[number].tolist()
            # What could not even be read is tried again the next time.
            if size >= 0 and (result.sha256 is not None or outcome.timed_out):
                line = {"key": key, "path": path, "size": size, "mtime_ns": mtime_ns}
                line |= {"timeout_s": pool.timeout_s, **asdict(result)}
                file.write(f"{json.dumps(line)}\n".encode())
            progress.advance(num_failed=int(result.problem_status is not None))
    progress.finish()
    del numbers, stamps, calls  # a million paths take 150 MB here
    return rows.take(order)


def probe_of(outcome: Outcome) -> Probe:
    """The probe that a decoding process came to, also when it hung or died."""
    if outcome.problem is None:
        assert isinstance(outcome.value, Probe)
        return outcome.value
    status = STATUS_TIMEOUT if outcome.timed_out else STATUS_DECODE_ERROR
    return Probe(status, outcome.problem)


class _Rows:
    """Probes kept in Arrow memory, by number; of two with the same number the later one holds."""

    def __init__(self, num_rows: int) -> None:
        self.num_known = 0
        self.num_problems = 0
        self._place_of = np.full(num_rows, -1)  # of each number among the rows as they came
        self._num_added = 0
        self._waiting: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []

    def __contains__(self, number: int) -> bool:
        return bool(self._place_of[number] >= 0)

    def add(self, number: int, values: tuple[Any, ...]) -> None:
        """Keep a probe's fields."""
        if number not in self:
            self.num_known += 1
            self.num_problems += values[0] is not None
        self._place_of[number] = self._num_added
        self._num_added += 1
        self._waiting.append(values)
        if len(self._waiting) == _ROWS_PER_BATCH:
            self._pack()

    def _pack(self) -> None:
        columns = zip(zip(*self._waiting, strict=True), PROBE_SCHEMA.types, strict=True)
        arrays = [pa.array(column, type) for column, type in columns]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=PROBE_SCHEMA))
        self._waiting = []

    def take(self, numbers: NDArray[np.int64]) -> pa.Table:
        """The rows of these numbers."""
        if self._waiting:
            self._pack()
        table = pa.Table.from_batches(self._batches, PROBE_SCHEMA).unify_dictionaries()
        places = self._place_of[numbers]
        if np.array_equal(places, np.arange(table.num_rows)):
            return table  # as when a cache is read again: no second copy
        return table.take(pa.array(places))


def _stamps_of(paths: Collection[str]) -> NDArray[np.int64]:
    """Size and modification time in ns of each file, (num_paths, 2); -1 where there is none."""
    stamps = np.full((len(paths), 2), -1)
    for number, path in enumerate(paths):
        archive, is_member, _ = path.partition(".zip!")
        try:
            info = os.stat(f"{archive}.zip" if is_member else path)
        except (OSError, ValueError):
            continue
        stamps[number] = info.st_size, info.st_mtime_ns
    return stamps


def _read_cache(
    cache: Path,
    key: str,
    numbers: Mapping[str, int],
    stamps: NDArray[np.int64],
    *,
    timeout_s: float,
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Number and fields of the cached probes that hold for these files as they are now."""
    fields_of = itemgetter(*_FIELDS)
    with cache.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = json.loads(line)
                number = numbers.get(value["path"]) if value["key"] == key else None
            except (ValueError, LookupError, TypeError):
                continue  # torn when a run was stopped: it is probed again
            if number is None or [value["size"], value["mtime_ns"]] != stamps[number].tolist():
                continue
            if value["problem_status"] == STATUS_TIMEOUT and value["timeout_s"] < timeout_s:
                continue  # it gets the longer time
            yield number, fields_of(value)


@contextmanager
def _open_cache(cache: Path) -> Iterator[IO[bytes]]:
    """The cache to append to: every write is at once with the system, and no line is glued on."""
    with cache.open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # torn when a run was stopped
                file.write(b"\n")
        yield file
