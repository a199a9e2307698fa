"""Arrow shards on disk: written whole or not at all, listed with row counts and hashes.

Shards are Arrow IPC *streams* with zstd: the only form that `datasets.Dataset.from_file` opens, and
one that gives identical bytes for identical rows. A stream cut at a batch boundary reads back
without an error, so the index (row counts, hashes) decides what exists: no entry, no shard.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets_build.manifest import read_json, sha256_bytes, sha256_file, write_bytes_atomic

ROWS_PER_BATCH = 1024  # our choice: a few hundred kB of captions, about 100 MB of skeletons


@dataclass(frozen=True)
class ShardInfo:
    """One entry of an index."""

    file: str
    num_rows: int
    num_bytes: int
    sha256: str


def write_shard(path: Path, table: pa.Table) -> ShardInfo:
    """Write one shard atomically; equal tables give equal bytes."""
    buffer = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.ipc.new_stream(buffer, table.schema, options=options) as writer:
        for batch in table.combine_chunks().to_batches(max_chunksize=ROWS_PER_BATCH):
            writer.write_batch(batch)
    data = buffer.getvalue()
    write_bytes_atomic(path, data)
    return ShardInfo(
        file=path.name, num_rows=table.num_rows, num_bytes=len(data), sha256=sha256_bytes(data)
    )


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
