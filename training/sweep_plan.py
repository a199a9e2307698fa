"""Which runs a sweep is made of: sweep files, rows, streams, seeds; imports no torch.

A sweep is a TOML file of `training/sweeps/` (or anywhere) that has a recipe and rows; a row is a
name and what it changes. A recipe alone is a sweep of one row. A row may start from the weights of
a row above it: that is how the stages of a strategy are chained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import Field, model_validator

from datasets_build.nearest import did_you_mean
from datasets_build.settings import Settings, parse_assignment, read_toml, resolve
from training.command_config import SweepConfig
from training.config import TrainConfig
from training.recipe_files import SWEEPS_FOLDER, load_recipe, named_in, recipe_names

_DATASET = "data.dataset"
_FLAGS = {
    "out": "--out",
    _DATASET: "--data",  # --set may give rows another one, which has the same test samples
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
        init_from: a row above; its run of the same stream and seed is trained first and gives the
            starting weights (method.init_from).
        in_table: False for a row that is only trained, because others start from it.
        paper: published top-1 in percent, of the stream that the sweep's recipe names.
    """

    # A folder's name, and without what gives a row's name another meaning in --set.
    name: str = Field(pattern=r"^[^./\\:,=*?\[\]][^/\\:,=*?\[\]]*$")
    label: str = ""
    recipe: str | None = None
    set: tuple[str, ...] = ()
    init_from: str | None = None
    in_table: bool = True
    paper: float | None = Field(default=None, ge=0, le=100)


class SweepFile(Settings):
    """A sweep's file.

    Attributes:
        title: of the table.
        recipe: what every row starts from.
        published: the task that the published numbers are of.
        baseline: the row that the others are compared with; None: nothing is compared.
        rows: the lines of the table.
    """

    title: str
    recipe: str
    published: str = ""
    baseline: str | None = None
    rows: tuple[SweepRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> SweepFile:
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rows: the name {twice[0]!r} is given twice; each row has its own")
        if not self.published and any(row.paper is not None for row in self.rows):
            raise ValueError("published: say which task the rows' paper numbers are of")
        shown = [row.name for row in self.rows if row.in_table]
        if self.baseline is not None and self.baseline not in shown:
            hint = _hint(self.baseline, shown)
            raise ValueError(f"baseline: no row of the table is named {self.baseline!r}; {hint}")
        for number, row in enumerate(self.rows):
            if row.init_from is not None and row.init_from not in names[:number]:
                below = row.init_from in names
                raise ValueError(
                    f"row {row.name!r} starts from {row.init_from!r}, which is "
                    + ("not above it; " if below else f"no row; {_hint(row.init_from, names)}; ")
                    + "init_from names a row that stands above, since that is trained first"
                )
        return self


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        row: the row's name.
        stream: its input.
        seed: its seed.
        config: the resolved recipe; its `out` is SWEEP/ROW/STREAM-seedSEED.
        start: the run that gives its starting weights; None where none of the sweep does.
    """

    row: str
    stream: str
    seed: int
    config: TrainConfig
    start: PlannedRun | None = None

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
        baseline: the row that the others are compared with; None: nothing is compared.
        rows: those of the table and those that are only trained.
        streams: in the order of the table.
        seeds: in the order of the table.
        runs: seed by seed, so that a stopped sweep has a whole table of the first seeds; a run
            stands behind the one that it starts from.
    """

    name: str
    title: str
    published: str
    published_stream: str
    baseline: SweepRow | None
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
    _refuse_unknown_rows(config.assignments, [row.name for row in file.rows])
    base = _row_config(config, path, file, SweepRow(name="base"))
    streams = config.streams or (base.data.stream,)
    seeds = config.seeds or (base.loop.seed,)
    runs: dict[tuple[str | None, str, int], PlannedRun] = {}
    for seed in seeds:
        for row in file.rows:
            for stream in streams:
                start = runs.get((row.init_from, stream, seed))
                resolved = _row_config(
                    config, path, file, row, stream=stream, seed=seed, start=start
                )
                planned = PlannedRun(row.name, stream, seed, resolved, start)
                runs[row.name, stream, seed] = planned
    return SweepPlan(
        name=path.stem if path is not None else file.rows[0].name,
        title=file.title,
        published=file.published,
        published_stream=base.data.stream,
        baseline=next((row for row in file.rows if row.name == file.baseline), None),
        rows=file.rows,
        streams=streams,
        seeds=seeds,
        runs=tuple(runs.values()),
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
    raise ValueError(
        f"there is no sweep or recipe {name_or_path!r}; {did_you_mean(name_or_path, names)}"
        f"sweeps: {', '.join(sweep_names())}; `hoc recipes` lists the recipes; your own is "
        "given by its path, ending in .toml"
    )


def _row_config(
    config: SweepConfig,
    path: Path | None,
    file: SweepFile,
    row: SweepRow,
    *,
    stream: str | None = None,
    seed: int | None = None,
    start: PlannedRun | None = None,
) -> TrainConfig:
    """The resolved recipe of one run; of the recipe's own stream and seed where none is given."""
    recipe = row.recipe or file.recipe
    assignments = [
        text.replace("{stream}", str(stream)).replace("{seed}", str(seed))
        for text in _assignments(config.assignments, row)
    ]
    has_data = any(_key(text) == _DATASET for text in assignments)
    dataset = None if has_data else config.dataset
    flags = {
        "out": config.out / row.name / f"{stream}-seed{seed}",
        "data": {"dataset": dataset, "protocol": config.protocol, "stream": stream},
        "method": {"init_from": None if start is None else start.config.out},
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
    return resolved.sharing_cores(config.jobs)


def _assignments(given: Sequence[str], row: SweepRow) -> list[str]:
    """What is laid over the recipe of a row: --set of all rows, --set of this one, its own.

    Raises:
        ValueError: --set and the row change the same, or a column of the table.
    """
    parted = [_rows_and_rest(text) for text in given]
    for_all = [rest for patterns, rest in parted if not patterns]
    for_this = [rest for patterns, rest in parted if _is_named(row.name, patterns)]
    others = [text for text in for_this if _key(text) != _DATASET]
    for text in (*for_all, *others, *row.set):
        key = _key(text)
        if key in _FLAGS:
            raise ValueError(f"{text}: a sweep is told that by {_FLAGS[key]}")
    taken = {_key(text) for text in row.set}
    taken |= {"method.init_from"} if row.init_from is not None else set()
    for text in (*for_all, *for_this):
        key = _key(text)
        if key in taken:
            raise ValueError(f"--set {text}: row {row.name!r} sets {key} itself; leave one of them")
    return [*for_all, *for_this, *row.set]


def _key(assignment: str) -> str:
    """`section.key` of `section.key=value`."""
    return ".".join(parse_assignment(assignment)[0])


def _rows_and_rest(text: str) -> tuple[list[str], str]:
    """`ROW,ROW:section.key=value` as the rows' patterns and the rest; for all rows: no pattern."""
    key, equals, value = text.partition("=")
    rows, colon, key = key.rpartition(":")
    return [name.strip() for name in rows.split(",")] if colon else [], f"{key}{equals}{value}"


def _is_named(row: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(row, pattern) for pattern in patterns)


def _refuse_unknown_rows(given: Sequence[str], rows: Sequence[str]) -> None:
    """A --set for rows must be for rows of the sweep."""
    for text in given:
        for pattern in _rows_and_rest(text)[0]:
            if not any(_is_named(row, [pattern]) for row in rows):
                raise ValueError(
                    f"--set {text}: no row is named {pattern!r}; {_hint(pattern, rows)}"
                )


def _hint(name: str, rows: Sequence[str]) -> str:
    return did_you_mean(name, rows).rstrip() or f"there are {', '.join(rows)}"
