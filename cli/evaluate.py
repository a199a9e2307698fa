"""`hoc evaluate`: accuracies, confusion matrix and scores of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import console
from cli.options import JsonOption, RunArgument


def evaluate(
    run: RunArgument,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Another data set with the same classes and skeleton."),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Another split rule.")] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json_output: JsonOption = False,
) -> None:
    """Score a run: top-1, top-5, mean per class, confusion matrix, scores of every sample.

    The weights are those of the last epoch; none is chosen on test data.
    """
    from datasets_build.settings import resolve
    from training.config import EvaluateConfig
    from training.evaluate import run as run_evaluate

    config = resolve(
        EvaluateConfig,
        {},
        flags={
            "run": run,
            "dataset": data,
            "protocol": protocol,
            "split": split,
            "device": device,
        },
        source="the command line",
    )
    with console.progress() as progress:
        summary = run_evaluate(config, progress)
    if json_output:
        console.print_json({"epochs": summary.epochs, "split": split, **summary.accuracy.as_json()})
        return
    print_accuracy(f"{run}, {split} split, epoch {summary.epochs} (the last)", summary.accuracy)
    console.print_paths({path.name: path for path in summary.files})


def print_accuracy(title: str, accuracy: Any) -> None:
    """The accuracies and the worst confusions as a table."""
    rows = [
        ("samples", accuracy.num_samples),
        ("top-1", f"{accuracy.top1:.2%}"),
        ("top-5", f"{accuracy.top5:.2%}"),
        ("mean per class", f"{accuracy.mean_class:.2%}"),
        *(
            (f"{pair.truth}, taken for {pair.taken_for}", pair.num_samples)
            for pair in accuracy.worst_pairs[:5]
        ),
    ]
    console.print_table(title, ["what", "value"], rows, numeric=1)
