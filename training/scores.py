"""The files of an evaluation: scores-WHAT.parquet, and metrics-WHAT.json, which vouches for it.

WHAT is the split; results of the best epoch, under another protocol than the run's or on another
data set say so in it, and lie beside those of the last epoch on the run's own task.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_build.manifest import read_json, sha256_file, write_bytes_atomic
from training.config import Weights

SCORE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
    ]
)
LAST_EPOCH = "last epoch"  # how a record of scores calls the weights of a finished run
SCORES_SHA256 = "scores_sha256"  # the key in the JSON file


@dataclass(frozen=True)
class Evaluation:
    """What `hoc evaluate` left of one split.

    Attributes:
        sample_ids: n ids, sorted.
        labels: (n,) 0-based.
        scores: (n, num_classes) float32 logits.
        record: the JSON file.
    """

    sample_ids: list[str]
    labels: np.ndarray
    scores: np.ndarray
    record: dict[str, Any]


def scores_file(
    folder: Path, split: str, *, weights: Weights = "last", elsewhere: str = ""
) -> Path:
    """Where an evaluation puts its scores; see file_stem."""
    stem = file_stem(split, weights=weights, elsewhere=elsewhere)
    return folder / f"scores-{stem}.parquet"


def metrics_file(
    folder: Path, split: str, *, weights: Weights = "last", elsewhere: str = ""
) -> Path:
    """Where an evaluation puts its accuracies; see file_stem."""
    stem = file_stem(split, weights=weights, elsewhere=elsewhere)
    return folder / ("metrics.json" if stem == "test" else f"metrics-{stem}.json")


def file_stem(split: str, *, weights: Weights = "last", elsewhere: str = "") -> str:
    """What the names of the files of an evaluation share.

    Args:
        split: which was scored.
        weights: of the last or of the best epoch.
        elsewhere: names of the protocol and data set where they are not the run's own.
    """
    parts = [split, "best-epoch" if weights == "best" else "", elsewhere]
    return re.sub(r"[^\w.-]+", "_", "-".join(part for part in parts if part))


def write_scores(path: Path, sample_ids: list[str], labels: np.ndarray, scores: np.ndarray) -> None:
    """Scores sorted by sample_id; equal scores give equal bytes."""
    order = np.argsort(np.array(sample_ids), kind="stable")
    table = pa.table(
        {
            "sample_id": [sample_ids[i] for i in order],
            "label": pa.array(labels[order].astype(np.int32)),
            "scores": pa.array(list(scores[order].astype(np.float32)), pa.list_(pa.float32())),
        },
        schema=SCORE_SCHEMA,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes_atomic(path, sink.getvalue().to_pybytes())


def read_scores(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """sample_ids, labels (n,) and scores (n, num_classes) of a scores file.

    Raises:
        FileNotFoundError: the run was not evaluated on that split.
        ValueError: it is not a scores file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; score the run first with `hoc evaluate {path.parent} "
            f"--split {path.stem.removeprefix('scores-')}`"
        )
    try:
        table = pq.read_table(path, schema=SCORE_SCHEMA)
        scores = np.stack(table["scores"].to_pylist()).astype(np.float32)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a scores file ({error}); write it anew with `hoc evaluate`"
        ) from error
    return table["sample_id"].to_pylist(), table["label"].to_numpy(), scores


def read_evaluation(folder: Path, split: str) -> Evaluation:
    """The scores of a run on a split of its own task, and what `hoc evaluate` wrote about them.

    Raises:
        FileNotFoundError: the run was not evaluated on that split.
        ValueError: the scores are not those that were written then.
    """
    path = scores_file(folder, split)
    names, labels, scores = read_scores(path)
    record = read_json(metrics_file(folder, split), made_by="hoc evaluate")
    if record.get(SCORES_SHA256) != sha256_file(path):
        raise ValueError(
            f"{path} is not the file that {metrics_file(folder, split).name} was written with (its "
            f"sha256 differs); score the run anew with `hoc evaluate {folder} --split {split}`"
        )
    return Evaluation(names, labels, scores, record)
