from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from captioning.decode_pool import DecodePool
from captioning.frames import evenly_spaced, read_frames
from captioning.inputs import Video
from captioning.probe import probe_videos
from captioning.run import run
from datasets_build.progress import SilentProgress
from datasets_build.shards import iterate_shards, read_index

READERS = ["pyav", *(["decord"] if find_spec("decord") else [])]


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(2, timeout_s=60) as pool:
        yield pool


def test_each_of_a_hundred_bad_files_ends_with_its_reason_and_the_good_ones_decode(
    tmp_path: Path, bad_files: ModuleType, numbered: ModuleType, pool: DecodePool
) -> None:
    expected = bad_files.make_bad_files(tmp_path, numbered)
    assert {os.fsdecode(name) for name in os.listdir(os.fsencode(tmp_path))} == expected.keys()
    assert sum(one.problem is not None for one in expected.values()) >= 100
    hanging = expected.pop("hangs.avi")  # with little time in the test below
    assert hanging.status == "timeout"
    videos = [Video(name, str(tmp_path / name)) for name in sorted(expected)]
    started = time.monotonic()
    table = probe_videos(videos, None, pool, SilentProgress(), allow_truncated=False)
    assert time.monotonic() - started < 60  # none was waited for until its deadline
    tickets = []
    for video, row in zip(videos, table.to_pylist(), strict=True):
        one = expected[video.sample_id]
        if one.status == "any":
            continue
        assert row["problem_status"] == one.status, video.sample_id
        if one.problem is not None:
            assert re.search(one.problem, row["problem"]), (video.sample_id, row["problem"])
            assert row["problem"].isprintable()
            assert str(tmp_path) not in row["problem"]
            continue
        assert row["num_frames"] == one.num_frames, video.sample_id
        planned = evenly_spaced(one.num_frames, 16)
        for reader in READERS:
            call = partial(read_frames, video.path, planned, height=32, width=64, reader=reader)
            tickets.append((video.sample_id, planned, pool.submit(call)))
    for name, planned, ticket in tickets:
        outcome = pool.take(ticket)
        assert outcome.problem is None, (name, outcome.problem)
        numbers = [numbered.read_numbers(frame) for frame in outcome.value]
        assert numbers == [(index % 256, bad_files.CLIP) for index in planned], name


def test_files_behind_one_that_hangs_are_probed_all_the_same(
    tmp_path: Path, bad_files: ModuleType, numbered: ModuleType
) -> None:
    expected = bad_files.make_bad_files(tmp_path, numbered)
    names = ["hangs.avi", "good-avi.avi", "hangs.avi", "empty-avi.avi", "good-mp4.mp4"]
    videos = [Video(str(number), str(tmp_path / name)) for number, name in enumerate(names)]
    with DecodePool(1, timeout_s=2.0) as pool:
        table = probe_videos(videos, None, pool, SilentProgress(), allow_truncated=False)
    statuses = [expected[name].status for name in names]
    assert table["problem_status"].to_pylist() == statuses
    assert re.search(expected["hangs.avi"].problem, table["problem"][0].as_py())


def test_a_run_over_a_hundred_bad_files_has_a_row_for_each_and_captions_the_good_ones(
    tmp_path: Path, bad_files: ModuleType, numbered: ModuleType
) -> None:
    expected = bad_files.make_bad_files(tmp_path / "videos", numbered)
    del expected["folder.avi"]  # is not found in a search
    config = numbered.config_for(
        tmp_path / "videos",
        tmp_path / "run",
        batch_tokens=20_000,
        rows_per_shard=64,
        num_workers=2,
        decode_timeout_s=10.0,
        max_attempts=1,
    )
    summary = run(config, SilentProgress(), engine=numbered.ReadingEngine())
    rows = {
        row["sample_id"]: row
        for table in iterate_shards(summary.folder, read_index(summary.index, made_by="hoc"))
        for row in table.to_pylist()
    }
    assert len(rows) == summary.num_rows == len(expected)
    for name, one in expected.items():
        sample_id = os.fsencode(os.path.splitext(name)[0]).decode("utf-8", "backslashreplace")
        row = rows.pop(sample_id)
        if one.status == "any":
            continue
        assert row["status"] == (one.status or "success"), (name, row)
        if one.problem is not None:
            assert re.search(one.problem, row["reason"]), (name, row["reason"])
        else:
            frames = " ".join(str(index % 256) for index in evenly_spaced(one.num_frames, 4))
            assert row["caption"] == f"clip {bad_files.CLIP} frames {frames} to global"
    assert not rows
