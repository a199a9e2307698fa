"""The journal of a shard: each finished batch is one JSON line on the disk before it counts.

A run that was stopped at any moment loses at most the batch it was working on: a torn last line is
dropped. Each shard has a journal of its own, locked while somebody works on the shard, so any
number of processes may share a run. Only the places of the lines are kept in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets_build.locks import lock
from datasets_build.schema import (
    ATTEMPTS,
    PROMPT_ID,
    SAMPLE_ID,
    STATUS,
    STATUS_DECODE_ERROR,
    STATUS_ERROR,
    STATUS_OOM,
    STATUS_TIMEOUT,
)

# Outcomes that another try may change; greedy decoding repeats the other ones exactly.
FAILED_STATUSES = (STATUS_DECODE_ERROR, STATUS_TIMEOUT, STATUS_OOM, STATUS_ERROR)

Row = dict[str, Any]


class Journal:
    """The journal of one shard; it is locked until `close`.

    Args:
        path: the file; it is created with the fingerprint in its first line.
        fingerprint: of the plan that the batch numbers refer to.
        wait: for another process that works on the shard.

    Raises:
        BusyError: another process works on the shard, and `wait` is False.
        ValueError: the file belongs to another plan or is damaged before its last line.
    """

    def __init__(self, path: Path, *, fingerprint: str, wait: bool = False) -> None:
        self.path = path
        self.attempt = 1  # the round of tries that was begun last
        self.failed: dict[str, int] = {}  # sample_id -> the attempt that failed
        self._batches: dict[int, int] = {}  # batch number -> offset of its line
        self._retries: dict[str, int] = {}  # sample_id -> offset of its last retry
        self._file = path.open("a+b")
        try:
            lock(self._file, wait=wait)
            self._replay(fingerprint)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file and let go of its lock."""
        self._file.close()

    def __contains__(self, batch: int) -> bool:
        return batch in self._batches

    @staticmethod
    def batches_in(path: Path) -> set[int]:
        """The batches that a journal holds, read without its lock while somebody may write."""
        batches = set()
        with path.open("rb") as file:
            for line in file:
                try:
                    batches.add(json.loads(line)["batch"])
                except (ValueError, KeyError, TypeError):
                    continue  # another kind of line, or the torn last one
        return batches

    def begin_attempt(self, attempt: int) -> None:
        """Note that failed rows are tried again from here on."""
        self._append({"attempt": attempt})

    def add_batch(
        self,
        batch: int,
        rows: Sequence[Row],
        *,
        splits: Sequence[int] = (),
        generate_s: float = 0.0,
        wait_s: float = 0.0,
    ) -> None:
        """A planned batch is finished.

        Args:
            batch: its number in the plan.
            rows: in plan order.
            splits: sizes of the groups that did not fit into memory and were halved.
            generate_s: seconds that the engine worked on it.
            wait_s: seconds that the engine waited for its frames.
        """
        self._append(
            {
                "batch": batch,
                "splits": list(splits),
                "generate_s": round(generate_s, 4),
                "wait_s": round(wait_s, 4),
                "rows": list(rows),
            }
        )

    def add_retry(self, sample_id: str, rows: Sequence[Row]) -> None:
        """A clip was tried again on its own; its rows replace the earlier ones."""
        self._append({"retry": sample_id, "rows": list(rows)})

    def record_of(self, batch: int, *, with_retries: bool = True) -> dict[str, Any]:
        """What `add_batch` was given, with the latest try of each row or with its first."""
        record = self._read(self._batches[batch])
        if not with_retries:
            return record
        rows: list[Row] = record["rows"]
        latest: dict[tuple[str, str], Row] = {}
        for sample_id in {row[SAMPLE_ID] for row in rows} & self._retries.keys():
            for row in self._read(self._retries[sample_id])["rows"]:
                latest[row[SAMPLE_ID], row[PROMPT_ID]] = row
        rows = [latest.get((row[SAMPLE_ID], row[PROMPT_ID]), row) for row in rows]
        return record | {"rows": rows}

    def _append(self, record: dict[str, Any]) -> None:
        self._file.seek(0, os.SEEK_END)
        offset = self._file.tell()
        try:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} while writing {self.path}; what it holds already is safe: "
                "make room and run the same command again",
            ) from error
        self._note(record, offset)

    def _read(self, offset: int) -> dict[str, Any]:
        self._file.seek(offset)
        record: dict[str, Any] = json.loads(self._file.readline())
        return record

    def _note(self, record: dict[str, Any], offset: int) -> None:
        if "batch" in record:
            self._batches[record["batch"]] = offset
        elif "retry" in record:
            self._retries[record["retry"]] = offset
        else:
            self.attempt = record.get("attempt", self.attempt)
        for row in record.get("rows", ()):
            self.failed.pop(row[SAMPLE_ID], None)
        for row in record.get("rows", ()):
            if row[STATUS] in FAILED_STATUSES:
                self.failed[row[SAMPLE_ID]] = row[ATTEMPTS]

    def _replay(self, fingerprint: str) -> None:
        """Read what is there, cut off a torn end, and write the first line of a new journal."""
        self._file.seek(0)
        offset = number = 0
        damaged: int | None = None  # offset of a line that is no record
        for line in self._file:
            number += 1
            if damaged is not None:
                raise ValueError(
                    f"{self.path} is damaged in line {number - 1}, before its end; "
                    "delete the output folder and run again"
                )
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except (json.JSONDecodeError, UnicodeDecodeError):
                record = None
            if not isinstance(record, dict):
                damaged = offset
            elif number == 1 and record.get("fingerprint") != fingerprint:
                raise ValueError(
                    f"{self.path} belongs to another plan; delete the output folder and run again"
                )
            else:
                self._note(record, offset)
            offset += len(line)
        if damaged is not None:
            self._file.truncate(damaged)
        if number == 0 or damaged == 0:
            self._append({"fingerprint": fingerprint})
