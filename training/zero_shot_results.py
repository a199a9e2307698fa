"""What a zero-shot sweep reached: the table, and zero-shot-sweep.json, .csv and .md.

Shares are of test samples, in percent where people read them. The spread is the standard deviation
over splits (n - 1): it tells how much the choice of classes matters, and is no error of the mean,
since splits share samples and classes.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets_build.manifest import write_bytes_atomic, write_json
from training.run_table import MadeBy, failure_notes, makers_notes, markdown_table
from training.zero_shot import KINDS, Shares, ZeroShotResult

FILE_STEM = "zero-shot-sweep"
NUM_ENDS = 3  # best and worst splits that people are shown first

# In the order of the table; chance is "1 / unseen" or "1 / all".
MEASURES: dict[str, Callable[[Shares], float]] = {
    "unseen": lambda shares: shares.unseen,
    "unseen_mean_class": lambda shares: shares.unseen_mean_class,
    "generalised_seen": lambda shares: shares.generalised_seen,
    "generalised_unseen": lambda shares: shares.generalised_unseen,
    "harmonic": lambda shares: shares.harmonic,
}
LABELS = {
    "unseen": "among the unseen: top-1",
    "unseen_mean_class": "among the unseen: mean per class",
    "generalised_seen": "among all: seen",
    "generalised_unseen": "among all: unseen",
    "harmonic": "among all: harmonic mean",
}


@dataclass(frozen=True)
class SplitResult:
    """How one split of a zero-shot sweep ended.

    Attributes:
        name: its folder.
        unseen: names of the unseen classes.
        run: the run folder of stage one.
        result: what was measured; None where it failed.
        train_seconds: wall time of the starts that finished its two trainings.
        problem: the sentence of what stopped it; empty where nothing did.
        traceback: where it was stopped.
        made_by: what trained it, over all starts of both stages.
    """

    name: str
    unseen: tuple[str, ...]
    run: Path
    result: ZeroShotResult | None = None
    train_seconds: float = 0.0
    problem: str = ""
    traceback: str = ""
    made_by: tuple[MadeBy, ...] = ()

    def __str__(self) -> str:
        names = " + ".join(self.unseen)
        if self.result is None:
            return f"{self.name} ({names}) failed: {self.problem}"
        shown = ", ".join(f"{kind} {self.result.shares[kind].unseen:.1%}" for kind in KINDS)
        return f"{self.name} ({names}): {shown}"


@dataclass(frozen=True)
class ZeroShotSweepSummary:
    """What a zero-shot sweep reached so far.

    Attributes:
        folder: of all runs and of the table.
        dataset: name of the data set.
        dataset_fingerprint: identifies its content.
        num_classes: of the data set.
        num_unseen: classes that each split leaves out.
        num_planned: splits to be trained.
        recipes: of stage zero and stage one.
        protocol: the split rule.
        language_model: of stage one.
        sentences: of every class, by its name.
        splits: those that ended, in the order of the plan.
    """

    folder: Path
    dataset: str
    dataset_fingerprint: str
    num_classes: int
    num_unseen: int
    num_planned: int
    recipes: tuple[str, str]
    protocol: str
    language_model: str
    sentences: dict[str, list[str]]
    splits: tuple[SplitResult, ...]

    @property
    def failures(self) -> tuple[SplitResult, ...]:
        """Splits that were stopped by an error."""
        return tuple(split for split in self.splits if split.result is None)

    def chance(self, measure: str) -> float:
        """Share that guessing gets right."""
        return 1 / (self.num_unseen if measure.startswith("unseen") else self.num_classes)

    def ranked(self) -> list[tuple[SplitResult, ZeroShotResult]]:
        """The splits that did not fail, by their headline, best first."""
        scored = [(split, split.result) for split in self.splits if split.result is not None]
        return sorted(scored, key=lambda pair: -pair[1].shares["plain"].unseen)

    def statistics(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Over splits: mean, std (None for fewer than two), min and max by kind and measure."""
        found: dict[str, dict[str, dict[str, float | None]]] = {kind: {} for kind in KINDS}
        for kind in KINDS:
            for measure, of in MEASURES.items():
                values = [of(result.shares[kind]) for _, result in self.ranked()]
                if values:
                    found[kind][measure] = {
                        "mean": statistics.fmean(values),
                        "std": statistics.stdev(values) if len(values) > 1 else None,
                        "min": min(values),
                        "max": max(values),
                    }
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names, and the lines as texts; the first two columns are no numbers."""
        columns = ["measure", "score", "mean", "std", "worst", "best", "chance"]
        rows = []
        found = self.statistics()
        for measure in MEASURES:
            for kind in KINDS:
                if values := found[kind].get(measure):
                    cells = [_percent(values[name]) for name in ("mean", "std", "min", "max")]
                    label = LABELS[measure] if kind == KINDS[0] else ""
                    rows.append([label, kind, *cells, _percent(self.chance(measure))])
        return columns, rows

    def split_table(self, *, ends: int | None = None) -> tuple[list[str], list[list[str]]]:
        """The splits best first, as table(); with `ends` only so many of the best and the worst."""
        columns = ["unseen classes", "plain", "calibrated", "harmonic", "harmonic, calibrated"]
        ranked = self.ranked()
        if ends is not None and len(ranked) > 2 * ends:
            ranked = [*ranked[:ends], *ranked[-ends:]]
        rows = [
            [
                " + ".join(split.unseen),
                *(_percent(result.shares[kind].unseen) for kind in KINDS),
                *(_percent(result.shares[kind].harmonic) for kind in KINDS),
            ]
            for split, result in ranked
        ]
        return columns, rows

    def notes(self) -> list[str]:
        """What a reader of the table must know, a sentence or so each; failures shortened."""
        failed = f", {len(self.failures)} of them failed" if self.failures else ""
        notes = [
            f"Data set {self.dataset}, protocol {self.protocol}, language model "
            f"{self.language_model}; {self.num_unseen} of {self.num_classes} classes unseen; "
            f"{len(self.splits)} of {self.num_planned} splits ended{failed}.",
            "Shares of test samples in %, last epoch; std with n - 1 over splits, which share "
            "samples. Plain is the headline; calibrated is less the score under the mean training "
            "prefix.",
        ]
        made_by = dict.fromkeys(by for split in self.splits for by in split.made_by)
        problems = ((split.name, split.problem) for split in self.failures)
        record = self.paths()[f"{FILE_STEM}.json"]
        return [*notes, *makers_notes(made_by), *failure_notes(problems, record=record)]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "dataset": self.dataset,
            "dataset_fingerprint": self.dataset_fingerprint,
            "protocol": self.protocol,
            "recipes": dict(zip(("stage_zero", "stage_one"), self.recipes, strict=True)),
            "language_model": self.language_model,
            "sentences": self.sentences,
            "num_unseen": self.num_unseen,
            "num_classes": self.num_classes,
            "num_planned": self.num_planned,
            "weights": "last epoch",
            "std": "over splits, n - 1",
            "chance": {measure: self.chance(measure) for measure in MEASURES},
            "statistics": self.statistics(),
            "splits": [
                {
                    "name": split.name,
                    "unseen": list(split.unseen),
                    "folder": split.run.relative_to(self.folder).as_posix(),
                    "train_seconds": split.train_seconds,
                    "problem": split.problem,
                    "traceback": split.traceback,
                    "made_by": [asdict(made_by) for made_by in split.made_by],
                    **({} if split.result is None else _shares_json(split.result)),
                }
                for split in self.splits
            ],
        }

    def paths(self) -> dict[str, Path]:
        """The files of `write` by name."""
        names = [f"{FILE_STEM}.{end}" for end in ("md", "csv", "json")]
        return {name: self.folder / name for name in names}

    def write(self) -> None:
        """Replace the three files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        markdown, table, record = self.paths().values()
        write_bytes_atomic(markdown, self._markdown().encode())
        write_bytes_atomic(table, self._csv().encode())
        write_json(record, self.as_json())

    def _markdown(self) -> str:
        parts = [f"## Zero-shot by language, {self.num_unseen} unseen classes"]
        for columns, rows in (self.table(), self.split_table()):
            parts.append(
                markdown_table(columns, rows, texts=("measure", "score", "unseen classes"))
            )
        return "\n\n".join([*parts, *self.notes()]) + "\n"

    def _csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        numbers = [f"{kind}_{measure}" for kind in KINDS for measure in MEASURES]
        writer.writerow(["split", "unseen", *numbers, "num_unseen_samples", "problem"])
        for split in self.splits:
            cells: list[object] = [""] * (len(numbers) + 1)
            if split.result is not None:
                shares = split.result.shares
                cells = [of(shares[kind]) for kind in KINDS for of in MEASURES.values()]
                cells.append(split.result.num_unseen_samples)
            writer.writerow([split.name, " + ".join(split.unseen), *cells, split.problem])
        return out.getvalue()


def _shares_json(result: ZeroShotResult) -> dict[str, Any]:
    shares = {kind: shares.as_json() for kind, shares in result.shares.items()}
    return {**shares, "num_unseen_samples": result.num_unseen_samples}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
