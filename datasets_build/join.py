"""Which skeletons meet which captions: the plan of a build, and a list of what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets_build import schema
from datasets_build.audits import Audit, read_audit, shards_sha256
from datasets_build.config import BuildConfig, LeftOutReason
from datasets_build.formats import SkeletonFormat, find_clips
from datasets_build.manifest import canonical_json, sha256_bytes
from datasets_build.protocols import NTU, SampleIds, class_list, ids_of_name, listed_missing
from datasets_build.shards import iterate_shards, read_index
from datasets_build.sources import ClipFile, leaves_its_folder


@dataclass(frozen=True)
class LeftOut:
    """A sample that does not enter the data set."""

    sample_id: str
    reason: LeftOutReason
    detail: str


@dataclass(frozen=True, order=True)
class Caption:
    """One caption of a sample, as the data set's `captions` column holds it."""

    prompt_id: str
    request_key: str
    text: str


@dataclass
class SampleCaptions:
    """What the caption runs say about one sample."""

    captions: set[Caption] = field(default_factory=set)
    frame_counts: set[int] = field(default_factory=set)  # frames of the captioned video
    unused: set[str] = field(default_factory=set)  # statuses of captions that are not taken
    dropped: set[str] = field(default_factory=set)  # rules by which an audit dropped captions


@dataclass(frozen=True)
class PlannedSample:
    """A skeleton file that should become a row."""

    sample_id: str
    file: ClipFile
    ids: SampleIds
    label: int
    captions: tuple[Caption, ...]
    video_frames: tuple[int, ...]


@dataclass(frozen=True)
class ClassEntry:
    """One class of a data set."""

    label: int
    action_id: int
    name: str


@dataclass(frozen=True)
class Plan:
    """What a build will do, before any skeleton is opened.

    Attributes:
        format: the format of the skeletons.
        samples: what to read, sorted by sample_id.
        left_out: what is known not to enter, sorted.
        classes: in label order.
        num_files: skeleton files found.
        num_uncaptioned: planned samples without a caption, although caption runs were given.
        sources: provenance for dataset.json: names, counts and hashes, no absolute paths.
    """

    format: SkeletonFormat
    samples: list[PlannedSample]
    left_out: list[LeftOut]
    classes: list[ClassEntry]
    num_files: int
    num_uncaptioned: int
    sources: dict[str, Any]


def make_plan(config: BuildConfig) -> Plan:
    """List the skeletons, read the captions and join them by sample_id.

    Raises:
        FileNotFoundError: a source or a caption run is not there.
        ValueError: a source holds no skeletons, a caption run cannot be read, or an audit is not of
            one of the caption runs.
    """
    skeleton_format, files = find_clips(config.skeletons, config.format)
    audits = [read_audit(folder) for folder in config.audits]
    captions = read_captions(
        config.captions, accept_truncated=config.accept_truncated, audits=audits
    )
    left_out: list[LeftOut] = []
    clips = _named_once(files, skeleton_format, left_out)
    missing = listed_missing(skeleton_format.name) if config.use_missing_list else frozenset()
    for sample_id in sorted(captions.keys() - clips.keys() - missing):
        left_out.append(
            LeftOut(sample_id, "no-skeleton", "captioned, but no skeleton file has this name")
        )
    wanted: list[str] = []
    num_uncaptioned = 0
    for sample_id in sorted(clips):
        if sample_id in missing:
            detail = "on the official list of missing or faulty skeletons"
            left_out.append(LeftOut(sample_id, "listed-missing", detail))
        elif config.captions and not _usable(captions, sample_id):
            if config.keep_uncaptioned:
                wanted.append(sample_id)
                num_uncaptioned += 1
            else:
                left_out.append(LeftOut(sample_id, "no-caption", _why(captions, sample_id)))
        else:
            wanted.append(sample_id)
    ids_of = {sample_id: _ids(sample_id) for sample_id in wanted}
    classes = _classes(
        skeleton_format.name, {ids.action_id for ids in ids_of.values()}, config.classes
    )
    label_of = {entry.action_id: entry.label for entry in classes}
    samples = []
    for sample_id in wanted:
        ids = ids_of[sample_id]
        if ids.action_id not in label_of:
            detail = f"action {ids.action_id} is not one of the {len(classes)} classes"
            left_out.append(LeftOut(sample_id, "bad-name", detail))
            continue
        found = captions.get(sample_id, SampleCaptions())
        samples.append(
            PlannedSample(
                sample_id,
                clips[sample_id],
                ids,
                label_of[ids.action_id],
                captions=tuple(sorted(found.captions)),
                video_frames=tuple(sorted(found.frame_counts)),
            )
        )
    return Plan(
        skeleton_format,
        samples,
        sorted(left_out, key=lambda entry: (entry.sample_id, entry.reason, entry.detail)),
        classes,
        num_files=len(files),
        num_uncaptioned=num_uncaptioned,
        sources={
            "skeletons": _describe_skeletons(config.skeletons, files),
            "captions": [
                *(_describe_captions(folder) for folder in config.captions),
                *(_describe_audit(audit) for audit in audits),
            ],
        },
    )


def read_captions(
    folders: Sequence[Path], *, accept_truncated: bool = False, audits: Sequence[Audit] = ()
) -> dict[str, SampleCaptions]:
    """The captions of finished runs by sample_id.

    Args:
        folders: caption run folders; each has an index.json, which is written last.
        accept_truncated: take captions with status "truncated" beside "success".
        audits: of some of the runs; the captions that they drop are not taken.

    Raises:
        FileNotFoundError: a folder has no index.json: its run has not finished.
        ValueError: a shard is not readable, or lacks a column; or an audit is of no run given.
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
            _collect(table.select(columns), statuses, dropped, result)
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


def _named_once(
    files: Sequence[ClipFile], skeleton_format: SkeletonFormat, left_out: list[LeftOut]
) -> dict[str, ClipFile]:
    """sample_id to its first file; bad names and second files go to `left_out`."""
    clips: dict[str, ClipFile] = {}
    for file in files:
        sample_id = skeleton_format.sample_id(file.name)
        where = f"{file.container.name}: {file.member}"
        if file.is_zipped and leaves_its_folder(file.member):
            left_out.append(
                LeftOut(sample_id or file.stem, "bad-name", f"{where} points outside the zip")
            )
        elif sample_id is None:
            detail = f"{where} is not named as {skeleton_format.name} files are"
            left_out.append(LeftOut(file.stem, "bad-name", detail))
        elif sample_id in clips:
            first = clips[sample_id]
            detail = f"{where} comes after {first.container.name}: {first.member}"
            left_out.append(LeftOut(sample_id, "duplicate", detail))
        else:
            clips[sample_id] = file
    return clips


def _ids(sample_id: str) -> SampleIds:
    ids = ids_of_name(sample_id)
    assert ids is not None, sample_id  # sample_ids are made by the same parsers
    return ids


def _usable(captions: dict[str, SampleCaptions], sample_id: str) -> bool:
    return sample_id in captions and bool(captions[sample_id].captions)


def _why(captions: dict[str, SampleCaptions], sample_id: str) -> str:
    if sample_id not in captions:
        return "no caption run has this sample"
    found = captions[sample_id]
    why = []
    if found.unused:
        why.append(f"its captions have status {', '.join(sorted(found.unused))}")
    if found.dropped:
        why.append(f"dropped by audit: {', '.join(sorted(found.dropped))}")
    return "; ".join(why)


def _classes(dataset: str, action_ids: set[int], which: str) -> list[ClassEntry]:
    """The class list: the benchmark's, or of the actions that are present."""
    num_classes = 60 if dataset == NTU and max(action_ids, default=0) <= 60 else 120
    named = class_list(dataset, num_classes)
    if which == "present":
        named = [(action_id, name) for action_id, name in named if action_id in action_ids]
    return [ClassEntry(label, action_id, name) for label, (action_id, name) in enumerate(named)]


def _describe_skeletons(paths: Sequence[Path], files: Sequence[ClipFile]) -> list[dict[str, Any]]:
    """Name, number of files and a hash over names, sizes and zip checksums of every source."""
    entries = []
    for path in paths:
        own = [f for f in files if f.container == path]
        listing = canonical_json([[f.member, f.num_bytes, f.crc32] for f in own])
        entries.append(
            {
                "name": path.resolve().name,
                "num_files": len(own),
                "num_bytes": sum(f.num_bytes for f in own),
                "listing_sha256": sha256_bytes(listing.encode()),
            }
        )
    return entries


def _describe_captions(folder: Path) -> dict[str, Any]:
    shards = read_index(folder / "index.json", made_by="hoc caption")
    return {
        "name": folder.resolve().name,
        "num_rows": sum(shard.num_rows for shard in shards),
        "shards_sha256": shards_sha256(shards),
    }


def _describe_audit(audit: Audit) -> dict[str, Any]:
    """An audit stands beside the captions, under the key by which a build tells its input apart."""
    return {
        "name": audit.folder.resolve().name,
        "audit_of": audit.run_name,
        "drop_rules": list(audit.drop_rules),
        "num_dropped": audit.num_dropped,
        "shards_sha256": audit.sha256,
    }
