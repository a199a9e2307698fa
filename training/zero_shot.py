"""Zero-shot by language: which sentence of a class does the language model find the likeliest?

Shapes: N samples of a batch, n of the split, P prefix positions, L tokens, D embedding width, S
sentences, C classes.

A run that left classes out of training (data.unseen_classes) is asked for them by sentences that
name them. The score of a sentence is the mean log-likelihood a token, the end token included, given
the skeleton's prefix; of a class, the mean over its sentences. The prediction is the class with the
highest score, among the unseen classes ("unseen") or among all ("generalised", where seen and
unseen samples are counted apart and joined by the harmonic mean).

"plain" is that score and the headline. "calibrated" is less the score that the class has under the
mean prefix of the training samples: what a sentence owes to its words and not to the skeleton. No
test sample has a part in it. Our choice, as are the means over tokens and over sentences.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from datasets_build.dataset import SkeletonDataset
from datasets_build.manifest import read_json, sha256_file, write_json
from datasets_build.progress import Progress
from training.build import RunRecord
from training.checkpoint import model_path, read_request
from training.class_sentences import ClassSentences, read_class_sentences
from training.command_config import ZeroShotConfig
from training.describe import load_text_run
from training.evaluate import LoadedRun
from training.likelihoods import mean_log_likelihoods, prefixes
from training.methods.hocslm import HocSLMMethod
from training.metrics import accuracy
from training.scores import SCORES_SHA256, file_stem, write_scores
from training.seeding import cpu_threads, deterministic_kernels
from training.skeleton_data import SkeletonStore

STEM = "zero-shot"
JSON_FILE = f"{STEM}.json"
MADE_BY = "hoc zero-shot"
KINDS = ("plain", "calibrated")
_BATCH_SAMPLES = 64  # whose prefixes are made at once; our choice: as hoc evaluate


@dataclass(frozen=True)
class Shares:
    """What one kind of score reached, as shares of test samples.

    Attributes:
        unseen: right among the unseen classes, of their samples.
        unseen_mean_class: mean of that over the unseen classes; always the same answer gives
            exactly chance.
        per_class: of each unseen class, by its name.
        generalised_seen: right among all classes, of the samples of seen classes.
        generalised_unseen: right among all classes, of the samples of unseen classes.
    """

    unseen: float
    unseen_mean_class: float
    per_class: dict[str, float]
    generalised_seen: float
    generalised_unseen: float

    @property
    def harmonic(self) -> float:
        """Harmonic mean of the two generalised shares; 0 where one of them is."""
        total = self.generalised_seen + self.generalised_unseen
        return 2 * self.generalised_seen * self.generalised_unseen / total if total else 0.0

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "harmonic": self.harmonic}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Shares:
        """What as_json gave."""
        return cls(**{name: value[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class ZeroShotResult:
    """How a run tells classes that it was never trained on.

    Attributes:
        run: the run folder.
        unseen: names of the unseen classes, in label order.
        num_classes: of the data set.
        num_unseen_samples: test samples of the unseen classes.
        num_seen_samples: test samples of the others.
        shares: by kind of score, "plain" and "calibrated".
        files: what was written.
    """

    run: Path
    unseen: tuple[str, ...]
    num_classes: int
    num_unseen_samples: int
    num_seen_samples: int
    shares: dict[str, Shares]
    files: tuple[Path, ...]

    @property
    def chance(self) -> float:
        """Share that guessing among the unseen classes gets right."""
        return 1 / len(self.unseen)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "run": str(self.run),
            "unseen": list(self.unseen),
            "chance": self.chance,
            "num_classes": self.num_classes,
            "num_unseen_samples": self.num_unseen_samples,
            "num_seen_samples": self.num_seen_samples,
            **{kind: shares.as_json() for kind, shares in self.shares.items()},
        }


def run(config: ZeroShotConfig, progress: Progress) -> ZeroShotResult:
    """Score the test split of a run by the sentences of all classes, and write what was found.

    Writes scores-zero-shot.parquet (plain scores of every class; less `prior` of zero-shot.json
    they are the calibrated ones), then zero-shot.json.

    Args:
        config: which run and which texts.
        progress: told of every batch.

    Raises:
        FileNotFoundError: the run, a data set (its own too: the prior is of its training samples)
            or a table of texts is not there.
        ValueError: the run learned no text or left no class out, a class has no text, or the test
            split lacks an unseen class.
    """
    loaded, method = load_text_run(config.run, dataset=config.dataset, device=config.device)
    record = loaded.record
    if not record.unseen:
        raise ValueError(
            f"{config.run} left no class out of training, so no class is new to it; train with "
            '`--set data.unseen_classes=["NAME", "NAME"]`, or `hoc zero-shot-sweep`'
        )
    sentences = read_class_sentences(config.texts, loaded.dataset)
    test = loaded.store("test")
    _check_test(record, test)
    loop = record.config.loop
    with cpu_threads(loop.num_threads), deterministic_kernels(loop.deterministic):
        scorer = _Scorer(method, sentences, record.config.method.max_caption_tokens)
        prior = scorer.scores(_mean_prefix(loaded, method, progress), config.batch_size)  # (1, C)
        progress.start("zero-shot", len(test))
        parts = []
        for prefix in prefixes(method, test, batch_size=_BATCH_SAMPLES):
            parts.append(scorer.scores(prefix, config.batch_size))
            progress.advance(len(prefix))
        progress.finish()
    plain = np.concatenate(parts)  # (n, C)
    if not (np.isfinite(plain).all() and np.isfinite(prior).all()):
        raise ValueError(f"the likelihoods of {config.run} are not finite; train it again")
    scores = dict(zip(KINDS, (plain, plain - prior), strict=True))
    shares = {
        kind: measure(value, test.labels, names=record.class_names, unseen=record.unseen)
        for kind, value in scores.items()
    }
    return _write(config, loaded, sentences, test, plain=plain, prior=prior[0], shares=shares)


def scored_before(config: ZeroShotConfig, dataset: SkeletonDataset) -> ZeroShotResult | None:
    """What `run` wrote, where it is of the run's present weights, own data and these texts.

    Args:
        config: which run and which texts.
        dataset: that the run was trained on.

    Raises:
        FileNotFoundError, ValueError: the run has no checkpoint, or a table of texts is bad.
    """
    path, scores = config.run / JSON_FILE, config.run / f"scores-{STEM}.parquet"
    if not (path.is_file() and scores.is_file()):
        return None
    found = read_json(path, made_by=MADE_BY)
    _, request = read_request(config.run)
    now = {
        "weights_sha256": sha256_file(model_path(config.run)),
        "dataset_fingerprint": request["dataset_fingerprint"],
        "protocol": request["protocol"],
        "sentences": read_class_sentences(config.texts, dataset).as_json(),
        SCORES_SHA256: sha256_file(scores),
    }
    if any(found.get(key) != value for key, value in now.items()):
        return None
    return ZeroShotResult(
        run=config.run,
        unseen=tuple(found["unseen"]),
        num_classes=found["num_classes"],
        num_unseen_samples=found["num_unseen_samples"],
        num_seen_samples=found["num_seen_samples"],
        shares={kind: Shares.from_json(found[kind]) for kind in KINDS},
        files=(scores, path),
    )


class _Scorer:
    """The sentences of all classes, tokenised once."""

    def __init__(self, method: HocSLMMethod, sentences: ClassSentences, max_tokens: int) -> None:
        self._language_model = method.language_model
        tokens = method.language_model.tokenize(list(sentences.flat), max_tokens)
        self._tokens, self._mask = tokens  # (S, L) each
        self._to_class = sentences.mean_matrix()  # (S, C)

    def scores(self, prefix: Tensor, batch_size: int) -> np.ndarray:
        """Class scores (N, C) of prefixes (N, P, D)."""
        likelihoods = mean_log_likelihoods(
            self._language_model, prefix, self._tokens, self._mask, batch_size=batch_size
        )  # (N, S)
        scores: np.ndarray = likelihoods.numpy() @ self._to_class  # (N, C)
        return scores


def _mean_prefix(loaded: LoadedRun, method: HocSLMMethod, progress: Progress) -> Tensor:
    """The mean prefix (1, P, D) of the samples that the run was trained on, whatever is scored.

    Raises:
        FileNotFoundError: the run's own data set is not there.
        ValueError: its protocol's rule has changed.
    """
    record, source = loaded.record, loaded.dataset
    if source.fingerprint != record.dataset_fingerprint:
        source = record.open_dataset()
    protocol = source.protocol(record.config.data.protocol)
    record.check_protocol(protocol)
    train = replace(loaded, dataset=source, protocol=protocol).store("train")
    progress.start("mean of the training samples", len(train))
    total: Tensor | float = 0.0
    for prefix in prefixes(method, train, batch_size=_BATCH_SAMPLES):
        total = total + prefix.sum(dim=0, keepdim=True)
        progress.advance(len(prefix))
    progress.finish()
    return total / len(train)  # type: ignore[return-value]  # a split is never empty


def _check_test(record: RunRecord, test: SkeletonStore) -> None:
    """Refuse a test split without samples of an unseen class, or of any seen one.

    Raises:
        ValueError: it is such a split.
    """
    there = set(test.labels.tolist())
    empty = [record.class_names[label] for label in sorted(record.unseen - there)]
    if empty or there == record.unseen:
        what = f"the unseen class {empty[0]!r}" if empty else "a seen class"
        raise ValueError(
            f"the test split of {record.config.data.protocol} has no sample of {what}, so "
            f"{record.folder} cannot be asked for it; leave out other classes"
        )


def measure(
    scores: np.ndarray, labels: np.ndarray, *, names: Sequence[str], unseen: Collection[int]
) -> Shares:
    """What scores reach.

    Args:
        scores: (n, C), the greater the likelier.
        labels: (n,) 0-based; samples of every unseen class and of a seen one are there.
        names: of the classes, in label order.
        unseen: labels of the unseen classes.
    """
    unseen = sorted(unseen)
    is_unseen = np.isin(labels, unseen)  # (n,)
    among = accuracy(
        scores[is_unseen][:, unseen],
        np.searchsorted(unseen, labels[is_unseen]),
        [names[label] for label in unseen],
    )
    return Shares(
        unseen=among.top1,
        unseen_mean_class=among.mean_class,
        per_class=among.per_class,
        generalised_seen=accuracy(scores[~is_unseen], labels[~is_unseen], names).top1,
        generalised_unseen=accuracy(scores[is_unseen], labels[is_unseen], names).top1,
    )


def _write(
    config: ZeroShotConfig,
    loaded: LoadedRun,
    sentences: ClassSentences,
    test: SkeletonStore,
    *,
    plain: np.ndarray,
    prior: np.ndarray,
    shares: dict[str, Shares],
) -> ZeroShotResult:
    record = loaded.record
    stem = file_stem(STEM, elsewhere=loaded.elsewhere)
    files = config.run / f"scores-{stem}.parquet", config.run / f"{stem}.json"
    result = ZeroShotResult(
        run=config.run,
        unseen=tuple(record.class_names[label] for label in sorted(record.unseen)),
        num_classes=len(record.classes),
        num_unseen_samples=int(np.isin(test.labels, sorted(record.unseen)).sum()),
        num_seen_samples=int((~np.isin(test.labels, sorted(record.unseen))).sum()),
        shares=shares,
        files=files,
    )
    write_scores(files[0], test.sample_ids, test.labels, plain)
    write_json(
        files[1],
        {
            **result.as_json(),
            **loaded.provenance("test"),
            "sentences": sentences.as_json(),
            "max_caption_tokens": record.config.method.max_caption_tokens,
            "batch_size": config.batch_size,
            "score": "mean log-likelihood a token, mean over the sentences of a class",
            "prior": dict(zip(record.class_names, prior.tolist(), strict=True)),
            SCORES_SHA256: sha256_file(files[0]),
        },
    )
    return result
