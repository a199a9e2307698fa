from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from captioning.engines.interface import EngineClip, OutOfMemoryError
from captioning.frames import evenly_spaced
from captioning.run import CaptionSummary, run
from captioning.verify import verify
from datasets_build.progress import SilentProgress
from datasets_build.shards import read_index, read_shard

ROOT = Path(__file__).resolve().parents[2]


class Stop(BaseException):
    """Stands for a kill at a place where a test wants it."""


def rows_of(summary: CaptionSummary) -> list[dict[str, Any]]:
    shards = read_index(summary.index, made_by="hoc caption")
    return [row for shard in shards for row in read_shard(summary.folder, shard).to_pylist()]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("captions-*.arrow"), folder / "index.json", folder / "plan.jsonl"]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(
    numbered: ModuleType, clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> CaptionSummary:
    out = tmp_path_factory.mktemp("undisturbed")
    return run(numbered.config_for(clips, out), SilentProgress(), engine=numbered.ReadingEngine())


def test_every_caption_belongs_to_its_clip_its_frames_and_its_prompt(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    config = numbered.config_for(clips, tmp_path, prompts=("global", "changes"))
    summary = run(config, SilentProgress(), engine=numbered.ReadingEngine())
    rows = rows_of(summary)
    assert len(rows) == summary.num_rows == 18
    assert len({row["request_key"] for row in rows}) == 18
    assert len(read_index(summary.index, made_by="hoc caption")) > 1
    for row in rows:
        number = int(row["sample_id"].removeprefix("clip-"))
        num_frames = 3 + (number * 4 % 9) * 5
        frames = evenly_spaced(num_frames, 4)
        words = " ".join(map(str, frames))
        assert row["caption"] == f"clip {number} frames {words} to {row['prompt_id']}"
        assert row["caption_raw"] == f" {row['caption']}\n"
        assert row["frame_indices"] == list(frames)
        assert (row["status"], row["reason"], row["source"]) == ("success", None, "video")
        assert row["num_frames"] == num_frames
        assert row["duration_s"] == pytest.approx(num_frames / 25)
        assert row["attempts"] == 1
    assert verify(tmp_path) == []


def test_shard_bytes_do_not_depend_on_workers_or_the_place(
    numbered: ModuleType, clips: Path, tmp_path: Path, undisturbed: CaptionSummary
) -> None:
    moved = shutil.copytree(clips, tmp_path / "elsewhere")
    config = numbered.config_for(moved, tmp_path / "out", num_workers=2)
    run(config, SilentProgress(), engine=numbered.ReadingEngine())
    ours, theirs = shard_bytes(tmp_path / "out"), shard_bytes(undisturbed.folder)
    ours.pop("plan.jsonl"), theirs.pop("plan.jsonl")  # it holds the paths
    assert ours == theirs


def test_a_finished_run_is_not_run_again(
    numbered: ModuleType, clips: Path, undisturbed: CaptionSummary
) -> None:
    engine = numbered.ReadingEngine()
    before = shard_bytes(undisturbed.folder)
    config = numbered.config_for(clips, undisturbed.folder)
    again = run(config, SilentProgress(), engine=engine)
    assert again.was_finished
    assert json.loads(json.dumps(again.as_json()))["folder"] == str(again.folder)
    assert engine.num_batches == 0
    assert (again.counts, again.num_rows) == (undisturbed.counts, undisturbed.num_rows)
    assert shard_bytes(undisturbed.folder) == before


@pytest.mark.parametrize("flush", [1, 2, 3, 5, 7, 8, 9, 10, 11])
def test_a_run_stopped_at_any_flush_ends_with_the_same_bytes(
    flush: int,
    numbered: ModuleType,
    clips: Path,
    tmp_path: Path,
    undisturbed: CaptionSummary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The probes come from the other run, so that this one begins where it can lose something.
    shutil.copy(undisturbed.folder / "probe.jsonl", tmp_path)
    config = numbered.config_for(clips, tmp_path)
    real = os.fsync
    left = flush

    def stop_at(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stop
        real(descriptor)

    monkeypatch.setattr("os.fsync", stop_at)
    with pytest.raises(Stop):
        run(config, SilentProgress(), engine=numbered.ReadingEngine())
    monkeypatch.setattr("os.fsync", real)
    run(config, SilentProgress(), engine=numbered.ReadingEngine())
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed.folder)


@pytest.mark.parametrize("flush", [4, 6])
def test_a_run_killed_by_signal_9_ends_with_the_same_bytes(
    flush: int, numbered: ModuleType, clips: Path, tmp_path: Path, undisturbed: CaptionSummary
) -> None:
    killed = subprocess.run(
        [sys.executable, numbered.__file__, str(clips), str(tmp_path), str(flush)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "index.json").exists()
    engine = numbered.ReadingEngine()
    run(numbered.config_for(clips, tmp_path), SilentProgress(), engine=engine)
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed.folder)
    assert 0 < engine.num_batches < len((tmp_path / "journal.jsonl").read_text().splitlines())


def test_a_shard_that_was_damaged_is_written_anew_without_the_model(
    numbered: ModuleType, clips: Path, tmp_path: Path, undisturbed: CaptionSummary
) -> None:
    shutil.copytree(undisturbed.folder, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "captions-00000.arrow").open("ab") as file:
        file.write(b"x")
    assert any("captions-00000.arrow" in problem for problem in verify(tmp_path))
    engine = numbered.ReadingEngine()
    run(numbered.config_for(clips, tmp_path), SilentProgress(), engine=engine)
    assert engine.num_batches == 0
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed.folder)


def test_bad_files_end_as_rows_with_reasons_and_the_others_are_captioned(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    for name in ("clip-1.mp4", "clip-2.mp4"):
        videos.mkdir(exist_ok=True)
        shutil.copy(clips / name, videos)
    (videos / "empty.mp4").touch()
    (videos / "noise.avi").write_bytes(os.urandom(3000))
    whole = numbered.write_video(tmp_path / "whole.avi", 60, options={"g": "1"}).read_bytes()
    (videos / "short.avi").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(videos / "hangs.mov")
    config = numbered.config_for(videos, tmp_path / "out", decode_timeout_s=3.0)
    summary = run(config, SilentProgress(), engine=numbered.ReadingEngine())
    rows = {row["sample_id"]: row for row in rows_of(summary)}
    assert summary.counts == {"decode_error": 3, "success": 2, "timeout": 1}
    assert rows["empty"]["reason"] == "the file is empty"
    assert "Invalid data" in rows["noise"]["reason"]
    assert rows["short"]["reason"].startswith("truncated: header says 60 frames")
    assert rows["hangs"]["reason"] == "decoding took longer than 3 s and was stopped"
    assert rows["hangs"]["video_sha256"] is None
    assert all(row["caption"] is None for row in rows.values() if row["status"] != "success")
    assert rows["clip-2"]["caption"].startswith("clip 2 frames 0")
    assert {name for name, _, _ in summary.failures} == {"empty", "noise", "short", "hangs"}
    assert verify(tmp_path / "out") == []


def test_a_file_that_hangs_only_after_the_probe_is_a_timeout_and_is_retried(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    videos = shutil.copytree(clips, tmp_path / "videos")
    hung = videos / "clip-3.mp4"
    content, info = hung.read_bytes(), hung.stat()

    def hang() -> None:
        hung.unlink()
        os.mkfifo(hung)

    config = numbered.config_for(videos, tmp_path / "out", decode_timeout_s=3.0)
    summary = run(config, SilentProgress(), engine=numbered.ReadingEngine(on_plan=hang))
    assert summary.counts == {"success": 8, "timeout": 1}
    assert summary.failures[0][0] == "clip-3"

    hung.unlink()
    hung.write_bytes(content)
    os.utime(hung, ns=(info.st_atime_ns, info.st_mtime_ns))
    engine = numbered.ReadingEngine()
    again = run(config, SilentProgress(), engine=engine)
    assert again.counts == {"success": 9}
    assert engine.num_batches == 1
    rows = {row["sample_id"]: row for row in rows_of(again)}
    assert rows["clip-3"]["caption"].startswith("clip 3 frames 0")
    assert (rows["clip-3"]["attempts"], rows["clip-4"]["attempts"]) == (2, 1)
    assert run(config, SilentProgress(), engine=engine).was_finished


def test_failed_rows_are_tried_no_more_than_so_often(numbered: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/empty.mp4").touch()
    config = numbered.config_for(tmp_path / "videos", tmp_path / "out", max_attempts=2)
    tries = []
    for _ in range(3):
        summary = run(config, SilentProgress(), engine=numbered.ReadingEngine())
        tries.append((rows_of(summary)[0]["attempts"], summary.was_finished))
    assert tries == [(1, False), (2, False), (2, True)]


def test_a_retry_that_is_stopped_is_finished_by_the_next_call(
    numbered: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "videos").mkdir()
    for name in "abc":
        (tmp_path / f"videos/{name}.mp4").touch()
    config = numbered.config_for(tmp_path / "videos", tmp_path / "out", max_attempts=2)
    run(config, SilentProgress(), engine=numbered.ReadingEngine())
    real = os.fsync
    left = 3

    def stop_at(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stop
        real(descriptor)

    monkeypatch.setattr("os.fsync", stop_at)
    with pytest.raises(Stop):
        run(config, SilentProgress(), engine=numbered.ReadingEngine())
    monkeypatch.setattr("os.fsync", real)
    summary = run(config, SilentProgress(), engine=numbered.ReadingEngine())
    assert [row["attempts"] for row in rows_of(summary)] == [2, 2, 2]
    assert run(config, SilentProgress(), engine=numbered.ReadingEngine()).was_finished


def test_a_batch_that_does_not_fit_into_memory_is_halved(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    def no_room(batch: Sequence[EngineClip]) -> None:
        if len(batch) > 1 or batch[0].sample_id == "clip-5":
            raise OutOfMemoryError("8 GB wanted, 4 GB free")

    config = numbered.config_for(clips, tmp_path)
    summary = run(config, SilentProgress(), engine=numbered.ReadingEngine(on_batch=no_room))
    assert summary.counts == {"oom": 1, "success": 8}
    assert summary.failures[0][:2] == ("clip-5", "oom")
    journal = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert any(record.get("splits") for record in journal)


def test_an_error_of_the_engine_ends_its_batch_and_three_in_a_row_end_the_run(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    def fail_on_clip_5(batch: Sequence[EngineClip]) -> None:
        if any(clip.sample_id == "clip-5" for clip in batch):
            raise KeyError("odd")

    def fail(batch: Sequence[EngineClip]) -> None:
        raise KeyError("odd")

    config = numbered.config_for(clips, tmp_path / "one")
    engine = numbered.ReadingEngine(on_batch=fail_on_clip_5)
    summary = run(config, SilentProgress(), engine=engine)
    assert summary.counts["error"] >= 1
    assert summary.counts["success"] + summary.counts["error"] == 9
    assert ("clip-5", "error", "KeyError: 'odd'") in summary.failures
    config = numbered.config_for(clips, tmp_path / "all")
    with pytest.raises(RuntimeError, match="3 batches in a row failed"):
        run(config, SilentProgress(), engine=numbered.ReadingEngine(on_batch=fail))


def test_answers_to_other_clips_than_asked_are_never_written(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    from captioning.prompt_files import read_prompts

    engine = numbered.ReadingEngine()

    def first_twice(batch: Sequence[EngineClip]) -> list[Any] | None:
        prompt = read_prompts(("global",))[0]
        return [engine.answer(batch[0], prompt)] * len(batch) if len(batch) > 1 else None

    engine.on_batch = first_twice
    with pytest.raises(RuntimeError, match="answered others"):
        run(numbered.config_for(clips, tmp_path), SilentProgress(), engine=engine)
    assert not (tmp_path / "index.json").exists()


def test_ctrl_c_ends_the_run_and_keeps_what_was_finished(
    numbered: ModuleType, clips: Path, tmp_path: Path, undisturbed: CaptionSummary
) -> None:
    engine = numbered.ReadingEngine()

    def interrupt(batch: Sequence[EngineClip]) -> None:
        if engine.num_batches == 3:
            raise KeyboardInterrupt

    engine.on_batch = interrupt
    config = numbered.config_for(clips, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config, SilentProgress(), engine=engine)
    assert (
        len((tmp_path / "journal.jsonl").read_text().splitlines()) == 3
    )  # the first line and two batches
    engine.on_batch = None
    run(config, SilentProgress(), engine=engine)
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed.folder)


def test_a_full_disk_is_told_with_the_file_and_the_run_goes_on_later(
    numbered: ModuleType,
    clips: Path,
    tmp_path: Path,
    undisturbed: CaptionSummary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    config = numbered.config_for(clips, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("captioning.run.write_shard", full)
        with pytest.raises(OSError, match=r"No space left on device while writing .*00000\.arrow"):
            run(config, SilentProgress(), engine=numbered.ReadingEngine())
    assert not (tmp_path / "index.json").exists()
    run(config, SilentProgress(), engine=numbered.ReadingEngine())
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed.folder)


def test_verify_names_what_changed(numbered: ModuleType, clips: Path, tmp_path: Path) -> None:
    videos = shutil.copytree(clips, tmp_path / "videos")
    out = tmp_path / "out"
    run(numbered.config_for(videos, out), SilentProgress(), engine=numbered.ReadingEngine())
    assert verify(out) == []
    (videos / "clip-0.mp4").write_bytes(b"other")
    (videos / "clip-1.mp4").unlink()
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["parts"]["prompts"]["global"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(manifest))
    problems = "\n".join(verify(out))
    assert "clip-0) has changed" in problems
    assert "clip-1) cannot be read: No such file" in problems
    assert "prompt global has other words" in problems
    assert "do not give its fingerprint" in problems
    with pytest.raises(FileNotFoundError, match="hoc caption"):
        verify(tmp_path)


def test_an_output_that_is_a_file_is_refused(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="is a file; give a folder"):
        run(
            numbered.config_for(clips, tmp_path / "out"),
            SilentProgress(),
            engine=numbered.ReadingEngine(),
        )
