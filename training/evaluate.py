"""Scores of a finished run on one split: accuracies, confusion matrix, scores-SPLIT.parquet.

The weights are those of the last epoch; nothing is chosen by looking at the test split. Those of
the best epoch, where a run kept them, are scored on demand into files of their own that say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from datasets_build.dataset import SkeletonDataset, open_dataset
from datasets_build.manifest import sha256_file, write_bytes_atomic, write_json
from datasets_build.progress import Progress
from datasets_build.protocols import Protocol
from training.best_epoch import load_best, read_best
from training.build import RunRecord, build_method, pick_device, read_run
from training.checkpoint import load_weights, model_path, read_request
from training.config import EvaluateConfig, Weights
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
        weights: which weights were scored, in words.
        epochs: epochs that the scored weights were trained.
        accuracy: all accuracies.
        files: what was written.
    """

    run: Path
    split: str
    weights: str
    epochs: int
    accuracy: Accuracy
    files: tuple[Path, ...]


@dataclass(frozen=True)
class LoadedRun:
    """A trained method with the data it is asked about.

    Attributes:
        record: what the run says about itself.
        method: in evaluation mode, on `device`.
        weights: what its weights are, in words.
        weights_sha256: hash of the file that they are from.
        epochs: epochs that they were trained.
        dataset: the opened data set, checked against the run's classes and skeleton.
        protocol: what splits it.
        device: where the method is.
    """

    record: RunRecord
    method: Method
    weights: str
    weights_sha256: str
    epochs: int
    dataset: SkeletonDataset
    protocol: Protocol
    device: torch.device


def load_run(
    folder: Path,
    *,
    dataset: Path | None,
    protocol: str | None,
    device: str,
    weights: Weights = "last",
) -> LoadedRun:
    """The weights of a run, with its data set or another one of the same classes.

    Args:
        folder: the run folder.
        dataset: another data set; None: the one trained on.
        protocol: another protocol; None: the one trained with.
        device: "auto", "cpu", "cuda" or "mps".
        weights: of the last checkpoint, or of the best epoch.

    Raises:
        FileNotFoundError: the run, its weights or the data set is not there.
        ValueError: a file is damaged, or classes, skeleton or the protocol's rule differ.
    """
    record = read_run(folder)
    if weights == "best":
        best = read_best(folder)
        tensors, path, epochs, label = load_best(folder), best.path, best.epoch, best.label
    else:
        tensors, path = load_weights(folder), model_path(folder)
        epochs, _ = read_request(folder)
        planned = record.config.loop.epochs
        label = "last epoch"
        if epochs != planned:
            label = f"unfinished run: {epochs} of {planned} epochs are done"
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
    method.load_saved_state(tensors)
    method.eval()
    return LoadedRun(record, method, label, sha256_file(path), epochs, data, chosen, where)


def run(config: EvaluateConfig, progress: Progress) -> EvaluateSummary:
    """Score a run and write what was found into the run folder.

    Args:
        config: which run, weights, data and split.
        progress: told of every batch.

    Raises:
        FileNotFoundError, ValueError: see load_run; or the scores are not finite.
    """
    loaded = load_run(
        config.run,
        dataset=config.dataset,
        protocol=config.protocol,
        device=config.device,
        weights=config.weights,
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
    names, data = record.class_names, record.config.data
    measured = accuracy(scores, store.labels, names)
    matrix = confusion_matrix(scores, store.labels)
    folder, split = config.run, config.split
    files = (
        scores_file(folder, split, config.weights),
        metrics_file(folder, split, config.weights),
        *(folder / f"confusion-{_stem(split, config.weights)}{end}" for end in (".csv", ".png")),
    )
    write_scores(files[0], store.sample_ids, store.labels, scores)
    write_confusion_csv(files[2], matrix, names)
    title = f"{data.stream}, {loaded.protocol.name} {split}: {measured.top1:.1%}"
    if loaded.weights != "last epoch":
        title += f"\n{loaded.weights}"
    write_confusion_png(files[3], matrix, names, title)
    # Last: what it says of the weights holds for all four files.
    write_json(
        files[1],
        {
            "split": split,
            "protocol": loaded.protocol.name,
            "stream": data.stream,
            "validation_subjects": sorted(data.validation_subjects),
            "dataset": loaded.dataset.name,
            "dataset_fingerprint": loaded.dataset.fingerprint,
            "classes": record.classes,
            "weights": loaded.weights,
            "weights_sha256": loaded.weights_sha256,
            "epochs": loaded.epochs,
            **measured.as_json(),
        },
    )
    return EvaluateSummary(folder, split, loaded.weights, loaded.epochs, measured, files)


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
    starts = range(0, len(store), batch_size)
    picks = (everything.part(start, start + batch_size) for start in starts)
    for batch in store.batches(picks, training=False):
        scores = method.predict(batch)  # (N, num_classes)
        if scores is None:
            raise ValueError(
                f"{type(method).__name__} gives no class scores; it cannot be evaluated"
            )
        parts.append(scores)
        if progress is not None:
            progress.advance(len(batch.label))
    if progress is not None:
        progress.finish()
    method.train(was_training)
    result: np.ndarray = torch.cat(parts).cpu().numpy().astype(np.float32)
    return result


def scores_file(folder: Path, split: str, weights: Weights = "last") -> Path:
    """Where an evaluation puts its scores."""
    return folder / f"scores-{_stem(split, weights)}.parquet"


def metrics_file(folder: Path, split: str, weights: Weights = "last") -> Path:
    """Where an evaluation puts its accuracies."""
    stem = _stem(split, weights)
    return folder / ("metrics.json" if stem == "test" else f"metrics-{stem}.json")


def _stem(split: str, weights: Weights) -> str:
    return split if weights == "last" else f"{split}-best-epoch"


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
