"""Sentences that name the classes of a data set: from tables of texts, or one made of each name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from datasets_build.dataset import SkeletonDataset
from datasets_build.protocols import GENERIC
from datasets_build.text_tables import ClassNames, read_texts

DEFAULT_SENTENCE = "A person is doing: {name}."  # our choice: any name fits in, verb or noun


@dataclass(frozen=True)
class ClassSentences:
    """The sentences of all classes of a data set.

    Attributes:
        names: of the classes, in label order.
        by_label: of every class one or more sentences.
    """

    names: tuple[str, ...]
    by_label: tuple[tuple[str, ...], ...]

    @cached_property
    def flat(self) -> tuple[str, ...]:
        """All S sentences, class by class."""
        return tuple(text for texts in self.by_label for text in texts)

    def mean_matrix(self) -> np.ndarray:
        """(S, C) float32: what turns values of sentences into means of classes."""
        labels = np.repeat(np.arange(len(self.names)), [len(texts) for texts in self.by_label])
        belongs = labels[:, None] == np.arange(len(self.names))  # (S, C)
        return (belongs / belongs.sum(axis=0)).astype(np.float32)

    def as_json(self) -> dict[str, list[str]]:
        """The sentences by class name."""
        return {name: list(texts) for name, texts in zip(self.names, self.by_label, strict=True)}


def read_class_sentences(files: Sequence[Path], dataset: SkeletonDataset) -> ClassSentences:
    """The sentences of the classes of a data set, equal ones of a class once.

    Args:
        files: tables of texts of classes (see text_tables.py); none: DEFAULT_SENTENCE of each name.
        dataset: whose classes.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is no such table, or a class has no text in any of them.
    """
    names = tuple(dataset.class_names)
    if not files:
        return ClassSentences(names, tuple((DEFAULT_SENTENCE.format(name=name),) for name in names))
    own = {entry.action_id: entry.name for entry in dataset.classes}
    # A list of all classes in label order has the lines of the whole family.
    whole = {} if dataset.family == GENERIC else ClassNames.of(dataset.family).names
    known = ClassNames(dataset.family, {**whole, **own})
    found: dict[str | int, list[str]] = {}
    for file in files:
        for text in (table := read_texts(file, known)).texts:
            kind, action_id = text.key
            if kind != "class":
                raise ValueError(
                    f"{table.place(text)} is a text of sample {action_id}; a table of class "
                    "sentences has a column action, class or label instead of sample_id"
                )
            found.setdefault(action_id, []).append(" ".join(text.text.split()))
    by_label = tuple(
        tuple(dict.fromkeys(filter(None, found.get(entry.action_id, []))))
        for entry in dataset.classes
    )
    missing = [name for name, texts in zip(names, by_label, strict=True) if not texts]
    if missing:
        raise ValueError(
            f"{', '.join(map(str, files))}: no text for {len(missing)} of {len(names)} classes "
            f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}); each class needs "
            "one or more"
        )
    return ClassSentences(names, by_label)
