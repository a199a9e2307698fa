from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from captioning.config import CaptionConfig
from captioning.engines.interface import EngineClip, Failed, OutOfMemoryError
from captioning.estimate import estimate
from captioning.frames import evenly_spaced
from captioning.merge import merge
from captioning.plan import load_plan
from captioning.prompt_files import read_prompts
from captioning.repeat import read_manifest, settings_to_repeat
from captioning.run import CaptionSummary, run
from captioning.verify import regenerate, verify
from datasets_build.progress import SilentProgress
from datasets_build.shards import read_index, read_shard

ROOT = Path(__file__).resolve().parents[2]


class Stop(BaseException):
    """Stands for a kill at a place where a test wants it."""


def rows_of(summary: CaptionSummary) -> list[dict[str, Any]]:
    shards = read_index(summary.index, made_by="hoc caption")
    return [row for shard in shards for row in read_shard(summary.folder, shard).to_pylist()]


def journal_lines(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("journal/*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("captions-*.arrow"), folder / "index.json", folder / "plan.arrow"]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(
    numbered: ModuleType, clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> CaptionSummary:
    out = tmp_path_factory.mktemp("undisturbed")
    return run(numbered.config_for(clips, out), SilentProgress(), engine=numbered.ReadingEngine())


@pytest.fixture(scope="module")
def events(
    numbered: ModuleType, clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """The moments at which a run can be killed, in turn."""
    return run_and_kill(numbered, clips, tmp_path_factory.mktemp("events"), kill_at=0)


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
    ours.pop("plan.arrow"), theirs.pop("plan.arrow")  # it holds the paths
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


@pytest.mark.parametrize("flush", [1, 2, 3, 5, 8, 10, 12, 13, 14])
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


def run_and_kill(program: ModuleType, videos: Path, out: Path, *, kill_at: int) -> list[str]:
    """Caption in a process of its own that ends at an event; the events before it."""
    done = subprocess.run(
        [sys.executable, str(program.__file__), str(videos), str(out), str(kill_at)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
    return done.stdout.splitlines()


# All 50 moments of the issue are in benchmarks/kill_caption.py.
@pytest.mark.parametrize("event", ["decoded", "flush 00001.jsonl", "before rename to captions-0"])
def test_a_run_killed_by_signal_9_ends_with_the_same_bytes(
    event: str,
    numbered: ModuleType,
    clips: Path,
    tmp_path: Path,
    undisturbed: CaptionSummary,
    events: list[str],
) -> None:
    kill_at = [place for place, name in enumerate(events, start=1) if name.startswith(event)][-1]
    run_and_kill(numbered, clips, tmp_path, kill_at=kill_at)
    assert not (tmp_path / "index.json").exists()
    engine = numbered.ReadingEngine()
    run(numbered.config_for(clips, tmp_path), SilentProgress(), engine=engine)
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed.folder)
    assert engine.num_batches < sum("batch" in line for line in journal_lines(tmp_path))


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
    noise = random.Random(0).randbytes(3000)  # fixed: some draws are taken for MP3
    (videos / "noise.avi").write_bytes(noise)
    whole = numbered.write_video(tmp_path / "whole.avi", 60, options={"g": "1"}).read_bytes()
    (videos / "short.avi").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(videos / "pipe.mov")
    config = numbered.config_for(videos, tmp_path / "out", decode_timeout_s=3.0)
    summary = run(config, SilentProgress(), engine=numbered.ReadingEngine())
    rows = {row["sample_id"]: row for row in rows_of(summary)}
    assert summary.counts == {"decode_error": 4, "success": 2}
    assert rows["empty"]["reason"] == "the file is empty"
    assert "Invalid data" in rows["noise"]["reason"]
    assert rows["short"]["reason"].startswith("truncated: header says 60 frames")
    assert rows["pipe"]["reason"].endswith("not a regular file but a pipe")
    assert rows["pipe"]["video_sha256"] is None
    assert all(row["caption"] is None for row in rows.values() if row["status"] != "success")
    assert rows["clip-2"]["caption"].startswith("clip 2 frames 0")
    assert {name for name, _, _ in summary.failures} == {"empty", "noise", "short", "pipe"}
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
    assert any(record.get("splits") for record in journal_lines(tmp_path))


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
    assert sum("batch" in line for line in journal_lines(tmp_path)) == 2
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
        patch.setattr("captioning.results.write_shard", full)
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


def test_a_request_that_the_engine_cannot_answer_is_a_row_and_the_others_are_captioned(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    engine = numbered.ReadingEngine()
    prompts = read_prompts(("changes", "global"))

    def refuse_one(batch: Sequence[EngineClip]) -> list[Any]:
        return [
            Failed(clip.sample_id, prompt.prompt_id, "400: too long", timed_out=False)
            if (clip.sample_id, prompt.prompt_id) == ("clip-4", "global")
            else engine.answer(clip, prompt)
            for clip in batch
            for prompt in prompts
        ]

    engine.on_batch = refuse_one
    config = numbered.config_for(clips, tmp_path, prompts=("global", "changes"))
    summary = run(config, SilentProgress(), engine=engine)
    assert summary.counts == {"error": 1, "success": 17}
    assert summary.failures == [("clip-4", "error", "400: too long")]
    engine.on_batch = None
    assert run(config, SilentProgress(), engine=engine).counts == {"success": 18}


def test_batches_without_a_single_answer_end_the_run(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    def refuse(batch: Sequence[EngineClip]) -> list[Any]:
        return [Failed(clip.sample_id, "global", "500: out of order") for clip in batch]

    engine = numbered.ReadingEngine(on_batch=refuse)
    with pytest.raises(RuntimeError, match="3 batches in a row failed, the last with 500"):
        run(numbered.config_for(clips, tmp_path), SilentProgress(), engine=engine)


def test_a_server_that_is_gone_ends_the_run_without_a_row(
    numbered: ModuleType, clips: Path, tmp_path: Path, undisturbed: CaptionSummary
) -> None:
    def gone(batch: Sequence[EngineClip]) -> None:
        raise ConnectionError("the server does not answer")

    config = numbered.config_for(clips, tmp_path)
    with pytest.raises(ConnectionError):
        run(config, SilentProgress(), engine=numbered.ReadingEngine(on_batch=gone))
    assert not any("batch" in line for line in journal_lines(tmp_path))
    run(config, SilentProgress(), engine=numbered.ReadingEngine())
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed.folder)


def test_jobs_of_an_array_write_the_shards_of_one_process(
    numbered: ModuleType, clips: Path, tmp_path: Path, undisturbed: CaptionSummary
) -> None:
    config = numbered.config_for(clips, tmp_path)
    engine = numbered.ReadingEngine()
    first = run(config, SilentProgress(), engine=engine, share=(1, 2))
    assert first.missing_shards == list(range(0, first.num_shards, 2))
    assert not first.index.exists()
    report = merge(tmp_path)
    assert [gap.shard for gap in report.missing] == first.missing_shards
    assert sum(gap.num_clips for gap in report.missing) + sum(
        len(line["rows"]) for line in journal_lines(tmp_path) if "batch" in line
    ) == len(rows_of(undisturbed))
    second = run(config, SilentProgress(), engine=engine, share=(0, 2))
    assert not second.missing_shards
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed.folder)
    assert verify(tmp_path) == []


def test_jobs_without_a_common_disk_are_merged(
    numbered: ModuleType, clips: Path, tmp_path: Path, undisturbed: CaptionSummary
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(folders):
        config = numbered.config_for(clips, folder)
        run(config, SilentProgress(), engine=numbered.ReadingEngine(), share=(number, 2))
    report = merge(folders[0], [folders[1]])
    assert not report.missing
    assert report.num_copied == report.num_shards // 2
    assert shard_bytes(folders[0]) == shard_bytes(undisturbed.folder)
    assert verify(folders[0]) == []
    other = numbered.config_for(clips, tmp_path / "other", num_frames=2)
    run(other, SilentProgress(), engine=numbered.ReadingEngine())
    with pytest.raises(ValueError, match="holds another run"):
        merge(folders[0], [tmp_path / "other"])


def test_two_processes_in_one_folder_share_the_work(
    numbered: ModuleType, clips: Path, tmp_path: Path, undisturbed: CaptionSummary
) -> None:
    config = numbered.config_for(clips, tmp_path, rows_per_shard=1)  # a batch each
    engines = [numbered.ReadingEngine(), numbered.ReadingEngine()]
    both_work = threading.Barrier(2, timeout=60)

    def one_run(engine: Any) -> CaptionSummary:
        def wait_for_the_other(batch: Sequence[EngineClip]) -> None:
            if engine.num_batches == 1:
                both_work.wait()

        engine.on_batch = wait_for_the_other
        return run(config, SilentProgress(), engine=engine)

    with ThreadPoolExecutor(2) as threads:
        summaries = list(threads.map(one_run, engines))
    assert {summary.num_rows for summary in summaries} == {9}
    assert all(engine.num_batches for engine in engines)
    num_batches = sum("batch" in line for line in journal_lines(tmp_path))
    assert sum(engine.num_batches for engine in engines) == num_batches
    assert sorted(row["caption"] for row in rows_of(summaries[0])) == sorted(
        row["caption"] for row in rows_of(undisturbed)
    )


def test_a_plan_alone_captions_nothing(numbered: ModuleType, clips: Path, tmp_path: Path) -> None:
    engine = numbered.ReadingEngine()
    summary = run(
        numbered.config_for(clips, tmp_path), SilentProgress(), engine=engine, plan_only=True
    )
    assert engine.num_batches == 0
    assert summary.missing_shards == list(range(summary.num_shards))
    assert (tmp_path / "plan.arrow").is_file()


def test_a_run_is_repeated_from_its_manifest_or_the_difference_is_named(
    numbered: ModuleType, clips: Path, tmp_path: Path, undisturbed: CaptionSummary
) -> None:
    manifest = read_manifest(undisturbed.manifest)
    videos = shutil.copytree(clips, tmp_path / "videos")
    changes = {"videos": [str(videos)], "out": tmp_path / "again"}
    config = CaptionConfig.model_validate(settings_to_repeat(manifest) | changes)
    run(config, SilentProgress(), engine=numbered.ReadingEngine(), repeats=manifest)
    ours, theirs = shard_bytes(tmp_path / "again"), shard_bytes(undisturbed.folder)
    ours.pop("plan.arrow"), theirs.pop("plan.arrow")
    assert ours == theirs
    (videos / "clip-0.mp4").unlink()
    config = config.model_copy(update={"out": tmp_path / "third"})
    with pytest.raises(ValueError, match=r"cannot be repeated here \(different: batches, videos\)"):
        run(config, SilentProgress(), engine=numbered.ReadingEngine(), repeats=manifest)
    (tmp_path / "manifest.json").write_text(undisturbed.manifest.read_text().replace("pyav", "py"))
    with pytest.raises(ValueError, match="was changed"):
        read_manifest(tmp_path / "manifest.json")


def test_batches_made_again_are_compared_word_by_word(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    run(numbered.config_for(clips, tmp_path), SilentProgress(), engine=numbered.ReadingEngine())
    same = regenerate(tmp_path, 1.0, SilentProgress(), engine=numbered.ReadingEngine())
    assert (same.num_rows, same.num_equal, same.differences) == (9, 9, [])
    part = regenerate(tmp_path, 0.2, SilentProgress(), engine=numbered.ReadingEngine())
    assert 2 <= part.num_rows < 9
    engine = numbered.ReadingEngine()
    prompt = read_prompts(("global",))[0]

    def another_word(batch: Sequence[EngineClip]) -> list[Any]:
        answers = [engine.answer(clip, prompt) for clip in batch]
        return [
            replace(a, text=a.text.replace("frames 0", "frames 7"))
            if a.sample_id == "clip-3"
            else a
            for a in answers
        ]

    engine.on_batch = another_word
    other = regenerate(tmp_path, 1.0, SilentProgress(), engine=engine)
    assert (other.num_rows, other.num_equal) == (9, 8)
    (difference,) = other.differences
    assert (difference.sample_id, difference.position) == ("clip-3", 3)
    assert (difference.before, difference.now) == ("0", "7")


def test_batches_that_were_halved_are_made_again_in_halves(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    sizes: list[int] = []

    def room_for_one(batch: Sequence[EngineClip]) -> None:
        if len(batch) > 1:
            raise OutOfMemoryError("no room")
        sizes.append(len(batch))

    engine = numbered.ReadingEngine(on_batch=room_for_one)
    run(numbered.config_for(clips, tmp_path), SilentProgress(), engine=engine)
    again = regenerate(tmp_path, 1.0, SilentProgress(), engine=engine)
    assert (again.num_rows, again.num_equal) == (9, 9)
    assert sizes == [1] * 18


def test_an_estimate_times_two_batches_and_leaves_no_run(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    engine = numbered.ReadingEngine()
    result = estimate(numbered.config_for(clips, tmp_path), SilentProgress(), engine=engine)
    assert engine.num_batches == len(result.batches) == 2
    assert (result.num_videos, result.num_requests, result.problems) == (9, 9, {})
    assert result.clips_per_s is not None
    assert result.hours == pytest.approx(9 / result.clips_per_s / 3600)
    assert not (tmp_path / "plan.json").exists()
    assert not (tmp_path / "journal").exists()


def test_a_failed_clip_is_tried_again_by_a_later_call_but_not_by_one_that_goes_on(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    videos = shutil.copytree(clips, tmp_path / "videos")
    (videos / "broken.mp4").write_bytes(b"no video at all")  # it falls into the last shard
    config = numbered.config_for(videos, tmp_path / "whole")
    whole = run(config, SilentProgress(), engine=numbered.ReadingEngine())
    undisturbed = shard_bytes(whole.folder)
    config = numbered.config_for(videos, tmp_path / "parts")
    last = (whole.num_shards - 1, whole.num_shards)
    for share in (last, last, None):
        summary = run(config, SilentProgress(), engine=numbered.ReadingEngine(), share=share)
    assert shard_bytes(tmp_path / "parts") == undisturbed
    again = run(config, SilentProgress(), engine=numbered.ReadingEngine())
    assert summary.counts == again.counts == {"decode_error": 1, "success": 9}
    tries = {row["sample_id"]: row["attempts"] for row in rows_of(again)}
    assert tries.pop("broken") == 2
    assert set(tries.values()) == {1}


def test_a_file_that_can_be_read_later_is_captioned_by_the_same_run(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    videos = shutil.copytree(clips, tmp_path / "videos")
    (tmp_path / "list.txt").write_text("".join(f"videos/clip-{n}.mp4\n" for n in range(9)))
    (videos / "clip-4.mp4").rename(tmp_path / "away.mp4")
    config = numbered.config_for(tmp_path / "list.txt", tmp_path / "out")
    first = run(config, SilentProgress(), engine=numbered.ReadingEngine())
    assert first.counts == {"decode_error": 1, "success": 8}
    (tmp_path / "away.mp4").rename(videos / "clip-4.mp4")
    second = run(config, SilentProgress(), engine=numbered.ReadingEngine())
    assert second.counts == {"success": 9}
    rows = {row["sample_id"].split("/")[-1]: row for row in rows_of(second)}
    assert rows["clip-4"]["caption"].startswith("clip 4 frames 0")
    assert verify(tmp_path / "out") == []
    shutil.copy(videos / "clip-5.mp4", videos / "clip-3.mp4")  # another file is another run
    with pytest.raises(ValueError, match="other settings or videos"):
        run(config, SilentProgress(), engine=numbered.ReadingEngine())


def test_videos_that_were_moved_after_the_plan_are_read_where_they_are_now(
    numbered: ModuleType, clips: Path, tmp_path: Path, undisturbed: CaptionSummary
) -> None:
    videos = shutil.copytree(clips, tmp_path / "old")
    config = numbered.config_for(videos, tmp_path / "out")
    run(config, SilentProgress(), engine=numbered.ReadingEngine(), plan_only=True)
    videos.rename(tmp_path / "new")
    config = numbered.config_for(tmp_path / "new", tmp_path / "out")
    run(config, SilentProgress(), engine=numbered.ReadingEngine())
    assert str(tmp_path / "new") in load_plan(tmp_path / "out").batch(0)[0].path
    ours, theirs = shard_bytes(tmp_path / "out"), shard_bytes(undisturbed.folder)
    ours.pop("plan.arrow"), theirs.pop("plan.arrow")
    assert ours == theirs
    assert verify(tmp_path / "out") == []


def test_what_no_file_can_hold_is_spelled_out_and_does_not_stop_the_run(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    engine = numbered.ReadingEngine()
    prompt = read_prompts(("global",))[0]

    def odd(batch: Sequence[EngineClip]) -> list[Any]:
        answers = [engine.answer(clip, prompt) for clip in batch]
        return [replace(a, text=a.text + "\ud83d", mean_logprob=float("nan")) for a in answers]

    engine.on_batch = odd
    summary = run(numbered.config_for(clips, tmp_path), SilentProgress(), engine=engine)
    rows = rows_of(summary)
    assert len(rows) == 9
    assert all(row["caption"].endswith("\\ud83d") and row["mean_logprob"] is None for row in rows)


def test_clips_that_keep_failing_are_rows_however_many_they_are(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    engine = numbered.ReadingEngine()
    prompt = read_prompts(("global",))[0]

    def refuse_four(batch: Sequence[EngineClip]) -> list[Any]:
        return [
            Failed(clip.sample_id, "global", "400: no")
            if clip.sample_id in {"clip-1", "clip-3", "clip-5", "clip-7"}
            else engine.answer(clip, prompt)
            for clip in batch
        ]

    engine.on_batch = refuse_four
    config = numbered.config_for(clips, tmp_path, batch_tokens=1000)
    for attempts in (1, 2, 3):
        summary = run(config, SilentProgress(), engine=engine)
        failed = [row for row in rows_of(summary) if row["status"] == "error"]
        assert [row["attempts"] for row in failed] == [attempts] * 4
    assert run(config, SilentProgress(), engine=engine).was_finished


def test_an_estimate_of_what_fails_is_refused_with_the_reason(
    numbered: ModuleType, clips: Path, tmp_path: Path
) -> None:
    def refuse(batch: Sequence[EngineClip]) -> list[Any]:
        return [Failed(clip.sample_id, "global", "500: out of order") for clip in batch]

    engine = numbered.ReadingEngine(on_batch=refuse)
    with pytest.raises(RuntimeError, match="cannot be captioned: 500: out of order"):
        estimate(numbered.config_for(clips, tmp_path), SilentProgress(), engine=engine)
