"""A weighted sum of the scores of several runs, joined by sample_id.

Weights are equal, those of a stated rule, or given. They may also be searched, on the validation
split of the training subjects and on nothing else; no weight is ever chosen on the test split.
Scores are summed as they are (logits), as CTR-GCN's ensembles do, or as probabilities, as PYSKL's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from datasets_build.manifest import read_json, sha256_file, write_json
from datasets_build.progress import Progress
from training.build import CONFIG_FILE
from training.checkpoint import has_checkpoint, model_path
from training.command_config import EnsembleConfig
from training.config import Split
from training.metrics import (
    Accuracy,
    accuracy,
    confusion_matrix,
    top_k_share,
    write_confusion_csv,
    write_confusion_png,
)
from training.scores import (
    LAST_EPOCH,
    SCORES_SHA256,
    read_evaluation,
    scores_file,
    write_scores,
)
from training.streams import is_motion

POSITION_WEIGHT, MOTION_WEIGHT = 1.5, 1.0  # InfoGCN's, of the rule "position-motion"
# Weights that a search tries for each run; our choice: coarse, a few hundred samples tell no more.
SEARCHED_WEIGHTS = tuple(step / 5 for step in range(11))  # 0, 0.2, ..., 2
_MOST_ROUNDS = 20  # a search ends long before; our choice


@dataclass(frozen=True)
class Member:
    """One run of an ensemble.

    Attributes:
        run: the run folder.
        stream: its stream.
        weight: of its scores.
        top1: its own accuracy.
        trained: what its weights are, in words; "last epoch" for those of a finished run.
    """

    run: Path
    stream: str
    weight: float
    top1: float
    trained: str = LAST_EPOCH


@dataclass(frozen=True)
class EnsembleSummary:
    """What the sum of scores reached.

    Attributes:
        folder: where the files are.
        members: the runs.
        weights: where their weights are from, in words.
        accuracy: of the sum.
        validation: of the sum on the samples that weights were searched on; None without a search.
        files: what was written.
    """

    folder: Path
    members: tuple[Member, ...]
    weights: str
    accuracy: Accuracy
    validation: Accuracy | None
    files: tuple[Path, ...]


@dataclass(frozen=True)
class JoinedScores:
    """The scores of several runs on the same samples.

    Attributes:
        sample_ids: n ids.
        labels: (n,) 0-based.
        scores: (runs, n, num_classes) float64: logits or probabilities.
        records: what `hoc evaluate` wrote about each run.
    """

    sample_ids: list[str]
    labels: np.ndarray
    scores: np.ndarray
    records: list[dict[str, Any]]


def run(config: EnsembleConfig, progress: Progress) -> EnsembleSummary:
    """Add the scores of runs that were evaluated on the same samples.

    Args:
        config: which runs and weights.
        progress: told of every run.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: samples, labels, classes or data sets differ between runs, a run was trained
            on since it was evaluated, a search has no validation split to look at, or `out` holds
            a run or the ensemble of other runs.
    """
    _refuse_folders(config)
    joined = join_scores(config, config.split, progress)
    first = joined.records[0]
    class_names = [entry["name"] for entry in first["classes"]]
    validation, extra = None, {}
    if config.search_weights:
        _refuse_other_validation(config.runs, joined.records)
        seen = join_scores(config, "validation", progress)
        weights, origin = search_weights(seen.scores, seen.labels), "searched on validation"
        validation = accuracy(_sum(seen.scores, weights), seen.labels, class_names)
        equal = accuracy(_sum(seen.scores, (1.0,) * len(weights)), seen.labels, class_names)
        extra = {
            "validation": {
                "subjects": first["validation_subjects"],
                "num_samples": validation.num_samples,
                "top1": validation.top1,
                "top1_of_equal_weights": equal.top1,
            }
        }
    else:
        weights, origin = _stated_weights(config, joined.records)
    summed = _sum(joined.scores, weights)
    measured = accuracy(summed, joined.labels, class_names)
    members = tuple(
        Member(folder, record["stream"], weight, record["top1"], record["weights"])
        for folder, record, weight in zip(config.runs, joined.records, weights, strict=True)
    )
    config.out.mkdir(parents=True, exist_ok=True)
    files = (
        scores_file(config.out, config.split),
        ensemble_file(config.out, config.split),
        config.out / f"confusion-{config.split}.csv",
        config.out / f"confusion-{config.split}.png",
    )
    write_scores(files[0], joined.sample_ids, joined.labels, summed)
    matrix = confusion_matrix(summed, joined.labels)
    write_confusion_csv(files[2], matrix, class_names)
    title = f"{len(members)} streams, {first['protocol']} {config.split}: {measured.top1:.1%}"
    if unfinished := [m for m in members if m.trained != LAST_EPOCH]:
        title += f"\n{len(unfinished)} of the runs unfinished"
    write_confusion_png(files[3], matrix, class_names, title)
    write_json(
        files[1],
        {
            "split": config.split,
            "protocol": first["protocol"],
            "dataset": first["dataset"],
            "dataset_fingerprint": first["dataset_fingerprint"],
            "classes": first["classes"],
            "weights": origin,
            "combine": config.combine,
            "members": [
                {
                    "run": str(m.run),
                    "place": place,
                    "stream": m.stream,
                    "weight": m.weight,
                    "top1": m.top1,
                    "trained": m.trained,
                }
                for m, place in zip(members, _places(config), strict=True)
            ],
            SCORES_SHA256: sha256_file(files[0]),
            **extra,
            **measured.as_json(),
        },
    )
    return EnsembleSummary(config.out, members, origin, measured, validation, files)


def ensemble_file(folder: Path, split: str) -> Path:
    """Where an ensemble puts its members and accuracies."""
    return folder / ("ensemble.json" if split == "test" else f"ensemble-{split}.json")


def join_scores(config: EnsembleConfig, split: str, progress: Progress) -> JoinedScores:
    """The scores of all runs on one split, in the order of the first one's samples.

    Raises:
        FileNotFoundError, ValueError: see run.
    """
    progress.start("ensemble", len(config.runs), unit="runs")
    ids: list[str] = []
    labels = np.zeros(0, np.int32)
    records: list[dict[str, Any]] = []
    parts = []
    for folder in config.runs:
        found = read_evaluation(folder, split)
        names, own_labels, scores = found.sample_ids, found.labels, found.scores
        record = found.record
        _refuse_stale(folder, split, record)
        if not records:
            ids, labels = names, own_labels
        else:
            _refuse_unequal(config.runs[0], folder, records[0], record)
            order = _joined(config.runs[0], folder, ids, names)
            own_labels, scores = own_labels[order], scores[order]
            if not np.array_equal(labels, own_labels):
                at = int(np.flatnonzero(labels != own_labels)[0])
                raise ValueError(
                    f"sample {ids[at]} has label {labels[at]} in {config.runs[0]} and "
                    f"{own_labels[at]} in {folder}; evaluate both on the same data set"
                )
        scores = scores.astype(np.float64)
        parts.append(_softmax(scores) if config.combine == "probabilities" else scores)
        records.append(record)
        progress.advance()
    progress.finish()
    return JoinedScores(ids, labels, np.stack(parts), records)


def search_weights(scores: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    """Weights under which the sum gets most samples right; nothing is drawn.

    Coordinate search: from equal weights, one run after the other gets the weight of
    SEARCHED_WEIGHTS with the most hits, the others held still, until a round changes nothing. A
    weight moves only for at least one hit more; among equally good ones it takes that nearest to 1.

    Args:
        scores: (runs, n, num_classes) on validation samples.
        labels: (n,) 0-based.
    """
    weights = [1.0] * len(scores)
    candidates = sorted(SEARCHED_WEIGHTS, key=lambda weight: (abs(weight - 1.0), weight))
    best = _num_hits(_sum(scores, weights), labels)
    for _ in range(_MOST_ROUNDS):
        before = list(weights)
        for i in range(len(weights)):
            for candidate in candidates:
                tried = [*weights[:i], candidate, *weights[i + 1 :]]
                num_hits = _num_hits(_sum(scores, tried), labels)
                if num_hits > best:
                    best, weights = num_hits, tried
        if weights == before:
            break
    return tuple(weights)


def _stated_weights(
    config: EnsembleConfig, records: list[dict[str, Any]]
) -> tuple[tuple[float, ...], str]:
    """Weights that were fixed beforehand, and how in words."""
    if config.weights is not None:
        return config.weights, "given"
    if config.rule == "equal":
        return (1.0,) * len(records), "equal"
    weights = tuple(
        MOTION_WEIGHT if is_motion(record["stream"]) else POSITION_WEIGHT for record in records
    )
    return weights, f"rule: positions {POSITION_WEIGHT:g}, motions {MOTION_WEIGHT:g}"


def _sum(scores: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """(runs, n, num_classes) -> (n, num_classes) float32."""
    total = np.zeros(scores.shape[1:])
    for own, weight in zip(scores, weights, strict=True):
        total += weight * own
    return total.astype(np.float32)


def _num_hits(scores: np.ndarray, labels: np.ndarray) -> int:
    return round(top_k_share(scores, labels, 1) * len(labels))


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _ensembles(folder: Path) -> list[Path]:
    """What ensembles of any split wrote into a folder."""
    paths = [ensemble_file(folder, split) for split in get_args(Split)]
    return [path for path in paths if path.is_file()]


def _places(config: EnsembleConfig) -> list[str]:
    """The runs as seen from `out`: the same when all is moved, or asked for from elsewhere."""
    return [os.path.relpath(run, config.out) for run in config.runs]


def _refuse_folders(config: EnsembleConfig) -> None:
    """Refuse an ensemble as a member, and an `out` whose files are not this ensemble's own.

    Raises:
        ValueError: it is so.
    """
    for run in config.runs:
        if _ensembles(run) and not (run / CONFIG_FILE).is_file():
            raise ValueError(f"{run} is an ensemble; give its members, each with its weight")
    out = config.out
    is_member = out.resolve() in {run.resolve() for run in config.runs}
    if is_member or (out / CONFIG_FILE).is_file():
        raise ValueError(
            f"{out} is a run, whose scores those of the ensemble would replace; choose another "
            "--out folder"
        )
    for path in _ensembles(out):
        record = read_json(path, made_by="hoc ensemble")
        # Ensembles of earlier versions have no place.
        theirs = [m.get("place") or os.path.relpath(m["run"], out) for m in record["members"]]
        if sorted(theirs) != sorted(_places(config)):
            names = ", ".join(member["run"] for member in record["members"])
            raise ValueError(
                f"{out} holds the ensemble of other runs ({names}); choose another --out folder"
            )


def _refuse_stale(folder: Path, split: str, record: dict[str, Any]) -> None:
    """Refuse scores of other weights than the run has by now; a folder may also have none."""
    scored = record.get("weights_sha256")
    if scored and has_checkpoint(folder) and scored != sha256_file(model_path(folder)):
        raise ValueError(
            f"{folder} was trained on since its {split} split was scored; score it anew with "
            f"`hoc evaluate {folder} --split {split}`"
        )


def _refuse_other_validation(runs: Sequence[Path], records: list[dict[str, Any]]) -> None:
    first = records[0].get("validation_subjects")
    for folder, record in zip(runs, records, strict=True):
        subjects = record.get("validation_subjects")
        if not subjects:
            raise ValueError(
                f"{folder} has no validation split to search weights on: it was trained on all "
                "training subjects; train every run with the same data.validation_subjects = "
                "[...], or give --rule or --weights fixed beforehand"
            )
        if subjects != first:
            raise ValueError(
                f"{runs[0]} left subjects {first} out of training and {folder} {subjects}; weights "
                "are searched on samples that no run was trained on, so both must be the same"
            )


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
