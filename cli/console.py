"""The one place that prints: rich bars on a terminal, plain lines elsewhere, JSON for machines.

Results go to standard output; progress and messages go to standard error, so that `--json` output
can be piped whatever else is said.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from datasets_build.progress import Progress

PLAIN_LINE_EVERY_S = 10.0  # our choice: readable in a batch job's log

out = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
err = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def _pace(num_done: float, elapsed_s: float, unit: str = "") -> str:
    """Units a second, seconds a unit where one takes longer than that, nothing before the first."""
    if not num_done or not elapsed_s:
        return ""
    rate = num_done / elapsed_s
    return f"{rate:.1f}{unit}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def _duration(seconds: float) -> str:
    """Seconds, from ten minutes on as hours:minutes:seconds."""
    return f"{seconds:.0f} s" if seconds < 600 else str(timedelta(seconds=round(seconds)))


class _RateColumn(ProgressColumn):
    """The pace since the stage began."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text(_pace(task.completed, elapsed or 0.0, f" {task.fields['unit']}"), style="cyan")


class _FailureColumn(ProgressColumn):
    """How many units failed, shown only when some did."""

    def render(self, task: Task) -> Text:
        num_failed = task.fields["num_failed"]
        return Text(f"{num_failed} failed" if num_failed else "", style="red")


class TerminalProgress:
    """A rich progress bar: done, rate, time left, failures. One bar a stage, kept when it ends."""

    def __init__(self) -> None:
        self._bar = RichProgress(
            SpinnerColumn(finished_text="[green]v[/]"),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            _FailureColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=err,
        )
        self._task: Any = None

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        """See Progress.start."""
        self.finish()
        self._bar.start()
        self._task = self._bar.add_task(stage, total=total, unit=unit, num_failed=0, note="")

    def advance(self, num_done: int = 1, *, num_failed: int = 0, note: str = "") -> None:
        """See Progress.advance."""
        if self._task is None:
            return
        fields = self._bar.tasks[-1].fields
        changes = {"num_failed": fields["num_failed"] + num_failed, "note": note or fields["note"]}
        self._bar.update(self._task, advance=num_done, **changes)

    def message(self, text: str) -> None:
        """See Progress.message."""
        self._bar.console.print(text, markup=False)

    def finish(self) -> None:
        """See Progress.finish."""
        if self._task is not None:
            task = self._bar.tasks[-1]
            if task.total is None:
                self._bar.update(self._task, total=task.completed)
            self._task = None
        self._bar.stop()


class PlainProgress:
    """One line every so often, for logs and pipes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage = ""

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        """See Progress.start."""
        self.finish()
        self._stage, self._total, self._unit = stage, total, unit
        self._done = self._failed = self._said = 0
        self._note = ""
        self._begun = self._last_line = self._clock()

    def advance(self, num_done: int = 1, *, num_failed: int = 0, note: str = "") -> None:
        """See Progress.advance."""
        if not self._stage:
            return
        self._done += num_done
        self._failed += num_failed
        self._note = note or self._note
        if self._clock() - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = self._clock()
            self._print_line()

    def message(self, text: str) -> None:
        """See Progress.message."""
        err.print(text, markup=False)

    def finish(self) -> None:
        """See Progress.finish."""
        if self._stage:
            if self._said != self._done or not self._done:
                self._print_line()
            self._stage = ""

    def _print_line(self) -> None:
        self._said = self._done
        elapsed = max(self._clock() - self._begun, 1e-9)
        if self._total is None and not self._done:  # a stage that counts nothing
            err.print(f"{self._stage}: {_duration(elapsed)}", markup=False)
            return
        of_total = "" if self._total is None else f"/{self._total}"
        parts = [
            f"{self._stage}: {self._done}{of_total} {self._unit}",
            _pace(self._done, elapsed),
            _duration(elapsed),
        ]
        if self._total and 0 < self._done < self._total:
            parts.append(f"{_duration((self._total / self._done - 1) * elapsed)} left")
        if self._failed:
            parts.append(f"{self._failed} failed")
        parts.append(self._note)
        err.print(", ".join(part for part in parts if part), markup=False)


@contextmanager
def progress() -> Iterator[Progress]:
    """The progress display that fits where standard error goes; closed even when a stage fails."""
    display: Progress = TerminalProgress() if err.is_terminal else PlainProgress()
    try:
        yield display
    finally:
        display.finish()


def print_json(value: Any) -> None:
    """One JSON document on standard output; paths become text."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numeric: int = 0,
    whole: Sequence[str] = (),
) -> None:
    """A table on standard output.

    Args:
        title: above it.
        columns: their names.
        rows: cells of every line.
        numeric: so many last columns are right-aligned.
        whole: columns whose cells are never broken, however narrow the terminal.
    """
    table = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold")
    for index, name in enumerate(columns):
        is_number = index >= len(columns) - numeric
        justify: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in whole)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    out.print(table)


def print_paths(paths: Mapping[str, Path]) -> None:
    """Where the results lie, a line each."""
    width = max(len(name) for name in paths)
    for name, path in paths.items():
        out.print(f"  {name:<{width}}  {path}", markup=False, soft_wrap=True)
