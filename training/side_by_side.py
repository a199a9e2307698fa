"""Several training runs at once on one machine, each in a process of its own.

For small models on a CPU: their operations are too small to share cores, so two runs on one thread
each take as long as one run on two. Several GPUs are shared out; one is shared by all.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeVar

import torch

from datasets_build.child_processes import follow_parent
from datasets_build.progress import Progress
from training.config import TrainConfig
from training.termination import raised_sigterm
from training.train import TrainSummary, run

ItemT = TypeVar("ItemT")
Turn = Literal["now", "later", "never"]


@dataclass(frozen=True)
class Event:
    """What the process of one item tells.

    Attributes:
        number: position of the item.
        kind: what it is; every item ends with one "done" or "failed".
        value: "start": units of a stage, 0 where unknown; "advance": units; "message": text;
            "done": what the work returned; "failed": the exception.
        note: of "advance"; how far its stage is, where the work gives none.
    """

    number: int
    kind: Literal["start", "advance", "message", "done", "failed"]
    value: Any
    note: str = ""


class _Relay:
    """A Progress that tells another process."""

    def __init__(self, number: int, pipe: Connection) -> None:
        self._number = number
        self._pipe = pipe
        self._stage, self._of_total, self._done = "", "", 0

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        """See Progress.start."""
        of_total = "" if total is None else f"/{total}"
        self._stage, self._of_total, self._done = stage, f"{of_total} {unit}", 0
        self._pipe.send(Event(self._number, "start", total or 0))

    def advance(self, num_done: int = 1, *, num_failed: int = 0, note: str = "") -> None:
        """See Progress.advance."""
        self._done += num_done
        note = note or f"{self._stage} {self._done}{self._of_total}"
        self._pipe.send(Event(self._number, "advance", num_done, note))

    def message(self, text: str) -> None:
        """See Progress.message."""
        self._pipe.send(Event(self._number, "message", text))

    def finish(self) -> None:
        """See Progress.finish."""


def refuse_torchrun() -> None:
    """Refuse to run a sweep in several processes that would all write its files.

    Raises:
        ValueError: this process is one of several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "a sweep was started by torchrun; start it plainly, with --jobs N for N runs at a time"
        )


def _work(
    number: int,
    work: Callable[[ItemT, Progress], Any],
    item: ItemT,
    pipe: Connection,
    gpus: str | None,
) -> None:
    """One item."""
    follow_parent()
    if gpus is not None:  # nothing has asked for CUDA yet
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    try:
        event = Event(number, "done", work(item, _Relay(number, pipe)))
    except Exception as error:
        event = Event(number, "failed", _portable(error))
    pipe.send(event)


def _portable(error: Exception) -> Exception:
    """The error, or what it says where it cannot travel to another process."""
    try:
        copy.deepcopy(error)  # takes it apart and makes it anew as pickle does
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def gpus_of(slot: int, *, jobs: int) -> str | None:
    """What CUDA_VISIBLE_DEVICES should be for one of several processes.

    Each has an equal share of the GPUs, one at least: its run is on the first, and a language model
    may be spread over all (`method.language_model_device_map`).

    Args:
        slot: 0 .. jobs - 1.
        jobs: processes at a time.

    Returns:
        None where there is one GPU or none.
    """
    count = torch.cuda.device_count()
    if count < 2:
        return None
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(index) for index in range(count)]
    share = max(1, count // jobs)
    first = slot * share % count
    return ",".join(names[first : first + share])


def side_by_side(
    work: Callable[[ItemT, Progress], Any],
    items: Sequence[ItemT],
    *,
    jobs: int,
    turn: Callable[[ItemT], Turn] = lambda _: "now",
) -> Generator[Event, None, None]:
    """Call `work` on every item, each in a process of its own, and hand on what they tell.

    Closing the generator ends the processes that still run, and so does a SIGTERM, which those that
    train hear too: they save, and the same command goes on.

    Args:
        work: a function of a module; what it takes and returns travels between processes.
        items: begun in their order, those that may not begin yet left out.
        jobs: processes at a time.
        turn: asked of the items that wait whenever a process is free, after the caller has seen all
            events so far: begin "now", ask again "later", or "never": the item is dropped without
            an event. An item that is told "later" must wait for one that runs or is begun.
    """
    # spawn: the caller may have loaded torch, whose threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    waiting = dict(enumerate(items))
    running: dict[Connection, tuple[int, int, BaseProcess]] = {}  # number, slot
    with raised_sigterm():
        try:
            while waiting or running:
                for number, item in list(waiting.items()):
                    if len(running) == jobs:
                        break
                    when = turn(item)
                    if when == "later":
                        continue
                    del waiting[number]
                    if when == "never":
                        continue
                    ours, theirs = context.Pipe(duplex=False)
                    slot = min(set(range(jobs)) - {taken for _, taken, _ in running.values()})
                    gpus = gpus_of(slot, jobs=jobs)
                    process: BaseProcess = context.Process(
                        target=_work, args=(number, work, item, theirs, gpus), daemon=True
                    )
                    process.start()
                    theirs.close()  # the process's copy is the only one left: the pipe ends with it
                    running[ours] = number, slot, process
                assert running or not waiting, "what waits is waiting for nothing"
                ready = wait_for(list(running)) if running else []
                for pipe in [pipe for pipe in running if pipe in ready]:
                    number, _, process = running[pipe]
                    event = _receive(pipe, number, process)
                    if event.kind in ("done", "failed"):
                        del running[pipe]
                        _end(process)
                    yield event
        finally:
            for *_, process in running.values():
                process.terminate()  # a run that trains saves and leaves
            for pipe, (number, _, process) in running.items():
                # hear it out: a process that tells more than its pipe holds would wait for ever
                while _receive(pipe, number, process).kind not in ("done", "failed"):
                    pass
                process.join()


def _receive(pipe: Connection, number: int, process: BaseProcess) -> Event:
    try:
        event: Event = pipe.recv()
    except (EOFError, OSError):
        process.join()
        killed = RuntimeError(
            f"a training process ended with code {process.exitcode}, as one does that is killed or "
            "out of memory; what it saved is kept: run again to go on"
        )
        return Event(number, "failed", killed)
    return event


def _end(process: BaseProcess) -> None:
    process.terminate()  # its work is done, or nobody waits for it any more
    process.join()


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
    summaries: dict[int, TrainSummary] = {}
    totals: dict[int, int] = {}
    num_early = 0  # samples done before every run has told its total
    with closing(side_by_side(run, configs, jobs=len(configs))) as events:
        for event in events:
            number, kind, value = event.number, event.kind, event.value
            if kind == "failed":
                raise value
            if kind == "message":
                progress.message(value)
            elif kind == "advance":
                if len(totals) < len(configs):
                    num_early += value
                else:
                    progress.advance(value)
            elif kind == "done":
                summaries[number] = value
            if kind in ("start", "done") and number not in totals:
                totals[number] = value if kind == "start" else 0  # done at once: nothing was left
                if len(totals) == len(configs):
                    progress.start("train", sum(totals.values()))
                    progress.advance(num_early)
    progress.finish()
    return [summaries[number] for number in range(len(configs))]
