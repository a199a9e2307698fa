"""`hoc export`: a data set, a run's model or its scores in the formats of other tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import console
from cli.options import JsonOption

FORMATS = ("ctrgcn-npz", "pyskl-pkl", "inputs")
SCORE_FORMATS = ("ctrgcn-pkl", "pyskl-pkl")


def export(
    data: Annotated[
        Path | None, typer.Argument(help="Folder that hoc build-dataset wrote.")
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="ctrgcn-npz, pyskl-pkl or inputs; with --scores: ctrgcn-pkl or pyskl-pkl.",
        ),
    ] = "",
    onnx: Annotated[
        Path | None,
        typer.Option("--onnx", metavar="RUN", help="Write the model of this run as ONNX."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", metavar="RUN", help="Write the scores of this evaluated run."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; default: a name in this folder."),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="Split rule; needed for ctrgcn-npz and inputs. For pyskl-pkl repeatable; default: "
            "the published ones of the set's 60 or 120 classes, one-shot ones apart, and its own."
        ),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(
            help="inputs: joint (default), bone, bone2, joint-motion, bone-motion or bone2-motion."
        ),
    ] = None,
    orphan: Annotated[
        str | None,
        typer.Option(
            help="inputs: a joint without the ancestor that its bone leads to becomes zero "
            "(default) or keeps its coordinates (keep)."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="inputs: test (default), train (in its test view) or exemplar. --scores: test "
            "(default) or train."
        ),
    ] = None,
    view: Annotated[
        str | None, typer.Option(help="inputs: ntu or ucla; default: the data set's.")
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option("--frames", help="inputs: frames a clip is brought to; default 64, ucla 52."),
    ] = None,
    order: Annotated[
        Path | None,
        typer.Option(
            help="--scores: file with the names in the order wanted: NW-UCLA's val_label.pkl, an "
            "annotation file of PYSKL, or a name a line; default: the order of our own exports."
        ),
    ] = None,
    data_option: Annotated[
        Path | None, typer.Option("--data", help="The same as DATA, as in hoc train.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Write a data set, a model or scores for other tools.

    **DATA --format ctrgcn-npz**: x_train, y_train, x_test, y_test as CTR-GCN's scripts write them.
    **pyskl-pkl**: the annotation file that PYSKL reads. **inputs**: sample_id, x (N, M, T, V, C)
    and label, exactly what a model sees at test time.

    **--onnx RUN**: the encoder with its classes and inputs, compared with onnxruntime before it is
    kept.

    **--scores RUN --format ctrgcn-pkl** (or **pyskl-pkl**): what hoc evaluate found, as the
    ensembles of CTR-GCN and PYSKL read it. DATA is needed only where the data set has moved.
    """
    if data is not None and data_option is not None:
        raise ValueError("give the data set's folder once: `hoc export DATA --format FORMAT`")
    data = data or data_option
    given: dict[str, Any] = {
        "--format": format or None,
        "--protocol": protocol or None,
        "--stream": stream,
        "--orphan": orphan,
        "--split": split,
        "--view": view,
        "--frames": num_frames,
        "--order": order,
    }
    if onnx is not None and scores is not None:
        raise ValueError("--onnx and --scores exclude each other; give one of them")
    if onnx is not None:
        _refuse(given, but=(), reason="--onnx writes the model with the inputs it was trained on")
        if data is not None:
            raise ValueError("--onnx takes all from the run; leave the data set out")
        _export_onnx(onnx, out, as_json=json_output)
    elif scores is not None:
        reason = "--scores writes what hoc evaluate found, under its protocol"
        _refuse(given, but=("--format", "--split", "--order"), reason=reason)
        _export_scores(scores, out, data=data, given=given, as_json=json_output)
    else:
        if data is None:
            raise ValueError(
                "give the data set's folder once: `hoc export DATA --format FORMAT`; or a run: "
                "`hoc export --onnx RUN`, `hoc export --scores RUN --format FORMAT`"
            )
        _refuse(given, but=tuple(given)[:-1], reason="--order is for --scores")
        _export_data(data, out, given=given, as_json=json_output)


def _export_data(data: Path, out: Path | None, *, given: Mapping[str, Any], as_json: bool) -> None:
    from datasets_build.dataset import open_dataset

    format = given["--format"]
    _check_format(format, FORMATS)
    if format != "inputs":
        only = ("--stream", "--orphan", "--split", "--view", "--frames")
        idle = [option for option in only if given[option] is not None]
        if idle:
            raise ValueError(f"{idle[0]} is for --format inputs; {format} holds joints of all")
    stream, split = given["--stream"] or "joint", given["--split"] or "test"
    dataset = open_dataset(data)
    if out is not None:
        _check_place(out, dataset.folder, suffix=".pkl" if format == "pyskl-pkl" else ".npz")
    stem = dataset.name.replace("/", "-")
    protocols = [dataset.protocol(name) for name in given["--protocol"] or []]
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
                view=given["--view"],
                num_frames=given["--frames"],
                orphan=given["--orphan"] or "zero",
                progress=progress,
            )
    _print(summary, f"Exported {dataset.name} as {format}", name=format, as_json=as_json)


def _export_onnx(run: Path, out: Path | None, *, as_json: bool) -> None:
    path = out or Path(f"{run.resolve().name}.onnx")
    _check_place(path, None, suffix=".onnx")
    from training.onnx_export import export_onnx

    with console.progress() as progress:
        summary = export_onnx(run, path, progress=progress)
    if as_json:
        console.print_json(asdict(summary))
        return
    rows = [
        ("skeleton", ", ".join(map(str, summary.input_shape))),
        ("logits", f"N, {summary.num_classes}"),
        ("operators", f"{summary.num_nodes:,} of opset {summary.opset}"),
        ("MB", f"{summary.num_bytes / 1e6:,.1f}"),
        (
            "largest difference to torch",
            f"{summary.max_difference:.1e} (batches of {', '.join(map(str, summary.batches))})",
        ),
    ]
    console.print_table(f"Exported the model of {run}", ["what", "value"], rows)
    console.print_paths({"onnx": summary.path})


def _export_scores(
    run: Path, out: Path | None, *, data: Path | None, given: Mapping[str, Any], as_json: bool
) -> None:
    format, split = given["--format"], given["--split"] or "test"
    _check_format(format, SCORE_FORMATS)
    if split not in ("test", "train"):
        raise ValueError(f"--scores writes the test or the train split, not {split!r}")
    path = out or Path(f"{run.resolve().name}-{split}-{format}.pkl")
    _check_place(path, data, suffix=".pkl")
    from training.score_files import export_scores

    summary = export_scores(
        run,
        path,
        format=format,
        split=split,  # type: ignore[arg-type]
        dataset=data,
        order=given["--order"],
    )
    _print(summary, f"Exported the scores of {run} as {format}", name=format, as_json=as_json)


def _print(summary: Any, title: str, *, name: str, as_json: bool) -> None:
    """The table of an ExportSummary, or its JSON."""
    if as_json:
        console.print_json(asdict(summary))
        return
    rows = [(what, f"{num:,}") for what, num in summary.num_samples.items()]
    rows.append(("MB", f"{summary.num_bytes / 1e6:,.1f}"))
    console.print_table(title, ["what", "number"], rows, numeric=1)
    for note in summary.notes:
        console.out.print(note, markup=False)
    console.print_paths({name: summary.path})


def _check_format(format: str | None, known: tuple[str, ...]) -> None:
    if format not in known:
        problem = f"--format {format!r} is not known" if format else "--format is missing"
        raise ValueError(f"{problem}; choose one of {', '.join(known)}")


def _refuse(given: Mapping[str, Any], *, but: tuple[str, ...], reason: str) -> None:
    """Refuse options that mean nothing for what is exported.

    Raises:
        ValueError: one is given.
    """
    idle = [name for name, value in given.items() if value is not None and name not in but]
    if idle:
        raise ValueError(f"{reason}; leave out {', '.join(idle)}")


def _check_place(out: Path, folder: Path | None, *, suffix: str) -> None:
    """Refuse a place inside the data set, or a name that the format's readers do not take.

    Raises:
        ValueError: it is one.
    """
    if folder is not None and folder.resolve() in out.resolve().parents:
        raise ValueError(f"--out {out} lies in the data set {folder}; give another place")
    if out.suffix != suffix or out.is_dir():
        raise ValueError(f"--out {out}: give a file whose name ends in {suffix}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: the folder {out.parent} does not exist; make it")
