"""`hoc captions diff`: two finished caption runs, row by row of (sample_id, prompt_id).

A caption of B is the same as A's, changed, added (A has none: no such row, or a failed one) or lost
(the other way round); where neither run has one, the row is without. Rows whose caption is None or
empty have none, whatever their status.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from captioning.audit_rows import MADE_BY, iterate_columns
from captioning.label_words import class_of_sample
from captioning.results import check_finished
from datasets_build.caption_words import words_of
from datasets_build.manifest import differing_parts, read_json

KINDS = ("same", "changed", "added", "lost", "without")
ABSENT = "(no row)"
UNKNOWN = "(unknown)"
MAX_SHOWN_CHARACTERS = 60  # our choice: of one recipe value, so that two fit a line

Edit = tuple[Literal["same", "removed", "added"], str]


@dataclass(frozen=True)
class Example:
    """One changed caption.

    Attributes:
        sample_id: of the clip.
        prompt_id: of the prompt.
        edits: pieces of text in order; "same" and "removed" make A's caption, "same" and "added"
            make B's, with single spaces between words.
    """

    sample_id: str
    prompt_id: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class RunDifference:
    """How run B differs from run A.

    Attributes:
        num_rows: rows of A and of B.
        counts: rows by kind, see KINDS.
        by_class: the same for each class; "(unknown)" for ids that carry no class.
        statuses: rows by (status in A, status in B) where these differ; "(no row)" where absent.
        words_removed: words that changed captions lost and how often, the most frequent first.
        words_added: words that they gained.
        examples: changed captions, evenly over the sorted sample_ids.
        recipe: differing parts of the recipes with both values, by dotted name; None where a run
            has no manifest.
    """

    num_rows: tuple[int, int]
    counts: dict[str, int]
    by_class: dict[str, dict[str, int]]
    statuses: dict[tuple[str, str], int]
    words_removed: list[tuple[str, int]]
    words_added: list[tuple[str, int]]
    examples: list[Example]
    recipe: dict[str, tuple[str, str]] | None

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "num_rows": {"a": self.num_rows[0], "b": self.num_rows[1]},
            "counts": self.counts,
            "by_class": self.by_class,
            "statuses": [
                {"a": ours, "b": theirs, "rows": num}
                for (ours, theirs), num in self.statuses.items()
            ],
            "words_removed": dict(self.words_removed),
            "words_added": dict(self.words_added),
            "examples": [
                {"sample_id": e.sample_id, "prompt_id": e.prompt_id, "edits": e.edits}
                for e in self.examples
            ],
            "recipe": self.recipe and {n: {"a": a, "b": b} for n, (a, b) in self.recipe.items()},
        }


def compare(a: Path, b: Path, *, limit: int = 20) -> RunDifference:
    """Compare two finished runs; their texts are held in memory, nothing is written.

    Args:
        a: the older run.
        b: the newer run.
        limit: examples, and words of each list, at most.

    Raises:
        FileNotFoundError: a run has not finished.
        ValueError: a shard cannot be read, or a run has one row twice.
    """
    check_finished(a)
    check_finished(b)
    ours, theirs = _read(a), _read(b)
    counts: Counter[str] = Counter()
    by_class: dict[str, Counter[str]] = {}
    statuses: Counter[tuple[str, str]] = Counter()
    removed: Counter[str] = Counter()
    added: Counter[str] = Counter()
    changed = []
    for key in sorted(ours.keys() | theirs.keys()):
        old_status, old = ours.get(key, (ABSENT, None))
        new_status, new = theirs.get(key, (ABSENT, None))
        kind = _kind(old, new)
        counts[kind] += 1
        by_class.setdefault(class_of_sample(key[0]) or UNKNOWN, Counter())[kind] += 1
        if old_status != new_status:
            statuses[old_status, new_status] += 1
        if old and new and old != new:
            old_words, new_words = Counter(words_of(old)), Counter(words_of(new))
            removed.update(old_words - new_words)
            added.update(new_words - old_words)
            changed.append(key)
    return RunDifference(
        num_rows=(len(ours), len(theirs)),
        counts=_in_order(counts),
        by_class={name: _in_order(by_class[name]) for name in sorted(by_class)},
        statuses=dict(sorted(statuses.items(), key=lambda item: (-item[1], item[0]))),
        words_removed=_most_frequent(removed, limit),
        words_added=_most_frequent(added, limit),
        examples=[
            Example(*key, word_edits(ours[key][1] or "", theirs[key][1] or ""))
            for key in changed[:: max(1, -(-len(changed) // max(1, limit)))][:limit]
        ],
        recipe=_differing_recipe(a, b),
    )


def _read(folder: Path) -> dict[tuple[str, str], tuple[str, str | None]]:
    """(sample_id, prompt_id) to (status, caption) of every row."""
    rows: dict[tuple[str, str], tuple[str, str | None]] = {}
    num_rows = 0
    for ids, prompts, statuses, captions in iterate_columns(folder):
        keys = zip(ids, prompts, strict=True)
        rows.update(zip(keys, zip(statuses, captions, strict=True), strict=True))
        num_rows += len(ids)
    if len(rows) != num_rows:
        raise ValueError(
            f"{folder} has {num_rows - len(rows)} rows more than pairs of sample_id and prompt_id; "
            f"check it with `hoc verify {folder}`"
        )
    return rows


def _kind(old: str | None, new: str | None) -> str:
    if not old:
        return "added" if new else "without"
    if not new:
        return "lost"
    return "same" if old == new else "changed"


def _in_order(counts: Counter[str]) -> dict[str, int]:
    return {kind: counts[kind] for kind in KINDS}


def _most_frequent(words: Counter[str], limit: int) -> list[tuple[str, int]]:
    """Ties in alphabetical order."""
    return sorted(words.items(), key=lambda item: (-item[1], item[0]))[:limit]


def word_edits(old: str, new: str) -> tuple[Edit, ...]:
    """What makes one text of the other, in whole words; see Example."""
    ours, theirs = old.split(), new.split()
    edits: list[Edit] = []
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        if kind == "equal":
            edits.append(("same", " ".join(ours[start:end])))
            continue
        if start < end:
            edits.append(("removed", " ".join(ours[start:end])))
        if new_start < new_end:
            edits.append(("added", " ".join(theirs[new_start:new_end])))
    return tuple(edits)


def _differing_recipe(a: Path, b: Path) -> dict[str, tuple[str, str]] | None:
    manifests = (a / "manifest.json", b / "manifest.json")
    if not all(path.is_file() for path in manifests):
        return None
    ours, theirs = (read_json(path, made_by=MADE_BY).get("parts", {}) for path in manifests)
    return {
        name: (_shown(_part(ours, name)), _shown(_part(theirs, name)))
        for name in differing_parts(ours, theirs)
    }


def _part(parts: Mapping[str, Any], name: str) -> Any:
    """The part of a dotted name; None where it is absent. Keys may hold dots themselves."""
    for key, value in parts.items():
        if name == key:
            return value
        if name.startswith(f"{key}.") and isinstance(value, Mapping):
            return _part(value, name.removeprefix(f"{key}."))
    return None


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."
