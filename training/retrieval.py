"""Retrieval: the text of a skeleton among all texts, the skeleton of a text among all skeletons.

Shapes: N skeletons, S texts, P prefix positions, D language-model width.

The score of a pair is the mean log-likelihood a token of the text, its end token included, given
the skeleton's prefix: the same that zero-shot scores use. Likely sentences score high whatever the
skeleton; "calibrated" takes off the score that the text has under the mean prefix of the skeletons
searched, which changes the order of texts and leaves that of skeletons as it is.

Candidates are the distinct captions of the split, right where the sample has that caption, or the
sentences of a table, right where they are of the sample's class. The rank of a query is that of its
best right candidate; a wrong one of the same score stands before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_build.manifest import sha256_file, write_json
from datasets_build.progress import Progress
from training.class_sentences import read_class_sentences
from training.command_config import RetrieveConfig
from training.describe import load_text_run
from training.evaluate import LoadedRun
from training.likelihoods import mean_log_likelihoods, prefixes
from training.loading import read_index
from training.references import read_references
from training.scores import file_stem
from training.seeding import cpu_threads, deterministic_kernels, numpy_generator
from training.skeleton_data import SkeletonStore

_BLOCK = 32  # skeletons scored before progress is told; our choice


@dataclass(frozen=True)
class Recall:
    """How well one side finds the other; chance is what a random order reaches on average.

    Attributes:
        direction: what is looked for by what.
        queries: those with a right candidate.
        candidates: that each is ranked among.
        r1: share of queries with a right candidate first.
        r5: share with one among the first five.
        mean_rank: of the best right candidate, from 1.
        chance_r1: r1 by chance.
        chance_r5: r5 by chance.
        chance_mean_rank: mean_rank by chance.
    """

    direction: str
    queries: int
    candidates: int
    r1: float
    r5: float
    mean_rank: float
    chance_r1: float
    chance_r5: float
    chance_mean_rank: float


@dataclass(frozen=True)
class RetrieveSummary:
    """What a retrieval found.

    Attributes:
        run: the run folder.
        samples: skeletons.
        texts: candidates on the other side.
        recalls: skeleton to text, the same calibrated, text to skeleton.
        file: what was written.
    """

    run: Path
    samples: int
    texts: int
    recalls: tuple[Recall, ...]
    file: Path

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "run": str(self.run),
            "samples": self.samples,
            "texts": self.texts,
            "recalls": [asdict(recall) for recall in self.recalls],
        }


def run(config: RetrieveConfig, progress: Progress) -> RetrieveSummary:
    """Score every text with every skeleton of a split and write what was found.

    Args:
        config: which run, samples and texts.
        progress: told of every block of pairs.

    Raises:
        FileNotFoundError: the run, its data set or a table is not there.
        ValueError: the run learned no text, or the split has no captions.
    """
    loaded, method = load_text_run(config.run, dataset=config.dataset, device=config.device)
    store = _store(config, loaded)
    texts, is_right = _candidates(config, loaded, store)
    loop, settings = loaded.record.config.loop, loaded.record.config.method
    with cpu_threads(loop.num_threads), deterministic_kernels(loop.deterministic), torch.no_grad():
        prefix = torch.cat(list(prefixes(method, store, batch_size=_BLOCK)))  # (N, P, D)
        tokens, mask = method.language_model.tokenize(texts, settings.max_caption_tokens)  # (S, L)
        num_pairs = len(prefix) * len(texts)
        progress.message(
            f"{len(prefix)} skeletons x {len(texts)} texts are {num_pairs:,} pairs of "
            f"{float(mask.sum(dim=1).float().mean()):.0f} tokens on average"
        )
        progress.start("retrieve", num_pairs, unit="pairs")
        parts = []
        for block in (prefix.mean(dim=0, keepdim=True), *prefix.split(_BLOCK)):
            likelihoods = mean_log_likelihoods(
                method.language_model, block, tokens, mask, batch_size=config.batch_size
            )
            parts.append(likelihoods.numpy())
            progress.advance(len(block) * len(texts) if len(parts) > 1 else 0)
        progress.finish()
    scores = np.concatenate(parts)  # (1 + N, S); the mean prefix first
    if not np.isfinite(scores).all():
        raise ValueError(f"the likelihoods of {config.run} are not finite; train it again")
    plain, calibrated = scores[1:], scores[1:] - scores[0]
    recalls = (
        recall("skeleton to text", plain, is_right),
        recall("skeleton to text, calibrated", calibrated, is_right),
        recall("text to skeleton", plain.T, is_right.T),
    )
    stem = file_stem(config.split, elsewhere=loaded.elsewhere)
    file = config.run / f"retrieval-{stem}.json"
    summary = RetrieveSummary(config.run, len(store), len(texts), recalls, file)
    _write(summary, config, loaded)
    return summary


def _store(config: RetrieveConfig, loaded: LoadedRun) -> SkeletonStore:
    """The samples of the split, or those drawn of it."""
    data = loaded.record.config.data
    names = None
    if config.num_samples is not None:
        index = read_index(
            loaded.dataset,
            loaded.protocol,
            config.split,
            view=data.view,
            validation_subjects=data.validation_subjects,
            unseen=loaded.record.unseen,
        )
        rng = numpy_generator(config.seed, "retrieval")
        names = sorted(index)
        if config.num_samples < len(names):
            names = rng.choice(names, config.num_samples, replace=False).tolist()
    return loaded.store(config.split, sample_ids=names)


def _candidates(
    config: RetrieveConfig, loaded: LoadedRun, store: SkeletonStore
) -> tuple[list[str], np.ndarray]:
    """The distinct texts (S) and which of them is right for which sample, (N, S) bool.

    Raises:
        ValueError: no sample has a caption.
    """
    if config.texts:
        by_label = read_class_sentences(config.texts, loaded.dataset).by_label
        own = [by_label[label] for label in store.labels]
    else:
        own = [*read_references(loaded, store.sample_ids)]
    texts = list(dict.fromkeys(text for texts in own for text in texts))
    if not texts:
        raise ValueError(
            f"the {config.split} samples of {loaded.dataset.folder} have no captions to search "
            "among; give a table of class sentences with --texts, or build the data set with "
            "their captions"
        )
    place = {text: at for at, text in enumerate(texts)}
    is_right = np.zeros((len(own), len(texts)), bool)
    for sample, its_texts in enumerate(own):
        is_right[sample, [place[text] for text in its_texts]] = True
    return texts, is_right


def recall(direction: str, scores: np.ndarray, is_right: np.ndarray) -> Recall:
    """Rank candidates for queries.

    Args:
        direction: what is looked for by what.
        scores: (queries, candidates), a greater one is better.
        is_right: of the same shape; queries without a right candidate are left out.
    """
    has_right = is_right.any(axis=1)
    scores, is_right = scores[has_right], is_right[has_right]
    best = np.where(is_right, scores, -np.inf).max(axis=1, keepdims=True)
    ranks = 1 + ((scores >= best) & ~is_right).sum(axis=1)  # (queries,)
    num_right = is_right.sum(axis=1).tolist()
    total = scores.shape[1]
    return Recall(
        direction=direction,
        queries=len(scores),
        candidates=total,
        r1=float((ranks <= 1).mean()),
        r5=float((ranks <= 5).mean()),
        mean_rank=float(ranks.mean()),
        chance_r1=_mean([_chance(total, right, 1) for right in num_right]),
        chance_r5=_mean([_chance(total, right, 5) for right in num_right]),
        # The first of r marked ones among n in random order stands at (n + 1) / (r + 1).
        chance_mean_rank=_mean([(total + 1) / (right + 1) for right in num_right]),
    )


def _chance(total: int, right: int, first: int) -> float:
    """How probably one of the first of a random order is right."""
    first = min(first, total)
    return 1 - math.comb(total - right, first) / math.comb(total, first)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write(summary: RetrieveSummary, config: RetrieveConfig, loaded: LoadedRun) -> None:
    texts = {path.name: sha256_file(path) for path in config.texts}
    write_json(
        summary.file,
        {
            **summary.as_json(),
            **loaded.provenance(config.split),
            "settings": {
                "texts": texts or "captions of the split",
                "num_samples": config.num_samples,
                "seed": config.seed,
                "batch_size": config.batch_size,
                "prompt_ids": list(loaded.record.config.method.prompt_ids),
                "max_caption_tokens": loaded.record.config.method.max_caption_tokens,
            },
            "score": "mean log-likelihood a token, the end token included",
        },
    )
