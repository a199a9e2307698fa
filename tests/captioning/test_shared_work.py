"""Runs that several processes share: on the devices of one machine, and on a Ray cluster.

With the bundled model, because the processes make their own engine; a small set keeps it short.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from threading import Thread

import pytest

from captioning.config import CaptionConfig
from captioning.devices import on_devices, parse_devices
from captioning.ray_cluster import on_ray
from captioning.run import CaptionSummary, run
from captioning.verify import regenerate, verify
from datasets_build.progress import SilentProgress


def config_for(videos: Path, out: Path) -> CaptionConfig:
    return CaptionConfig(
        videos=(str(videos),),
        out=out,
        num_frames=4,
        max_new_tokens=24,
        batch_tokens=200,
        rows_per_shard=3,
        num_workers=2,
    )


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("captions-*.arrow"))}


@pytest.fixture(scope="module")
def videos(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine clips and a broken one, whose failure must not be tried again by a second process."""
    folder = shutil.copytree(clips, tmp_path_factory.mktemp("set") / "videos")
    (folder / "broken.mp4").write_bytes(b"no video at all")
    return folder


@pytest.fixture(scope="module")
def alone(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> CaptionSummary:
    summary = run(config_for(videos, tmp_path_factory.mktemp("alone")), SilentProgress())
    assert summary.num_shards > 2
    return summary


class KillsOne(SilentProgress):
    """Kills one captioning process as soon as the first clips are done."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._stage = ""
        self.killed: int | None = None

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        self._stage = stage

    def advance(self, num_done: int = 1, *, num_failed: int = 0, note: str = "") -> None:
        if self.killed is None and self._stage == "caption":
            self.killed = min(processes_of(self._program))
            os.kill(self.killed, signal.SIGKILL)


def processes_of(program: str) -> list[int]:
    """Ids of the running processes whose command line holds a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if program in (folder / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue  # it has just ended
    return found


def test_devices_that_share_a_run_write_the_shards_of_one_process(
    videos: Path, tmp_path: Path, alone: CaptionSummary
) -> None:
    progress = KillsOne("captioning.device_worker")
    summary = run(
        config_for(videos, tmp_path), progress, distribute=on_devices(parse_devices("cpu:2"))
    )
    assert progress.killed is not None
    assert summary.counts == alone.counts
    assert shard_bytes(tmp_path) == shard_bytes(alone.folder)
    assert verify(tmp_path) == []
    assert not processes_of("captioning.device_worker")


def test_a_run_is_made_again_by_the_real_engine(alone: CaptionSummary) -> None:
    again = regenerate(alone.folder, 0.3, SilentProgress())
    assert 0 < again.num_rows == again.num_equal


def test_devices_are_named_or_refused() -> None:
    assert parse_devices("cpu:3") == ["cpu"] * 3
    for text in ("gpu", "cpu:0", "cpu:x", "", "0;1"):
        with pytest.raises(ValueError, match="not understood"):
            parse_devices(text)
    with pytest.raises(ValueError, match="PyTorch finds"):
        parse_devices("99")


@pytest.mark.slow
def test_a_ray_cluster_loses_nothing_when_an_actor_is_killed(
    videos: Path, tmp_path: Path, alone: CaptionSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra hocslm[ray]")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    killed: list[int] = []

    def kill_an_actor() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            if any((tmp_path / "journal").glob("*.jsonl")):
                actors = processes_of("ray::ShardActor")
                if actors:
                    os.kill(actors[0], signal.SIGKILL)
                    killed.append(actors[0])
            time.sleep(0.01)

    thread = Thread(target=kill_an_actor)
    thread.start()
    try:
        summary = run(
            config_for(videos, tmp_path), SilentProgress(), distribute=on_ray(num_actors=2)
        )
    finally:
        ray.shutdown()
        thread.join()
    assert killed
    assert summary.counts == alone.counts
    assert shard_bytes(tmp_path) == shard_bytes(alone.folder)
    assert verify(tmp_path) == []
