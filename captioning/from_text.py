"""`hoc caption --from-text`: texts that people or language models wrote, as a caption run.

Each sample gets the texts of its class, or its own; the rows say which file they are from. The
folder holds the same shards, index and manifest as a run of a model, so every later stage takes it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa

from captioning.drawing import collect_skeletons
from captioning.journal import FAILED_STATUSES
from captioning.plan import MADE_BY, PLAN_FILE
from captioning.results import INDEX_FILE, MANIFEST_FILE, NUM_LISTED_FAILURES, shard_path
from captioning.run import CaptionSummary, check_output
from captioning.selection import choose, ids_from_names, parse_filters
from captioning.text_rows import Row, classes_of, prepare, rows_of
from datasets_build import schema
from datasets_build.locks import locked
from datasets_build.manifest import (
    differing_parts,
    environment,
    fingerprint,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
)
from datasets_build.progress import Progress
from datasets_build.protocols import ids_of_name, read_names
from datasets_build.shards import (
    ShardInfo,
    check_shards,
    index_entries,
    iterate_shards,
    read_index,
    write_shard,
)
from datasets_build.text_tables import ClassNames, TextTable, read_texts, sample_id_of

KIND = "text"  # the manifest's part "kind"
ROWS_PER_SHARD = 1024
_VERSION = 1  # of the rule by which texts become rows; part of the fingerprint
_NUM_NAMED = 5  # ids that an error message shows


def caption_from_text(
    table_files: Sequence[Path],
    samples: Sequence[str],
    out: Path,
    *,
    prompt_id: str | None = None,
    source_note: str | None = None,
    filters: Sequence[str] = (),
    progress: Progress,
) -> CaptionSummary:
    """Write a caption run of texts into `out`; the same call on a finished run does nothing.

    A sample without any text gets a row with status "error", a text without a word one with status
    "empty", each with its reason.

    Args:
        table_files: see text_tables.read_texts.
        samples: whose captions they become: lists of names (.txt, .txt.gz), folders or zips of
            skeletons, data sets, caption runs. May be empty where the tables have sample_ids.
        out: the run's folder.
        prompt_id: of the captions whose table has no column `prompt_id`; None takes "text", or with
            several tables the name of each without its suffix. Where one class or sample has more
            than one such text, all of them are numbered: "text-1", "text-2".
        source_note: where the texts are from, for the manifest: author, model, licence.
        filters: of the samples; see inputs.collect_videos.
        progress: is told a stage "texts".

    Raises:
        FileNotFoundError: a table or a source of samples does not exist.
        ValueError: a table is faulty, names an unknown class or sample, or two captions of one
            sample would have one prompt_id; or `out` holds another run.
    """
    started = time.monotonic()
    check_output(out)
    tables, classes, known = _gather(table_files, samples, progress)
    kept = choose(known, map(ids_from_names, known), filters=parse_filters(filters))
    sample_ids = [known[position] for position in kept]
    texts = prepare(tables, classes, prompt_id=prompt_id)
    parts = {
        "kind": KIND,
        "schema_version": schema.SCHEMA_VERSION,
        "text_version": _VERSION,
        "tables": [{"name": table.path.name, "sha256": table.sha256} for table in tables],
        "prompt_id": prompt_id,
        "source_note": source_note,
        "samples": _hash_of(sample_ids),
        "rows_per_shard": ROWS_PER_SHARD,
    }
    config = {
        "from_text": [str(table.path) for table in tables],
        "samples": [os.path.abspath(os.path.expanduser(source)) for source in samples],
        "prompt_id": prompt_id,
        "source_note": source_note,
        "filters": list(filters),
    }
    forms = {str(table.path): table.form for table in tables}
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / "lock", wait=True):
        _take_folder(out, parts)
        was_finished = _is_whole(out)
        if not was_finished:
            shards, result = _write_shards(out, rows_of(texts, sample_ids), progress)
            result["num_videos"] = len(sample_ids)
            record = {"config": config, "parts": parts, "joined_by": forms, "result": result}
            _write_index(out, record, shards)
        return _summary(out, started=started, was_finished=was_finished)


def sample_ids_in(source: str) -> list[str]:
    """The sample_ids of a list of names, a data set, a caption run, or skeletons.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is none of these, or a line of a list is no name.
    """
    path = Path(source).expanduser()
    for index in ("dataset.json", INDEX_FILE):
        if (path / index).is_file():
            shards = read_index(path / index, made_by="hoc")
            tables = iterate_shards(path, shards, columns=[schema.SAMPLE_ID])
            return [name for table in tables for name in table[schema.SAMPLE_ID].to_pylist()]
    if path.name.endswith((".txt", ".txt.gz")):
        names = [sample_id_of(line) for line in read_names(path) if not line.startswith("#")]
        odd = [name for name in names if ids_of_name(name) is None]
        if odd:
            raise ValueError(
                f"{path}: {len(odd)} of {len(names)} lines are no NTU or NW-UCLA names: "
                f"{', '.join(map(repr, odd[:_NUM_NAMED]))}"
            )
        return names
    if path.is_file() and path.suffix.lower() != ".zip":
        raise ValueError(
            f"{source} names no samples; give a list of names (.txt, .txt.gz), a folder or zip of "
            "skeletons, a data set or a caption run"
        )
    return [video.sample_id for video in collect_skeletons([source])]


def is_text_run(folder: Path) -> bool:
    """Whether a folder that has a plan.json or manifest.json is a run of texts."""
    for name in (MANIFEST_FILE, PLAN_FILE):
        if (folder / name).is_file():
            parts = read_json(folder / name, made_by=MADE_BY).get("parts", {})
            return bool(parts.get("kind") == KIND)
    return False


def verify_text(folder: Path) -> list[str]:
    """Recompute every hash of a run of texts and, where its tables are still there, every row.

    Returns:
        What is wrong, a sentence each; empty when all is as the manifest says.

    Raises:
        FileNotFoundError: the folder holds no finished run.
    """
    index = read_json(folder / INDEX_FILE, made_by=MADE_BY)
    manifest = read_json(folder / MANIFEST_FILE, made_by=MADE_BY)
    parts = manifest["parts"]
    problems = []
    if fingerprint(parts) != manifest["fingerprint"]:
        problems.append("the parts in manifest.json do not give its fingerprint")
    if index["fingerprint"] != manifest["fingerprint"]:
        problems.append("index.json and manifest.json have different fingerprints")
    if index["shards"] != manifest["shards"]:
        problems.append("index.json and manifest.json list different shards")
    shards = read_index(folder / INDEX_FILE, made_by=MADE_BY)
    problems += check_shards(folder, shards)
    paths = [Path(path) for path in manifest["config"]["from_text"]]
    changed = [
        f"{path} has changed since its texts were taken"
        for path, table in zip(paths, parts["tables"], strict=True)
        if path.is_file() and sha256_file(path) != table["sha256"]
    ]
    if problems or changed:
        return problems + changed
    rows = [row for table in iterate_shards(folder, shards) for row in table.to_pylist()]
    sample_ids = list(dict.fromkeys(row[schema.SAMPLE_ID] for row in rows))
    if _hash_of(sample_ids) != parts["samples"]:
        problems.append("the shards hold other samples than the manifest's part samples says")
    if not problems and all(path.is_file() for path in paths):
        classes = classes_of(sample_ids) if manifest["config"]["samples"] else None
        tables = [read_texts(path, classes) for path in paths]
        texts = prepare(tables, classes, prompt_id=parts["prompt_id"])
        for number, (row, made) in enumerate(zip_longest(rows, rows_of(texts, sample_ids))):
            if row != made:
                name = (row or made)[schema.SAMPLE_ID]
                return [f"row {number} ({name}) is not what its table gives"]
    return problems


# ---- what is given ----


def _gather(
    table_files: Sequence[Path], samples: Sequence[str], progress: Progress
) -> tuple[list[TextTable], ClassNames | None, list[str]]:
    """The tables, the classes of the samples, and the sample_ids in order."""
    if not table_files:
        raise ValueError("no table of texts was given; name one with --from-text")
    sample_ids = sorted(set(chain.from_iterable(map(sample_ids_in, samples))))
    classes = classes_of(sample_ids)
    tables = [read_texts(path, classes) for path in table_files]
    for table in tables:
        if table.form == "label order":
            progress.message(
                f"{table.path.name}: its lines begin with no class names; "
                f"line n is taken as the text of class n of {len(table.texts)}"
            )
    if not samples:  # then the tables have sample_ids, else they could not be read
        sample_ids = sorted({str(text.key[1]) for table in tables for text in table.texts})
    _refuse_unknown_samples(tables, sample_ids)
    return tables, classes, sample_ids


def _refuse_unknown_samples(tables: Sequence[TextTable], sample_ids: Sequence[str]) -> None:
    known = set(sample_ids)
    for table in tables:
        odd = [t for t in table.texts if t.key[0] == "sample" and t.key[1] not in known]
        if odd:
            raise ValueError(
                f"{len(odd)} of {len(table.texts)} texts are of none of the {len(known)} samples: "
                + ", ".join(f"{text.key[1]} ({table.place(text)})" for text in odd[:_NUM_NAMED])
                + "; give those samples too with --samples, or take the rows out"
            )


def _hash_of(sample_ids: Sequence[str]) -> str:
    return sha256_bytes("\n".join(sample_ids).encode())


# ---- the folder ----


def _take_folder(folder: Path, parts: dict[str, Any]) -> None:
    """Write plan.json, or check that the folder's run is this one."""
    path = folder / PLAN_FILE
    if path.is_file():
        theirs = read_json(path, made_by=MADE_BY)["parts"]
        if fingerprint(theirs) != fingerprint(parts):
            names = ", ".join(differing_parts(parts, theirs))
            raise ValueError(
                f"{folder} holds a caption run with other texts, samples or settings (different: "
                f"{names}); give another output folder, or delete that one"
            )
        return
    write_json(path, {"fingerprint": fingerprint(parts), "parts": parts})


def _is_whole(folder: Path) -> bool:
    index = folder / INDEX_FILE
    if not index.is_file() or not (folder / MANIFEST_FILE).is_file():
        return False
    return not check_shards(folder, read_index(index, made_by=MADE_BY))


def _write_shards(
    folder: Path, rows: Iterator[Row], progress: Progress
) -> tuple[list[ShardInfo], dict[str, Any]]:
    """All shards, and the manifest's "result" but for the number of samples."""
    shards: list[ShardInfo] = []
    counts: Counter[str] = Counter()
    failures: list[list[str]] = []
    progress.start("texts", None, unit="rows")
    while chunk := list(islice(rows, ROWS_PER_SHARD)):
        table = pa.Table.from_pylist(chunk, schema=schema.CAPTION_SCHEMA)
        shards.append(write_shard(shard_path(folder, len(shards)), table))
        counts.update(row[schema.STATUS] for row in chunk)
        failed = [row for row in chunk if row[schema.STATUS] in FAILED_STATUSES]
        failures += [
            [row[schema.SAMPLE_ID], row[schema.STATUS], row[schema.REASON]]
            for row in failed[: NUM_LISTED_FAILURES - len(failures)]
        ]
        progress.advance(len(chunk), num_failed=len(failed))
    progress.finish()
    return shards, {
        "num_rows": sum(counts.values()),
        "counts": dict(sorted(counts.items())),
        "failures": failures,
    }


def _write_index(folder: Path, record: dict[str, Any], shards: Sequence[ShardInfo]) -> None:
    """The manifest and then the index."""
    shared = {"fingerprint": fingerprint(record["parts"]), "shards": index_entries(shards)}
    manifest = {
        **record,
        **shared,
        "made_by": MADE_BY,
        "environment": environment(),
        "hardware": [],
        "tokens": {"prompt": 0, "generated": 0},
    }
    write_json(folder / MANIFEST_FILE, manifest)
    num_rows = sum(shard.num_rows for shard in shards)
    index = {**shared, "schema_version": schema.SCHEMA_VERSION, "num_rows": num_rows}
    write_json(folder / INDEX_FILE, index)


def _summary(folder: Path, *, started: float, was_finished: bool) -> CaptionSummary:
    manifest = read_json(folder / MANIFEST_FILE, made_by=MADE_BY)
    result = manifest["result"]
    return CaptionSummary(
        folder=folder,
        index=folder / INDEX_FILE,
        manifest=folder / MANIFEST_FILE,
        num_videos=result["num_videos"],
        num_unusable=0,
        num_shards=len(manifest["shards"]),
        num_rows=result["num_rows"],
        counts=result["counts"],
        failures=[(name, status, reason) for name, status, reason in result["failures"]],
        missing_shards=[],
        was_finished=was_finished,
        seconds=time.monotonic() - started,
        clips_per_s=None,
        waited_share=None,
    )
