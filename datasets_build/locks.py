"""Locks on files that end with the process that holds them, whatever ends it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class BusyError(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock.

    Args:
        path: a file for nothing but the lock.
        wait: until the other process lets go.

    Raises:
        BusyError: another process holds it, and `wait` is False.
    """
    with path.open("a") as file:
        lock(file, wait=wait)
        yield


def lock(file: IO[Any], *, wait: bool) -> None:
    """Lock an open file until it is closed.

    Raises:
        BusyError: another process holds it, and `wait` is False.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise BusyError(f"{file.name} is in use by another process") from None
