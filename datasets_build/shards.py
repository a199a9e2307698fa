"""Arrow shards on disk: written whole or not at all, listed with row counts and hashes.

Shards are Arrow IPC *streams* with zstd: the only form that `datasets.Dataset.from_file` opens, and
one that gives identical bytes for identical rows. A stream cut at a batch boundary reads back
without an error, so the index (row counts, hashes) decides what exists: no entry, no shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from datasets_build.manifest import read_json, replaced_file, sha256_file

ROWS_PER_BATCH = 1024  # our choice: a few hundred kB of captions, about 100 MB of skeletons


@dataclass(frozen=True)
class ShardInfo:
    """One entry of an index."""

    file: str
    num_rows: int
    num_bytes: int
    sha256: str


class ShardWriter:
    """Writes one shard table by table; the file stands under its name when it is whole.

    Equal tables in equal order give equal bytes. Leaving the context with an error, or without a
    table, leaves no file.

    Args:
        path: the shard.
        columns: its schema.
    """

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self._path = path
        self._opened = ExitStack()
        self._columns = columns
        self._num_rows = 0
        self._writer: pa.RecordBatchStreamWriter | None = None  # until the first table
        self.info: ShardInfo | None = None  # once the context has ended

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, table: pa.Table) -> None:
        """Add the rows of a table."""
        if self._writer is None:
            file = self._opened.enter_context(replaced_file(self._path))
            options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
            self._writer = pa.ipc.new_stream(file, self._columns, options=options)
        for batch in table.combine_chunks().to_batches(max_chunksize=ROWS_PER_BATCH):
            self._writer.write_batch(batch)
        self._num_rows += table.num_rows

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._opened.__exit__(kind, error, traceback)
        elif self._writer is not None:
            with self._opened:
                self._writer.close()
            num_bytes, sha256 = self._path.stat().st_size, sha256_file(self._path)
            self.info = ShardInfo(self._path.name, self._num_rows, num_bytes, sha256)


def write_shard(path: Path, table: pa.Table) -> ShardInfo:
    """Write one shard atomically; equal tables give equal bytes."""
    with ShardWriter(path, table.schema) as writer:
        writer.write(table)
    assert writer.info is not None, "a table was written"
    return writer.info


def index_entries(shards: Sequence[ShardInfo]) -> list[dict[str, Any]]:
    """The JSON form of an index's shard list."""
    return [asdict(shard) for shard in shards]


def read_index(path: Path, *, made_by: str) -> list[ShardInfo]:
    """The shards that an index file (index.json, dataset.json) lists under "shards".

    Raises:
        FileNotFoundError: no such file: the stage that writes it has not finished.
        ValueError: it is not an index.
    """
    value = read_json(path, made_by=made_by)
    try:
        return [ShardInfo(**entry) for entry in value["shards"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} lists no shards ({error}); write it anew with `{made_by}`"
        ) from error


def read_shard(folder: Path, shard: ShardInfo, *, columns: Sequence[str] | None = None) -> pa.Table:
    """One shard as a table, memory-mapped.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: it cannot be read or has another number of rows than the index says.
    """
    path = folder / shard.file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is listed in the index of {folder} but does not exist")
    try:
        with pa.memory_map(str(path)) as source:
            with pa.ipc.open_stream(source) as reader:
                fields = reader.schema.names
            source.seek(0)
            absent = [name for name in columns or () if name not in fields]
            if absent:
                raise ValueError(f"{path} lacks the column {absent[0]!r}; build it anew")
            wanted = None if columns is None else [fields.index(name) for name in columns]
            options = pa.ipc.IpcReadOptions(included_fields=wanted)  # others stay compressed
            with pa.ipc.open_stream(source, options=options) as reader:
                table = reader.read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} is not a readable Arrow stream ({error}); build it anew"
        ) from error
    if table.num_rows != shard.num_rows:
        raise ValueError(
            f"{path} holds {table.num_rows} rows, its index says {shard.num_rows}; build it anew"
        )
    return table if columns is None else table.select(list(columns))


def iterate_shards(
    folder: Path, shards: Sequence[ShardInfo], *, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The shards of an index one after the other, so that memory stays bounded."""
    for shard in shards:
        yield read_shard(folder, shard, columns=columns)


def check_shards(folder: Path, shards: Sequence[ShardInfo]) -> list[str]:
    """What is wrong with the shards on disk, a sentence each; empty when all hashes match."""
    problems = []
    for shard in shards:
        path = folder / shard.file
        if not path.is_file():
            problems.append(f"{shard.file} is missing")
        elif path.stat().st_size != shard.num_bytes:
            problems.append(
                f"{shard.file} has {path.stat().st_size} bytes, the index says {shard.num_bytes}"
            )
        elif sha256_file(path) != shard.sha256:
            problems.append(f"{shard.file} has another sha256 than the index says")
    return problems
