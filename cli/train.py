"""`hoc train`: one run of a recipe."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import console
from cli.options import DataOption, JsonOption, OutOption, SetOption
from datasets_build.progress import SilentProgress

if TYPE_CHECKING:
    from training.config import TrainConfig


def train(
    data: DataOption,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Recipe name or .toml path.")],
    out: OutOption,
    stream: Annotated[
        str | None,
        typer.Option(help="joint, bone, bone2, joint-motion, bone-motion or bone2-motion."),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Split rule; see hoc protocols.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and draws.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    tracker: Annotated[
        str | None, typer.Option(help="Send metrics to wandb or trackio, too.")
    ] = None,
    llm: Annotated[
        str | None,
        typer.Option(
            help="Frozen language model: tiny, smollm2, a folder, a .gguf file or a hub id."
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Run whose last checkpoint gives the starting weights; without it a recipe of "
            "stage one trains from random weights (strategy T4)."
        ),
    ] = None,
    set_values: SetOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(help="Open and check all, tell what the run would be (--json: and how)."),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Train a recipe on a data set, for one stream and one seed.

    Writes OUT/config.json, environment.json, metrics.jsonl and last/ (safetensors). A stopped run
    goes on with the same command, to the same weights as if it had never stopped. Several GPUs:
    `torchrun --nproc-per-node 4 -m cli.main train ...`.
    """
    from training.recipe_files import load_recipe

    config = load_recipe(
        recipe,
        set_values or [],
        {
            "out": out,
            "data": {"dataset": data, "protocol": protocol, "stream": stream},
            "method": {"language_model": llm, "init_from": init_from},
            "loop": {"seed": seed, "epochs": epochs, "device": device, "tracker": tracker},
        },
    )
    if dry_run:
        _dry_run(config, json_output=json_output)
        return

    from training.metrics import metric_label
    from training.train import run

    is_first = os.environ.get("RANK", "0") == "0"  # torchrun's number of this process
    with console.progress() if is_first else nullcontext(SilentProgress()) as progress:
        summary = run(config, progress)
    if not is_first:
        return
    if json_output:
        console.print_json(asdict(summary))
        return
    rows = [
        ("epochs", summary.epochs),
        ("optimiser steps", summary.steps),
        *([("went on from step", summary.resumed_from)] if summary.resumed_from else []),
        ("training samples", summary.num_samples),
        ("trained parameters", f"{summary.num_parameters:,}"),
        ("samples/s", f"{summary.samples_per_s:.1f}"),
        *((metric_label(name), f"{value:.4g}") for name, value in summary.metrics.items()),
    ]
    title = f"{'Was already trained:' if summary.already_finished else 'Trained'} {out}"
    console.print_table(title, ["what", "value"], rows, numeric=1)
    console.print_paths({"run": summary.folder})
    console.out.print(f"Next: hoc evaluate {out}", markup=False)


def _dry_run(config: TrainConfig, *, json_output: bool) -> None:
    from training.plan import plan

    found = plan(config)
    if json_output:
        console.print_json({**config.model_dump(mode="json"), "plan": asdict(found)})
        return
    rows = [
        ("run folder", found.state),
        ("training samples", found.num_train),
        ("test samples", found.num_test),
        ("steps per epoch", found.steps_per_epoch),
        ("steps in all", found.steps),
        ("steps done", found.steps_done),
        ("trained parameters", f"{found.num_parameters:,}"),
        ("device", found.device),
        ("CPU threads", found.num_threads),
    ]
    console.print_table(f"Would train {config.out}", ["what", "value"], rows, numeric=1)
    console.out.print("The resolved recipe: --dry-run --json", markup=False)
