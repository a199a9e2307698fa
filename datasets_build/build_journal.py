"""The journal of a build: each finished part is one JSON line on the disk before it counts.

It is locked while a build runs, so that two builds never write into one folder; the lock ends with
the process, whatever ends it. A line that an interruption cut off is dropped.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from datasets_build.manifest import differing_parts, sha256_file
from datasets_build.parts import PartJob, PartResult
from datasets_build.shards import ShardInfo

_LOG = logging.getLogger(__name__)


def refuse_other_request(
    folder: Path, request: dict[str, Any], theirs: dict[str, Any], what: str
) -> None:
    """Stop where a folder holds the work of another request.

    Raises:
        ValueError: it does; the message names what differs.
    """
    names = differing_parts(request, theirs)
    if names:
        raise ValueError(
            f"{folder} holds {what} built from another request, different in: {', '.join(names)}; "
            "choose another --out, or remove that folder to build anew"
        )


class BuildJournal:
    """Finished parts of a build, after a first line with the request; locked until it is closed.

    Args:
        path: the file, in the data set's folder.
        request: what decides the rows.

    Raises:
        ValueError: another process builds here, or the folder holds another interrupted build.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        self._path = path
        self._entries: list[dict[str, Any]] = []
        self._file = path.open("a+b")
        try:
            _lock(self._file, path.parent)
            self._replay(request)
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

    def _replay(self, request: dict[str, Any]) -> None:
        self._file.seek(0)
        end = 0  # of the last whole line that counts
        for number, line in enumerate(self._file):
            entry = _json_line(line)
            if entry is None:
                break  # what the interruption cut off
            if number > 0:
                self._entries.append(entry)
            else:
                refuse_other_request(
                    self._path.parent, request, entry.get("request", {}), "an interrupted build"
                )
            end += len(line)
        self._file.truncate(end)
        if not end:
            self._append({"request": request})

    def finished_parts(self, jobs: Sequence[PartJob]) -> dict[int, PartResult]:
        """The parts that need not be made again, by number.

        Their files have the noted hash, their sources were not touched since, and every sample
        could be read (what could not be is tried again).
        """
        stamps = {job.number: job.stamp for job in jobs}
        parts = {}
        for entry in self._entries:
            part = PartResult.from_json(entry)
            if part.stamp != stamps.get(part.number):
                _LOG.warning("sources of part %d changed; building it anew", part.number)
            elif part.shard is not None and not _has_hash(self._path.parent, part.shard):
                _LOG.warning("%s changed since it was written; building it anew", part.shard.file)
            elif all(left_out.reason != "unreadable" for left_out in part.left_out):
                parts[part.number] = part
        return parts

    def append(self, part: PartResult) -> None:
        """Note a finished part; on return it is on the disk."""
        self._append(part.to_json())

    def remove(self) -> None:
        """The build is finished: dataset.json says all."""
        self._path.unlink(missing_ok=True)

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _lock(file: IO[bytes], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another process builds a data set in {folder}; wait for it, or choose another --out"
        ) from None


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
