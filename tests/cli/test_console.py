"""The plain progress lines: what a log file shows."""

from __future__ import annotations

import pytest

from cli.console import PlainProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_progress_prints_a_line_only_every_ten_seconds_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    progress = PlainProgress(clock)
    progress.start("caption", 40, unit="clips")
    for _ in range(25):
        clock.now += 1.0
        progress.advance(1, num_failed=int(clock.now == 3.0))
    progress.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "caption: 10/40 clips, 1.0/s, 10 s, 30 s left, 1 failed",
        "caption: 20/40 clips, 1.0/s, 20 s, 20 s left, 1 failed",
        "caption: 25/40 clips, 1.0/s, 25 s, 15 s left, 1 failed",
    ]


def test_plain_progress_does_not_say_the_same_twice(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = PlainProgress(clock)
    progress.start("caption", 1)
    clock.now += 11.0
    progress.advance(1)
    progress.finish()
    progress.start("listing", None)
    progress.finish()
    assert capsys.readouterr().err.splitlines() == [
        "caption: 1/1 samples, 11.0 s each, 11 s",
        "listing: 0 s",
    ]


def test_slow_units_are_told_by_the_seconds_that_one_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    progress = PlainProgress(clock)
    progress.start("sweep", 45, unit="splits")
    clock.now += 60.0
    progress.advance(0, note="epoch 1/5")
    clock.now += 1940.0
    progress.advance(5)
    progress.finish()
    assert capsys.readouterr().err.splitlines() == [
        "sweep: 0/45 splits, 60 s, epoch 1/5",
        "sweep: 5/45 splits, 400.0 s each, 0:33:20, 4:26:40 left, epoch 1/5",
    ]


def test_a_new_stage_ends_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress(Clock())
    progress.start("probe", 2)
    progress.advance(2)
    progress.start("plan", None)
    progress.finish()
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "probe",
        "plan",
    ]
