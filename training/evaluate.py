"""Scores of a finished run on one split: accuracies, confusion matrix, scores-SPLIT.parquet.

The weights are those of the last epoch; nothing is chosen by looking at the test split. Those of
the best epoch, where a run kept them, are scored on demand into files of their own that say so.
Results under another protocol or on another data set have files of their own too, and samples that
the run was trained on are scored only where the training split is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_build import schema
from datasets_build.dataset import DATASET_FILE, SkeletonDataset, open_dataset
from datasets_build.manifest import sha256_file, write_json
from datasets_build.progress import Progress
from datasets_build.protocol_files import find_protocol
from datasets_build.protocols import PROTOCOLS, Protocol
from training.best_epoch import load_best
from training.build import RunRecord, build_method, pick_device, read_run
from training.checkpoint import load_saved_weights
from training.command_config import EvaluateConfig
from training.config import Weights
from training.loading import AnySplit, load_split, split_of
from training.methods.method import Method
from training.metrics import (
    Accuracy,
    accuracy,
    confusion_matrix,
    write_confusion_csv,
    write_confusion_png,
)
from training.scores import (
    LAST_EPOCH,
    SCORES_SHA256,
    file_stem,
    metrics_file,
    scores_file,
    write_scores,
)
from training.seeding import cpu_threads, deterministic_kernels, full_float32, seeded
from training.skeleton_data import SkeletonStore


@dataclass(frozen=True)
class EvaluateSummary:
    """What an evaluation found.

    Attributes:
        run: the run folder.
        split: which split.
        protocol: what split the data.
        dataset: name of the data set.
        weights: which weights were scored, in words.
        epochs: epochs that the scored weights were trained.
        accuracy: all accuracies.
        files: what was written.
    """

    run: Path
    split: str
    protocol: str
    dataset: str
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
        is_own_protocol: whether it is the one trained with.
        device: where the method is.
    """

    record: RunRecord
    method: Method
    weights: str
    weights_sha256: str
    epochs: int
    dataset: SkeletonDataset
    protocol: Protocol
    is_own_protocol: bool
    device: torch.device

    @property
    def elsewhere(self) -> str:
        """Names of the protocol and data set where they are not the run's own, for file names."""
        parts = [] if self.is_own_protocol else [self.protocol.name]
        if self.dataset.fingerprint != self.record.dataset_fingerprint:
            parts += [self.dataset.name, self.dataset.fingerprint[:8]]
        return "-".join(parts)

    def store(self, split: AnySplit, *, sample_ids: Sequence[str] | None = None) -> SkeletonStore:
        """The samples of a split, or some of them, as the method was trained to see them.

        Raises:
            ValueError: see load_split.
        """
        return load_split(
            self.dataset,
            self.protocol,
            split,
            self.record.config.data,
            device=self.device,
            sample_ids=sample_ids,
            second_body=self.record.second_body,
        )

    def provenance(self, split: str) -> dict[str, Any]:
        """What a file of results says about where they are from."""
        method = self.record.config.method
        language_model = {
            "language_model": method.language_model,
            "language_model_dtype": method.language_model_dtype,
        }
        return {
            "split": split,
            "protocol": self.protocol.name,
            "stream": self.record.config.data.stream,
            "dataset": self.dataset.name,
            "dataset_fingerprint": self.dataset.fingerprint,
            **(language_model if method.name == "hocslm" else {}),
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "epochs": self.epochs,
        }


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
        best, saved = load_best(folder)
        label = best.label
    else:
        saved, planned = load_saved_weights(folder), record.config.loop.epochs
        label = LAST_EPOCH
        if saved.epoch != planned:
            label = f"unfinished run: {saved.epoch} of {planned} epochs are done"
    data = record.open_dataset(dataset)
    record.check_dataset(data)
    own_name = record.config.data.protocol
    chosen = data.protocol(protocol or own_name)
    if protocol in (None, own_name):
        record.check_protocol(chosen)
    is_own = protocol in (None, own_name) or chosen.fingerprint == record.protocol_fingerprint
    where = pick_device(device)
    prompt = saved.tensors.get("ssf.prompt")
    with seeded(0, "replaced weights"):
        method = build_method(
            record.config,
            num_classes=len(record.classes),
            skeleton=record.skeleton,
            device=where,
            language_width=prompt.shape[1] if prompt is not None else None,
        )
    method.load_saved_state(saved.tensors)
    method.eval()
    return LoadedRun(record, method, label, saved.sha256, saved.epoch, data, chosen, is_own, where)


def run(config: EvaluateConfig, progress: Progress) -> EvaluateSummary:
    """Score a run and write what was found into the run folder.

    Args:
        config: which run, weights, data and split.
        progress: told of every batch.

    Raises:
        FileNotFoundError, ValueError: see load_run; or the run was trained on samples of a split
            that is not "train", or the scores are not finite.
    """
    loaded = load_run(
        config.run,
        dataset=config.dataset,
        protocol=config.protocol,
        device=config.device,
        weights=config.weights,
    )
    record = loaded.record
    store = loaded.store(config.split)
    if config.split != "train":
        _refuse_trained_on(loaded, store.sample_ids, split=config.split)
    loop = record.config.loop
    with cpu_threads(loop.num_threads), deterministic_kernels(loop.deterministic):
        scores = score_store(loaded.method, store, batch_size=config.batch_size, progress=progress)
    if not np.isfinite(scores).all():
        raise ValueError(f"the scores of {config.run} are not finite; train it again")
    names, data = record.class_names, record.config.data
    measured = accuracy(scores, store.labels, names)
    matrix = confusion_matrix(scores, store.labels)
    folder, split = config.run, config.split
    stem = file_stem(split, weights=config.weights, elsewhere=loaded.elsewhere)
    files = (
        scores_file(folder, split, weights=config.weights, elsewhere=loaded.elsewhere),
        metrics_file(folder, split, weights=config.weights, elsewhere=loaded.elsewhere),
        *(folder / f"confusion-{stem}{end}" for end in (".csv", ".png")),
    )
    write_scores(files[0], store.sample_ids, store.labels, scores)
    write_confusion_csv(files[2], matrix, names)
    title = f"{data.stream}, {loaded.protocol.name} {split}: {measured.top1:.1%}"
    if loaded.weights != LAST_EPOCH:
        title += f"\n{loaded.weights}"
    write_confusion_png(files[3], matrix, names, title)
    # Last: what it says of the weights holds for all four files.
    write_json(
        files[1],
        {
            **loaded.provenance(split),
            "validation_subjects": sorted(data.validation_subjects),
            "classes": record.classes,
            SCORES_SHA256: sha256_file(files[0]),
            **measured.as_json(),
        },
    )
    return EvaluateSummary(
        folder,
        split,
        loaded.protocol.name,
        loaded.dataset.name,
        loaded.weights,
        loaded.epochs,
        measured,
        files,
    )


def _refuse_trained_on(loaded: LoadedRun, sample_ids: Sequence[str], *, split: str) -> None:
    """Refuse samples of the run's own training split.

    Under the run's own protocol there are none. Published protocols go by ids that belong to a
    recording wherever it lies; the ids of another protocol mean something in the run's data set
    alone, so that its training samples are looked up there.

    Raises:
        ValueError: there are such samples, or the rule trained with is another one by now.
        FileNotFoundError: the run's data set is needed and not there.
    """
    if loaded.is_own_protocol:
        return
    record, source = loaded.record, loaded.dataset
    name = record.config.data.protocol
    if name not in PROTOCOLS and source.fingerprint != record.dataset_fingerprint:
        folder = record.config.data.dataset
        if not (folder / DATASET_FILE).is_file():
            raise FileNotFoundError(
                f"{folder}, the data set that {record.folder} was trained on, is not there, so it "
                f"cannot be told whether it holds {split} samples of {loaded.protocol.name}; bring "
                "it back, or score the run under its own protocol"
            )
        source = open_dataset(folder)
    own = find_protocol(name, source.folder)
    record.check_protocol(own)
    subjects, unseen = record.config.data.validation_subjects, record.unseen
    trained_on = {
        row[schema.SAMPLE_ID]
        for table in source.tables(list(schema.ID_COLUMNS))
        for row in table.to_pylist()
        if split_of(row, own, validation_subjects=subjects, unseen=unseen) == "train"
    }
    seen = sorted(trained_on.intersection(sample_ids))
    if seen:
        raise ValueError(
            f"{record.folder} was trained on {len(seen)} of the {len(sample_ids)} {split} samples "
            f"of {loaded.protocol.name} (for example {seen[0]}): its own protocol is {own.name}; "
            f"score it under that one, or train a run under {loaded.protocol.name}"
        )


@torch.no_grad()
def score_store(
    method: Method, store: SkeletonStore, *, batch_size: int, progress: Progress | None = None
) -> np.ndarray:
    """Class scores of every sample in the order of the store, (n, num_classes) float32."""
    was_training = method.training
    method.eval()
    parts = []
    if progress is not None:
        progress.start("evaluate", len(store), unit="samples")
    with full_float32():
        for batch in store.test_batches(batch_size):
            parts.append(method.predict(batch))  # (N, num_classes)
            if progress is not None:
                progress.advance(len(batch.label))
    if progress is not None:
        progress.finish()
    method.train(was_training)
    result: np.ndarray = torch.cat(parts).cpu().numpy().astype(np.float32)
    return result
