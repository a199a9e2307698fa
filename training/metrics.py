"""What is measured: accuracies, the confusion matrix, and the log of a run (metrics.jsonl)."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_build.manifest import write_bytes_atomic
from training.trackers import Tracker


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes that are taken for each other.

    Attributes:
        truth: name of the true class.
        taken_for: name of the class that the model gave.
        num_samples: how often.
        share: of the true class's samples.
    """

    truth: str
    taken_for: str
    num_samples: int
    share: float


@dataclass(frozen=True)
class Accuracy:
    """Accuracies in [0, 1] of one set of scores.

    Attributes:
        num_samples: samples scored.
        top1: share with the true class first.
        top5: share with the true class among the first five (of at least as many classes).
        mean_class: mean of the per-class accuracies over the classes that occur.
        per_class: class name -> accuracy, for the classes that occur.
        samples_per_class: class name -> samples, for the same classes.
        worst_pairs: the most frequent confusions.
    """

    num_samples: int
    top1: float
    top5: float
    mean_class: float
    per_class: dict[str, float]
    samples_per_class: dict[str, int]
    worst_pairs: tuple[ConfusedPair, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def top_k_share(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of samples whose true class is among the k best scores.

    A tie counts against the model: classes with the same score as the true one stand before it.

    Args:
        scores: (N, num_classes).
        labels: (N,) 0-based.
        k: how many.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)  # (N, 1)
    num_before = (scores >= own).sum(axis=1) - 1  # (N,)
    return float((num_before < k).mean())


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(num_classes, num_classes) counts; rows are the truth, columns what was given."""
    num_classes = scores.shape[1]
    flat = labels.astype(np.int64) * num_classes + scores.argmax(axis=1)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def worst_pairs(
    matrix: np.ndarray, names: Sequence[str], *, most: int = 10
) -> tuple[ConfusedPair, ...]:
    """The confusions with the most samples, ties in class order."""
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    pairs = []
    for flat in order:
        truth, given = divmod(int(flat), len(names))
        count = int(off[truth, given])
        if count:
            share = count / int(matrix[truth].sum())
            pairs.append(ConfusedPair(names[truth], names[given], count, share))
    return tuple(pairs)


def accuracy(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Accuracy:
    """All accuracies of one set of scores.

    Args:
        scores: (N, num_classes) logits or any scores of which a greater one is better.
        labels: (N,) 0-based.
        names: class names in label order.

    Raises:
        ValueError: no samples.
    """
    if not len(scores):
        raise ValueError("there is no sample to measure; the split of this protocol is empty")
    matrix = confusion_matrix(scores, labels)
    totals = matrix.sum(axis=1)
    occurs = totals > 0
    shares = matrix.diagonal()[occurs] / totals[occurs]
    occurring = [name for name, here in zip(names, occurs, strict=True) if here]
    return Accuracy(
        num_samples=len(scores),
        top1=float(matrix.diagonal().sum() / len(scores)),
        top5=top_k_share(scores, labels, 5),
        mean_class=float(shares.mean()),
        per_class=dict(zip(occurring, shares.tolist(), strict=True)),
        samples_per_class=dict(zip(occurring, totals[occurs].tolist(), strict=True)),
        worst_pairs=worst_pairs(matrix, names),
    )


def write_confusion_csv(path: Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Counts as CSV: the first column and row are the class names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["truth \\ given", *names])
    for name, row in zip(names, matrix, strict=True):
        writer.writerow([name, *map(int, row)])
    write_bytes_atomic(path, text.getvalue().encode())


def write_confusion_png(path: Path, matrix: np.ndarray, names: Sequence[str], title: str) -> None:
    """The confusion matrix as a picture, rows normalised to their sums."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_classes = len(names)
    is_small = num_classes <= 20
    side = 3.0 + 0.22 * num_classes  # inches; our choice: names stay readable up to 120 classes
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(num_classes), names, rotation=90, fontsize=9)
    axes.set_yticks(range(num_classes), names, fontsize=9)
    large = 11 if is_small else 24
    axes.set_xlabel("given", fontsize=large)
    axes.set_ylabel("truth", fontsize=large)
    figure.suptitle(title, fontsize=large)
    # Counts: all where there is room, else those of at least 5 % of the class.
    for row, column in np.argwhere((shares > 0) & (is_small | (shares >= 0.05))).tolist():
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = str(int(matrix[row, column]))
        fontsize = 9 if is_small else 6
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=fontsize)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30)
    bar.set_label("share of the true class", fontsize=large)
    data = io.BytesIO()
    # No time or version inside: the same matrix gives the same bytes.
    canvas.print_figure(data, format="png", dpi=120, metadata={"Software": None})
    write_bytes_atomic(path, data.getvalue())


def metric_label(name: str) -> str:
    """How a metric of the log is called where people read it.

    Numbers of the test split that a run sees while it trains are no results: they are watched.
    """
    return f"{name} (watched)" if name.startswith("test/") else name


class MetricsLog:
    """metrics.jsonl, one JSON object a line with "epoch" and "step"; trackers are told the same."""

    def __init__(self, folder: Path, *, step: int, trackers: Sequence[Tracker] = ()) -> None:
        """Open for appending after an optimiser step.

        Lines of later steps are dropped: that part of the run is about to be repeated.
        """
        self.path = folder / "metrics.jsonl"
        self._trackers = trackers
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was killed
            if value["step"] <= step:
                kept.append(line + "\n")
        write_bytes_atomic(self.path, "".join(kept).encode())

    def write(self, values: Mapping[str, float | int]) -> None:
        """Append one object; floats are rounded to 6 significant digits."""
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
        shown = {name: value for name, value in values.items() if name not in ("epoch", "step")}
        for tracker in self._trackers:
            tracker.log(shown, int(values["step"]))

    def flush(self) -> None:
        """Have the lines on the disk, as a power cut would find them."""
        with self.path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Write what the trackers still hold."""
        for tracker in self._trackers:
            tracker.close()
