"""SIGTERM, with which batch systems end a job: noted first, so that a run can save and leave."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
_SAME_S = 2.0


@contextmanager
def noted_sigterm() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM does not end the process; a second one does, with EXIT_CODE.

    What comes within two seconds of the first is taken for the same: a batch system signals every
    process of a job, and a parent that was signalled hands it on to its children.

    Outside the main thread, where Python takes no signals, nothing changes.

    Returns:
        A function that tells whether one has come.
    """
    first: float | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
        elif time.monotonic() - first > _SAME_S:
            raise SystemExit(EXIT_CODE)

    with _handled(note):
        yield lambda: first is not None


@contextmanager
def raised_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit(EXIT_CODE), so that what is open gets closed.

    Outside the main thread nothing changes.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(EXIT_CODE)

    with _handled(leave):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within it SIGTERM calls the handler; nothing changes outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
