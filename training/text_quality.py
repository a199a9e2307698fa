"""Which classes generated texts name: the right one, another, several, none.

A class is named by its own name and by synonyms. A phrase stands in a text where all its words
stand in one sentence of it, in any form and order ("claps" is found in "clapping", "hand waving" in
"waves the right hand"); small words such as "the" and "with" need not be there. That is lenient:
the share of the references that name the right class by the same rule is what a perfect text could
reach, and is measured along.

Texts like those of class sentences that name no action ("arm: extends; hip: remains stationary")
can be judged by the closest of these sentences instead.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets_build.caption_words import label_phrases, stem, words_of
from datasets_build.dataset import SkeletonDataset
from training.class_sentences import read_class_sentences
from training.metrics import ConfusedPair
from training.text_scores import common_share

# Words of a name or synonym that a text need not hold. Our choice; "on", "off", "up", "down" and
# the like are not here: they tell classes apart.
_MINOR_WORDS = frozenset(
    ("a", "an", "the", "of", "to", "at", "in", "into", "from", "with", "it", "its", "his", "her",
     "their", "your")
)  # fmt: skip

_SAME_WORDS = {"both": "two", "single": "one"}  # "with both hands" is "with two hands"
_SENTENCE_END = re.compile(r"[.!?;\n]+")


@dataclass(frozen=True)
class Named:
    """The classes that a text names, as labels (0-based), ascending.

    Attributes:
        labels: all of them.
        best: those than which no other is named more specifically.
    """

    labels: tuple[int, ...] = ()
    best: tuple[int, ...] = ()


NamedIn = Callable[[str], Named]


class ClassPhrases:
    """Finds the classes that a text names.

    A class's own name names more specifically than a synonym of another, unless that says more: it
    holds all words of a name that the text holds, and others ("throws up" with "throw" and, of
    another class, "throw up"). Among names, and among synonyms, those of more words (small ones not
    counted) are more specific.
    """

    def __init__(self, names: Sequence[str], synonyms: Sequence[Sequence[str]] = ()) -> None:
        """Prepare the phrases.

        Args:
            names: of the classes, in label order.
            synonyms: of each class in the same order; empty: only the names count.
        """
        best: dict[tuple[int, frozenset[str]], bool] = {}  # (label, stems) -> is it a name
        for label, name in enumerate(names):
            own = [(phrase, True) for phrase in label_phrases(name)]
            others = [(phrase, False) for phrase in (synonyms[label] if synonyms else ())]
            for phrase, is_name in (*others, *own):
                if stems := _stems(phrase):
                    best[label, stems] = is_name
        self._phrases = [(label, stems, is_name) for (label, stems), is_name in best.items()]

    def __call__(self, text: str) -> Named:
        """The classes that a text names."""
        sentences = [_stems(part) for part in _SENTENCE_END.split(text)]
        phrases = [
            phrase for phrase in self._phrases if any(phrase[1] <= words for words in sentences)
        ]
        names = [stems for _, stems, is_name in phrases if is_name]
        ranks: dict[int, tuple[bool, int, bool]] = {}
        for label, stems, is_name in phrases:
            says_more = is_name or any(name < stems for name in names)
            rank = says_more, len(stems), is_name
            ranks[label] = max(rank, ranks.get(label, rank))
        top = max(ranks.values(), default=None)
        labels = sorted(ranks)
        return Named(tuple(labels), tuple(label for label in labels if ranks[label] == top))


def class_phrases(dataset: SkeletonDataset, synonym_files: Sequence[Path]) -> ClassPhrases:
    """What names the classes of a data set.

    Args:
        dataset: whose classes.
        synonym_files: tables with one text a class, synonyms parted by commas.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is no such table, or a class has no synonym in any of them.
    """
    if not synonym_files:
        return ClassPhrases(dataset.class_names)
    lists = read_class_sentences(synonym_files, dataset).by_label
    return ClassPhrases(
        dataset.class_names,
        [[phrase for text in texts for phrase in text.split(",")] for texts in lists],
    )


class ClosestSentence:
    """Takes a text for the class whose sentence it is closest to (ROUGE-L, text_scores.py).

    Classes that are equally close are all named; a text that shares no word names none.
    """

    def __init__(self, sentences: Sequence[Sequence[str]]) -> None:
        """Prepare the sentences of each class, in label order."""
        self._words = [[words_of(sentence) for sentence in own] for own in sentences]

    def __call__(self, text: str) -> Named:
        """The closest class or classes."""
        words = words_of(text)
        shares = [max(common_share(words, other) for other in own) for own in self._words]
        top = max(shares)
        labels = tuple(label for label, share in enumerate(shares) if share == top > 0)
        return Named(labels, labels)


@dataclass(frozen=True)
class ClassNaming:
    """The texts of the samples of one class.

    Attributes:
        name: of the class.
        samples: how many.
        right: of them with a text that names the class, and no other more specifically.
        only: of them with a text that names the class and no other.
        several: of them with a text that names more than one class.
        none: of them with a text that names no class.
    """

    name: str
    samples: int
    right: int
    only: int
    several: int
    none: int


@dataclass(frozen=True)
class Naming:
    """How well texts name the classes of their samples; shares are in [0, 1].

    Attributes:
        samples: texts judged.
        right: share that names the right class, and no other more specifically.
        only: share that names the right class and no other at all.
        several: share that names more than one class: right ones among them may be luck.
        none: share that names no class.
        agrees_with_head: share that names the class which the head predicts, by the rule of
            `right`.
        head_right: share of the samples that the head predicts right.
        references_right: share of the reference captions that name the right class, by the rule of
            `right`; None without references.
        references_only: share of them that name the right class and no other at all.
        per_class: of the classes that occur, in label order.
        confused: true class and class named most specifically instead, most frequent first; a
            text that names several others equally counts for each.
    """

    samples: int
    right: float
    only: float
    several: float
    none: float
    agrees_with_head: float
    head_right: float
    references_right: float | None
    references_only: float | None
    per_class: tuple[ClassNaming, ...]
    confused: tuple[ConfusedPair, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def judge(
    named: Sequence[Named],
    labels: Sequence[int],
    predicted: Sequence[int],
    *,
    references: Sequence[Sequence[Named]],
    class_names: Sequence[str],
) -> Naming:
    """Compare what texts name with the truth.

    Args:
        named: what each text names; at least one.
        labels: the true label of each.
        predicted: the label that the head gives each.
        references: what the reference captions of each name; empty where there are none.
        class_names: in label order.
    """
    judged = list(zip(named, labels, strict=True))
    told = [(own, label) for owns, label in zip(references, labels, strict=True) for own in owns]
    wrong = [(label, best) for own, label in judged if label not in own.best for best in own.best]
    agrees = [given in own.best for own, given in zip(named, predicted, strict=True)]
    hits = [given == label for given, label in zip(predicted, labels, strict=True)]
    per_class = [
        _of_class(name, [own for own, truth in judged if truth == label], label)
        for label, name in enumerate(class_names)
    ]
    num_samples = {entry.name: entry.samples for entry in per_class}
    total = len(judged)
    return Naming(
        samples=total,
        right=sum(entry.right for entry in per_class) / total,
        only=sum(entry.only for entry in per_class) / total,
        several=sum(entry.several for entry in per_class) / total,
        none=sum(entry.none for entry in per_class) / total,
        agrees_with_head=sum(agrees) / total,
        head_right=sum(hits) / total,
        references_right=_share([label in own.best for own, label in told]),
        references_only=_share([own.labels == (label,) for own, label in told]),
        per_class=tuple(entry for entry in per_class if entry.samples),
        confused=tuple(
            ConfusedPair(class_names[t], class_names[g], count, count / num_samples[class_names[t]])
            for (t, g), count in sorted(Counter(wrong).items(), key=lambda item: (-item[1], item))
        ),
    )


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def _of_class(name: str, named: Sequence[Named], label: int) -> ClassNaming:
    return ClassNaming(
        name=name,
        samples=len(named),
        right=sum(label in own.best for own in named),
        only=sum(own.labels == (label,) for own in named),
        several=sum(len(own.labels) > 1 for own in named),
        none=sum(not own.labels for own in named),
    )


def _stems(text: str) -> frozenset[str]:
    """The stems of the words of a text that are not small."""
    words = (_SAME_WORDS.get(word, word) for word in words_of(text))
    return frozenset(stem(word) for word in words if word not in _MINOR_WORDS)
