"""`hoc probe`: what videos really hold, and which reader would return wrong frames of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import console
from cli.options import JsonOption
from datasets_build.child_processes import available_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from captioning.inputs import Video

_NUM_SHOWN = 40  # our choice: more videos than that are summed up instead
_KIND = ("codec", "size", "fps", "b-frames")


def probe(
    videos: Annotated[
        list[str],
        typer.Argument(
            help="Folders, globs, videos, lists (.txt, .csv, .parquet, .jsonl) or caption runs.",
        ),
    ],
    audit_reader: Annotated[
        str | None,
        typer.Option(
            help="Ask this reader for evenly spaced frames and compare with what it decodes in "
            "order: decord, opencv or torchcodec.",
        ),
    ] = None,
    num_frames: Annotated[
        int, typer.Option(min=2, help="With --audit-reader: frames a video.")
    ] = 16,
    num_tries: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --audit-reader: how many times to ask, as readers race. [default: 5]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.parquet", help="Write all of it, a row a video."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keep results in this file, so that a stopped or repeated call goes on; the "
            "probe.jsonl of a caption run fits."
        ),
    ] = None,
    filter_by: Annotated[
        list[str] | None,
        typer.Option("--filter", help="As for hoc caption, e.g. action=1-60; repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding processes; default: one a core.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds a video may take before it is given up.")
    ] = 120.0,
    allow_truncated: Annotated[
        bool,
        typer.Option(
            "--allow-truncated/--no-truncated", help="A file that ends early is no problem."
        ),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Decode videos from end to end: true frame counts, rates, sizes, or why one is unreadable.

    Exit code 0, whatever is found. With --audit-reader it tells, for each file, which frames that
    reader would have returned wrong, and which ones came instead.
    """
    from captioning.decode_pool import DecodePool
    from captioning.inputs import collect_videos
    from captioning.probe import probe_videos
    from captioning.reader_audit import NUM_TRIES, audit_videos, check_seeking_reader

    if audit_reader is not None:
        check_seeking_reader(audit_reader)
    if out is not None and out.suffix != ".parquet":
        raise ValueError(f"--out {out} is to be a Parquet file; give a name that ends in .parquet")
    chosen = collect_videos(videos, filters=filter_by or (), limit=limit)
    with (
        console.progress() as progress,
        DecodePool(workers or available_cores(), timeout_s=timeout_s) as pool,
    ):
        probes = probe_videos(chosen, cache, pool, progress, allow_truncated=allow_truncated)
        audits = None
        if audit_reader is not None:
            audits = audit_videos(
                chosen,
                probes,
                pool,
                progress,
                reader=audit_reader,
                num_frames=num_frames,
                num_tries=num_tries or NUM_TRIES,
            )
    table = _as_table(chosen, probes, audits)
    if out is not None:
        _write(table, out)
    if json_output:
        summary = {"num_videos": len(chosen), "audited_reader": audit_reader}
        console.print_json({**summary, "videos": table.to_pylist()})
    else:
        _print(table, audit_reader, out)


def _as_table(videos: Sequence[Video], probes: pa.Table, audits: pa.Table | None) -> pa.Table:
    """Ids, paths, probes and audits side by side; bytes of a path that are no UTF-8 spelled out."""
    import os

    import pyarrow as pa

    columns = {
        "sample_id": pa.array([video.sample_id for video in videos], pa.string()),
        "path": pa.array(
            [os.fsencode(video.path).decode("utf-8", "backslashreplace") for video in videos],
            pa.string(),
        ),
        **{name: probes[name] for name in probes.column_names},
    }
    if audits is not None:
        columns |= {f"audit_{name}": audits[name] for name in audits.column_names}
    return pa.table(columns)


def _write(table: pa.Table, path: Path) -> None:
    from io import BytesIO

    import pyarrow.parquet as pq

    from datasets_build.manifest import write_bytes_atomic

    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, buffer.getvalue())


def _print(table: pa.Table, reader: str | None, out: Path | None) -> None:
    """A line for each video, or for each kind when there are many; then whatever is wrong."""
    rows = table.to_pylist()
    if len(rows) <= _NUM_SHOWN:
        columns = ["video", *_KIND, "frames", "header says"]
        cells = [
            (row["sample_id"], *_kind_of(row), row["num_frames"], row["claimed_frames"])
            for row in rows
        ]
    else:
        columns = [*_KIND, "problem", "videos"]
        kinds = Counter((*_kind_of(row), row["problem_status"]) for row in rows)
        cells = [(*kind, f"{count:,}") for kind, count in kinds.most_common(_NUM_SHOWN)]
    numeric = 2 if len(rows) <= _NUM_SHOWN else 1
    title = f"{len(rows):,} videos"
    console.print_table(title, columns, [list(map(_cell, row)) for row in cells], numeric=numeric)
    faults = [fault for row in rows for fault in _faults_of(row, reader)]
    for fault in faults[:_NUM_SHOWN]:
        console.out.print(f"  {fault}")
    if len(faults) > _NUM_SHOWN:
        num_more = len(faults) - _NUM_SHOWN
        console.out.print(f"  ... and {num_more:,} more; --out FILE.parquet writes all of them")
    if reader is not None:
        num_audited = sum(row["audit_num_asked"] is not None for row in rows)
        num_wrong = sum(bool(row["audit_wrong"]) for row in rows)
        console.out.print(
            f"{reader} returned wrong frames of {num_wrong:,} of {num_audited:,} "
            "videos; its answers may change from try to try (--num-tries)."
        )
    if out is not None:
        console.print_paths({"table": out})


def _kind_of(row: dict[str, Any]) -> tuple[str | None, ...]:
    size = f"{row['width']} x {row['height']}" if row["width"] else None
    fps = f"{row['fps']:.5g}" if row["fps"] else None
    return row["codec"], size, fps, {True: "yes", False: "no"}.get(row["has_b_frames"])


def _faults_of(row: dict[str, Any], reader: str | None) -> Iterator[str]:
    """What is wrong with a video, and with what a reader gave of it, a line each."""
    name = _cell(row["sample_id"])
    if row["problem"] is not None:
        yield f"{name}: {_cell(row['problem'])}"
    elif reader is not None:
        if row["audit_problem"] is not None:
            yield f"{name}: {reader}: {_cell(row['audit_problem'])}"
        answers = [
            f"{'none' if frame['got'] is None else frame['got']} for {frame['asked']} "
            f"({frame['num_times']}x)"
            for frame in row["audit_wrong"] or ()
        ]
        if answers:
            yield f"{name}: {reader} returned frame {', '.join(answers)}"


def _cell(value: object) -> str:
    """A value as one line without markup; the name of a file may hold anything."""
    from rich.markup import escape

    text = "" if value is None else str(value)
    return escape(text if text.isprintable() else repr(text)[1:-1])
