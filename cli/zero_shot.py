"""`hoc zero-shot` and `hoc zero-shot-sweep`: classes that no training sample showed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import console
from cli.options import DataOption, DeviceOption, JsonOption, OtherDataOption

if TYPE_CHECKING:
    from training.zero_shot_results import ZeroShotSweepSummary

TextsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--texts",
        help="Table of class texts, one or more a class, as for hoc caption --from-text; "
        'repeatable. Default: "A person is doing: NAME."',
    ),
]


def zero_shot(
    runs: Annotated[
        list[Path], typer.Argument(help="Training runs with text and data.unseen_classes.")
    ],
    texts: TextsOption = None,
    data: OtherDataOption = None,
    batch_size: Annotated[
        int, typer.Option(help="Pairs of a sample and a sentence scored at once.")
    ] = 256,
    device: DeviceOption = "auto",
    json_output: JsonOption = False,
) -> None:
    """Ask runs for the classes they were not trained on, by the likelihood of class sentences.

    Every test sample gets the class whose sentences the language model finds likeliest given the
    skeleton: among the unseen classes, and among all (seen, unseen and their harmonic mean). Each
    plain, and calibrated: less the score under the mean prefix of the samples that the run was
    trained on, which with --data are still those of its own data set. Writes
    RUN/zero-shot.json and the scores of every sample.
    """
    from datasets_build.settings import resolve
    from training.command_config import ZeroShotConfig
    from training.zero_shot import run as ask

    values = {
        "texts": tuple(texts or ()),
        "dataset": data,
        "batch_size": batch_size,
        "device": device,
    }
    configs = [
        resolve(ZeroShotConfig, {}, flags={"run": run, **values}, source="the command line")
        for run in runs
    ]
    with console.progress() as progress:
        results = [ask(config, progress) for config in configs]
    if json_output:
        found = [result.as_json() for result in results]
        console.print_json(found[0] if len(runs) == 1 else found)
        return
    for result in results:
        _show_run(result)


def _show_run(result: Any) -> None:
    from training.zero_shot_results import LABELS, MEASURES

    rows = [
        (LABELS[name], *(f"{of(shares):.2%}" for shares in result.shares.values()), f"{chance:.2%}")
        for name, of in MEASURES.items()
        for chance in [result.chance if name.startswith("unseen") else 1 / result.num_classes]
    ]
    title = f"{result.run}, unseen: {', '.join(result.unseen)}"
    console.print_table(title, ["measure", *result.shares, "chance"], rows, numeric=3)
    console.print_paths({path.name: path for path in result.files})


def zero_shot_sweep(
    data: DataOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of all runs; a stopped sweep goes on there.")
    ],
    num_unseen: Annotated[int, typer.Option(help="Classes that each split leaves out.")] = 2,
    splits: Annotated[
        str | None,
        typer.Option(
            help="How many of all splits, or which: action ids or names, such as 1+9,2+12."
        ),
    ] = None,
    texts: TextsOption = None,
    stage_zero: Annotated[
        str, typer.Option(help="Recipe of the encoder.")
    ] = "nw-ucla-zero-shot-stage-zero",
    stage_one: Annotated[
        str, typer.Option(help="Recipe with text that starts from it.")
    ] = "nw-ucla-zero-shot",
    jobs: Annotated[
        int,
        typer.Option(help="Splits at a time, each in a process; they share cores and GPUs."),
    ] = 1,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    set_values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[STAGE:]SECTION.KEY=VALUE",
            help="Change a value of both recipes, or of stage-zero: or stage-one: alone.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would be trained and stop.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Train and ask for every choice of unseen classes: 45 for two of NW-UCLA's ten.

    For each: an encoder trained on the seen classes, the captions taught to it, and the unseen
    classes told apart by their sentences, against chance. Writes OUT/UNSEEN/stage-zero and
    stage-one, and the table as OUT/zero-shot-sweep.md, .csv and .json, replaced after every split.
    The same command goes on where it stopped. A split that fails is told in the table; the exit
    code is then 1.
    """
    from datasets_build.dataset import open_dataset
    from datasets_build.settings import resolve
    from training.command_config import ZeroShotSweepConfig
    from training.zero_shot_plan import plan_splits

    is_number = splits is not None and splits.strip().isdigit()
    config = resolve(
        ZeroShotSweepConfig,
        {},
        flags={
            "dataset": data,
            "out": out,
            "stage_zero": stage_zero,
            "stage_one": stage_one,
            "num_unseen": num_unseen,
            "num_splits": splits if is_number else None,
            "splits": None if splits is None or is_number else _split_lists(splits),
            "texts": tuple(texts or ()),
            "assignments": tuple(set_values or ()),
            "device": device,
            "jobs": jobs,
        },
        source="the command line",
    )
    if dry_run:
        plans = plan_splits(config, open_dataset(config.dataset))
        if json_output:
            console.print_json(
                [[stage.model_dump(mode="json") for stage in plan.stages] for plan in plans]
            )
            return
        rows = [(plan.name, " + ".join(plan.unseen)) for plan in plans]
        console.print_table(f"{len(plans)} splits", ["folder", "unseen classes"], rows)
        console.out.print("The resolved recipes: --dry-run --json", markup=False)
        return

    from training.zero_shot_sweep import run

    with console.progress() as progress:
        summary = run(config, progress)
    if json_output:
        console.print_json(summary.as_json())
    else:
        _show_sweep(summary)
    if summary.failures:
        raise typer.Exit(1)


def _split_lists(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word.strip() for word in part.split("+")) for part in text.split(","))


def _show_sweep(summary: ZeroShotSweepSummary) -> None:
    from training.zero_shot_results import NUM_ENDS

    columns, rows = summary.table()
    title = f"Zero-shot, {summary.num_unseen} unseen classes"
    console.print_table(title, columns, rows, numeric=5, whole=("score",))
    columns, rows = summary.split_table(ends=NUM_ENDS)
    console.print_table(f"The {NUM_ENDS} best and worst splits", columns, rows, numeric=4)
    for note in summary.notes():
        console.out.print(note, markup=False, emoji=False)
    console.print_paths(summary.paths())
