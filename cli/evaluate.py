"""`hoc evaluate`: accuracies, confusion matrix and scores of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import console
from cli.options import DeviceOption, JsonOption, OtherDataOption


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs (runs/NAME).")],
    data: OtherDataOption = None,
    protocol: Annotated[str | None, typer.Option(help="Another split rule.")] = None,
    split: Annotated[
        str, typer.Option(help="test, train, or validation (data.validation_subjects).")
    ] = "test",
    weights: Annotated[
        str, typer.Option(help="last, or best: of the best epoch (loop.keep_best_epoch).")
    ] = "last",
    device: DeviceOption = "auto",
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also the accuracy of each class, worst first.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Score runs: top-1, top-5, mean per class, confusion matrix, scores of every sample.

    The weights are those of the last epoch; none is chosen on test data. Results of `--weights
    best`, under another `--protocol` or on other `--data` have files of their own, whose names say
    so. Test samples that a run was trained on are refused.

    Several runs end with a table to compare them by, whatever becomes of one of them.
    """
    from datasets_build.settings import resolve
    from training.command_config import EvaluateConfig
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
    is_one = len(runs) == 1
    summaries, problems = [], []
    with console.progress() as progress:
        for config in configs:
            try:
                summary = evaluate_run(config, progress)
            except (ValueError, FileNotFoundError) as error:
                if is_one:
                    raise
                problems.append(f"{config.run}: {error}")
                progress.message(f"not scored: {problems[-1]}")
                continue
            summaries.append(summary)
            if not is_one:
                progress.message(f"{config.run}: top-1 {summary.accuracy.top1:.2%}")
    if json_output:
        found = [
            {
                "run": summary.run,
                "split": split,
                "protocol": summary.protocol,
                "dataset": summary.dataset,
                "weights": summary.weights,
                "epochs": summary.epochs,
                **summary.accuracy.as_json(),
            }
            for summary in summaries
        ]
        console.print_json(found[0] if is_one else found)
    else:
        for summary in summaries if is_one or per_class else ():
            title = f"{summary.run}, {split} split, epoch {summary.epochs} ({summary.weights})"
            print_accuracy(title, summary.accuracy)
            if per_class:
                print_classes(summary.accuracy)
            console.print_paths({path.name: path for path in summary.files})
        if summaries and not is_one:
            _print_comparison(summaries, split)
    if problems:
        raise ValueError(f"{len(problems)} of {len(runs)} runs were not scored, see above")


def _print_comparison(summaries: list[Any], split: str) -> None:
    """A line a run; whose weights the scores are of stands in the title if it is one for all."""
    columns = ["run", "top-1", "top-5", "mean class", "samples", "epochs"]
    title = f"{summaries[0].protocol}, {split} split"
    rows = [(s.run, *_shown(s.accuracy), s.accuracy.num_samples, s.epochs) for s in summaries]
    labels = {summary.weights for summary in summaries}
    if len(labels) == 1:
        title += f", {summaries[0].weights}"
    console.print_table(title, columns, rows, numeric=5)
    for summary in summaries if len(labels) > 1 else ():
        console.out.print(f"{summary.run}: {summary.weights}", markup=False)


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
