"""`hoc build-dataset`: skeletons and captions to one Arrow data set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption, OutOption

_SOURCES, _CAPTIONS, _BODIES = "Skeletons", "Captions", "Bodies (NTU .skeleton files)"


def build_dataset(
    skeletons: Annotated[
        list[Path],
        typer.Option(
            "--skeletons",
            help="Folder or zip of .skeleton files or NW-UCLA clips; or a CTR-GCN .npz, a PYSKL "
            ".pkl, one's own .parquet or .npz; repeatable.",
            rich_help_panel=_SOURCES,
        ),
    ],
    out: OutOption = Path("data/set"),
    name: Annotated[str | None, typer.Option(help="Name of the set; default: OUT's name.")] = None,
    format: Annotated[
        str,
        typer.Option(
            help="auto, ntu, nw-ucla, ctrgcn-npz, pyskl-pkl or generic.", rich_help_panel=_SOURCES
        ),
    ] = "auto",
    layout: Annotated[
        str | None,
        typer.Option(
            help="Joints of one's own recordings: ntu-25, ucla-20, coco-17 or a TOML file.",
            rich_help_panel=_SOURCES,
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="List of sample names for a CTR-GCN .npz, which holds none.",
            rich_help_panel=_SOURCES,
        ),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            help="List of class names in label order, for sources that hold none.",
            rich_help_panel=_SOURCES,
        ),
    ] = None,
    missing_list: Annotated[
        bool,
        typer.Option(
            help="Leave out what NTU's official list says is missing or faulty.",
            rich_help_panel=_SOURCES,
        ),
    ] = True,
    captions: Annotated[
        list[Path] | None,
        typer.Option(
            "--captions",
            help="Folder of a finished caption run; repeatable. None: skeletons only.",
            rich_help_panel=_CAPTIONS,
        ),
    ] = None,
    audit: Annotated[
        list[Path] | None,
        typer.Option(
            "--audit",
            help="Folder of an audit of a caption run: captions it drops stay out; repeatable.",
            rich_help_panel=_CAPTIONS,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Take only captions of this prompt; each sample must have one; repeatable.",
            rich_help_panel=_CAPTIONS,
        ),
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROTOCOL",
            help="Keep the captions of its test samples out of the rows, in a file of their own; "
            "repeatable.",
            rich_help_panel=_CAPTIONS,
        ),
    ] = None,
    keep_uncaptioned: Annotated[
        bool,
        typer.Option(
            help="Keep samples without a caption, with an empty list.", rich_help_panel=_CAPTIONS
        ),
    ] = False,
    accept_truncated: Annotated[
        bool,
        typer.Option(
            help="Take captions that the token limit cut off, too.", rich_help_panel=_CAPTIONS
        ),
    ] = False,
    frame_tolerance: Annotated[
        int,
        typer.Option(
            min=-1,
            help="Frames by which video and skeleton may differ; -1: do not compare.",
            rich_help_panel=_CAPTIONS,
        ),
    ] = 2,
    keep_gaps: Annotated[
        bool,
        typer.Option(
            help="Keep the time gap of a body that leaves and comes back (not CTR-GCN).",
            rich_help_panel=_BODIES,
        ),
    ] = False,
    second_body: Annotated[
        str | None,
        typer.Option(
            help="What stands for an unseen second body: original (zeros for 60 classes, a copy of "
            "the first for 120, as CTR-GCN), zeros or copy.",
            rich_help_panel=_BODIES,
        ),
    ] = None,
    max_noise_frames: Annotated[
        int | None,
        typer.Option(
            help="A body seen in at most so many frames is noise; default 11.",
            rich_help_panel=_BODIES,
        ),
    ] = None,
    spread_ratio: Annotated[
        float | None,
        typer.Option(
            help="A frame is noisy where a body is wider than this times its height; default 0.8.",
            rich_help_panel=_BODIES,
        ),
    ] = None,
    noisy_share: Annotated[
        float | None,
        typer.Option(
            help="A body is noise where this share of its frames is; default 0.69754.",
            rich_help_panel=_BODIES,
        ),
    ] = None,
    classes: Annotated[
        str,
        typer.Option(help="all: the benchmark's class list; present: only classes with samples."),
    ] = "all",
    protocols: Annotated[
        list[Path] | None,
        typer.Option(
            help="TOML file of a protocol of one's own, to go into the data set; repeatable."
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Reason for which samples may be left out, e.g. no-caption; repeatable."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a CPU.")] = None,
    shard_rows: Annotated[
        int, typer.Option(help="Samples a part file; fewer need less memory.")
    ] = 512,
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

    values = {
        "skeletons": tuple(skeletons),
        "captions": tuple(captions or ()),
        "audits": tuple(audit or ()),
        "prompts": tuple(prompt or ()),
        "hold_out": tuple(hold_out or ()),
        "out": out,
        "name": name or out.resolve().name,
        "format": format,
        "layout": layout,
        "names": names,
        "class_names": class_names,
        "protocols": tuple(protocols or ()),
        "classes": classes,
        "allow": tuple(allow or ()),
        "keep_uncaptioned": keep_uncaptioned,
        "accept_truncated": accept_truncated,
        "frame_tolerance": None if frame_tolerance < 0 else frame_tolerance,
        "use_missing_list": missing_list,
        "workers": workers,
        "shard_rows": shard_rows,
    }
    bodies = {
        "keep_gaps": keep_gaps,
        "second_body": second_body,
        "max_noise_frames": max_noise_frames,
        "spread_ratio": spread_ratio,
        "noisy_share": noisy_share,
    }
    config = resolve(BuildConfig, values, flags={"bodies": bodies}, source="the command line")
    with console.progress() as progress:
        summary = run(config, progress)
    if json_output:
        console.print_json(asdict(summary))
        return
    rows: list[tuple[str, object]] = [
        ("samples", f"{summary.num_rows:,}"),
        ("captions", f"{summary.num_captions:,}"),
        ("classes", summary.num_classes),
        *((f"left out: {reason}", f"{num:,}") for reason, num in summary.left_out.items()),
        *(
            (f"{p.protocol} train / test", f"{p.num_train:,} / {p.num_test:,}")
            for p in summary.protocols
        ),
    ]
    console.print_table(f"Data set {summary.name}", ["what", "number"], rows, numeric=1)
    console.print_paths({"data set": summary.folder})
    console.out.print(f"Next: hoc inspect {out}", markup=False)
