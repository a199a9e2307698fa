"""`hoc recipes`: the training recipes that ship with the project."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's file.")] = None,
    json_output: JsonOption = False,
) -> None:
    """List the training recipes, or print one of them."""
    from training.config import recipe_names, recipe_path

    if name is not None:
        console.out.print(recipe_path(name).read_text(encoding="utf-8"), markup=False, end="")
        return
    first_lines = {
        recipe: recipe_path(recipe).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        for recipe in recipe_names()
    }
    if json_output:
        console.print_json(first_lines)
        return
    console.print_table("Recipes", ["name", "what it is"], list(first_lines.items()))
    console.out.print("Print one with [bold]hoc recipes NAME[/]; use it with --recipe NAME.")
