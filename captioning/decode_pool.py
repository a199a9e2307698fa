"""Processes that decode videos, each call under a deadline with a hard kill.

Video decoders can hang for ever inside C, where no exception and no thread can stop them, and a
broken file can crash them. So each call runs in a process of its own program, one call at a time;
a process that misses its deadline is killed and replaced. A thread of the parent hands out the
calls, so decoding goes on while the model computes.

The processes are started as `python -m captioning.decode_worker`, not by multiprocessing, because
its start methods either copy a process with threads (fork) or import the user's main script again.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import IO, Any, TypeVar

from captioning.decode_worker import READY

START_TIMEOUT_S = 120.0  # our choice: a busy file system may take long to import PyAV
_AHEAD = 4  # our choice: calls waiting for each worker; enough that none of them is ever idle

Key = TypeVar("Key")


@dataclass(frozen=True)
class Outcome:
    """How a call ended: `problem` says what went wrong, or is None and `value` is the result."""

    value: Any = None
    problem: str | None = None
    timed_out: bool = False


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    errors: IO[bytes]
    ticket: int | None = None  # the call that it works on
    deadline: float = field(default_factory=lambda: time.monotonic() + START_TIMEOUT_S)
    is_ready: bool = False


class DecodePool:
    """Runs picklable calls in worker processes; use it as a context manager.

    Args:
        num_workers: processes; they are started when the first calls come.
        timeout_s: seconds that one call may take.
    """

    def __init__(self, num_workers: int, *, timeout_s: float) -> None:
        self.num_workers = num_workers
        self.timeout_s = timeout_s
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._queue: deque[tuple[int, bytes]] = deque()
        self._outcomes: dict[int, Outcome] = {}
        self._failure: str | None = None
        self._next_ticket = 0
        self._is_closed = False
        # Owned by the thread:
        self._workers: list[_Worker] = []
        self._wake_receiver, self._wake_sender = Pipe(duplex=False)
        self._thread = threading.Thread(target=self._serve, name="decode-pool", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], Any]) -> int:
        """Queue a call; the ticket fetches its outcome. The caller bounds how many it has open."""
        data = pickle.dumps(call)
        with self._changed:
            ticket = self._next_ticket
            self._next_ticket += 1
            self._queue.append((ticket, data))
        self._wake()
        return ticket

    def take(self, ticket: int) -> Outcome:
        """Wait for a call and remove its outcome from the pool.

        Raises:
            RuntimeError: the worker processes do not start, or the pool was closed.
        """
        with self._changed:
            while ticket not in self._outcomes:
                if self._failure is not None:
                    raise RuntimeError(self._failure)
                self._changed.wait()
            return self._outcomes.pop(ticket)

    def outcomes(
        self, calls: Iterable[tuple[Key, Callable[[], Any]]]
    ) -> Iterator[tuple[Key, Outcome]]:
        """Run many calls, a few ahead of the workers, and give the outcomes as they come.

        Args:
            calls: a key of the caller's own and a call; they are taken as needed.

        Returns:
            Each key with its outcome, in any order: a call that hangs holds nobody up.

        Raises:
            RuntimeError: the worker processes do not start, or the pool was closed.
        """
        waiting = iter(calls)
        keys: dict[int, Key] = {}
        while True:
            for key, call in islice(waiting, self.num_workers * _AHEAD - len(keys)):
                keys[self.submit(call)] = key
            if not keys:
                return
            ticket = self._wait_for_one_of(keys)
            yield keys.pop(ticket), self.take(ticket)

    def _wait_for_one_of(self, tickets: Collection[int]) -> int:
        with self._changed:
            while True:
                for ticket in tickets:
                    if ticket in self._outcomes:
                        return ticket
                if self._failure is not None:
                    raise RuntimeError(self._failure)
                self._changed.wait()

    def close(self) -> None:
        """Kill the workers; calls that were not taken are lost."""
        with self._changed:
            self._is_closed = True
        self._wake()
        self._thread.join()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wake(self) -> None:
        try:
            self._wake_sender.send(None)
        except OSError:
            return  # the thread has ended and closed its side

    # Everything below runs in the pool's own thread.

    def _serve(self) -> None:
        failure = "the decode pool was closed while a call was waited for"
        try:
            while not self._is_closed:
                self._hand_out()
                self._listen()
        except Exception as error:
            failure = f"the decode pool failed: {error}"
        finally:
            for worker in self._workers:
                _kill(worker)
            self._wake_receiver.close()
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _hand_out(self) -> None:
        """Give queued calls to idle workers, and start workers as long as calls are waiting."""
        with self._changed:
            for worker in self._workers:
                if self._queue and worker.is_ready and worker.ticket is None:
                    worker.ticket, data = self._queue.popleft()
                    worker.deadline = time.monotonic() + self.timeout_s
                    try:
                        worker.pipe.send_bytes(data)
                    except OSError:
                        continue  # it died while idle; _listen sees that and reports the call
            num_starting = sum(not worker.is_ready for worker in self._workers)
            num_new = min(len(self._queue) - num_starting, self.num_workers - len(self._workers))
        self._workers += [_start_worker() for _ in range(num_new)]

    def _listen(self) -> None:
        """Wait for a message, a death, a deadline or new calls, and act on it."""
        busy = [w for w in self._workers if w.ticket is not None or not w.is_ready]
        timeout = min((w.deadline for w in busy), default=float("inf")) - time.monotonic()
        by_pipe = {id(worker.pipe): worker for worker in self._workers}
        ready = wait(
            [self._wake_receiver, *(worker.pipe for worker in self._workers)],
            None if timeout == float("inf") else max(timeout, 0.0),
        )
        for source in ready:
            if source is self._wake_receiver:
                self._wake_receiver.recv()
            else:
                self._receive(by_pipe[id(source)])
        now = time.monotonic()
        for worker in [w for w in self._workers if now > w.deadline]:
            if not worker.is_ready:
                raise RuntimeError(f"a worker did not start within {START_TIMEOUT_S:.0f} s")
            if worker.ticket is not None:
                reason = f"decoding took longer than {self.timeout_s:g} s and was stopped"
                self._replace(worker, Outcome(problem=reason, timed_out=True))

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            code = worker.process.wait()
            if not worker.is_ready:
                worker.errors.seek(0)
                detail = worker.errors.read()[-2000:].decode(errors="replace").strip()
                raise RuntimeError(
                    f"a worker process ended with code {code} while it started: {detail}"
                ) from None
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._replace(worker, Outcome(problem=f"the decoding process died ({how})"))
            return
        if message == READY and not worker.is_ready:
            worker.is_ready = True
            return
        value, problem = message
        self._finish(worker, Outcome(value, problem))

    def _replace(self, worker: _Worker, outcome: Outcome) -> None:
        """Kill a worker and report its call; `_hand_out` starts another when calls are waiting."""
        _kill(worker)
        self._workers.remove(worker)
        self._finish(worker, outcome)

    def _finish(self, worker: _Worker, outcome: Outcome) -> None:
        if worker.ticket is not None:
            with self._changed:
                self._outcomes[worker.ticket] = outcome
                self._changed.notify_all()
            worker.ticket = None


def _start_worker() -> _Worker:
    ours, theirs = Pipe()
    # The packages may lie in a source tree that only our own sys.path knows.
    path = [str(Path(__file__).resolve().parent.parent), *(p for p in sys.path if p)]
    # One thread each: the parallelism is in the number of processes.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
    process = subprocess.Popen(
        [sys.executable, "-m", "captioning.decode_worker", str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env=environment,
        pass_fds=[theirs.fileno()],
        start_new_session=True,  # Ctrl-C reaches the parent only, which then kills its workers
    )
    theirs.close()
    return _Worker(process, ours, errors)


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    worker.pipe.close()
    worker.errors.close()
