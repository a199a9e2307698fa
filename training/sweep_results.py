"""What the runs of a sweep reached: the table as SWEEP.md, SWEEP.csv and SWEEP.json.

Accuracies are of the last epoch on the test split, in percent where people read them. The spread
is the standard deviation over seeds (n - 1).
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets_build.manifest import write_bytes_atomic, write_json
from training.run_table import MadeBy, failure_notes, makers_notes, markdown_table
from training.sweep_plan import SweepPlan, SweepRow


@dataclass(frozen=True)
class Reached:
    """Accuracies on the test split, as shares.

    Attributes:
        top1: right at the first place.
        top5: right among the first five.
        mean_class: mean over classes of top1.
    """

    top1: float
    top5: float
    mean_class: float


@dataclass(frozen=True)
class RunResult:
    """How one run of a sweep ended.

    Attributes:
        row: the row's name.
        stream: its input.
        seed: its seed.
        folder: the run folder.
        reached: its accuracies; None where it failed.
        epochs: epochs of the scored weights.
        train_seconds: wall time of the start that finished the training.
        samples_per_s: training rate of that start.
        problem: the sentence of what stopped it; empty where nothing did.
        traceback: where it was stopped.
        made_by: what trained it, over all its starts.
    """

    row: str
    stream: str
    seed: int
    folder: Path
    reached: Reached | None = None
    epochs: int = 0
    train_seconds: float = 0.0
    samples_per_s: float = 0.0
    problem: str = ""
    traceback: str = ""
    made_by: tuple[MadeBy, ...] = ()

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row}, {self.stream}, seed {self.seed}"


@dataclass(frozen=True)
class EnsembleResult:
    """The summed scores of a row's streams.

    Attributes:
        row: the row's name.
        seed: of all its runs.
        rule: "sum P:M", weights P of position and M of motion streams.
        weights: of every stream.
        folder: where its files are.
        reached: its accuracies.
    """

    row: str
    seed: int
    rule: str
    weights: dict[str, float]
    folder: Path
    reached: Reached


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        row: the row's name.
        label: what the table calls it.
        what: the stream, or the ensemble's rule.
        cells: for every seed the top-1 share, "failed", or None where it has not run yet.
        published: top-1 in percent, of the plan's published task; None where there is none.
        differences: for every seed the cell less that of the plan's baseline, where both are there;
            empty for the baseline itself, and without one.
        published_difference: the same of the published numbers, in percent.
    """

    row: str
    label: str
    what: str
    cells: tuple[float | str | None, ...]
    published: float | None = None
    differences: tuple[float | None, ...] = ()
    published_difference: float | None = None

    @property
    def mean(self) -> float | None:
        """Over the seeds that are there."""
        return _mean(self.cells)

    @property
    def std(self) -> float | None:
        """Over the seeds that are there; None for fewer than two."""
        return _std(self.cells)

    @property
    def mean_difference(self) -> float | None:
        """Over the seeds that are there for both."""
        return _mean(self.differences)

    @property
    def std_difference(self) -> float | None:
        """Over the seeds that are there for both; None for fewer than two."""
        return _std(self.differences)


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep reached so far.

    Attributes:
        folder: of all runs and of the table.
        plan: what it is made of.
        dataset: name of the data set.
        dataset_fingerprint: identifies its content.
        protocol: the split rule; several names where the recipes differ.
        runs: those that ended, in the order of the plan.
        ensembles: of the rows and seeds whose streams all ended well.
    """

    folder: Path
    plan: SweepPlan
    dataset: str
    dataset_fingerprint: str
    protocol: str
    runs: tuple[RunResult, ...]
    ensembles: tuple[EnsembleResult, ...]

    @property
    def failures(self) -> tuple[RunResult, ...]:
        """Runs that were stopped by an error."""
        return tuple(run for run in self.runs if run.reached is None)

    @property
    def made_by(self) -> tuple[MadeBy, ...]:
        """The commits and devices of all runs, each pair once."""
        return tuple(dict.fromkeys(made_by for run in self.runs for made_by in run.made_by))

    def notes(self) -> list[str]:
        """What a reader of the table must know, a sentence or so each; failures shortened."""
        failed = f", {len(self.failures)} of them failed" if self.failures else ""
        notes = [
            f"Data set {self.dataset}, protocol {self.protocol}; top-1 in %, last epoch; "
            f"{len(self.runs)} of {len(self.plan.runs)} runs ended{failed}.",
        ]
        if len(self.plan.seeds) > 1:
            notes.append("mean and std are over the seeds (std with n - 1).")
        if self.plan.baseline is not None:
            notes.append(
                f"{self._over}: the difference to that line, seed by seed with the same stream."
            )
        if self.ensembles:
            notes.append(
                "sum P:M adds the scores of a row's streams; positions weigh P, motions M."
            )
        if len(rows_of := self._rows_by_data()) > 1:
            parts = [f"{folder} for {', '.join(rows)}" for folder, rows in rows_of.items()]
            notes.append(f"Trained on {'; '.join(parts)}; the test samples are the same.")
        notes += makers_notes(self.made_by)
        problems = ((run.name, run.problem) for run in self.failures)
        return [*notes, *failure_notes(problems, record=self._file("json"))]

    def lines(self) -> list[Line]:
        """The table, row by row: its streams, then its ensembles."""
        plan = self.plan
        found: dict[tuple[str, str, int], float | str] = {
            (run.row, run.stream, run.seed): run.reached.top1 if run.reached else "failed"
            for run in self.runs
        }
        found |= {(sum_.row, sum_.rule, sum_.seed): sum_.reached.top1 for sum_ in self.ensembles}
        sums = {(sum_.row, sum_.rule) for sum_ in self.ensembles}
        rules = dict.fromkeys(sum_.rule for sum_ in self.ensembles)
        return [
            self._line(row, what, found)
            for row in plan.rows
            if row.in_table
            for what in (*plan.streams, *(rule for rule in rules if (row.name, rule) in sums))
        ]

    def _line(
        self, row: SweepRow, what: str, found: Mapping[tuple[str, str, int], float | str]
    ) -> Line:
        plan, base = self.plan, self.plan.baseline
        cells = tuple(found.get((row.name, what, seed)) for seed in plan.seeds)
        published = row.paper if what == plan.published_stream else None
        line = Line(row.name, row.label or row.name, what, cells, published)
        if base is None or base == row:
            return line
        theirs = [found.get((base.name, what, seed)) for seed in plan.seeds]
        over = None
        if published is not None and base.paper is not None:
            over = round(published - base.paper, 2)
        return replace(
            line, differences=tuple(map(_minus, cells, theirs)), published_difference=over
        )

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names, and the lines as texts; the first two columns are no numbers.

        A row's label stands on its first line.
        """
        plan = self.plan
        columns = ["row", "stream", *(f"seed {seed}" for seed in plan.seeds)]
        if len(plan.seeds) > 1:
            columns += ["mean", "std"]
        if plan.baseline is not None:
            columns += [self._over, *(["its std"] if len(plan.seeds) > 1 else [])]
        if plan.published:
            columns.append(f"paper ({plan.published})")
            columns += [f"paper {self._over}"] if plan.baseline is not None else []
        rows: list[list[str]] = []
        last = ""
        for line in self.lines():
            label = "" if line.row == last else line.label
            last = line.row
            cells = [label, line.what, *map(_percent, line.cells)]
            if len(plan.seeds) > 1:
                cells += [_percent(line.mean), _percent(line.std)]
            if plan.baseline is not None:
                cells.append(_signed(line.mean_difference, 100))
                cells += [_percent(line.std_difference)] if len(plan.seeds) > 1 else []
            if plan.published:
                cells.append("" if line.published is None else f"{line.published:.2f}")
                cells += [_signed(line.published_difference)] if plan.baseline is not None else []
            rows.append(cells)
        return columns, rows

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        measures = ("mean", "std", "mean_difference", "std_difference")
        lines = [
            asdict(line) | {name: getattr(line, name) for name in measures} for line in self.lines()
        ]
        return {
            "sweep": self.plan.name,
            "title": self.plan.title,
            "dataset": self.dataset,
            "dataset_fingerprint": self.dataset_fingerprint,
            "protocol": self.protocol,
            "streams": list(self.plan.streams),
            "seeds": list(self.plan.seeds),
            "published": self.plan.published,
            "baseline": self.plan.baseline.name if self.plan.baseline is not None else None,
            "weights": "last epoch",
            "num_planned": len(self.plan.runs),
            "std": "over seeds, n - 1",
            "made_by": [asdict(made_by) for made_by in self.made_by],
            "table": lines,
            "runs": [asdict(run) | {"folder": self._place(run)} for run in self.runs],
            "ensembles": [asdict(sum_) | {"folder": self._place(sum_)} for sum_ in self.ensembles],
        }

    def _rows_by_data(self) -> dict[str, list[str]]:
        """The rows trained on each data set, by its folder."""
        found: dict[str, list[str]] = {}
        labels = {row.name: row.label or row.name for row in self.plan.rows}
        for run in self.plan.runs:
            rows = found.setdefault(str(run.config.data.dataset), [])
            if labels[run.row] not in rows:
                rows.append(labels[run.row])
        return found

    @property
    def _over(self) -> str:
        """What the column of differences is called."""
        baseline = self.plan.baseline
        return "" if baseline is None else f"over {baseline.label or baseline.name}"

    def paths(self) -> dict[str, Path]:
        """The files of `write` by name."""
        return {path.name: path for path in map(self._file, ("md", "csv", "json"))}

    def write(self) -> None:
        """Replace the files of this sweep; those of others in the same folder stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(self._file("md"), self._markdown().encode())
        write_bytes_atomic(self._file("csv"), self._csv().encode())
        write_json(self._file("json"), self.as_json())

    def _file(self, end: str) -> Path:
        return self.folder / f"{self.plan.name}.{end}"

    def _place(self, result: RunResult | EnsembleResult) -> str:
        """Its folder below the sweep's, so that the files stay true when all is moved."""
        return result.folder.relative_to(self.folder).as_posix()

    def _markdown(self) -> str:
        columns, rows = self.table()
        table = markdown_table(columns, rows, texts=columns[:2])
        return "\n\n".join([f"## {self.plan.title}", table, *self.notes()]) + "\n"

    def _csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["row", "stream", "seed", "top1", "top5", "mean_class", "epochs", "folder",
                         "problem"])  # fmt: skip
        for run in self.runs:
            cells = [run.row, run.stream, run.seed, *_shares(run.reached)]
            writer.writerow([*cells, run.epochs, self._place(run), run.problem])
        for sum_ in self.ensembles:
            cells = [sum_.row, sum_.rule, sum_.seed, *_shares(sum_.reached)]
            writer.writerow([*cells, "", self._place(sum_), ""])
        return out.getvalue()


def _shares(reached: Reached | None) -> Sequence[float | str]:
    return ("", "", "") if reached is None else (reached.top1, reached.top5, reached.mean_class)


def _mean(cells: Sequence[float | str | None]) -> float | None:
    values = [cell for cell in cells if isinstance(cell, float)]
    return statistics.fmean(values) if values else None


def _std(cells: Sequence[float | str | None]) -> float | None:
    values = [cell for cell in cells if isinstance(cell, float)]
    return statistics.stdev(values) if len(values) > 1 else None


def _minus(cell: float | str | None, base: float | str | None) -> float | None:
    return cell - base if isinstance(cell, float) and isinstance(base, float) else None


def _signed(value: float | None, factor: float = 1.0) -> str:
    return "" if value is None else f"{factor * value:+.2f}"


def _percent(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{100 * value:.2f}"
