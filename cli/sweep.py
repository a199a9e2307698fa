"""`hoc sweep`: a table of runs, rows x streams x seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import console
from cli.options import DataOption, JsonOption

if TYPE_CHECKING:
    from training.sweep_plan import SweepPlan
    from training.sweep_results import SweepSummary


def sweep(
    data: DataOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of all runs; a stopped sweep goes on there.")
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="SWEEP",
            help="A sweep (table-6, table-6-nw-ucla, ...: hoc recipes lists them), a recipe, or "
            "the path of your own .toml file.",
        ),
    ] = None,
    table: Annotated[
        int | None,
        typer.Option(
            help="A table of the paper, 4 to 7, on NTU60: --table 6 is the sweep table-6. On "
            "NW-UCLA: SWEEP table-6-nw-ucla."
        ),
    ] = None,
    streams: Annotated[
        str | None,
        typer.Option(help="all, or some: joint,bone,bone2,joint-motion,bone-motion,bone2-motion."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0,1,2; default: the recipe's.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Split rule; see hoc protocols.")] = None,
    jobs: Annotated[
        int,
        typer.Option(help="Runs at a time, each in a process; they share cores and GPUs."),
    ] = 1,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    set_values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Change one value of every row's recipe; `ROW:SECTION.KEY=VALUE` of that row's "
            "alone, where ROW may be several, joined by commas, or a pattern: "
            "`--set '*hocslm*:method.language_model=tiny'`. May be given several times.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Show what would be trained and stop; opens no data.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Train, evaluate and ensemble every row of a sweep, for several streams and seeds.

    A recipe is a sweep of one row. Writes OUT/ROW/STREAM-seedK (as **hoc train** does), their
    ensembles, and the table as OUT/SWEEP.md, .csv and .json, replaced after every run. Language
    models and captions are looked for before the first run. A row that starts from another
    (strategies T1 to T3 of table 6) is trained after it. The same command goes on where a sweep
    stopped. In --set, {stream} and {seed} stand for the run's own. A run that fails is told in the
    table; the exit code is then 1.
    """
    if (name is None) == (table is None):
        raise ValueError("give a SWEEP or --table N, one of them: `hoc recipes` lists the sweeps")
    from datasets_build.settings import resolve
    from training.command_config import SweepConfig
    from training.sweep_plan import plan_sweep

    config = resolve(
        SweepConfig,
        {},
        flags={
            "sweep": f"table-{table}" if name is None else name,
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
    columns: dict[str, list[str | int]] = {
        "row": [run.row for run in plan.runs],
        "model": [run.config.model.name for run in plan.runs],
        "changes": [changes[run.row] for run in plan.runs],
        "starts from": ["" if run.start is None else run.start.row for run in plan.runs],
        "stream": [run.stream for run in plan.runs],
        "seed": [run.seed for run in plan.runs],
        "epochs": [run.config.loop.epochs for run in plan.runs],
        "trained": ["yes" if run.config.is_trained else "" for run in plan.runs],
    }
    shown = {name: cells for name, cells in columns.items() if any(cell != "" for cell in cells)}
    console.print_table(
        f"{plan.title}: {len(plan.runs)} runs",
        list(shown),
        list(zip(*shown.values(), strict=True)),
        numeric=3 if "trained" in shown else 2,
    )
    console.out.print("The resolved recipes: --dry-run --json", markup=False)


def _show(summary: SweepSummary) -> None:
    columns, rows = summary.table()
    console.print_table(
        summary.plan.title, columns, rows, numeric=len(columns) - 2, whole=("stream",)
    )
    for note in summary.notes():
        console.out.print(note, markup=False, emoji=False)
    console.print_paths(summary.paths())
