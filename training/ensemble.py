"""A weighted sum of the scores of several runs, joined by sample_id.

Weights are equal, or fixed beforehand and stated; none is searched on the test split. Scores are
summed as they are (logits), as CTR-GCN's ensembles do (protocols.md section 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_build.manifest import read_json, write_json
from datasets_build.progress import Progress
from training.config import EnsembleConfig
from training.evaluate import metrics_file, read_scores, scores_file, write_scores
from training.metrics import (
    Accuracy,
    accuracy,
    confusion_matrix,
    write_confusion_csv,
    write_confusion_png,
)

ENSEMBLE_FILE = "ensemble.json"


@dataclass(frozen=True)
class Member:
    """One run of an ensemble.

    Attributes:
        run: the run folder.
        stream: its stream.
        weight: of its scores.
        top1: its own accuracy.
    """

    run: Path
    stream: str
    weight: float
    top1: float


@dataclass(frozen=True)
class EnsembleSummary:
    """What the sum of scores reached.

    Attributes:
        folder: where the files are.
        members: the runs.
        accuracy: of the sum.
        files: what was written.
    """

    folder: Path
    members: tuple[Member, ...]
    accuracy: Accuracy
    files: tuple[Path, ...]


def run(config: EnsembleConfig, progress: Progress) -> EnsembleSummary:
    """Add the scores of runs that were evaluated on the same samples.

    Args:
        config: which runs and weights.
        progress: told of every run.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: samples, labels, classes or data sets differ between runs.
    """
    weights = config.weights or (1.0,) * len(config.runs)
    progress.start("ensemble", len(config.runs), unit="runs")
    first: dict[str, Any] | None = None
    ids: list[str] = []
    labels = np.zeros(0, np.int32)
    total = np.zeros(0)
    members = []
    for folder, weight in zip(config.runs, weights, strict=True):
        names, own_labels, scores = read_scores(scores_file(folder, config.split))
        record = read_json(metrics_file(folder, config.split), made_by="hoc evaluate")
        if first is None:
            first, ids, labels = record, names, own_labels
            total = np.zeros(scores.shape)
        else:
            _refuse_unequal(config.runs[0], folder, first, record)
            order = _joined(config.runs[0], folder, ids, names)
            own_labels, scores = own_labels[order], scores[order]
            if not np.array_equal(labels, own_labels):
                at = int(np.flatnonzero(labels != own_labels)[0])
                raise ValueError(
                    f"sample {ids[at]} has label {labels[at]} in {config.runs[0]} and "
                    f"{own_labels[at]} in {folder}; evaluate both on the same data set"
                )
        total += weight * scores.astype(np.float64)  # (n, num_classes)
        members.append(Member(folder, record["stream"], weight, record["top1"]))
        progress.advance()
    progress.finish()
    assert first is not None, "a config has at least one run"
    class_names = [entry["name"] for entry in first["classes"]]
    summed = total.astype(np.float32)
    measured = accuracy(summed, labels, class_names)
    config.out.mkdir(parents=True, exist_ok=True)
    files = (
        scores_file(config.out, config.split),
        config.out / ENSEMBLE_FILE,
        config.out / f"confusion-{config.split}.csv",
        config.out / f"confusion-{config.split}.png",
    )
    write_scores(files[0], ids, labels, summed)
    write_json(
        files[1],
        {
            "split": config.split,
            "protocol": first["protocol"],
            "dataset": first["dataset"],
            "dataset_fingerprint": first["dataset_fingerprint"],
            "classes": first["classes"],
            "weights": "equal" if config.weights is None else "given",
            "members": [
                {"run": str(m.run), "stream": m.stream, "weight": m.weight, "top1": m.top1}
                for m in members
            ],
            **measured.as_json(),
        },
    )
    matrix = confusion_matrix(summed, labels)
    write_confusion_csv(files[2], matrix, class_names)
    title = f"{len(members)} streams, {first['protocol']} {config.split}: {measured.top1:.1%}"
    write_confusion_png(files[3], matrix, class_names, title)
    return EnsembleSummary(config.out, tuple(members), measured, files)


def _refuse_unequal(first: Path, other: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key in ("classes", "protocol", "dataset_fingerprint"):
        if ours[key] != theirs[key]:
            shown = "other classes, or in another order" if key == "classes" else theirs[key]
            given = f"{len(ours[key])} classes" if key == "classes" else ours[key]
            raise ValueError(
                f"{first} and {other} were not evaluated on the same task: {key} is {given} there "
                f"and {shown} here; evaluate both on one data set and protocol"
            )


def _joined(first: Path, other: Path, ids: list[str], names: list[str]) -> np.ndarray:
    """Positions in `names` of every id, so that rows join by sample_id."""
    missing = sorted(set(ids) - set(names))
    extra = sorted(set(names) - set(ids))
    if missing or extra:
        example = (missing or extra)[0]
        raise ValueError(
            f"{first} has scores of {len(ids)} samples and {other} of {len(names)}: "
            f"{len(missing)} are only in the first and {len(extra)} only in the second, for "
            f"example {example}; evaluate both on the same split"
        )
    position = {name: i for i, name in enumerate(names)}
    return np.array([position[name] for name in ids])
