"""Several training runs at once on one machine, each in a process of its own.

For small models on a CPU: their operations are too small to share cores, so two runs on one thread
each take as long as one run on two.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Sequence
from typing import Any

from datasets_build.progress import Progress
from training.config import TrainConfig
from training.train import TrainSummary, run

_POLL_S = 0.5  # how soon a worker that was killed from outside is noticed


class _Relay:
    """A Progress that tells another process."""

    def __init__(self, number: int, events: Any) -> None:
        self._number = number
        self._events = events

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        """See Progress.start."""
        self._events.put((self._number, "start", total or 0))

    def advance(self, num_done: int = 1, *, num_failed: int = 0, note: str = "") -> None:
        """See Progress.advance."""
        self._events.put((self._number, "advance", num_done))

    def message(self, text: str) -> None:
        """See Progress.message."""
        self._events.put((self._number, "message", text))

    def finish(self) -> None:
        """See Progress.finish."""


def _work(number: int, config: TrainConfig, events: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    try:
        events.put((number, "done", run(config, _Relay(number, events))))
    except Exception as error:
        events.put((number, "failed", error))


def train_side_by_side(configs: Sequence[TrainConfig], progress: Progress) -> list[TrainSummary]:
    """Train every config in a process of its own; one bar shows their sum.

    Args:
        configs: the runs; each needs a folder of its own.
        progress: told of the samples of all runs together.

    Returns:
        The summaries, in the order of `configs`.

    Raises:
        Exception: what a run raised; the other runs are ended, their checkpoints stay.
        RuntimeError: a process was killed from outside.
    """
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    workers = [
        context.Process(target=_work, args=(number, config, events), daemon=True)
        for number, config in enumerate(configs)
    ]
    for worker in workers:
        worker.start()
    try:
        return _collect(workers, events, progress)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _collect(workers: Sequence[Any], events: Any, progress: Progress) -> list[TrainSummary]:
    summaries: dict[int, TrainSummary] = {}
    totals: dict[int, int] = {}
    num_early = 0  # samples done before every run has told its total
    while len(summaries) < len(workers):
        try:
            number, kind, value = events.get(timeout=_POLL_S)
        except queue.Empty:
            for number, worker in enumerate(workers):
                if worker.exitcode not in (None, 0) and number not in summaries:
                    raise RuntimeError(
                        f"a training process ended with code {worker.exitcode}, as one does that "
                        "is killed or out of memory; its checkpoint is kept: run again to go on"
                    ) from None
            continue
        if kind == "failed":
            raise value
        if kind == "message":
            progress.message(value)
        elif kind == "advance":
            if len(totals) < len(workers):
                num_early += value
            else:
                progress.advance(value)
        elif kind == "done":
            summaries[number] = value
        if kind in ("start", "done") and number not in totals:
            totals[number] = value if kind == "start" else 0  # done at once: nothing was left to do
            if len(totals) == len(workers):
                progress.start("train", sum(totals.values()))
                progress.advance(num_early)
    progress.finish()
    return [summaries[number] for number in range(len(workers))]
