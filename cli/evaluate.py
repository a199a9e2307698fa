"""`hoc evaluate`: accuracies, confusion matrix and scores of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import console
from cli.options import JsonOption


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs (runs/NAME).")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Another data set with the same classes and skeleton."),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Another split rule.")] = None,
    split: Annotated[
        str, typer.Option(help="test, train, or validation (data.validation_subjects).")
    ] = "test",
    weights: Annotated[
        str, typer.Option(help="last, or best: of the best epoch, if the run kept it.")
    ] = "last",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also the accuracy of each class, worst first.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Score runs: top-1, top-5, mean per class, confusion matrix, scores of every sample.

    The weights are those of the last epoch; none is chosen on test data. Results of `--weights
    best` have files of their own, which say on which split the epoch was chosen.
    """
    from datasets_build.settings import resolve
    from training.config import EvaluateConfig
    from training.evaluate import run as evaluate_run

    values = {
        "dataset": data,
        "protocol": protocol,
        "split": split,
        "weights": weights,
        "device": device,
    }
    configs = [
        resolve(EvaluateConfig, {}, flags={"run": run, **values}, source="the command line")
        for run in runs
    ]
    with console.progress() as progress:
        summaries = [evaluate_run(config, progress) for config in configs]
    if json_output:
        found = [
            {
                "run": summary.run,
                "split": split,
                "weights": summary.weights,
                "epochs": summary.epochs,
                **summary.accuracy.as_json(),
            }
            for summary in summaries
        ]
        console.print_json(found[0] if len(found) == 1 else found)
        return
    for summary in summaries:
        title = f"{summary.run}, {split} split, epoch {summary.epochs} ({summary.weights})"
        print_accuracy(title, summary.accuracy)
        if per_class:
            print_classes(summary.accuracy)
        console.print_paths({path.name: path for path in summary.files})
    if len(summaries) > 1:
        rows = [(s.run, s.accuracy.num_samples, *_shown(s.accuracy), s.epochs) for s in summaries]
        columns = ["run", "samples", "top-1", "top-5", "mean per class", "epochs"]
        console.print_table(f"{split} split, {summaries[0].weights}", columns, rows, numeric=5)


def print_accuracy(title: str, accuracy: Any) -> None:
    """The accuracies and the worst confusions as a table."""
    top1, top5, mean_class = _shown(accuracy)
    rows = [
        ("samples", accuracy.num_samples),
        ("top-1", top1),
        ("top-5", top5),
        ("mean per class", mean_class),
        *(
            (f"{pair.truth}, taken for {pair.taken_for}", pair.num_samples)
            for pair in accuracy.worst_pairs[:5]
        ),
    ]
    console.print_table(title, ["what", "value"], rows, numeric=1)


def print_classes(accuracy: Any) -> None:
    """The classes that occur with their samples and accuracy, the worst first."""
    rows = [
        (name, accuracy.samples_per_class[name], f"{share:.2%}")
        for name, share in sorted(accuracy.per_class.items(), key=lambda entry: entry[1])
    ]
    console.print_table("Classes", ["class", "samples", "top-1"], rows, numeric=2)


def _shown(accuracy: Any) -> tuple[str, str, str]:
    return f"{accuracy.top1:.2%}", f"{accuracy.top5:.2%}", f"{accuracy.mean_class:.2%}"
