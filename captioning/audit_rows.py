"""The captions of a finished run as the audit's rules see them: read once, cut into words once.

Letters: R rows, W words of all rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captioning.label_words import class_of_sample
from datasets_build import schema
from datasets_build.caption_words import words_of
from datasets_build.progress import Progress
from datasets_build.shards import iterate_shards, read_index

if TYPE_CHECKING:
    from captioning.audit_skeletons import ClipMotion

COLUMNS = (schema.SAMPLE_ID, schema.PROMPT_ID, schema.STATUS, schema.CAPTION)
USABLE = (schema.STATUS_SUCCESS, schema.STATUS_TRUNCATED)
MADE_BY = "hoc caption"

FLAGGED, FINE, CANNOT_TELL = 1, 0, -1


@dataclass(frozen=True)
class Verdicts:
    """What one rule says about every row.

    Attributes:
        states: (R,) int8: FLAGGED, FINE or CANNOT_TELL.
        details: what was found in each flagged row, by row.
        note: why the rule judged less than one might expect, for the report; "" for nothing.
    """

    states: np.ndarray
    details: dict[int, str]
    note: str = ""

    @classmethod
    def of(cls, judged: np.ndarray, details: dict[int, str], *, note: str = "") -> Verdicts:
        """FLAGGED where there is a detail, else FINE in the rows `judged`, (R,) bool."""
        states = np.where(judged, FINE, CANNOT_TELL).astype(np.int8)
        states[list(details)] = FLAGGED
        return cls(states, details, note)


@dataclass(frozen=True)
class Rule:
    """One check of the captions.

    Attributes:
        name: its flag.
        sentence: what a flagged caption is.
        judge: the check.
        thresholds: the numbers it goes by, for the record.
        needs_skeletons: whether it looks at `CaptionRows.motions`.
    """

    name: str
    sentence: str
    judge: Callable[[CaptionRows], Verdicts]
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    needs_skeletons: bool = False


@dataclass(frozen=True)
class CaptionRows:
    """Every row of a run in the order of its shards.

    Attributes:
        sample_ids: R of them.
        prompt_ids: of each row.
        statuses: of each row.
        texts: the captions; None where the row has none that can enter a data set.
        classes: class names, None where unknown.
        vocabulary: the different words of all captions, lower case.
        words: (W,) int32 indices into `vocabulary`, row after row.
        offsets: (R + 1,) int64, where a row's words begin in `words`.
        motions: what the skeletons show, by sample_id; empty without skeletons.
    """

    sample_ids: list[str]
    prompt_ids: list[str]
    statuses: list[str]
    texts: list[str | None]
    classes: list[str | None]
    vocabulary: list[str]
    words: np.ndarray
    offsets: np.ndarray
    motions: Mapping[str, ClipMotion] = field(default_factory=dict)

    def __len__(self) -> int:
        """R."""
        return len(self.sample_ids)

    @cached_property
    def num_words(self) -> np.ndarray:
        """(R,) words of each caption."""
        return np.diff(self.offsets)

    @cached_property
    def has_text(self) -> np.ndarray:
        """(R,) bool: rows with a caption."""
        return np.array([text is not None for text in self.texts], bool)

    @cached_property
    def row_of_word(self) -> np.ndarray:
        """(W,) int32: the row that a word stands in."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.num_words)

    @cached_property
    def class_names(self) -> list[str]:
        """The classes that occur, sorted."""
        return sorted({name for name in self.classes if name is not None})

    @cached_property
    def class_indices(self) -> np.ndarray:
        """(R,) int32 into `class_names`; -1 where a row's class is unknown."""
        index = {name: number for number, name in enumerate(self.class_names)}
        return np.array([-1 if c is None else index[c] for c in self.classes], np.int32)

    def rows_with_words(self, meant: Collection[str]) -> np.ndarray:
        """(R,) bool: rows with one of the lower-case words."""
        chosen = np.array([word in meant for word in self.vocabulary], bool)
        found = np.zeros(len(self), bool)
        found[self.row_of_word[chosen[self.words]]] = True
        return found

    def by_prompt(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each prompt_id with the indices of its rows that have a caption, sorted by prompt_id."""
        rows_of: dict[str, list[int]] = {}
        for row, (prompt_id, text) in enumerate(zip(self.prompt_ids, self.texts, strict=True)):
            if text is not None:
                rows_of.setdefault(prompt_id, []).append(row)
        for prompt_id in sorted(rows_of):
            yield prompt_id, np.array(rows_of[prompt_id])

    def words_of_row(self, row: int) -> np.ndarray:
        """The word indices of one row."""
        return self.words[self.offsets[row] : self.offsets[row + 1]]


def read_rows(
    folder: Path, progress: Progress, *, classes: Mapping[str, str] | None = None
) -> CaptionRows:
    """Read a finished caption run.

    Args:
        folder: the run; only COLUMNS of its shards are kept.
        progress: is told the stage "read".
        classes: class names by sample_id; they go before those that the ids carry.

    Raises:
        FileNotFoundError: the run has not finished.
        ValueError: a shard cannot be read.
    """
    named = classes or {}
    index: dict[str, int] = {}
    sample_ids: list[str] = []
    prompt_ids: list[str] = []
    statuses: list[str] = []
    texts: list[str | None] = []
    words: list[np.ndarray] = []
    lengths: list[int] = []
    progress.start("read", None, unit="rows")
    for own_ids, own_prompts, own_statuses, captions in iterate_columns(folder):
        sample_ids += own_ids
        prompt_ids += own_prompts
        statuses += own_statuses
        found: list[int] = []
        for status, caption in zip(own_statuses, captions, strict=True):
            text = caption if caption and status in USABLE else None
            own = words_of(text or "")
            found += [index.setdefault(word, len(index)) for word in own]
            lengths.append(len(own))
            texts.append(text)
        words.append(np.array(found, np.int32))
        progress.advance(len(own_ids))
    progress.finish()
    return CaptionRows(
        sample_ids,
        prompt_ids,
        statuses,
        texts,
        classes=[named.get(name) or class_of_sample(name) for name in sample_ids],
        vocabulary=list(index) or [""],
        words=np.concatenate([np.empty(0, np.int32), *words]),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
    )


def iterate_columns(
    folder: Path,
) -> Iterator[tuple[list[str], list[str], list[str], list[str | None]]]:
    """The values of COLUMNS of one shard of a finished run after the other.

    Raises:
        FileNotFoundError: the run has not finished.
        ValueError: a shard cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder that {MADE_BY} wrote")
    for table in iterate_shards(folder, read_index(folder / "index.json", made_by=MADE_BY)):
        absent = [name for name in COLUMNS if name not in table.column_names]
        if absent:
            raise ValueError(
                f"a shard of {folder} lacks the columns {', '.join(absent)}; it was not written "
                f"by this version's `{MADE_BY}`"
            )
        ids, prompts, statuses, captions = (table[name].to_pylist() for name in COLUMNS)
        yield ids, [*map(sys.intern, prompts)], [*map(sys.intern, statuses)], captions
