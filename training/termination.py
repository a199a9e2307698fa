"""SIGTERM, with which batch systems end a job: noted first, so that a run can save and leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


@contextmanager
def noted_sigterm() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM does not end the process; a second one does, with EXIT_CODE.

    Outside the main thread, where Python takes no signals, nothing changes.

    Returns:
        A function that tells whether one has come.
    """
    has_come = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        if has_come:
            raise SystemExit(EXIT_CODE)
        has_come = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: has_come
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
