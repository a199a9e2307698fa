"""Generated texts against reference captions: BLEU, ROUGE-L, chrF and CIDEr-D, several references.

BLEU (corpus, up to 4 words) and chrF (corpus, up to 6 characters) are sacreBLEU's, which the extra
"text" brings. No library that is kept up has the other two without much else, so they are written
here: ROUGE-L (Lin, 2004: F1 over the longest common subsequence of words, of the closest reference,
mean over the samples) and CIDEr-D (Vedantam et al., CVPR 2015, section 5). Case never counts; BLEU
and chrF see punctuation, the others see words.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets_build.caption_words import words_of

_MAX_WORDS = 4  # n-grams of 1 to 4 words, as the paper
_SIGMA = 6.0  # of the penalty for another length, in words: as the paper

Ngram = tuple[str, ...]

NEEDS_LIBRARY = (
    "BLEU and chrF are not measured: sacrebleu is not installed; "
    "`pip install 'hocslm[text]'` brings it"
)


@dataclass(frozen=True)
class TextScores:
    """Closeness of texts to their references.

    Attributes:
        samples: texts that have references.
        references: references in all.
        bleu: BLEU-4 in [0, 1]; None where sacrebleu is not installed.
        chrf: chrF in [0, 1]; None as well.
        signatures: sacreBLEU's own words for the two; empty as well.
        rouge_l: ROUGE-L F1 in [0, 1].
        cider_d: CIDEr-D in [0, 10]; 0 by definition for a single sample.
    """

    samples: int
    references: int
    bleu: float | None
    chrf: float | None
    rouge_l: float
    cider_d: float
    signatures: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return vars(self).copy()


@dataclass(frozen=True)
class _WeightedNgrams:
    """The n-grams of a text with their weights, the norm for each n, and the number of words."""

    values: Mapping[Ngram, float]
    norms: Sequence[float]
    num_words: int


def has_library() -> bool:
    """Whether sacrebleu is installed."""
    return importlib.util.find_spec("sacrebleu") is not None


def text_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores | None:
    """All scores; texts without a reference are left out. None where no text has one.

    Args:
        texts: generated, one a sample.
        references: of each sample.
    """
    pairs = [(text, list(own)) for text, own in zip(texts, references, strict=True) if own]
    if not pairs:
        return None
    given, wanted = [text for text, _ in pairs], [own for _, own in pairs]
    bleu, chrf, signatures = _of_sacrebleu(given, wanted) if has_library() else (None, None, ())
    return TextScores(
        samples=len(given),
        references=sum(map(len, wanted)),
        bleu=bleu,
        chrf=chrf,
        rouge_l=rouge_l(given, wanted),
        cider_d=cider_d(given, wanted),
        signatures=signatures,
    )


def _of_sacrebleu(
    given: Sequence[str], wanted: Sequence[Sequence[str]]
) -> tuple[float, float, tuple[str, str]]:
    """BLEU, chrF and their signatures, of texts with at least one reference each."""
    from sacrebleu import BLEU, CHRF

    most = max(map(len, wanted))
    # The k-th references of all samples; None is sacreBLEU's word for "no such one".
    streams: Any = [[own[k] if k < len(own) else None for own in wanted] for k in range(most)]
    bleu, chrf = BLEU(lowercase=True), CHRF(lowercase=True)
    shares = [metric.corpus_score(given, streams).score / 100 for metric in (bleu, chrf)]
    return shares[0], shares[1], (f"BLEU {bleu.get_signature()}", f"chrF {chrf.get_signature()}")


def rouge_l(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L in [0, 1]: the share of words in common, in order, with the closest reference.

    Args:
        texts: one a sample.
        references: at least one a sample.
    """
    best = [
        max(common_share(words_of(text), words_of(reference)) for reference in own)
        for text, own in zip(texts, references, strict=True)
    ]
    return sum(best) / len(best)


def common_share(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Twice the length of the longest common subsequence of words over both lengths: its F1."""
    longest = [0] * (len(theirs) + 1)  # with the first words of theirs, and those of ours so far
    for word in ours:
        before = longest.copy()
        for at, other in enumerate(theirs, start=1):
            longest[at] = before[at - 1] + 1 if word == other else max(before[at], longest[at - 1])
    return 2 * longest[-1] / max(len(ours) + len(theirs), 1)


def cider_d(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D in [0, 10]: how far texts share the telling n-grams of their references.

    An n-gram weighs by how few samples have it in a reference. Words are not stemmed.

    Args:
        texts: one a sample.
        references: at least one a sample.
    """
    wanted = [[_ngrams(text) for text in own] for own in references]
    num_with = Counter(ngram for own in wanted for ngram in set().union(*own))
    weight_of = {ngram: math.log(len(texts) / count) for ngram, count in num_with.items()}
    unseen = math.log(len(texts))  # the weight of an n-gram that is in no reference
    total = 0.0
    for text, own in zip(texts, wanted, strict=True):
        ours = _weighted(_ngrams(text), weight_of, unseen)
        similar = [_similarity(ours, _weighted(ngrams, weight_of, unseen)) for ngrams in own]
        total += sum(similar) / len(similar)
    return 10 * total / len(texts)


def _ngrams(text: str) -> Counter[Ngram]:
    """How often each run of 1 to 4 words stands in a text."""
    words = words_of(text)
    return Counter(
        tuple(words[start : start + size])
        for size in range(1, _MAX_WORDS + 1)
        for start in range(len(words) - size + 1)
    )


def _weighted(
    ngrams: Counter[Ngram], weight_of: Mapping[Ngram, float], unseen: float
) -> _WeightedNgrams:
    values = {ngram: count * weight_of.get(ngram, unseen) for ngram, count in ngrams.items()}
    squares = [0.0] * _MAX_WORDS
    for ngram, value in values.items():
        squares[len(ngram) - 1] += value**2
    num_words = sum(count for ngram, count in ngrams.items() if len(ngram) == 1)
    return _WeightedNgrams(values, [math.sqrt(square) for square in squares], num_words)


def _similarity(ours: _WeightedNgrams, theirs: _WeightedNgrams) -> float:
    """The clipped cosine of a text with a reference, mean over the n, less for another length."""
    shared = [0.0] * _MAX_WORDS
    for ngram, value in ours.values.items():
        other = theirs.values.get(ngram, 0.0)
        shared[len(ngram) - 1] += min(value, other) * other
    cosines = [
        product / (own * other) if own * other else 0.0
        for product, own, other in zip(shared, ours.norms, theirs.norms, strict=True)
    ]
    difference = ours.num_words - theirs.num_words
    return math.exp(-(difference**2) / (2 * _SIGMA**2)) * sum(cosines) / _MAX_WORDS
