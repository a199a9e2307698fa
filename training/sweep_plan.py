"""Which runs a sweep is made of: sweep files, rows, streams, seeds; imports no torch.

A sweep is a TOML file of `training/sweeps/` (or anywhere) that has a recipe and rows; a row is a
name and what it changes. A recipe alone is a sweep of one row.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from datasets_build.settings import Settings, parse_assignment, read_toml, resolve
from training.config import (
    SWEEPS_FOLDER,
    SweepConfig,
    TrainConfig,
    load_recipe,
    named_in,
    recipe_names,
)

_FLAGS = {
    "out": "--out",
    "data.dataset": "--data",
    "data.stream": "--streams",
    "loop.seed": "--seeds",
}


class SweepRow(Settings):
    """One line of the table, trained for every stream and seed.

    Attributes:
        name: its folder below --out; rows of one name in two sweeps share their runs.
        label: what the table calls it; empty: the name.
        recipe: another recipe than the sweep's.
        set: `section.key=value` texts laid over the recipe.
        paper: published top-1 in percent, of the stream that the sweep's recipe names.
    """

    name: str = Field(pattern=r"^[^./\\][^/\\]*$")
    label: str = ""
    recipe: str | None = None
    set: tuple[str, ...] = ()
    paper: float | None = Field(default=None, ge=0, le=100)


class SweepFile(Settings):
    """A sweep's file.

    Attributes:
        title: of the table.
        recipe: what every row starts from.
        published: the task that the published numbers are of.
        rows: the lines of the table.
    """

    title: str
    recipe: str
    published: str = ""
    rows: tuple[SweepRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> SweepFile:
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rows: the name {twice[0]!r} is given twice; each row has its own")
        if not self.published and any(row.paper is not None for row in self.rows):
            raise ValueError("published: say which task the rows' paper numbers are of")
        return self


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        row: the row's name.
        stream: its input.
        seed: its seed.
        config: the resolved recipe; its `out` is SWEEP/ROW/STREAM-seedSEED.
    """

    row: str
    stream: str
    seed: int
    config: TrainConfig

    def __str__(self) -> str:
        return f"{self.row}, {self.stream}, seed {self.seed}"


@dataclass(frozen=True)
class SweepPlan:
    """Everything that a sweep will train.

    Attributes:
        name: the sweep's or recipe's name.
        title: of the table.
        published: the task that the published numbers are of; empty where there are none.
        published_stream: the stream they are of.
        rows: the table's rows.
        streams: in the order of the table.
        seeds: in the order of the table.
        runs: seed by seed, so that a stopped sweep has a whole table of the first seeds.
    """

    name: str
    title: str
    published: str
    published_stream: str
    rows: tuple[SweepRow, ...]
    streams: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]


def sweep_names() -> list[str]:
    """Names of the sweeps that ship with the project, sorted."""
    return sorted(path.stem for path in SWEEPS_FOLDER.glob("*.toml"))


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Read a sweep and resolve the recipe of every run.

    Raises:
        ValueError: no such sweep or recipe, unknown keys or wrong values, with the nearest names.
        FileNotFoundError: a file that is named is not there.
    """
    path = _sweep_path(config.sweep)
    file = read_sweep(path) if path is not None else None
    if file is None or path is None:
        # a recipe: its file's name is the row's
        name = Path(config.sweep).stem
        file = SweepFile(title=f"Recipe {name}", recipe=config.sweep, rows=(SweepRow(name=name),))
    base = _row_config(config, path, file, SweepRow(name="base"), None, None)
    streams = config.streams or (base.data.stream,)
    seeds = config.seeds or (base.loop.seed,)
    runs = [
        PlannedRun(row.name, stream, seed, _row_config(config, path, file, row, stream, seed))
        for seed in seeds
        for row in file.rows
        for stream in streams
    ]
    return SweepPlan(
        name=path.stem if path is not None else file.rows[0].name,
        title=file.title,
        published=file.published,
        published_stream=base.data.stream,
        rows=file.rows,
        streams=streams,
        seeds=seeds,
        runs=tuple(runs),
    )


def read_sweep(path: Path) -> SweepFile:
    """A sweep's file.

    Raises:
        ValueError: lists every unknown key with the nearest valid one, and every wrong value.
        FileNotFoundError: no such file.
    """
    return resolve(SweepFile, read_toml(path), source=f"sweep {path.stem}")


def _sweep_path(name_or_path: str) -> Path | None:
    """The file of a sweep; None where it is a recipe's name or file."""
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        return path if "rows" in read_toml(path) else None
    if name_or_path in sweep_names():
        return SWEEPS_FOLDER / f"{name_or_path}.toml"
    if name_or_path in recipe_names():
        return None
    names = [*sweep_names(), *recipe_names()]
    near = difflib.get_close_matches(name_or_path, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"there is no sweep or recipe {name_or_path!r}; {hint}sweeps: {', '.join(sweep_names())}; "
        "`hoc recipes` lists the recipes; your own is given by its path, ending in .toml"
    )


def _row_config(
    config: SweepConfig,
    path: Path | None,
    file: SweepFile,
    row: SweepRow,
    stream: str | None,
    seed: int | None,
) -> TrainConfig:
    """The resolved recipe of one run; of the recipe's own stream and seed where none is given."""
    recipe = row.recipe or file.recipe
    _refuse_clashes(config.assignments, row)
    assignments = [
        text.replace("{stream}", str(stream)).replace("{seed}", str(seed))
        for text in (*config.assignments, *row.set)
    ]
    flags = {
        "out": config.out / row.name / f"{stream}-seed{seed}",
        "data": {"dataset": config.dataset, "protocol": config.protocol, "stream": stream},
        "loop": {"seed": seed, "device": config.device},
    }
    try:
        resolved = load_recipe(
            recipe if path is None else named_in(path, recipe), assignments, flags
        )
    except (ValueError, FileNotFoundError) as error:
        if path is None:
            raise
        raise type(error)(f"{path.name}, row {row.name!r}: {error}") from None
    if config.jobs > 1 and resolved.loop.num_threads is None:
        loop = resolved.loop.model_copy(update={"num_threads": 1})  # the runs share the cores
        resolved = resolved.model_copy(update={"loop": loop})
    return resolved


def _refuse_clashes(assignments: Sequence[str], row: SweepRow) -> None:
    """What --set and a row change must not be the same, nor a column of the table."""
    taken = {".".join(parse_assignment(text)[0]) for text in row.set}
    for text in (*assignments, *row.set):
        key = ".".join(parse_assignment(text)[0])
        if key in _FLAGS:
            raise ValueError(f"{text}: a sweep is told that by {_FLAGS[key]}")
        if key in taken and text in assignments:
            raise ValueError(f"--set {text}: row {row.name!r} sets {key} itself; leave one of them")
