"""`hoc ensemble`: the weighted sum of the scores of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.evaluate import print_accuracy
from cli.options import JsonOption


def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Runs that hoc evaluate has scored.")],
    weights: Annotated[
        str | None,
        typer.Option(help="One a run, fixed beforehand, e.g. 1.5,1.5,1,1; default: equal."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path(
        "runs/ensemble"
    ),
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    json_output: JsonOption = False,
) -> None:
    """Add the scores of several streams, joined by sample_id; unequal sets are refused."""
    from datasets_build.settings import resolve
    from training.config import EnsembleConfig
    from training.ensemble import run

    config = resolve(
        EnsembleConfig,
        {},
        flags={
            "runs": tuple(runs),
            "weights": tuple(weights.split(",")) if weights else None,
            "out": out,
            "split": split,
        },
        source="the command line",
    )
    with console.progress() as progress:
        summary = run(config, progress)
    if json_output:
        members = [
            {"run": m.run, "stream": m.stream, "weight": m.weight, "top1": m.top1}
            for m in summary.members
        ]
        console.print_json({"members": members, **summary.accuracy.as_json()})
        return
    rows = [(m.run, m.stream, m.weight, f"{m.top1:.2%}") for m in summary.members]
    console.print_table("Members", ["run", "stream", "weight", "top-1"], rows, numeric=2)
    print_accuracy("Ensemble", summary.accuracy)
    console.print_paths({path.name: path for path in summary.files})
