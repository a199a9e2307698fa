"""The captions of finished runs, sample by sample, and the provenance of runs and audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets_build import schema
from datasets_build.audits import Audit, shards_sha256
from datasets_build.shards import iterate_shards, read_index


@dataclass(frozen=True, order=True, slots=True)
class Caption:
    """One caption of a sample, as the data set's `captions` column holds it."""

    prompt_id: str
    request_key: str
    text: str


@dataclass(slots=True)
class SampleCaptions:
    """What the caption runs say about one sample."""

    captions: set[Caption] = field(default_factory=set)
    frame_counts: set[int] = field(default_factory=set)  # frames of the captioned video
    unused: set[str] = field(default_factory=set)  # statuses of captions that are not taken
    dropped: set[str] = field(default_factory=set)  # rules by which an audit dropped captions


def read_captions(
    folders: Sequence[Path],
    *,
    accept_truncated: bool = False,
    audits: Sequence[Audit] = (),
    prompts: Sequence[str] = (),
) -> dict[str, SampleCaptions]:
    """The captions of finished runs by sample_id.

    Args:
        folders: caption run folders; each has an index.json, which is written last.
        accept_truncated: take captions with status "truncated" beside "success".
        audits: of some of the runs; the captions that they drop are not taken.
        prompts: only captions of these prompts; empty: all.

    Raises:
        FileNotFoundError: a folder has no index.json: its run has not finished.
        ValueError: a shard is not readable, or lacks a column; an audit is of no run given; or no
            run has captions of one of the prompts.
    """
    statuses = {schema.STATUS_SUCCESS}
    if accept_truncated:
        statuses.add(schema.STATUS_TRUNCATED)
    columns = [
        schema.SAMPLE_ID, schema.STATUS, schema.CAPTION, schema.PROMPT_ID, schema.REQUEST_KEY,
        schema.NUM_FRAMES,
    ]  # fmt: skip
    result: dict[str, SampleCaptions] = {}
    audited: set[str] = set()
    seen_prompts: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is not a folder; give the folder that `hoc caption` wrote"
            )
        shards = read_index(folder / "index.json", made_by="hoc caption")
        own = [audit for audit in audits if audit.shards_sha256 == shards_sha256(shards)]
        audited.update(audit.shards_sha256 for audit in own)
        dropped = _dropped_by(own)
        for table in iterate_shards(folder, shards):
            absent = [name for name in columns if name not in table.column_names]
            if absent:
                raise ValueError(
                    f"a shard of {folder} lacks the columns {', '.join(absent)}; it was not "
                    "written by this version's `hoc caption`"
                )
            table = table.select(columns)
            seen_prompts.update(pc.unique(table[schema.PROMPT_ID]).to_pylist())
            if prompts:
                table = table.filter(pc.is_in(table[schema.PROMPT_ID], pa.array(prompts)))
            _collect(table, statuses, dropped, result)
    unknown = [prompt for prompt in prompts if prompt not in seen_prompts]
    if unknown:
        raise ValueError(
            f"--prompt {unknown[0]}: the caption runs have no such prompt; they have "
            f"{', '.join(sorted(seen_prompts)) or 'none'}"
        )
    for audit in audits:
        if audit.shards_sha256 not in audited:
            raise ValueError(
                f"{audit.folder} is not an audit of the captions given: it was made of the run "
                f"{audit.run_name!r}, or of that run before it changed; give that run with "
                "--captions, or make the audit anew with `hoc audit`"
            )
    return result


def _dropped_by(audits: Sequence[Audit]) -> dict[tuple[str, str], set[str]]:
    """(sample_id, prompt_id) of the captions that audits of one run drop, and the rules."""
    dropped: dict[tuple[str, str], set[str]] = {}
    for audit in audits:
        for key, rules in audit.dropped().items():
            dropped.setdefault(key, set()).update(rules)
    return dropped


def _collect(
    table: pa.Table,
    statuses: set[str],
    dropped: Mapping[tuple[str, str], set[str]],
    result: dict[str, SampleCaptions],
) -> None:
    for row in table.to_pylist():
        sample = result.setdefault(row[schema.SAMPLE_ID], SampleCaptions())
        if row[schema.STATUS] in statuses and row[schema.CAPTION]:
            rules = dropped.get((row[schema.SAMPLE_ID], row[schema.PROMPT_ID]))
            if rules:
                sample.dropped.update(rules)
                continue
            sample.captions.add(
                Caption(row[schema.PROMPT_ID], row[schema.REQUEST_KEY], row[schema.CAPTION])
            )
            if row[schema.NUM_FRAMES] is not None:
                sample.frame_counts.add(row[schema.NUM_FRAMES])
        else:
            sample.unused.add(row[schema.STATUS])


def why_uncaptioned(
    captions: Mapping[str, SampleCaptions], sample_id: str, prompts: Sequence[str]
) -> str | None:
    """Why a sample lacks a usable caption (one of each of `prompts`, if given); None: it has."""
    found = captions.get(sample_id)
    if found is None:
        return "no caption run has this sample" + (" under these prompts" if prompts else "")
    have = {caption.prompt_id for caption in found.captions}
    lacking = [prompt for prompt in prompts if prompt not in have]
    if have and not lacking:
        return None
    why = [f"no caption of prompt {', '.join(lacking)}"] if have else []
    if found.unused:
        why.append(f"its captions have status {', '.join(sorted(found.unused))}")
    if found.dropped:
        why.append(f"dropped by audit: {', '.join(sorted(found.dropped))}")
    return "; ".join(why)


def describe_captions(folder: Path) -> dict[str, Any]:
    """Name, number of rows and a hash over the shards of a caption run."""
    shards = read_index(folder / "index.json", made_by="hoc caption")
    return {
        "name": folder.resolve().name,
        "num_rows": sum(shard.num_rows for shard in shards),
        "shards_sha256": shards_sha256(shards),
    }


def describe_audit(audit: Audit) -> dict[str, Any]:
    """An audit stands beside the captions, under the key by which a build tells its input apart."""
    return {
        "name": audit.folder.resolve().name,
        "audit_of": audit.run_name,
        "drop_rules": list(audit.drop_rules),
        "num_dropped": audit.num_dropped,
        "shards_sha256": audit.sha256,
    }
