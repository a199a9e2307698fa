from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from captioning.frames import VideoError, check_reader, evenly_spaced, read_frames

# decord has no wheel for some platforms
READERS = ["pyav", *(["decord"] if find_spec("decord") else [])]
CASES = {
    "h264-b.avi": ("libx264", {"bf": "3", "g": "250"}),
    "h264-b.mp4": ("libx264", {"bf": "3", "g": "250"}),
    "h264.mp4": ("libx264", {"bf": "0", "g": "10"}),
    "mpeg4-b.avi": ("mpeg4", {"bf": "2", "g": "50"}),
    "mpeg4.mp4": ("mpeg4", {"bf": "0"}),
    "mjpeg.avi": ("mjpeg", {}),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", CASES)
def test_exactly_the_planned_frames_come_back(
    name: str, reader: str, tmp_path: Path, numbered: ModuleType
) -> None:
    codec, options = CASES[name]
    path = numbered.write_video(tmp_path / name, 70, clip=9, codec=codec, options=options)
    indices = [0, 1, 2, 31, 31, 49, 68, 69]
    frames = read_frames(path, indices, height=32, width=64, reader=reader)
    assert frames.shape == (8, 3, 32, 64)
    assert frames.dtype == np.uint8
    assert [numbered.read_numbers(frame) for frame in frames] == [(i, 9) for i in indices]


def test_frames_are_resized_by_pil_bicubic(tmp_path: Path, numbered: ModuleType) -> None:
    path = numbered.write_video(tmp_path / "a.mp4", 2)
    (full,) = read_frames(path, [1], height=numbered.HEIGHT, width=numbered.WIDTH)
    (small,) = read_frames(path, [1], height=32, width=32)
    expected = Image.fromarray(full.transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(small.transpose(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("reader", READERS)
def test_last_frame_of_the_real_ntu_clip_is_not_the_one_that_seeking_gives(
    reader: str, ntu_clip: Path
) -> None:
    import av

    with av.open(str(ntu_clip)) as container:
        pictures = {
            number: frame.to_image().resize((96, 64), Image.Resampling.BICUBIC)
            for number, frame in enumerate(container.decode(video=0))
            if number in (95, 102)
        }
    (frame,) = read_frames(ntu_clip, [102], height=64, width=96, reader=reader)
    frame = frame.transpose(1, 2, 0)
    assert np.array_equal(frame, np.asarray(pictures[102]))
    assert not np.array_equal(frame, np.asarray(pictures[95]))  # what decord's get_batch gives


@pytest.mark.parametrize("reader", READERS)
def test_a_frame_behind_the_end_is_an_error_that_counts_the_frames(
    reader: str, tmp_path: Path, numbered: ModuleType
) -> None:
    path = numbered.write_video(tmp_path / "a.mp4", 5)
    with pytest.raises(
        VideoError, match=f"frame 5 was planned, but only 5 frames decode with {reader}"
    ):
        read_frames(path, [0, 5], height=32, width=32, reader=reader)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_video_is_an_error_of_one_line(reader: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for content in (b"", b"no video " * 1000):
        path.write_bytes(content)
        with pytest.raises(VideoError) as caught:
            read_frames(path, [0, 1], height=32, width=32, reader=reader)
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
