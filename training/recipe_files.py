"""Recipes by name or path, read into a TrainConfig; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets_build.class_names import MANIFESTS
from datasets_build.nearest import did_you_mean
from datasets_build.settings import merged, read_toml, resolve
from training.config import TrainConfig

RECIPES_FOLDER = Path(__file__).resolve().parent / "recipes"
SWEEPS_FOLDER = Path(__file__).resolve().parent / "sweeps"


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the project, sorted."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.toml"))


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a shipped recipe's name or of a path that ends in .toml.

    Raises:
        ValueError: no such name; the message gives the nearest one, or the command that takes it.
        FileNotFoundError: no such file.
    """
    text = str(name_or_path)
    if text.endswith(".toml"):
        path = Path(text)
        if not path.is_file():
            raise FileNotFoundError(f"recipe {path} does not exist; give the path of a .toml file")
        return path
    names = recipe_names()
    if text not in names:
        _refuse_other_kinds(text)
        raise ValueError(
            f"there is no recipe {text!r}; {did_you_mean(text, names)}"
            f"shipped recipes: {', '.join(names)}; your own is given by its path, ending in .toml"
        )
    return RECIPES_FOLDER / f"{text}.toml"


def _refuse_other_kinds(name: str) -> None:
    """Say which command takes a name that is a sweep's or a caption recipe's."""
    if (SWEEPS_FOLDER / f"{name}.toml").is_file():
        raise ValueError(f"{name} is a sweep, not a recipe: `hoc sweep {name}`")
    if name.startswith("captions-") and (MANIFESTS / f"{name}.toml").is_file():
        raise ValueError(f"{name} is a caption recipe: `hoc caption --recipe {name}`")


def load_recipe(
    name_or_path: str | Path,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """The resolved settings of a run: default < recipe < assignments < flags.

    Args:
        name_or_path: a shipped recipe's name or a path ending in .toml.
        assignments: `section.key=value` texts.
        flags: nested values from the command line; None values are left out.

    Raises:
        ValueError: unknown recipe, unknown keys, wrong values: all listed together.
        FileNotFoundError: no such recipe file.
    """
    path = recipe_path(name_or_path)
    values = read_recipe(path)
    if "rows" in values:
        raise ValueError(f"{path} is a sweep, not a recipe: `hoc sweep {path}`")
    return resolve(
        TrainConfig,
        values,
        assignments=assignments,
        flags=flags,
        source=f"recipe {path.stem}",
    )


def read_recipe(path: Path, *, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe file laid over those of the recipe that its `extends` names.

    Raises:
        ValueError: not TOML, or `extends` names no recipe or leads back to the file.
        FileNotFoundError: no such file.
    """
    values = read_toml(path)
    other = values.pop("extends", None)
    if other is None:
        return values
    if not isinstance(other, str):
        raise ValueError(f"{path}: extends must be a recipe's name or .toml path, given {other!r}")
    seen = (*_seen, path.resolve())
    try:
        base = named_in(path, other)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{path}: extends = {other!r}: {error}") from None
    if base.resolve() in seen:
        raise ValueError(
            f"{path}: extends = {other!r} leads back to {base.name}; one of them must hold all "
            "values itself"
        )
    return merged(read_recipe(base, _seen=seen), values)


def named_in(file: Path, name_or_path: str) -> Path:
    """The recipe that a .toml file names; a path is seen from that file's folder.

    Raises:
        ValueError, FileNotFoundError: see recipe_path.
    """
    is_path = name_or_path.endswith(".toml")
    return recipe_path(file.parent / name_or_path if is_path else name_or_path)
