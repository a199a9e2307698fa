"""`hoc export`: a data set in the formats of other tools, or as a model sees it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption

FORMATS = ("ctrgcn-npz", "pyskl-pkl", "inputs")


def export(
    data: Annotated[
        Path | None, typer.Argument(help="Folder that hoc build-dataset wrote.")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", "-f", help="ctrgcn-npz, pyskl-pkl or inputs.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; default: a name in this folder."),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="Split rule; needed for ctrgcn-npz and inputs. For pyskl-pkl repeatable; default: "
            "all that the samples belong to, one-shot ones apart."
        ),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(
            help="inputs: joint (default), bone, bone2, joint-motion, bone-motion or bone2-motion."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="inputs: test (default), train (in its test view) or exemplar."),
    ] = None,
    view: Annotated[
        str | None, typer.Option(help="inputs: ntu or ucla; default: the data set's.")
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option("--frames", help="inputs: frames a clip is brought to; default 64, ucla 52."),
    ] = None,
    data_option: Annotated[
        Path | None, typer.Option("--data", help="The same as DATA, as in hoc train.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Write a data set for other tools.

    **ctrgcn-npz**: x_train, y_train, x_test, y_test as CTR-GCN's scripts write them. **pyskl-pkl**:
    the annotation file that PYSKL reads. **inputs**: sample_id, x (N, M, T, V, C) and label,
    exactly what a model sees at test time.
    """
    from datasets_build.dataset import open_dataset

    if (data is None) == (data_option is None):
        raise ValueError("give the data set's folder once: `hoc export DATA --format FORMAT`")
    if format not in FORMATS:
        given = f"--format {format!r} is not known" if format else "--format is missing"
        raise ValueError(f"{given}; choose one of {', '.join(FORMATS)}")
    if format != "inputs":
        only = {"--stream": stream, "--split": split, "--view": view, "--frames": num_frames}
        idle = [option for option, value in only.items() if value is not None]
        if idle:
            raise ValueError(f"{idle[0]} is for --format inputs; {format} holds joints of all")
    stream, split = stream or "joint", split or "test"
    dataset = open_dataset(data or data_option)  # type: ignore[arg-type]
    if out is not None:
        _check_place(out, dataset.folder, suffix=".pkl" if format == "pyskl-pkl" else ".npz")
    stem = dataset.name.replace("/", "-")
    protocols = [dataset.protocol(name) for name in protocol or []]
    if format != "pyskl-pkl" and len(protocols) != 1:
        raise ValueError(
            f"--format {format} takes one --protocol; this data set has "
            f"{', '.join(p.name for p in dataset.main_protocols())}"
        )
    with console.progress() as progress:
        if format == "ctrgcn-npz":
            from datasets_build.ctrgcn import export_ctrgcn

            path = out or Path(f"{stem}-{protocols[0].name}.npz")
            summary = export_ctrgcn(dataset, path, protocol=protocols[0], progress=progress)
        elif format == "pyskl-pkl":
            from datasets_build.pyskl import export_pyskl

            path = out or Path(f"{stem}.pkl")
            protocols = protocols or dataset.main_protocols()
            summary = export_pyskl(dataset, path, protocols=protocols, progress=progress)
        else:
            from training.inputs import export_inputs

            path = out or Path(f"{stem}-{protocols[0].name}-{split}-{stream}.npz")
            summary = export_inputs(
                dataset,
                path,
                protocol=protocols[0],
                split=split,  # type: ignore[arg-type]
                stream=stream,  # type: ignore[arg-type]
                view=view,  # type: ignore[arg-type]
                num_frames=num_frames,
                progress=progress,
            )
    if json_output:
        console.print_json(asdict(summary))
        return
    rows = [(name, f"{num:,}") for name, num in summary.num_samples.items()]
    rows.append(("MB", f"{summary.num_bytes / 1e6:,.1f}"))
    console.print_table(f"Exported {dataset.name} as {format}", ["what", "number"], rows, numeric=1)
    for note in summary.notes:
        console.out.print(note, markup=False)
    console.print_paths({format: summary.path})


def _check_place(out: Path, folder: Path, *, suffix: str) -> None:
    """Refuse a place inside the data set, or a name that the format's readers do not take.

    Raises:
        ValueError: it is one.
    """
    if folder.resolve() in out.resolve().parents:
        raise ValueError(f"--out {out} lies in the data set {folder}; give another place")
    if out.suffix != suffix or out.is_dir():
        raise ValueError(f"--out {out}: give a file whose name ends in {suffix}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: the folder {out.parent} does not exist; make it")
