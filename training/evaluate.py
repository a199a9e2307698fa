"""Scores of a finished run on one split: accuracies, confusion matrix, scores-SPLIT.parquet.

The weights are those of the last epoch; nothing is chosen by looking at the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from datasets_build.dataset import SkeletonDataset, open_dataset
from datasets_build.manifest import write_bytes_atomic, write_json
from datasets_build.progress import Progress
from datasets_build.protocols import Protocol
from training.build import RunRecord, build_method, pick_device, read_run
from training.checkpoint import load_weights, read_request
from training.config import EvaluateConfig
from training.loading import load_split
from training.methods.method import Method
from training.metrics import (
    Accuracy,
    accuracy,
    confusion_matrix,
    write_confusion_csv,
    write_confusion_png,
)
from training.seeding import cpu_threads, deterministic_kernels, seeded
from training.skeleton_data import SkeletonStore

SCORE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
    ]
)


@dataclass(frozen=True)
class EvaluateSummary:
    """What an evaluation found.

    Attributes:
        run: the run folder.
        split: which split.
        epochs: epochs that the scored weights were trained.
        accuracy: all accuracies.
        files: what was written.
    """

    run: Path
    split: str
    epochs: int
    accuracy: Accuracy
    files: tuple[Path, ...]


@dataclass(frozen=True)
class LoadedRun:
    """A trained method with the data it is asked about.

    Attributes:
        record: what the run says about itself.
        method: in evaluation mode, on `device`.
        dataset: the opened data set, checked against the run's classes and skeleton.
        protocol: what splits it.
        device: where the method is.
    """

    record: RunRecord
    method: Method
    dataset: SkeletonDataset
    protocol: Protocol
    device: torch.device


def load_run(folder: Path, *, dataset: Path | None, protocol: str | None, device: str) -> LoadedRun:
    """The last checkpoint of a run, with its data set or another one of the same classes.

    Args:
        folder: the run folder.
        dataset: another data set; None: the one trained on.
        protocol: another protocol; None: the one trained with.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        FileNotFoundError: the run, its checkpoint or the data set is not there.
        ValueError: a file is damaged, or classes, skeleton or the protocol's rule differ.
    """
    record = read_run(folder)
    weights = load_weights(folder)
    data = open_dataset(dataset or record.config.data.dataset)
    record.check_dataset(data)
    chosen = data.protocol(protocol or record.config.data.protocol)
    if protocol is None:
        record.check_protocol(chosen)
    where = pick_device(device)
    with seeded(0, "replaced weights"):
        method = build_method(
            record.config, num_classes=len(record.classes), skeleton=record.skeleton, device=where
        )
    method.load_saved_state(weights)
    method.eval()
    return LoadedRun(record, method, data, chosen, where)


def run(config: EvaluateConfig, progress: Progress) -> EvaluateSummary:
    """Score a run's last checkpoint and write what was found into the run folder.

    Args:
        config: which run, data and split.
        progress: told of every batch.

    Raises:
        FileNotFoundError, ValueError: see load_run; or the scores are not finite.
    """
    loaded = load_run(
        config.run, dataset=config.dataset, protocol=config.protocol, device=config.device
    )
    record = loaded.record
    store = load_split(
        loaded.dataset, loaded.protocol, config.split, record.config.data, device=loaded.device
    )
    loop = record.config.loop
    with cpu_threads(loop.num_threads), deterministic_kernels(loop.deterministic):
        scores = score_store(loaded.method, store, batch_size=config.batch_size, progress=progress)
    if not np.isfinite(scores).all():
        raise ValueError(f"the scores of {config.run} are not finite; train it again")
    names = record.class_names
    measured = accuracy(scores, store.labels, names)
    matrix = confusion_matrix(scores, store.labels)
    epochs, _ = read_request(config.run)
    folder, split = config.run, config.split
    files = (
        scores_file(folder, split),
        metrics_file(folder, split),
        folder / f"confusion-{split}.csv",
        folder / f"confusion-{split}.png",
    )
    write_scores(files[0], store.sample_ids, store.labels, scores)
    write_json(
        files[1],
        {
            "split": split,
            "protocol": loaded.protocol.name,
            "stream": record.config.data.stream,
            "dataset": loaded.dataset.name,
            "dataset_fingerprint": loaded.dataset.fingerprint,
            "classes": record.classes,
            "weights": "last epoch",
            "epochs": epochs,
            **measured.as_json(),
        },
    )
    write_confusion_csv(files[2], matrix, names)
    title = f"{record.config.data.stream}, {loaded.protocol.name} {split}: {measured.top1:.1%}"
    write_confusion_png(files[3], matrix, names, title)
    return EvaluateSummary(folder, split, epochs, measured, files)


@torch.no_grad()
def score_store(
    method: Method, store: SkeletonStore, *, batch_size: int, progress: Progress | None = None
) -> np.ndarray:
    """Class scores of every sample in the order of the store, (n, num_classes) float32.

    Raises:
        ValueError: the method does not classify.
    """
    was_training = method.training
    method.eval()
    everything = store.in_order()
    parts = []
    if progress is not None:
        progress.start("evaluate", len(store), unit="samples")
    for start in range(0, len(store), batch_size):
        picks = everything.part(start, start + batch_size)
        scores = method.predict(store.batch(picks, training=False))  # (N, num_classes)
        if scores is None:
            raise ValueError(
                f"{type(method).__name__} gives no class scores; it cannot be evaluated"
            )
        parts.append(scores)
        if progress is not None:
            progress.advance(len(picks))
    if progress is not None:
        progress.finish()
    method.train(was_training)
    result: np.ndarray = torch.cat(parts).cpu().numpy().astype(np.float32)
    return result


def scores_file(folder: Path, split: str) -> Path:
    """Where an evaluation puts its scores."""
    return folder / f"scores-{split}.parquet"


def metrics_file(folder: Path, split: str) -> Path:
    """Where an evaluation puts its accuracies."""
    return folder / ("metrics.json" if split == "test" else f"metrics-{split}.json")


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
            f"{path} does not exist; score the run first with `hoc evaluate {path.parent}`"
        )
    try:
        table = pq.read_table(path, schema=SCORE_SCHEMA)
        scores = np.stack(table["scores"].to_pylist()).astype(np.float32)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a scores file ({error}); write it anew with `hoc evaluate`"
        ) from error
    return table["sample_id"].to_pylist(), table["label"].to_numpy(), scores
