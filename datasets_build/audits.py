"""What `hoc audit` writes: its files, the columns of its table, and what a build takes from them.

audit.parquet has one row a (sample_id, prompt_id); audit.json, written last, holds the rules, the
counts, the run that was audited and the table's sha256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_build import schema
from datasets_build.manifest import canonical_json, read_json, sha256_bytes, sha256_file
from datasets_build.shards import ShardInfo

AUDIT_FILE = "audit.json"
ROWS_FILE = "audit.parquet"
MADE_BY = "hoc audit"

CLASS = "class"
FLAGS = "flags"
DETAILS = "details"
CANNOT_TELL = "cannot_tell"
DROP = "drop"

AUDIT_SCHEMA = pa.schema(
    [
        pa.field(schema.SAMPLE_ID, pa.string(), nullable=False),
        pa.field(schema.PROMPT_ID, pa.string(), nullable=False),
        pa.field(CLASS, pa.string()),
        pa.field(FLAGS, pa.list_(pa.string()), nullable=False),  # names of rules
        pa.field(DETAILS, pa.list_(pa.string()), nullable=False),  # a sentence for each flag
        pa.field(CANNOT_TELL, pa.list_(pa.string()), nullable=False),  # rules that did not judge
        pa.field(DROP, pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Audit:
    """A finished audit.

    Attributes:
        folder: where it lies.
        run_name: the audited run's folder name.
        shards_sha256: identifies the audited captions (see `shards_sha256`).
        drop_rules: the rules whose flags drop a caption.
        num_dropped: captions that it drops.
        sha256: of its table.
    """

    folder: Path
    run_name: str
    shards_sha256: str
    drop_rules: tuple[str, ...]
    num_dropped: int
    sha256: str

    def dropped(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """(sample_id, prompt_id) of every dropped caption, with the rules that drop it."""
        columns = [schema.SAMPLE_ID, schema.PROMPT_ID, FLAGS]
        table = pq.read_table(
            self.folder / ROWS_FILE, columns=columns, filters=[(DROP, "==", True)]
        )
        return {
            (row[schema.SAMPLE_ID], row[schema.PROMPT_ID]): tuple(
                rule for rule in row[FLAGS] if rule in self.drop_rules
            )
            for row in table.to_pylist()
        }


def shards_sha256(shards: Sequence[ShardInfo]) -> str:
    """One hash for the rows of a caption run: over the hashes of its shards, in order."""
    return sha256_bytes(canonical_json([shard.sha256 for shard in shards]).encode())


def read_audit(folder: Path) -> Audit:
    """Open what `hoc audit` wrote.

    Raises:
        FileNotFoundError: no audit there, or it has not finished.
        ValueError: audit.json is not an audit's, or the table is not the one it was written with.
    """
    record: Any = read_json(folder / AUDIT_FILE, made_by=MADE_BY)
    try:
        audit = Audit(
            folder,
            run_name=record["run"]["name"],
            shards_sha256=record["run"]["shards_sha256"],
            drop_rules=tuple(record["drop_rules"]),
            num_dropped=record["total"]["dropped"],
            sha256=record["rows"]["sha256"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / AUDIT_FILE} is not an audit's record ({error!r}); "
            f"write it anew with `{MADE_BY}`"
        ) from error
    path = folder / ROWS_FILE
    if not path.is_file() or sha256_file(path) != audit.sha256:
        raise ValueError(
            f"{path} is missing or not the table that {AUDIT_FILE} was written with; "
            f"make it anew with `{MADE_BY}`"
        )
    return audit
