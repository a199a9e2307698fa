"""`hoc sweep`: a table of runs, rows x streams x seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import console
from cli.options import JsonOption, SetOption

if TYPE_CHECKING:
    from training.sweep_plan import SweepPlan
    from training.sweep_results import SweepSummary


def sweep(
    name: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP",
            help="A sweep (table-4, table-5, table-4-nw-ucla, table-5-nw-ucla), a recipe, or the "
            "path of your own .toml file.",
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Folder that hoc build-dataset wrote.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of all runs; a stopped sweep goes on there.")
    ],
    streams: Annotated[
        str | None,
        typer.Option(help="all, or some: joint,bone,bone2,joint-motion,bone-motion,bone2-motion."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0,1,2; default: the recipe's.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Split rule; see hoc protocols.")] = None,
    jobs: Annotated[
        int,
        typer.Option(help="Runs at a time, each in a process; they share the cores or the GPU."),
    ] = 1,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    set_values: SetOption = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would be trained and stop.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Train, evaluate and ensemble every row of a sweep, for several streams and seeds.

    A recipe is a sweep of one row. Writes OUT/ROW/STREAM-seedK (as **hoc train** does), their
    ensembles, and the table as OUT/sweep.md, sweep.csv and sweep.json, replaced after every run.
    The same command goes on where a sweep stopped. In --set, {stream} and {seed} stand for the
    run's own. A run that fails is told in the table; the exit code is then 1.
    """
    from datasets_build.settings import resolve
    from training.config import SweepConfig
    from training.sweep_plan import plan_sweep

    config = resolve(
        SweepConfig,
        {},
        flags={
            "sweep": name,
            "dataset": data,
            "out": out,
            "streams": _words(streams),
            "seeds": _words(seeds),
            "protocol": protocol,
            "assignments": tuple(set_values or ()),
            "device": device,
            "jobs": jobs,
        },
        source="the command line",
    )
    if dry_run:
        _show_plan(plan_sweep(config), json_output=json_output)
        return

    from training.sweep import run

    with console.progress() as progress:
        summary = run(config, progress)
    if json_output:
        console.print_json(summary.as_json())
    else:
        _show(summary)
    if summary.failures:
        raise typer.Exit(1)


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(","))


def _show_plan(plan: SweepPlan, *, json_output: bool) -> None:
    if json_output:
        settings = [planned.config.model_dump(mode="json") for planned in plan.runs]
        console.print_json({"sweep": plan.name, "title": plan.title, "runs": settings})
        return
    changes = {row.name: " ".join(row.set) for row in plan.rows}
    rows = [
        (
            run.row,
            run.config.model.name,
            changes[run.row],
            run.stream,
            run.seed,
            run.config.loop.epochs,
        )
        for run in plan.runs
    ]
    columns = ["row", "model", "changes", "stream", "seed", "epochs"]
    console.print_table(f"{plan.title}: {len(rows)} runs", columns, rows, numeric=2)
    console.out.print("The resolved recipes: --dry-run --json", markup=False)


def _show(summary: SweepSummary) -> None:
    columns, rows = summary.table()
    console.print_table(
        summary.plan.title, columns, rows, numeric=len(columns) - 2, whole=("stream",)
    )
    for note in summary.notes():
        console.out.print(note, markup=False, emoji=False)
    console.print_paths(summary.paths())
