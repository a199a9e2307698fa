"""The journal of a build: each finished part is one JSON line on the disk before it counts.

A line holds the part's stamp, a hash over all that decides it, so a later build takes over what
fits and makes the rest, whatever changed between: other captions, options, repaired files.

It is locked while a build runs, so that two builds never write into one folder; the lock ends with
the process, whatever ends it. A line that an interruption cut off is dropped.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from datasets_build.locks import BusyError, lock
from datasets_build.manifest import sha256_file
from datasets_build.parts import PartJob, PartResult
from datasets_build.shards import ShardInfo

_LOG = logging.getLogger(__name__)


class BuildJournal:
    """Finished parts of a build, after a first line with the request; locked until it is closed.

    Args:
        path: the file, in the data set's folder.

    Raises:
        ValueError: another process builds here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[dict[str, Any]] = []
        self._file = path.open("a+b")
        try:
            self._lock()
            self._replay()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BuildJournal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            lock(self._file, wait=False)
        except BusyError:
            raise ValueError(
                f"another process builds a data set in {self._path.parent}; wait for it, or choose "
                "another --out"
            ) from None

    def _replay(self) -> None:
        self._file.seek(0)
        end = 0  # of the last whole line
        for line in self._file:
            entry = _json_line(line)
            if entry is None:
                break  # what the interruption cut off
            self._entries.append(entry)
            end += len(line)
        self._file.truncate(end)

    def finished_parts(self, jobs: Sequence[PartJob]) -> dict[int, PartResult]:
        """The parts that need not be made again, by number.

        They have the same samples, captions and options, their sources were not touched since,
        their files have the noted hash, and every sample could be read (what could not be is tried
        again).
        """
        stamps = {job.number: job.stamp for job in jobs}
        parts = {}
        for entry in self._entries:
            part = PartResult.from_json(entry)
            if part.stamp != stamps.get(part.number):
                _LOG.info("part %d was made of something else; making it anew", part.number)
            elif part.shard is not None and not _has_hash(self._path.parent, part.shard):
                _LOG.warning("%s changed since it was written; making it anew", part.shard.file)
            elif all(left_out.reason != "unreadable" for left_out in part.left_out):
                parts[part.number] = part
        return parts

    def append(self, part: PartResult) -> None:
        """Note a finished part; on return it is on the disk."""
        self._file.write(json.dumps(part.to_json()).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """The build is finished: dataset.json says all."""
        self._path.unlink(missing_ok=True)


def _json_line(line: bytes) -> dict[str, Any] | None:
    """The object on a whole line, None where it is cut off."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and line.endswith(b"\n") else None


def _has_hash(folder: Path, shard: ShardInfo) -> bool:
    path = folder / shard.file
    return path.is_file() and sha256_file(path) == shard.sha256
