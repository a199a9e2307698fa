from __future__ import annotations

import os
from pathlib import Path

import pytest

from captioning.inputs import collect_videos


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_ntu_names_and_other_paths_give_the_sample_ids(tmp_path: Path) -> None:
    touch(tmp_path / "nturgb/S001C002P003R001A004_rgb.avi")
    touch(tmp_path / "nturgb/S001C002P003R001A005.avi")
    touch(tmp_path / "nturgb/S001C002P003R001A005_depth.avi")
    touch(tmp_path / "wave/take one.MP4")
    touch(tmp_path / "notes.txt")
    touch(tmp_path / "._wave.mp4")
    videos = collect_videos([str(tmp_path)])
    assert [video.sample_id for video in videos] == [
        "S001C002P003R001A004",
        "S001C002P003R001A005",
        "nturgb/S001C002P003R001A005_depth",
        "wave/take one",
    ]
    assert all(video.path.is_absolute() and video.path.is_file() for video in videos)


def test_globs_and_single_files_are_taken_and_one_file_counts_once(tmp_path: Path) -> None:
    for name in ("a/x.mp4", "a/y.webm", "b/z.mkv"):
        touch(tmp_path / name)
    sources = [str(tmp_path / "*/x.*"), str(tmp_path / "b/z.mkv"), str(tmp_path / "b")]
    assert [video.sample_id for video in collect_videos(sources)] == ["a/x", "z"]
    assert len(collect_videos([str(tmp_path)], limit=2)) == 2


def test_two_files_of_one_sample_id_are_refused_with_both_paths(tmp_path: Path) -> None:
    first = touch(tmp_path / "one/S001C002P003R001A004_rgb.avi")
    second = touch(tmp_path / "two/S001C002P003R001A004_rgb.avi")
    with pytest.raises(ValueError, match="both have the sample_id") as caught:
        collect_videos([str(tmp_path)])
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_missing_and_empty_folders_are_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist.*\.avi, \.mkv"):
        collect_videos([str(tmp_path / "none")])
    with pytest.raises(ValueError, match=r"holds no video; looked for files ending in \.avi"):
        collect_videos([str(tmp_path)])
    with pytest.raises(ValueError, match=r"holds no video"):
        collect_videos([str(tmp_path / "*.mp4")])
    with pytest.raises(ValueError, match="is not a video"):
        collect_videos([str(touch(tmp_path / "list.txt"))])


def test_a_name_that_is_no_utf8_gets_an_id_that_is(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9 \n'\".mp4")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (video,) = collect_videos([str(tmp_path)])
    assert video.sample_id == "caf\\xe9 \n'\""
