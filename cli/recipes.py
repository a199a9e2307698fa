"""`hoc recipes`: the caption and training recipes that ship with the project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's file.")] = None,
    json_output: JsonOption = False,
) -> None:
    """List the recipes for captioning and training, or print one of them."""
    from captioning.recipes import caption_recipe_names, caption_recipe_path
    from training.config import recipe_names, recipe_path

    captions = {recipe: caption_recipe_path(recipe) for recipe in caption_recipe_names()}
    trainings = {recipe: recipe_path(recipe) for recipe in recipe_names()}
    if name is not None:
        path = trainings[name] if name in trainings else _one_of(name, captions, trainings)
        console.out.print(path.read_text(encoding="utf-8"), markup=False, end="")
        return
    if json_output:
        console.print_json(
            {key: _what_it_is(path) for key, path in {**trainings, **captions}.items()}
        )
        return
    for title, group in (
        ("Training (hoc train)", trainings),
        ("Captioning (hoc caption)", captions),
    ):
        rows = [(key, _what_it_is(path)) for key, path in group.items()]
        console.print_table(title, ["name", "what it is"], rows)
    console.out.print("Print one with [bold]hoc recipes NAME[/]; use it with --recipe NAME.")


def _one_of(name: str, captions: dict[str, Path], trainings: dict[str, Path]) -> Path:
    from captioning.recipes import caption_recipe_path

    try:
        return caption_recipe_path(name)
    except FileNotFoundError:
        names = ", ".join([*trainings, *captions])
        raise FileNotFoundError(f"there is no recipe {name!r}; there are {names}") from None


def _what_it_is(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
