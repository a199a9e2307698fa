from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from captioning.decode_pool import DecodePool
from captioning.inputs import collect_videos
from captioning.probe import probe_video, probe_videos
from datasets_build.manifest import sha256_file
from datasets_build.progress import SilentProgress


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, timeout_s=60) as pool:
        yield pool


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_a_whole_video_is_described_exactly(tmp_path: Path, numbered: ModuleType) -> None:
    path = numbered.write_video(tmp_path / "a.avi", 37, options={"bf": "3"})
    probe = probe_video(path)
    assert probe.problem_status is None
    assert (probe.num_frames, probe.claimed_frames, probe.fps) == (37, 37, 25.0)
    assert (probe.height, probe.width) == (numbered.HEIGHT, numbered.WIDTH)
    assert (probe.codec, probe.has_b_frames) == ("h264", True)
    assert probe.sha256 == sha256_file(path)
    assert probe.duration_s == pytest.approx(37 / 25)


def test_the_real_ntu_clip_has_103_frames(ntu_clip: Path) -> None:
    probe = probe_video(ntu_clip)
    assert (probe.num_frames, probe.fps, probe.has_b_frames) == (103, 30.0, True)
    assert (probe.height, probe.width, probe.problem) == (1080, 1920, None)


def test_a_truncated_file_is_noticed_although_its_header_says_otherwise(
    tmp_path: Path, numbered: ModuleType
) -> None:
    path = cut(numbered.write_video(tmp_path / "a.avi", 60, options={"g": "1"}), 0.5)
    probe = probe_video(path)
    assert probe.problem_status == "decode_error"
    assert probe.claimed_frames == 60
    assert probe.num_frames is not None
    assert 0 < probe.num_frames < 60
    assert probe.problem == f"truncated: header says 60 frames, {probe.num_frames} decode"
    allowed = probe_video(path, allow_truncated=True)
    assert allowed.problem_status is None
    assert allowed.num_frames == probe.num_frames


def test_damage_is_told_with_the_number_of_good_frames(
    tmp_path: Path, numbered: ModuleType
) -> None:
    # A picture of MJPEG that is cut in the middle cannot be decoded at all.
    path = cut(numbered.write_video(tmp_path / "a.avi", 60, codec="mjpeg"), 0.5)
    probe = probe_video(path)
    assert str(probe.problem).startswith(f"damaged: {probe.num_frames} frames decode, then Invalid")


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode()])


def test_unreadable_files_give_their_reason(tmp_path: Path, numbered: ModuleType) -> None:
    path = tmp_path / "a.mp4"
    path.touch()
    assert probe_video(path).problem == "the file is empty"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert probe_video(path).problem_status == "decode_error"
    write_sound(path)
    assert probe_video(path).problem == "the file holds no video stream"
    cut(numbered.write_video(path, 30), 0.7)  # the table of an MP4 stands at its end
    assert "codec is unknown" in str(probe_video(path).problem)
    path.unlink()
    assert probe_video(path).problem == (
        "the file cannot be read: FileNotFoundError: No such file or directory"
    )


def test_a_video_is_probed_once_until_it_changes(
    tmp_path: Path, numbered: ModuleType, pool: DecodePool
) -> None:
    path = numbered.write_video(tmp_path / "v/a.mp4", 5)
    videos = collect_videos([str(tmp_path / "v")])
    cache = tmp_path / "probe.jsonl"

    def probe() -> int | None:
        (result,) = probe_videos(videos, cache, pool, SilentProgress(), allow_truncated=False)
        return result.num_frames

    assert [probe(), probe()] == [5, 5]
    assert len(cache.read_text().splitlines()) == 1
    numbered.write_video(path, 6)
    os.utime(path, ns=(1, 1))
    assert probe() == 6
    assert len(cache.read_text().splitlines()) == 2


def test_a_torn_line_of_the_cache_is_probed_again(
    tmp_path: Path, clips: Path, pool: DecodePool
) -> None:
    videos = collect_videos([str(clips)], limit=3)
    cache = tmp_path / "probe.jsonl"
    first = probe_videos(videos, cache, pool, SilentProgress(), allow_truncated=False)
    cut(cache, 0.9)
    assert probe_videos(videos, cache, pool, SilentProgress(), allow_truncated=False) == first
    assert probe_videos(videos, cache, pool, SilentProgress(), allow_truncated=False) == first


def test_a_file_that_cannot_be_opened_in_time_is_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # nobody writes: opening it never returns
    videos = collect_videos([str(tmp_path)])
    with DecodePool(1, timeout_s=1.0) as pool:
        (probe,) = probe_videos(
            videos, tmp_path / "probe.jsonl", pool, SilentProgress(), allow_truncated=False
        )
    assert probe.problem_status == "timeout"
    assert probe.problem == "decoding took longer than 1 s and was stopped"
