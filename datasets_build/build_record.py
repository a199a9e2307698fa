"""What stands beside the parts of a data set, dataset.json last, and whether it is there already.

dataset.json tells where the rows came from, how they were made and what each file's hash is; only
its "environment" tells two builds of the same request apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_build import schema
from datasets_build.caption_runs import Caption
from datasets_build.card import CARD_FILE, write_card
from datasets_build.config import BuildConfig
from datasets_build.dataset import DATASET_FILE, MADE_BY, open_dataset
from datasets_build.join import LeftOut, Plan
from datasets_build.manifest import (
    differing_parts,
    environment,
    fingerprint,
    read_json,
    sha256_bytes,
    sha256_file,
    write_bytes_atomic,
    write_json,
)
from datasets_build.parts import PartJob, PartResult, content_sha256
from datasets_build.protocol_files import FOLDER as PROTOCOLS_FOLDER
from datasets_build.protocol_files import write_protocol
from datasets_build.protocols import PROTOCOLS, count_splits
from datasets_build.shards import index_entries

LEFT_OUT_FILE = "left_out.parquet"
HELD_OUT_FILE = "held-out-captions.parquet"
JOURNAL_FILE = "build-journal.jsonl"


def request_of(config: BuildConfig, plan: Plan) -> dict[str, Any]:
    """What decides the rows: two builds with equal requests give equal part files."""
    inventory = plan.inventory
    return {
        "schema_version": schema.DATASET_SCHEMA_VERSION,
        "name": config.name,
        "format": inventory.format,
        "family": inventory.family,
        "skeleton": inventory.skeleton.as_json(),
        "class_names": inventory.class_names and list(inventory.class_names),
        "skeletons": [source["listing_sha256"] for source in inventory.sources],
        "captions": [source["shards_sha256"] for source in plan.caption_sources],
        "own_protocols": {
            protocol.name: protocol.fingerprint
            for protocol in plan.protocols
            if protocol.name not in PROTOCOLS
        },
        "options": {
            "classes": config.classes,
            "prompts": sorted(config.prompts),
            "hold_out": sorted(config.hold_out),
            "keep_uncaptioned": config.keep_uncaptioned,
            "accept_truncated": config.accept_truncated,
            "frame_tolerance": config.frame_tolerance,
            "use_missing_list": config.use_missing_list,
            "bodies": config.bodies.model_dump(),
            "shard_rows": config.shard_rows,
        },
    }


def write_record(
    config: BuildConfig,
    plan: Plan,
    jobs: Sequence[PartJob],
    parts: Sequence[PartResult],
    left_out: Sequence[LeftOut],
) -> dict[str, Any]:
    """Write what stands beside the parts, and dataset.json last of all; its content.

    Part files of an earlier try that are no longer any are removed.
    """
    request = request_of(config, plan)
    shards = [part.shard for part in parts if part.shard is not None]
    inventory = plan.inventory
    unread = {entry.sample_id for part in parts for entry in part.left_out}
    samples = [sample for sample in plan.samples if sample.sample_id not in unread]
    counts = count_splits([sample.ids for sample in samples], plan.protocols)
    prompts = Counter(caption.prompt_id for sample in samples for caption in sample.captions)
    content = _content(part.content_sha256 for part in parts)
    fingerprint_parts = {"request": request, "shards": [shard.sha256 for shard in shards]}
    listed = {shard.file for shard in shards}
    for path in config.out.glob("part-*.arrow*"):
        if path.name not in listed:
            path.unlink()
    held_out = [(name, caption) for name, caption in plan.held_out if name not in unread]
    if held_out:
        write_held_out(config.out / HELD_OUT_FILE, held_out)
    else:
        (config.out / HELD_OUT_FILE).unlink(missing_ok=True)
    for protocol in plan.protocols:
        if protocol.name not in PROTOCOLS:
            write_protocol(config.out / PROTOCOLS_FOLDER, protocol)
    record = {
        "schema_version": schema.DATASET_SCHEMA_VERSION,
        "name": config.name,
        "format": inventory.format,
        "family": inventory.family,
        "skeleton": inventory.skeleton.as_json(),
        "classes": [asdict(entry) for entry in plan.classes],
        "options": request["options"],
        "allow": sorted(config.allow),
        "sources": {
            "skeletons": inventory.sources,
            "captions": plan.caption_sources,
            "content_sha256": content,
        },
        "counts": {
            "num_found": len(inventory.samples) + len(inventory.nameless),
            "num_rows": len(samples),
            "num_frames": sum(part.num_frames for part in parts),
            "num_two_bodies": sum(part.num_two_bodies for part in parts),
            "num_captions": sum(part.num_captions for part in parts),
            "num_held_out_captions": len(held_out),
            "num_planned_uncaptioned": plan.num_uncaptioned,
            "prompts": dict(sorted(prompts.items())),
            "left_out": dict(sorted(Counter(entry.reason for entry in left_out).items())),
            "protocols": [asdict(c) for c in counts if c.num_outside < len(samples)],
        },
        "fingerprint_parts": fingerprint_parts,
        "fingerprint": fingerprint(fingerprint_parts),
        "shards": index_entries(shards),
        "files": _hashes(config.out),
        "environment": {**environment(), "sources_stamp": _stamp(jobs)},
    }
    write_card(config.out, record)
    write_json(config.out / DATASET_FILE, record)
    return record


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of the files beside the parts; not of the card, which people edit."""
    paths = [folder / LEFT_OUT_FILE, folder / HELD_OUT_FILE]
    paths += sorted((folder / PROTOCOLS_FOLDER).glob("*.t?*"))
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in paths if path.is_file()
    }


def _stamp(jobs: Sequence[PartJob]) -> str:
    """One hash over what the parts are made of, by names, sizes and times."""
    return sha256_bytes("".join(job.stamp for job in jobs).encode())


def finished_before(
    config: BuildConfig, plan: Plan, jobs: Sequence[PartJob]
) -> dict[str, Any] | None:
    """dataset.json of an earlier, finished build of the same request; None where there is none.

    Where the times of source files differ from then, their content is compared. A card that is gone
    is written anew.

    Raises:
        ValueError: the folder holds a build of something else, its files are not those that it
            lists, or the content of the sources has changed.
    """
    folder = config.out
    path = folder / DATASET_FILE
    if not path.is_file():
        return None
    dataset = open_dataset(folder)
    record: dict[str, Any] = read_json(path, made_by=MADE_BY)
    names = differing_parts(
        request_of(config, plan), record.get("fingerprint_parts", {}).get("request", {})
    )
    if names:
        raise ValueError(
            f"{folder} holds a finished data set built from another request, different in: "
            f"{', '.join(names)}; choose another --out, or remove that folder to build anew"
        )
    problems = dataset.problems()
    if problems:
        raise ValueError(
            f"{folder} is not what its {DATASET_FILE} lists ({problems[0]}); remove it and build "
            "anew"
        )
    is_touched = record["environment"].get("sources_stamp") != _stamp(jobs)
    if is_touched and not plan.inventory.packed:
        content = _content(content_sha256(job) for job in jobs)
        if content != record["sources"]["content_sha256"]:
            raise ValueError(
                f"{folder} was built from other content: files of the sources have changed since; "
                "choose another --out, or remove that folder to build anew"
            )
    if not (folder / CARD_FILE).is_file():
        write_card(folder, record)
    return record


def refuse_strange_folder(folder: Path, sources: Sequence[Path]) -> None:
    """Stop before something that is not ours is overwritten, or taken for a source.

    Raises:
        ValueError: the folder holds other things than a data set or an unfinished build, or lies in
            a folder of sources.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder for the data set with --out")
    around = [folder.resolve(), *folder.resolve().parents]
    inside = [source for source in sources if source.is_dir() and source.resolve() in around]
    if inside:
        raise ValueError(f"{folder} lies in the sources, {inside[0]}; give another --out")
    is_ours = any((folder / name).is_file() for name in (DATASET_FILE, JOURNAL_FILE))
    strange = [path.name for path in folder.glob("[!.]*")] if not is_ours else []
    if strange:
        raise ValueError(
            f"{folder} is not empty and holds no data set (but {min(strange)}); give a new folder "
            "with --out"
        )


def _content(hashes: Iterable[str]) -> str:
    return sha256_bytes("".join(hashes).encode())


def write_left_out(path: Path, left_out: Sequence[LeftOut]) -> None:
    """left_out.parquet: sample_id, reason, detail, sorted."""
    rows = sorted(left_out, key=lambda entry: (entry.sample_id, entry.reason, entry.detail))
    columns: dict[str, list[str]] = {
        schema.SAMPLE_ID: [entry.sample_id for entry in rows],
        schema.REASON: [entry.reason for entry in rows],
        "detail": [entry.detail for entry in rows],
    }
    _write_parquet(path, columns)


def write_held_out(path: Path, held_out: Sequence[tuple[str, Caption]]) -> None:
    """held-out-captions.parquet: sample_id, prompt_id, text, request_key, sorted.

    Nothing of this project reads it: it is there for whoever wants to look at the captions of test
    samples.
    """
    rows = sorted(held_out)
    columns = {
        schema.SAMPLE_ID: [sample_id for sample_id, _ in rows],
        schema.PROMPT_ID: [caption.prompt_id for _, caption in rows],
        schema.TEXT: [caption.text for _, caption in rows],
        schema.REQUEST_KEY: [caption.request_key for _, caption in rows],
    }
    _write_parquet(path, columns)


def _write_parquet(path: Path, columns: Mapping[str, list[str]]) -> None:
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes_atomic(path, sink.getvalue().to_pybytes())
