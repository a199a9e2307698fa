"""Recipes: TOML read once into frozen pydantic models, all mistakes listed with the nearest name.

Order of precedence: default < recipe file < `--set section.key=value` < flag.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from datasets_build.nearest import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Settings(BaseModel):
    """Base of every section of a recipe: frozen, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


SettingsT = TypeVar("SettingsT", bound=Settings)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as nested dicts.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML; the message names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the path of a .toml file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def parse_assignment(text: str) -> tuple[list[str], Any]:
    """`section.key=value` as (path, value); the value is read as TOML, else as plain text.

    Raises:
        ValueError: there is no "=" or no key.
    """
    key, equals, value = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise ValueError(f"--set {text!r} is not of the form section.key=value")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path, value


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def resolve(
    model: type[SettingsT],
    values: Mapping[str, Any],
    *,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    source: str = "the recipe",
) -> SettingsT:
    """Lay assignments and flags over recipe values and check the whole.

    Args:
        model: the settings class.
        values: what the recipe file holds.
        assignments: `section.key=value` texts.
        flags: nested values from the command line; None values are left out.
        source: what to call the recipe in a message.

    Raises:
        ValueError: lists every unknown key (with the nearest valid one) and every wrong value.
    """
    for text in assignments:
        path, value = parse_assignment(text)
        change: Any = value
        for part in reversed(path):
            change = {part: change}
        values = merged(values, change)
    if flags:
        values = merged(values, _without_none(flags))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise ValueError(
            f"settings are wrong or missing ({source}):\n  " + "\n  ".join(lines)
        ) from None


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            value = _without_none(value)
            if value:
                kept[key] = value
        elif value is not None:
            kept[key] = value
    return kept


def _explain(model: type[BaseModel], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "recipe"
    if item["type"] == "extra_forbidden":
        names = _field_names(model, item["loc"][:-1])
        near = did_you_mean(str(item["loc"][-1]), names).rstrip()
        return f"{where}: no such key; {near or 'valid names: ' + ', '.join(sorted(names))}"
    message = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:
        return str(message)  # about the whole; its parts are named in it
    given = item["input"]
    shown = "" if isinstance(given, (Mapping, Settings)) else f" (given: {given!r})"  # a section
    return f"{where}: {message}{shown}"


def _field_names(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Names of the fields of the section at `path` below `model`."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # a member tag of a union
        for inner in (field.annotation, *get_args(field.annotation)):  # a list of sections, too
            if get_origin(inner) is None and isinstance(inner, type):
                model = inner if issubclass(inner, BaseModel) else model
    return list(model.model_fields)
