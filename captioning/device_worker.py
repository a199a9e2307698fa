"""The program of one captioning process: works on shards of a planned run, reports on its output.

Started by captioning/devices.py as `python -m captioning.device_worker`; the first line of its
input holds the settings. It ends when its input closes, so it does not outlive its parent.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import IO, Any

from captioning.config import CaptionConfig
from captioning.decode_pool import DecodePool
from captioning.run import join_run
from datasets_build.progress import SilentProgress


class _Reports(SilentProgress):
    """Progress as JSON lines."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def advance(self, num_done: int = 1, *, num_failed: int = 0, note: str = "") -> None:
        """See Progress.advance."""
        self.tell({"done": num_done, "failed": num_failed})

    def message(self, text: str) -> None:
        """See Progress.message."""
        self.tell({"message": text})

    def tell(self, report: dict[str, Any]) -> None:
        """Write one line."""
        self._file.write(json.dumps(report) + "\n")
        self._file.flush()


def main() -> int:
    """Read the settings, work, and say why where that fails."""
    # What libraries print must not mix with the reports.
    reports = _Reports(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = CaptionConfig.model_validate(order["config"])
    try:
        with DecodePool(config.num_decoders, timeout_s=config.decode_timeout_s) as pool:
            session = join_run(config, reports, pool, attempt=order["attempt"])
            session.run_shards(order["shards"])
    except Exception as error:
        reports.tell({"error": f"{type(error).__name__}: {error}"})
        raise
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
