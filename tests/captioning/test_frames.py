from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from captioning.frames import VideoError, check_reader, evenly_spaced, read_frames
from captioning.probe import probe_video

# decord has no wheel for some platforms
READERS = ["pyav", *(["decord"] if find_spec("decord") else [])]
NUM_FRAMES = 70


@dataclass(frozen=True)
class Case:
    """How to encode NUM_FRAMES numbered frames; the container follows from the name."""

    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pixel_format: str = "yuv420p"
    height: int = 64
    width: int = 96
    time_ms: Callable[[int], int] | None = None  # of each frame; None: 25 a second
    container: dict[str, str] = field(default_factory=dict)
    first_shown: int = 0  # frames before it are hidden by an edit list


def x264(options: str = "", **changes: Any) -> Case:
    return Case("libx264", {"x264-params": f"mbtree=0:{options}"}, **changes)


def irregular(number: int) -> int:
    """Steps of 40, 53 and 27 ms, and a pause."""
    return number * 40 + number % 3 * 13 + (400 if number > 30 else 0)


def gaps(number: int) -> int:
    """Two or three times of a raster of 40 ms a frame: AVI then stores that nothing is new."""
    return 40 * (number * 5 // 2)


CASES = {
    "h264.avi": x264("bframes=0:keyint=12"),
    "h264.mp4": x264("bframes=0:keyint=12"),
    "h264-b.avi": x264("bframes=3:keyint=250"),
    "h264-b.mp4": x264("bframes=3:keyint=250"),
    "h264-pyramid.mkv": x264("bframes=5:b-pyramid=normal:keyint=30"),
    "h264-open-gop.avi": x264("bframes=3:open-gop=1:scenecut=0:keyint=15"),
    "h264-open-gop.mp4": x264("bframes=3:open-gop=1:scenecut=0:keyint=15"),
    "h264-refresh.mp4": x264("bframes=0:intra-refresh=1:keyint=20"),
    "h264-interlaced.mp4": x264("bframes=2:tff=1"),
    "h264-slices.mov": x264("bframes=2:slices=4"),
    "h264-fragments.mp4": x264(
        "bframes=2:keyint=20", container={"movflags": "frag_keyframe+empty_moov"}
    ),
    "h264-variable.mp4": x264("bframes=2:keyint=20", time_ms=irregular),
    "h264-variable.mkv": x264("bframes=2:keyint=20", time_ms=irregular),
    "h264-gaps.avi": x264("bframes=2:keyint=20", time_ms=gaps),
    "h264-late.mp4": x264("bframes=2:keyint=20", time_ms=lambda number: 2000 + number * 40),
    "h264-negative.mp4": x264(
        "bframes=2:keyint=20",
        time_ms=lambda number: number * 40 - 400,
        container={"avoid_negative_ts": "disabled"},
        first_shown=10,
    ),
    "h264-444-odd.mp4": x264("bframes=2", pixel_format="yuv444p", height=67, width=101),
    "h264-narrow.mp4": x264("bframes=2", width=48),
    "hevc.mp4": Case("libx265", {"x265-params": "log-level=none:pools=none:frame-threads=1"}),
    "mpeg4.avi": Case("mpeg4", {"bf": "0", "g": "12"}),
    "mpeg4.mp4": Case("mpeg4", {"bf": "0", "g": "12"}),
    "mpeg4-b.avi": Case("mpeg4", {"bf": "2", "g": "50"}),
    "mpeg4-b.mp4": Case("mpeg4", {"bf": "2", "g": "50"}),
    "mpeg4-gaps.avi": Case("mpeg4", {"bf": "2"}, time_ms=gaps),
    "mpeg4-odd.avi": Case("mpeg4", {"bf": "2"}, height=67, width=101),
    "mpeg2-b.mkv": Case("mpeg2video", {"bf": "2"}),
    "mjpeg.avi": Case("mjpeg", pixel_format="yuvj420p"),
    "mjpeg-odd.mov": Case("mjpeg", pixel_format="yuvj420p", height=67, width=101),
    "prores.mov": Case("prores", pixel_format="yuv422p10le"),
    "wmv2.avi": Case("wmv2"),
    "ffv1-odd.mkv": Case("ffv1", height=67, width=101),
    "vp8.webm": Case("libvpx", {"deadline": "realtime", "cpu-used": "8"}),
    "vp9.webm": Case("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
}


def write_case(path: Path, case: Case, numbered: ModuleType) -> Path:
    with av.open(str(path), "w", options=case.container) as container:
        try:
            stream: Any = container.add_stream(
                case.codec, rate=Fraction(25), options=dict(case.options)
            )
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"this PyAV encodes no {case.codec}")
        stream.height, stream.width = case.height, case.width
        stream.pix_fmt = case.pixel_format
        tick = Fraction(1, 25) if path.suffix == ".avi" else Fraction(1, 1000)
        if case.time_ms is not None:
            stream.codec_context.time_base = tick
        for number in range(NUM_FRAMES):
            picture = numbered.numbered_frame(number, 9, case.height, case.width)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if case.time_ms is not None:
                frame.time_base, frame.pts = tick, int(case.time_ms(number) / 1000 / tick)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if sys.platform == "linux" and os.sched_getscheduler(0) != os.SCHED_OTHER:
        # SVT-AV1 gives its caller real-time priority where root calls it, and no other test nor
        # its children would have a core left.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


@pytest.mark.parametrize("name", CASES)
def test_both_readers_return_exactly_the_planned_frames(
    name: str, tmp_path: Path, numbered: ModuleType
) -> None:
    case = CASES[name]
    path = str(write_case(tmp_path / name, case, numbered))
    probe = probe_video(path)
    assert (probe.problem, probe.num_frames) == (None, NUM_FRAMES - case.first_shown)
    assert (probe.height, probe.width) == (case.height, case.width)
    for indices in (evenly_spaced(probe.num_frames, 16), tuple(range(probe.num_frames))):
        for reader in READERS:
            frames = read_frames(path, indices, height=32, width=64, reader=reader)
            assert frames.shape == (len(indices), 3, 32, 64)
            assert frames.dtype == np.uint8
            numbers = [numbered.read_numbers(frame) for frame in frames]
            assert numbers == [(index + case.first_shown, 9) for index in indices], reader


def test_a_codec_that_decord_does_not_know_is_an_error_of_decord_only(
    tmp_path: Path, numbered: ModuleType
) -> None:
    path = str(write_case(tmp_path / "a.mp4", Case("libsvtav1", {"preset": "12"}), numbered))
    frames = read_frames(path, [0, 69], height=32, width=64)
    assert [numbered.read_numbers(frame) for frame in frames] == [(0, 9), (69, 9)]
    if "decord" in READERS:
        with pytest.raises(VideoError, match=r"^DECORDError: Check failed"):
            read_frames(path, [0, 69], height=32, width=64, reader="decord")


def test_frames_that_decord_would_make_up_are_an_error(
    tmp_path: Path, numbered: ModuleType
) -> None:
    if "decord" not in READERS:
        pytest.skip("decord is not installed")
    # Timestamps below zero, which Matroska cannot hold: decord begins at the next keyframe, and
    # where its frames run out it repeats the last.
    container = {"avoid_negative_ts": "disabled"}
    case = x264("keyint=20", time_ms=lambda number: number * 40 - 400, container=container)
    path = str(write_case(tmp_path / "a.mkv", case, numbered))
    planned = evenly_spaced(NUM_FRAMES, 16)
    frames = read_frames(path, planned, height=32, width=64)
    assert [numbered.read_numbers(frame)[0] for frame in frames] == list(planned)
    with pytest.raises(VideoError, match=r"^DECORDLimitReachedError: You have received"):
        read_frames(path, planned, height=32, width=64, reader="decord")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("first", "count"), [(30, 20), (31, 39), (0, 50)])
def test_a_clip_cut_by_its_edit_list_is_whole_and_has_the_frames_it_shows(
    first: int, count: int, reader: str, tmp_path: Path, numbered: ModuleType
) -> None:
    # As a phone trims a video: whole groups of pictures before and after are not even delivered.
    path = write_case(tmp_path / "a.mp4", CASES["h264.mp4"], numbered)
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12  # then: duration in ms, start in 1/12800 s
    data[place : place + 8] = struct.pack(">Ii", 40 * count, 512 * first)
    path.write_bytes(data)
    probe = probe_video(str(path))
    assert (probe.problem, probe.num_frames, probe.claimed_frames) == (None, count, NUM_FRAMES)
    frames = read_frames(str(path), range(count), height=32, width=64, reader=reader)
    numbers = [numbered.read_numbers(frame)[0] for frame in frames]
    assert numbers == list(range(first, first + count))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("num_turns", range(4))
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_the_pictures_of_a_phone_come_upright(
    is_mirrored: bool, num_turns: int, reader: str, tmp_path: Path, numbered: ModuleType
) -> None:
    path = numbered.write_video(tmp_path / "a.mp4", 5, clip=9)
    turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), num_turns)
    if is_mirrored:
        turn = turn @ np.diag([-1, 1])
    (a, b), (c, d) = (turn * 65536).tolist()
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    probe = probe_video(str(path))
    size = (numbered.WIDTH, numbered.HEIGHT) if num_turns % 2 else (numbered.HEIGHT, numbered.WIDTH)
    assert (probe.height, probe.width) == size
    frames = read_frames(str(path), [0, 4], height=size[0], width=size[1], reader=reader)
    if is_mirrored:
        frames = frames[..., ::-1]
    frames = np.rot90(frames, -num_turns, axes=(2, 3))  # lying again, as they were written
    assert [numbered.read_numbers(frame) for frame in frames] == [(0, 9), (4, 9)]


@pytest.mark.parametrize("reader", READERS)
def test_pictures_turned_by_a_matroska_file_come_upright(
    reader: str, tmp_path: Path, numbered: ModuleType
) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(25))
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write the turn")
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.set_display_rotation(90)
        picture = numbered.numbered_frame(5, 9, 64, 96)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    (frame,) = read_frames(str(path), [0], height=96, width=64, reader=reader)
    assert numbered.read_numbers(np.rot90(frame, -1, axes=(1, 2))) == (5, 9)


@pytest.mark.parametrize("reader", READERS)
def test_of_two_video_streams_the_one_that_plays_is_read(
    reader: str, tmp_path: Path, numbered: ModuleType
) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=Fraction(25)) for _ in range(2)]
        streams[1].disposition = 1  # "default"
        for clip, stream in enumerate(streams):
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
            for number in range((1, 30)[clip]):
                picture = numbered.numbered_frame(number, clip, 64, 96)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux([packet for stream in streams for packet in stream.encode()])
    assert probe_video(str(path)).num_frames == 30
    frames = read_frames(str(path), [0, 29], height=64, width=96, reader=reader)
    assert [numbered.read_numbers(frame) for frame in frames] == [(0, 1), (29, 1)]


@pytest.mark.parametrize("reader", READERS)
def test_frames_are_shrunk_as_pil_does_it_within_rounding(
    reader: str, tmp_path: Path, numbered: ModuleType
) -> None:
    path = numbered.write_video(tmp_path / "a.mp4", 2)
    (small,) = read_frames(str(path), [1], height=24, width=40, reader=reader)
    with av.open(str(path)) as container:
        *_, full = (frame.to_image() for frame in container.decode(video=0))
    expected = np.asarray(full.resize((40, 24), Image.Resampling.BICUBIC)).astype(int)
    difference = small.transpose(1, 2, 0) - expected
    assert np.abs(difference).mean() < 2.0
    assert np.abs(difference).max() <= 16


@pytest.mark.parametrize("reader", READERS)
def test_last_frame_of_the_real_ntu_clip_is_not_the_one_that_seeking_gives(
    reader: str, ntu_clip: Path
) -> None:
    with av.open(str(ntu_clip)) as container:
        pictures = {
            number: frame.to_ndarray(format="rgb24").astype(int)
            for number, frame in enumerate(container.decode(video=0))
            if number in (95, 102)
        }
    (frame,) = read_frames(str(ntu_clip), [102], height=1080, width=1920, reader=reader)
    is_other = {
        number: np.abs(frame.transpose(1, 2, 0) - picture).max(axis=2) > 24
        for number, picture in pictures.items()
    }
    assert not is_other[102].any()  # colours are rounded otherwise, no more
    assert is_other[95].mean() > 1e-4  # what decord's get_batch gives now and then


@pytest.mark.parametrize("reader", READERS)
def test_a_frame_behind_the_end_is_an_error_that_counts_the_frames(
    reader: str, tmp_path: Path, numbered: ModuleType
) -> None:
    path = numbered.write_video(tmp_path / "a.mp4", 5)
    with pytest.raises(
        VideoError, match=f"frame 5 was planned, but only 5 frames decode with {reader}"
    ):
        read_frames(str(path), [0, 5], height=32, width=32, reader=reader)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_video_is_an_error_of_one_line(reader: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for content in (b"", b"no video " * 1000):
        path.write_bytes(content)
        with pytest.raises(VideoError) as caught:
            read_frames(str(path), [0, 1], height=32, width=32, reader=reader)
        assert "\n" not in str(caught.value)


def test_evenly_spaced_frames_take_both_ends_and_round_halves_up() -> None:
    assert evenly_spaced(103, 4) == (0, 34, 68, 102)
    assert evenly_spaced(4, 3) == (0, 2, 3)  # 1.5 -> 2
    assert evenly_spaced(2, 4) == (0, 0, 1, 1)  # a short clip repeats frames
    assert evenly_spaced(1, 4) == (0, 0, 0, 0)


def test_a_reader_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ValueError, match="'decord' is not installed"):
        check_reader("decord")
