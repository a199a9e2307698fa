"""`hoc verify`: re-check what a stage wrote against its own record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption


def verify(
    folder: Annotated[Path, typer.Argument(help="A caption run or a data set.")],
    json_output: JsonOption = False,
) -> None:
    """Recompute every hash of a caption run or a data set. Exit code 1 when something differs."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give a caption run or a data set")
    if (folder / "dataset.json").is_file():
        from datasets_build.dataset import open_dataset
        from datasets_build.shards import check_shards

        kind, problems = "data set", check_shards(folder, open_dataset(folder).shards)
    elif (folder / "manifest.json").is_file() or (folder / "plan.json").is_file():
        from captioning.verify import verify as verify_captions

        kind, problems = "caption run", verify_captions(folder)
    else:
        raise ValueError(
            f"{folder} holds neither manifest.json (a finished caption run) nor dataset.json "
            "(a finished data set); give the folder that hoc caption or hoc build-dataset wrote"
        )
    if json_output:
        console.print_json({"folder": folder, "kind": kind, "problems": problems})
    elif problems:
        console.out.print(f"{folder} ({kind}) is not as recorded:", markup=False)
        for problem in problems:
            console.out.print(f"  {problem}", markup=False)
    else:
        console.out.print(f"{folder} ({kind}): every hash is as recorded.", markup=False)
    if problems:
        raise typer.Exit(1)
