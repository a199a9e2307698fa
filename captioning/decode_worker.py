"""The program of one decoding process: receives picklable calls over a pipe, sends back results.

Started by captioning/decode_pool.py as `python -m captioning.decode_worker FD`. It ends when the
pipe closes, so it does not outlive its parent, however that ended.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import av.logging

# Imported here so that a call's deadline does not pay for it.
from captioning.frames import VideoError, reason_of

READY = "ready"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(descriptor: int) -> None:
    """Serve calls until the parent closes the pipe."""
    _end_with_parent()
    av.logging.set_level(None)  # broken videos are reported as rows, not on the terminal
    pipe = Connection(descriptor)
    pipe.send(READY)
    while True:
        try:
            data = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        reply: tuple[Any, str | None]
        try:
            reply = (pickle.loads(data)(), None)
        except VideoError as error:
            reply = (None, str(error))
        except Exception as error:
            reply = (None, reason_of(error))
        try:
            pipe.send(reply)
        except OSError:
            return


def _end_with_parent() -> None:
    """Let the system kill this process when its parent ends, also in the middle of a call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    finally:
        # A decoder's threads or destructors that hang must not keep the process alive.
        os._exit(0)
