"""`hoc recipes`: the caption and training recipes and the sweeps that ship with the project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's file.")] = None,
    resolved: Annotated[
        bool,
        typer.Option(
            "--resolved",
            help="Print every value of a training recipe as JSON: its own, those of the recipe "
            "that it extends, and the defaults.",
        ),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """List the recipes for captioning and training and the sweeps, or print one of them."""
    from captioning.recipes import caption_recipe_names, caption_recipe_path
    from training.recipe_files import SWEEPS_FOLDER, recipe_names, recipe_path
    from training.sweep_plan import sweep_names

    captions = {recipe: caption_recipe_path(recipe) for recipe in caption_recipe_names()}
    trainings = {recipe: recipe_path(recipe) for recipe in recipe_names()}
    sweeps = {sweep: SWEEPS_FOLDER / f"{sweep}.toml" for sweep in sweep_names()}
    if resolved:
        _print_resolved(name, [*captions, *sweeps])
        return
    if name is not None and json_output:
        raise ValueError(f"--json is of the list; {name} as JSON: hoc recipes {name} --resolved")
    if name is not None:
        files = {**sweeps, **trainings}
        path = files[name] if name in files else _one_of(name, [*trainings, *sweeps, *captions])
        console.out.print(path.read_text(encoding="utf-8"), markup=False, end="")
        return
    if json_output:
        files = {**trainings, **sweeps, **captions}
        console.print_json({key: _what_it_is(path) for key, path in files.items()})
        return
    for title, group in (
        ("Training (hoc train)", trainings),
        ("Sweeps (hoc sweep)", sweeps),
        ("Captioning (hoc caption)", captions),
    ):
        rows = [(key, _what_it_is(path)) for key, path in group.items()]
        console.print_table(title, ["name", "what it is"], rows)
    console.out.print(
        "Print one with hoc recipes NAME; use it with hoc train --recipe NAME, hoc sweep NAME or "
        "hoc caption --recipe NAME.",
        markup=False,
    )


def _one_of(name: str, names: list[str]) -> Path:
    from captioning.recipes import caption_recipe_path
    from datasets_build.nearest import did_you_mean

    try:
        return caption_recipe_path(name)
    except FileNotFoundError:
        hint = did_you_mean(name, names)
        raise FileNotFoundError(
            f"there is no recipe {name!r}; {hint}there are {', '.join(names)}"
        ) from None


def _print_resolved(name: str | None, others: list[str]) -> None:
    from training.recipe_files import load_recipe

    if name is None or name in others:
        raise ValueError(
            "--resolved needs the name of a training recipe, or a .toml path; the runs of a sweep "
            "are shown by `hoc sweep SWEEP --dry-run --json`"
        )
    config = load_recipe(name, flags={"out": "RUN", "data": {"dataset": "DATA"}})
    console.print_json(config.model_dump(mode="json"))


def _what_it_is(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
