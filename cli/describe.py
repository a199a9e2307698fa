"""`hoc describe`: text from skeletons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption, RunArgument


def describe(
    run: RunArgument,
    sample: Annotated[
        list[str] | None, typer.Option("--sample", help="sample_id of the data set; repeatable.")
    ] = None,
    skeleton: Annotated[
        list[Path] | None, typer.Option("--skeleton", help="A .skeleton file; repeatable.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="The whole split.")] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Another data set with the same classes and skeleton."),
    ] = None,
    split: Annotated[str, typer.Option(help="With --all: test or train.")] = "test",
    max_new_tokens: Annotated[int, typer.Option(help="Length limit in tokens.")] = 64,
    num_beams: Annotated[int, typer.Option(help="Beams; 1 is greedy.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json_output: JsonOption = False,
) -> None:
    """Let a HocSLM run say in words what a skeleton does. No video is read."""
    from datasets_build.settings import resolve
    from training.config import DescribeConfig
    from training.describe import run as run_describe

    config = resolve(
        DescribeConfig,
        {},
        flags={
            "run": run,
            "sample_ids": tuple(sample or ()),
            "skeletons": tuple(skeleton or ()),
            "every": every,
            "dataset": data,
            "split": split,
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "device": device,
        },
        source="the command line",
    )
    with console.progress() as progress:
        summary = run_describe(config, progress)
    if json_output:
        console.print_json(summary.as_json())
        return
    rows = [(d.sample_id, d.action or "not known", d.text) for d in summary.descriptions]
    console.print_table("Described from the skeleton", ["sample", "action", "text"], rows)
    if summary.share_named is not None:
        console.out.print(f"The text names the class by its name in {summary.share_named:.1%}.")
    if summary.file is not None:
        console.print_paths({"written": summary.file})
