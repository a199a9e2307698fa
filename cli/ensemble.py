"""`hoc ensemble`: the weighted sum of the scores of several runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.evaluate import print_accuracy, print_classes
from cli.options import JsonOption


def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Runs that hoc evaluate has scored.")],
    weights: Annotated[
        str | None,
        typer.Option(help="One a run, fixed beforehand, e.g. 1.5,1.5,1,1; default: equal."),
    ] = None,
    rule: Annotated[
        str, typer.Option(help="equal, or position-motion: positions 1.5, motions 1.")
    ] = "equal",
    search_weights: Annotated[
        bool,
        typer.Option(
            "--search-weights",
            help="Search the weights on the validation split of the runs, never on another.",
        ),
    ] = False,
    combine: Annotated[
        str, typer.Option(help="What is summed: logits or probabilities.")
    ] = "logits",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path(
        "runs/ensemble"
    ),
    split: Annotated[str, typer.Option(help="test, train or validation.")] = "test",
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also the accuracy of each class, worst first.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Add the scores of several streams, joined by sample_id; unequal sets are refused.

    Weights are equal, of a stated rule, or given. `--search-weights` looks at the scores of the
    validation subjects alone (data.validation_subjects, `hoc evaluate RUN --split validation`).
    """
    from datasets_build.settings import resolve
    from training.command_config import EnsembleConfig
    from training.ensemble import run

    config = resolve(
        EnsembleConfig,
        {},
        flags={
            "runs": tuple(runs),
            "weights": tuple(weights.split(",")) if weights else None,
            "rule": rule,
            "search_weights": search_weights,
            "combine": combine,
            "out": out,
            "split": split,
        },
        source="the command line",
    )
    with console.progress() as progress:
        summary = run(config, progress)
    if json_output:
        members = [asdict(member) for member in summary.members]
        searched = summary.validation
        console.print_json(
            {
                "weights": summary.weights,
                "members": members,
                **({"validation_top1": searched.top1} if searched else {}),
                **summary.accuracy.as_json(),
            }
        )
        return
    rows = [(m.run, m.stream, m.trained, m.weight, f"{m.top1:.2%}") for m in summary.members]
    console.print_table(
        f"Members, weights: {summary.weights}",
        ["run", "stream", "trained", "weight", "top-1"],
        rows,
        numeric=2,
    )
    if summary.validation is not None:
        console.out.print(
            f"{summary.validation.top1:.2%} of {summary.validation.num_samples} validation "
            "samples with these weights",
            markup=False,
        )
    print_accuracy(f"Ensemble, {split} split", summary.accuracy)
    if per_class:
        print_classes(summary.accuracy)
    console.print_paths({path.name: path for path in summary.files})
