"""What each video really holds: hash, exact frame count, rate, size, or why it is unreadable.

Headers are claims. The frames are counted by decoding all of them, the container's own count only
serves to notice a file that ends early. Results are cached in the run's folder, so that a file is
probed once as long as its size and modification time stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import av

from captioning.decode_pool import DecodePool, Outcome
from captioning.frames import reason_of
from captioning.inputs import Video
from datasets_build.progress import Progress
from datasets_build.schema import STATUS_DECODE_ERROR, STATUS_TIMEOUT

_VERSION = 1  # of the cache's lines; others are passed over
_AHEAD = 4  # our choice: probes waiting for each worker; enough that none of them is ever idle


@dataclass(frozen=True)
class Probe:
    """What is known of one file; the fields after `num_bytes` are None where it never came to that.

    Attributes:
        problem_status: None for a file that can be captioned, else the status that its row gets.
        problem: the reason in words.
        sha256: of the whole file.
        codec: FFmpeg's name, for example "h264".
        has_b_frames: whether frames are stored in another order than they are shown.
        num_frames: frames that decode.
        claimed_frames: what the container says, 0 where it does not say.
        fps: average frames a second of the source.
        height: pixels of the first frame.
        width: pixels of the first frame.
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

    @property
    def duration_s(self) -> float | None:
        """Frames over rate."""
        return self.num_frames / self.fps if self.num_frames and self.fps else None


def probe_video(path: Path, *, allow_truncated: bool = False) -> Probe:
    """Hash a file and decode it from end to end; runs in a decoding process.

    A file that cannot be captioned is a result with a problem, not an exception.
    """
    try:
        sha256, num_bytes = _hash_file(path)
    except OSError as error:
        return Probe(STATUS_DECODE_ERROR, f"the file cannot be read: {reason_of(error)}")
    facts: dict[str, Any] = {"num_bytes": num_bytes, "sha256": sha256}
    if num_bytes == 0:
        return Probe(STATUS_DECODE_ERROR, "the file is empty", **facts)
    try:
        problem = _decode_all(path, facts)
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


def _hash_file(path: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    num_bytes = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            num_bytes += len(piece)
    return digest.hexdigest(), num_bytes


def _decode_all(path: Path, facts: dict[str, Any]) -> str | None:
    """Fill `facts` as decoding goes on; the reason why the file is not whole, or None."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            return "the file holds no video stream"
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            return "the file's video codec is unknown"
        context.thread_count = 1
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        facts |= {
            "codec": context.name,
            "has_b_frames": bool(context.has_b_frames),
            "claimed_frames": stream.frames,
            "num_frames": 0,
            "fps": float(rate) if rate else None,
        }
        num_packets = num_corrupt = 0
        for packet in container.demux(stream):
            num_packets += packet.size > 0
            num_corrupt += packet.is_corrupt
            for frame in packet.decode():
                if facts["num_frames"] == 0:
                    facts |= {"height": frame.height, "width": frame.width}
                facts["num_frames"] += 1
        facts["has_b_frames"] = bool(context.has_b_frames)
    # Packets, not frames: an edit list may rightly hide some frames of a whole file.
    if num_packets < stream.frames:
        return f"truncated: header says {stream.frames} frames, {facts['num_frames']} decode"
    if num_corrupt:
        return f"damaged: {num_corrupt} of {num_packets} packets are cut short or corrupt"
    return None


def probe_videos(
    videos: Sequence[Video],
    cache: Path,
    pool: DecodePool,
    progress: Progress,
    *,
    allow_truncated: bool,
) -> list[Probe]:
    """Probe all videos, in parallel and only those that the cache does not know.

    Args:
        videos: what to probe.
        cache: a JSON lines file that is read and appended to.
        pool: does the work.
        progress: is told a stage "probe".
        allow_truncated: see `probe_video`; part of what a cached result depends on.

    Returns:
        One probe for each video, in the same order.
    """
    known = _read_cache(cache)
    keys = [_cache_key(video.path, allow_truncated=allow_truncated) for video in videos]
    missing = [(key, video) for key, video in zip(keys, videos, strict=True) if key not in known]
    progress.start("probe", len(videos), unit="videos")
    progress.advance(len(videos) - len(missing))
    waiting = iter(missing)
    with cache.open("a", encoding="utf-8") as file:
        pending: list[tuple[str, int]] = []
        while True:
            for key, video in islice(waiting, pool.num_workers * _AHEAD - len(pending)):
                call = partial(probe_video, video.path, allow_truncated=allow_truncated)
                pending.append((key, pool.submit(call)))
            if not pending:
                break
            key, ticket = pending.pop(0)
            probe = probe_of(pool.take(ticket))
            known[key] = probe
            file.write(json.dumps({"key": key, **asdict(probe)}) + "\n")
            file.flush()
            progress.advance(num_failed=int(probe.problem_status is not None))
    progress.finish()
    return [known[key] for key in keys]


def probe_of(outcome: Outcome) -> Probe:
    """The probe that a decoding process came to, also when it hung or died."""
    if outcome.problem is None:
        assert isinstance(outcome.value, Probe)
        return outcome.value
    status = STATUS_TIMEOUT if outcome.timed_out else STATUS_DECODE_ERROR
    return Probe(status, outcome.problem)


def _cache_key(path: Path, *, allow_truncated: bool) -> str:
    try:
        info = path.stat()
        state = f"{info.st_size}:{info.st_mtime_ns}:{stat.S_IFMT(info.st_mode):o}"
    except OSError as error:
        state = reason_of(error)
    return f"{_VERSION}|{os.fspath(path)}|{state}|{'truncated ok' if allow_truncated else 'whole'}"


def _read_cache(path: Path) -> dict[str, Probe]:
    """Cached probes by key; lines that a stopped run left unfinished are passed over."""
    known = {}
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            # The next line must not be glued to a torn one.
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
        for line in text.split("\n"):
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue  # torn: it is probed again
            key = value.pop("key")
            if key.startswith(f"{_VERSION}|"):
                known[key] = Probe(**value)
    return known
