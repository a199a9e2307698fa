"""`hoc build-dataset`: skeletons and captions to one Arrow data set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption, OutOption


def build_dataset(
    skeletons: Annotated[
        list[Path],
        typer.Option(
            "--skeletons", help="A folder or zip of .skeleton files or NW-UCLA clips; repeatable."
        ),
    ],
    captions: Annotated[
        list[Path] | None,
        typer.Option("--captions", help="Folder of a finished caption run; repeatable."),
    ] = None,
    audit: Annotated[
        list[Path] | None,
        typer.Option(
            "--audit",
            help="Folder of an audit of a caption run: captions it drops stay out; repeatable.",
        ),
    ] = None,
    out: OutOption = Path("data/set"),
    name: Annotated[str | None, typer.Option(help="Name of the set; default: OUT's name.")] = None,
    format: Annotated[str, typer.Option(help="auto, ntu or nw-ucla.")] = "auto",
    classes: Annotated[
        str,
        typer.Option(help="all: the benchmark's class list; present: only classes with samples."),
    ] = "all",
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Reason for which samples may be left out, e.g. no-caption; repeatable."),
    ] = None,
    keep_uncaptioned: Annotated[
        bool, typer.Option(help="Keep samples without a caption, with an empty list.")
    ] = False,
    accept_truncated: Annotated[
        bool, typer.Option(help="Take captions that the token limit cut off, too.")
    ] = False,
    keep_gaps: Annotated[
        bool,
        typer.Option(help="Keep the time gap of a body that leaves and comes back (not CTR-GCN)."),
    ] = False,
    missing_list: Annotated[
        bool, typer.Option(help="Leave out what NTU's official list says is missing or faulty.")
    ] = True,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a CPU.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Join skeletons, captions and protocol facts into one data set.

    Bodies are denoised and chosen exactly as CTR-GCN's scripts do. Fails closed: a sample that
    would be left out for a reason you did not --allow stops the build; OUT/left_out.parquet lists
    every sample left out with its reason. A stopped build goes on with the same command.
    """
    from datasets_build.build import run
    from datasets_build.config import BuildConfig
    from datasets_build.settings import resolve

    config = resolve(
        BuildConfig,
        {},
        flags={
            "skeletons": tuple(skeletons),
            "captions": tuple(captions or ()),
            "audits": tuple(audit or ()),
            "out": out,
            "name": name or out.resolve().name,
            "format": format,
            "classes": classes,
            "allow": tuple(allow or ()),
            "keep_uncaptioned": keep_uncaptioned,
            "accept_truncated": accept_truncated,
            "use_missing_list": missing_list,
            "bodies": {"keep_gaps": keep_gaps},
            "workers": workers,
        },
        source="the command line",
    )
    with console.progress() as progress:
        summary = run(config, progress)
    if json_output:
        console.print_json(asdict(summary))
        return
    rows: list[tuple[str, object]] = [
        ("samples", summary.num_rows),
        ("captions", summary.num_captions),
        ("classes", summary.num_classes),
        *((f"left out: {reason}", count) for reason, count in summary.left_out.items()),
        *(
            (f"{p.protocol} train / test", f"{p.num_train} / {p.num_test}")
            for p in summary.protocols
        ),
    ]
    console.print_table(f"Data set {summary.name}", ["what", "number"], rows, numeric=1)
    console.print_paths({"data set": summary.folder})
