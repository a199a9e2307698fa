from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest

from captioning.decode_pool import DecodePool
from captioning.inputs import Video
from captioning.probe import PROBE_SCHEMA, Probe, probe_video, probe_videos
from datasets_build.manifest import sha256_file
from datasets_build.progress import SilentProgress


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, timeout_s=60) as pool:
        yield pool


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def probe(path: Path, **options: Any) -> Probe:
    return probe_video(str(path), **options)


def videos_of(folder: Path) -> list[Video]:
    return [Video(path.name, str(path)) for path in sorted(folder.iterdir())]


def probe_all(
    videos: list[Video], cache: Path | None, pool: DecodePool, **options: Any
) -> pa.Table:
    options = {"allow_truncated": False, **options}
    return probe_videos(videos, cache, pool, SilentProgress(), **options)


def test_a_whole_video_is_described_exactly(tmp_path: Path, numbered: ModuleType) -> None:
    path = numbered.write_video(tmp_path / "a.avi", 37, options={"bf": "3"})
    facts = probe(path)
    assert facts.problem_status is None
    assert (facts.num_frames, facts.claimed_frames, facts.fps) == (37, 37, 25.0)
    assert (facts.height, facts.width) == (numbered.HEIGHT, numbered.WIDTH)
    assert (facts.codec, facts.has_b_frames) == ("h264", True)
    assert facts.sha256 == sha256_file(path)


def test_the_real_ntu_clip_has_103_frames(ntu_clip: Path) -> None:
    facts = probe(ntu_clip)
    assert (facts.num_frames, facts.fps, facts.has_b_frames) == (103, 30.0, True)
    assert (facts.height, facts.width, facts.problem) == (1080, 1920, None)


def test_a_truncated_file_is_noticed_although_its_header_says_otherwise(
    tmp_path: Path, numbered: ModuleType
) -> None:
    path = cut(numbered.write_video(tmp_path / "a.avi", 60, options={"g": "1"}), 0.5)
    facts = probe(path)
    assert facts.problem_status == "decode_error"
    assert facts.claimed_frames == 60
    assert facts.num_frames is not None
    assert 0 < facts.num_frames < 60
    assert facts.problem == f"truncated: header says 60 frames, {facts.num_frames} decode"
    allowed = probe(path, allow_truncated=True)
    assert allowed.problem_status is None
    assert allowed.num_frames == facts.num_frames


def test_damage_is_told_with_the_number_of_good_frames(
    tmp_path: Path, numbered: ModuleType
) -> None:
    # A picture of MJPEG that is cut in the middle cannot be decoded at all.
    path = cut(numbered.write_video(tmp_path / "a.avi", 60, codec="mjpeg"), 0.5)
    facts = probe(path)
    assert str(facts.problem).startswith(f"damaged: {facts.num_frames} frames decode, then Invalid")


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode()])


def test_the_rate_is_that_of_the_frames_times_where_the_header_says_another(
    tmp_path: Path, numbered: ModuleType
) -> None:
    path = numbered.write_video(tmp_path / "a.mkv", 20, step=2)  # its header says 25 a second
    facts = probe(path)
    assert facts.fps == pytest.approx(12.5)
    assert facts.num_frames == 20


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_a_matroska_file_cut_anywhere_is_noticed_although_it_counts_no_frames(
    name: str, tmp_path: Path, numbered: ModuleType
) -> None:
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = numbered.write_video(tmp_path / name, 20, codec=codec)
    whole = path.read_bytes()
    assert probe(path).problem is None
    for size in np.linspace(1, len(whole) - 1, 25, dtype=int):
        path.write_bytes(whole[:size])
        assert probe(path).problem_status == "decode_error", size
    facts = probe(path)
    assert facts.problem == f"truncated: header says {len(whole)} bytes, 20 frames decode"
    assert probe(path, allow_truncated=True).problem is None


def test_an_avi_that_is_cut_is_told_from_one_with_gaps(
    tmp_path: Path, numbered: ModuleType
) -> None:
    path = numbered.write_video(tmp_path / "a.avi", 40, codec="mpeg4", step=3)
    facts = probe(path)
    assert (facts.problem, facts.num_frames, facts.claimed_frames) == (None, 40, 118)
    assert facts.fps == pytest.approx(25 / 3)
    whole = path.read_bytes()
    problems = []
    end = whole.index(b"idx1")  # all frames lie before it
    for size in np.linspace(0.7, 0.95, 12) * end:
        path.write_bytes(whole[: int(size)])
        problems.append(str(probe(path).problem))
    assert all(text.startswith(("truncated: header says 118 ", "damaged: ")) for text in problems)
    assert any(text.startswith("truncated") for text in problems)


def test_unreadable_files_give_their_reason(tmp_path: Path, numbered: ModuleType) -> None:
    path = tmp_path / "a.mp4"
    path.touch()
    assert probe(path).problem == "the file is empty"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert str(probe(path).problem).startswith("not a readable video: InvalidDataError: Invalid")
    write_sound(path)
    assert probe(path).problem == "the file holds no video stream"
    cut(numbered.write_video(path, 30), 0.7)  # the table of an MP4 stands at its end
    assert probe(path).problem == "the file's video codec is unknown"
    path.unlink()
    assert probe(path).problem == (
        "the file cannot be read: FileNotFoundError: No such file or directory"
    )


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.avi")  # nobody writes: opening it would never return
    assert probe(tmp_path / "pipe.avi").problem == "not a regular file but a pipe"
    assert probe(tmp_path).problem == "not a regular file but a folder"
    assert probe(Path(os.devnull)).problem == "not a regular file but a device"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.avi"))
        assert probe(tmp_path / "s.avi").problem == "not a regular file but a socket"
    (tmp_path / "a.avi").symlink_to(tmp_path / "nowhere.avi")
    assert "FileNotFoundError" in str(probe(tmp_path / "a.avi").problem)
    (tmp_path / "b.avi").symlink_to(tmp_path / "b.avi")
    assert "symbolic links" in str(probe(tmp_path / "b.avi").problem)


def test_a_file_without_permission_is_probed_anew_when_it_has_it(
    tmp_path: Path, numbered: ModuleType, pool: DecodePool
) -> None:
    path = numbered.write_video(tmp_path / "v/a.mp4", 5)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user, root, may read everything")
    table = probe_all(videos_of(path.parent), tmp_path / "probe.jsonl", pool)
    assert table["problem"].to_pylist() == [
        "the file cannot be read: PermissionError: Permission denied"
    ]
    path.chmod(0o644)
    table = probe_all(videos_of(path.parent), tmp_path / "probe.jsonl", pool)
    assert table["problem"].to_pylist() == [None]


def test_a_table_has_a_row_for_each_video_in_their_order(
    clips: Path, tmp_path: Path, pool: DecodePool
) -> None:
    videos = videos_of(clips)
    videos = [*reversed(videos), Video("lost", "/no/such.avi"), videos[3]]
    for cache in (None, tmp_path / "probe.jsonl", tmp_path / "probe.jsonl"):
        table = probe_all(videos, cache, pool)
        assert table.schema == PROBE_SCHEMA
        expected = [probe_video(video.path, allow_truncated=False) for video in videos]
        assert [Probe(**row) for row in table.to_pylist()] == expected
    # What is not there may be there the next time.
    assert "/no/such.avi" not in (tmp_path / "probe.jsonl").read_text()
    assert probe_all([], tmp_path / "none.jsonl", pool).num_rows == 0


def test_a_video_is_probed_once_until_it_changes(
    tmp_path: Path, numbered: ModuleType, pool: DecodePool
) -> None:
    path = numbered.write_video(tmp_path / "v/a.mp4", 5)
    videos = videos_of(path.parent)
    cache = tmp_path / "probe.jsonl"

    def num_frames(**options: Any) -> list[int]:
        return probe_all(videos, cache, pool, **options)["num_frames"].to_pylist()

    def num_lines() -> int:
        return len(cache.read_text().splitlines())

    assert [num_frames(), num_frames()] == [[5], [5]]
    assert num_lines() == 1
    numbered.write_video(path, 6)
    os.utime(path, ns=(1, 1))
    assert num_frames() == [6]
    assert num_lines() == 2
    assert num_frames(allow_truncated=True) == [6]
    assert num_lines() == 3


def test_probes_of_another_kind_do_not_share_the_cache(
    clips: Path, tmp_path: Path, pool: DecodePool
) -> None:
    videos = videos_of(clips)[:2]
    cache = tmp_path / "probe.jsonl"
    assert probe_all(videos, cache, pool)["problem"].null_count == 2
    # Not a probe, so whoever calls it gets no answer; anything from the cache would be one.
    other = probe_all(videos, cache, pool, probe=sha256_file)
    assert all("TypeError" in text for text in other["problem"].to_pylist())
    assert probe_all(videos, cache, pool)["problem"].null_count == 2


def test_a_member_of_an_archive_is_known_by_the_archive(tmp_path: Path, pool: DecodePool) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"1")
    videos = [Video("a", f"{archive}!b.skeleton")]
    cache = tmp_path / "probe.jsonl"
    probe_all(videos, cache, pool)
    line = {"size": 1, "mtime_ns": archive.stat().st_mtime_ns, "path": videos[0].path}
    line |= {"key": "2|captioning.probe.probe_video|whole", "timeout_s": 60}
    cache.write_text(json.dumps(line | PROBED) + "\n")
    assert probe_all(videos, cache, pool)["num_frames"].to_pylist() == [7]
    archive.write_bytes(b"22")
    assert probe_all(videos, cache, pool)["num_frames"].to_pylist() == [None]


PROBED = dict.fromkeys(PROBE_SCHEMA.names) | {"num_frames": 7}


def test_whatever_is_torn_in_the_cache_is_probed_again(
    tmp_path: Path, clips: Path, pool: DecodePool
) -> None:
    videos = videos_of(clips)[:3]
    cache = tmp_path / "probe.jsonl"
    first = probe_all(videos, cache, pool)
    whole = cache.read_bytes()
    for torn in (whole[:-1], whole[:-30], whole[: len(whole) // 2], whole[:-30] + b"\0\xff\n"):
        cache.write_bytes(torn)
        assert probe_all(videos, cache, pool).equals(first)
        lines = cache.read_bytes().splitlines()
        assert probe_all(videos, cache, pool).equals(first)
        assert cache.read_bytes().splitlines() == lines  # all are known now


def test_a_probe_that_is_killed_at_any_moment_goes_on(
    tmp_path: Path, clips: Path, pool: DecodePool
) -> None:
    videos = videos_of(clips)
    cache = tmp_path / "probe.jsonl"
    code = (
        "import sys; from pathlib import Path; from captioning.decode_pool import DecodePool\n"
        "from captioning.inputs import Video; from captioning.probe import probe_videos\n"
        "from datasets_build.progress import SilentProgress\n"
        "with DecodePool(1, timeout_s=60) as pool:\n"
        "    probe_videos([Video(path, path) for path in sys.argv[2:]], Path(sys.argv[1]), pool,\n"
        "                 SilentProgress(), allow_truncated=False)\n"
    )
    num_known = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(cache), *(video.path for video in videos)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        while not cache.is_file() or cache.read_bytes().count(b"\n") < num_known + 2:
            time.sleep(0.001)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        num_known = cache.read_bytes().count(b"\n")
    assert probe_all(videos, cache, pool)["num_frames"].to_pylist() == [
        3 + (clip * 4 % 9) * 5 for clip in range(9)
    ]
    paths = [json.loads(line)["path"] for line in cache.read_text().splitlines()]
    assert sorted(paths) == [video.path for video in videos]  # none is probed twice


def test_a_file_that_takes_too_long_is_given_up_until_it_gets_more_time(tmp_path: Path) -> None:
    path = tmp_path / "huge.avi"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # 1 TiB of nothing; its hash alone would take minutes
    videos, cache = [Video("huge", str(path))], tmp_path / "probe.jsonl"
    with DecodePool(1, timeout_s=0.5) as pool:
        table = probe_all(videos, cache, pool)
        assert table["problem_status"].to_pylist() == ["timeout"]
        assert table["problem"].to_pylist() == ["decoding took longer than 0.5 s and was stopped"]
        started = time.monotonic()
        assert probe_all(videos, cache, pool).equals(table)
        assert time.monotonic() - started < 0.5
    with DecodePool(1, timeout_s=0.7) as pool:
        table = probe_all(videos, cache, pool)
        assert table["problem"].to_pylist() == ["decoding took longer than 0.7 s and was stopped"]


def test_ten_thousand_cached_videos_are_not_probed_again(
    tmp_path: Path, clips: Path, pool: DecodePool
) -> None:
    # benchmarks/caption_scale.py measures a million.
    paths = [tmp_path / f"v/{number}.avi" for number in range(10_000)]
    paths[0].parent.mkdir()
    for path in paths:
        os.link(next(clips.iterdir()), path)
    videos = [Video(path.name, str(path)) for path in paths]
    info = paths[0].stat()
    line = {"key": "2|captioning.probe.probe_video|whole", "timeout_s": 60}
    line |= {"size": info.st_size, "mtime_ns": info.st_mtime_ns} | PROBED
    cache = tmp_path / "probe.jsonl"
    with cache.open("w") as file:
        for video in reversed(videos):
            file.write(json.dumps(line | {"path": video.path, "sha256": video.path[-64:]}) + "\n")
    started = time.monotonic()
    table = probe_all(videos, cache, pool)
    assert time.monotonic() - started < 5
    assert table["sha256"].to_pylist() == [video.path[-64:] for video in videos]
