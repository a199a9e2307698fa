"""Caption recipes: small TOML files in manifests/ that name a data set's settings and a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets_build.class_names import MANIFESTS
from datasets_build.settings import read_toml

_PREFIX = "captions-"


def caption_recipe_names() -> list[str]:
    """The recipes that ship with the project, sorted."""
    return sorted(path.stem for path in MANIFESTS.glob(f"{_PREFIX}*.toml"))


def caption_recipe_path(name_or_path: str) -> Path:
    """The file of a shipped recipe ("captions-ntu60-8b", or "ntu60-8b"), or any other file.

    Raises:
        FileNotFoundError: neither; the message lists the names.
    """
    for name in (name_or_path, f"{_PREFIX}{name_or_path}"):
        if name in caption_recipe_names():
            return MANIFESTS / f"{name}.toml"
    path = Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"caption recipe {name_or_path!r} is neither one of "
            f"{', '.join(caption_recipe_names())} nor the path of a .toml file"
        )
    return path


def read_caption_recipe(name_or_path: str) -> dict[str, Any]:
    """The values of a recipe, for `datasets_build.settings.resolve`.

    Raises:
        FileNotFoundError: see `caption_recipe_path`.
        ValueError: it is not TOML.
    """
    return read_toml(caption_recipe_path(name_or_path))
