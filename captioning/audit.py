"""`hoc audit`: every rule on every caption of a finished run; a table of flags and a record.

A rule says of a caption that it is flagged, fine, or that it cannot tell. The rules to drop by are
those of `drop` without those of `keep`; "all" in `drop` stands for every rule that was applied. A
caption with a flag of such a rule has `drop` set in audit.parquet, which `hoc build-dataset
--audit` obeys. Without `drop` nothing is dropped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator, model_validator

from captioning.audit_comparisons import COMPARING_RULES
from captioning.audit_rows import (
    CANNOT_TELL,
    FLAGGED,
    MADE_BY,
    CaptionRows,
    Rule,
    Verdicts,
    read_rows,
)
from captioning.audit_rules import CAPTION_RULES
from captioning.audit_skeletons import SKELETON_RULES, read_motions
from captioning.label_words import read_classes
from captioning.results import check_finished
from datasets_build import audits, schema
from datasets_build.audits import AUDIT_FILE, AUDIT_SCHEMA, ROWS_FILE, shards_sha256
from datasets_build.manifest import read_json, sha256_bytes, write_bytes_atomic, write_json
from datasets_build.nearest import did_you_mean
from datasets_build.progress import Progress
from datasets_build.settings import Settings
from datasets_build.shards import read_index

ALL = "all"
UNKNOWN = "(unknown)"
RULES: dict[str, Rule] = {
    rule.name: rule for rule in (*CAPTION_RULES, *COMPARING_RULES, *SKELETON_RULES)
}


class AuditConfig(Settings):
    """What an audit is told.

    Attributes:
        run: folder of the finished caption run.
        out: folder of the audit; None writes to `run`/audit.
        skeletons: data sets, or folders and zips of skeleton files, for the rules that need them.
        classes: CSV or Parquet with sample_id and class, for ids that carry no class.
        drop: rules whose flags drop a caption; "all" is every rule that is applied.
        keep: rules that are taken out of `drop` again.
        num_workers: processes that read skeleton files.
    """

    run: Path
    out: Path | None = None
    skeletons: tuple[Path, ...] = ()
    classes: Path | None = None
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    num_workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)

    @field_validator("drop", "keep")
    @classmethod
    def _known_rules(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in (ALL, *RULES):
                hint = did_you_mean(name, RULES)
                raise ValueError(f"no rule {name!r}; {hint}choose from {', '.join(RULES)}")
        return names

    @model_validator(mode="after")
    def _rules_fit(self) -> AuditConfig:
        if self.keep and not self.drop:
            raise ValueError("keep takes rules out of drop; give drop too, for example --drop all")
        if ALL in self.keep:
            raise ValueError("keep names the rules not to drop by; to drop nothing, leave out drop")
        blind = [name for name in self.drop if name != ALL and RULES[name].needs_skeletons]
        if blind and not self.skeletons:
            raise ValueError(f"drop {', '.join(blind)} needs skeletons")
        return self

    @property
    def folder(self) -> Path:
        """Where the audit is written."""
        return self.out or self.run / "audit"

    def rules(self) -> list[Rule]:
        """The rules that are applied, in the order of RULES."""
        return [rule for rule in RULES.values() if self.skeletons or not rule.needs_skeletons]

    def drop_rules(self) -> list[str]:
        """Names of the rules whose flags drop a caption, in the order of RULES."""
        names = {rule.name for rule in self.rules()} if ALL in self.drop else set(self.drop)
        return [name for name in RULES if name in names - set(self.keep)]


@dataclass(frozen=True)
class AuditSummary:
    """How an audit ended.

    Attributes:
        folder: where it lies.
        record: the content of audit.json.
        seconds: of this call.
    """

    folder: Path
    record: dict[str, Any]
    seconds: float

    @property
    def paths(self) -> dict[str, Path]:
        """What was written."""
        return {"flags": self.folder / ROWS_FILE, "record": self.folder / AUDIT_FILE}


def run(config: AuditConfig, progress: Progress) -> AuditSummary:
    """Audit a finished caption run; nothing but the audit's folder is written.

    Raises:
        FileNotFoundError: the run has not finished, or a source is not there.
        ValueError: a file cannot be read.
    """
    started = time.monotonic()
    check_finished(config.run)
    classes = read_classes(config.classes) if config.classes else None
    rows = read_rows(config.run, progress, classes=classes)
    if config.skeletons:
        wanted = set(rows.sample_ids)
        motions = read_motions(config.skeletons, wanted, progress, num_workers=config.num_workers)
        rows = replace(rows, motions=motions)
    rules = config.rules()
    progress.start("audit", len(rules), unit="rules")
    verdicts = {}
    for rule in rules:
        verdicts[rule.name] = rule.judge(rows)
        progress.advance(note=rule.name)
    progress.finish()
    dropped = np.zeros(len(rows), bool)
    for name in config.drop_rules():
        dropped |= verdicts[name].states == FLAGGED
    config.folder.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(_table(rows, verdicts, dropped), sink)
    data = sink.getvalue().to_pybytes()
    record = {
        "rows": {"file": ROWS_FILE, "num_rows": len(rows), "sha256": sha256_bytes(data)},
        **_origin(config, rows),
        "rules": {
            name: {
                "sentence": RULES[name].sentence,
                "thresholds": dict(RULES[name].thresholds),
                "flagged": int((verdict.states == FLAGGED).sum()),
                "cannot_tell": int((verdict.states == CANNOT_TELL).sum()),
                "note": verdict.note,
            }
            for name, verdict in verdicts.items()
        },
        **_counts(rows, verdicts, dropped),
    }
    write_bytes_atomic(config.folder / ROWS_FILE, data)
    write_json(config.folder / AUDIT_FILE, record)
    return AuditSummary(config.folder, record, time.monotonic() - started)


def _table(rows: CaptionRows, verdicts: Mapping[str, Verdicts], dropped: np.ndarray) -> pa.Table:
    """The rows of audit.parquet, in the order of the run."""
    lists: dict[str, list[list[str]]] = {
        name: [[] for _ in range(len(rows))]
        for name in (audits.FLAGS, audits.DETAILS, audits.CANNOT_TELL)
    }
    for name, verdict in verdicts.items():
        for row, detail in verdict.details.items():
            lists[audits.FLAGS][row].append(name)
            lists[audits.DETAILS][row].append(detail)
        for row in np.flatnonzero(verdict.states == CANNOT_TELL).tolist():
            lists[audits.CANNOT_TELL][row].append(name)
    columns: dict[str, Any] = {
        schema.SAMPLE_ID: rows.sample_ids,
        schema.PROMPT_ID: rows.prompt_ids,
        audits.CLASS: rows.classes,
        **lists,
        audits.DROP: dropped,
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in AUDIT_SCHEMA], schema=AUDIT_SCHEMA)


def _origin(config: AuditConfig, rows: CaptionRows) -> dict[str, Any]:
    """What was audited, with what, and what drops a caption."""
    index = config.run / "index.json"
    motions = rows.motions
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "run": {
            "name": config.run.resolve().name,
            "fingerprint": read_json(index, made_by=MADE_BY).get("fingerprint"),
            "shards_sha256": shards_sha256(read_index(index, made_by=MADE_BY)),
        },
        "classes": config.classes.name if config.classes else None,
        "skeletons": [source.resolve().name for source in config.skeletons],
        "num_skeletons": len(motions),
        "drop": list(config.drop),
        "keep": list(config.keep),
        "drop_rules": config.drop_rules(),
    }


def _counts(
    rows: CaptionRows, verdicts: Mapping[str, Verdicts], dropped: np.ndarray
) -> dict[str, Any]:
    """Rows, captions, flagged and dropped rows and flags: in all, by class and by prompt."""
    flags = {name: verdict.states == FLAGGED for name, verdict in verdicts.items()}
    flagged = np.any(list(flags.values()), axis=0)

    def counts(own: np.ndarray) -> dict[str, Any]:
        return {
            "rows": len(own),
            "captioned": int(rows.has_text[own].sum()),
            "flagged": int(flagged[own].sum()),
            "dropped": int(dropped[own].sum()),
            "flags": {n: num for n, flag in flags.items() if (num := int(flag[own].sum()))},
        }

    def grouped(keys: Sequence[str | None]) -> dict[str, Any]:
        groups: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            groups.setdefault(UNKNOWN if key is None else key, []).append(row)
        return {key: counts(np.array(own)) for key, own in sorted(groups.items())}

    return {
        "total": counts(np.arange(len(rows))),
        "by_class": grouped(rows.classes),
        "by_prompt": grouped(rows.prompt_ids),
    }
