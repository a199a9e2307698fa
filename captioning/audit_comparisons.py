"""The audit's rules that compare captions with each other: of one prompt, one class, one take.

Every threshold is our choice, set on made-up captions; the reason stands beside it.

Letters: R rows, W words of all rows, G runs of words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from captioning.audit_rows import CaptionRows, Rule, Verdicts
from datasets_build.caption_words import STOP_WORDS, named_side, stem
from datasets_build.protocols import NTU, ids_of_name

PHRASE_WORDS = 6  # our choice: grammar alone makes runs of five common ("is sitting on a chair")
TYPICAL_SHARE = 0.1  # our choice: what a tenth of a class's captions say is no accident
MAX_CLASS_SHARE = 1 / 3  # our choice: a posture or place is shared by a few classes, not by a third
MIN_CLASSES = 6  # our choice: below, two related classes are already a third
MIN_COPIES = 5  # our choice: fewer equal captions do not show whose they are
MAX_OWNER_SHARE = 0.5  # our choice: a caption that mostly stands under one class belongs to it

MAX_LENGTH_Z = 4.0  # our choice: one in 16,000 of normal data
MIN_LENGTH_MAD = 0.1  # our choice: a tenth longer is an ordinary difference
MIN_CAPTIONS = 20  # our choice: fewer give no usual length

MIN_TAKES = 10  # our choice: fewer give no usual similarity
MIN_SIMILARITY_GAP = 0.1  # our choice: else views are no more alike than strangers
NUM_STRANGERS = 20_000  # our choice: their median is then known to about 0.01


def _length_outlier(rows: CaptionRows) -> Verdicts:
    judged = np.zeros(len(rows), bool)
    details = {}
    for _, own in rows.by_prompt():
        if len(own) < MIN_CAPTIONS:
            continue
        judged[own] = True
        lengths = rows.num_words[own]
        logs = np.log(np.maximum(lengths, 1))
        middle = np.median(logs)
        mad = max(float(np.median(np.abs(logs - middle))), MIN_LENGTH_MAD)
        z = (logs - middle) / (1.4826 * mad)  # 1.4826 MAD is sigma for normal data
        for at in np.flatnonzero(np.abs(z) > MAX_LENGTH_Z).tolist():
            usual = f"usual are {np.exp(middle):.0f}, z {z[at]:+.1f}"
            details[int(own[at])] = f"{lengths[at]} words; {usual}"
    return Verdicts.of(judged, details)


def _boilerplate(rows: CaptionRows) -> Verdicts:
    judged = np.zeros(len(rows), bool)
    details: dict[int, str] = {}
    too_few = []
    for prompt_id, captioned in rows.by_prompt():
        own = captioned[rows.class_indices[captioned] >= 0]
        num_classes = len(np.unique(rows.class_indices[own]))
        if num_classes < MIN_CLASSES:
            too_few.append(f"{prompt_id} has {num_classes}")
            continue
        judged[own] = True
        details |= _shared_phrases(rows, own, num_classes=num_classes)
        details |= _ownerless_captions(rows, own)
    note = f"not judged under {MIN_CLASSES} known classes: {', '.join(too_few)}" if too_few else ""
    return Verdicts.of(judged, details, note=note)


def _shared_phrases(rows: CaptionRows, own: np.ndarray, *, num_classes: int) -> dict[int, str]:
    """Rows of one prompt with a run of words that is typical of too many classes."""
    row_of, num_all = rows.row_of_word, len(rows.class_names)
    is_own = np.zeros(len(rows), bool)
    is_own[own] = True
    last = row_of[PHRASE_WORDS - 1 :]  # the row of a run's last word
    starts = np.flatnonzero((row_of[: len(last)] == last) & is_own[last])  # (G,)
    if not len(starts):
        return {}
    codes = np.zeros(len(starts), np.uint64)  # a hash of the run, modulo 2**64
    for step in range(PHRASE_WORDS):
        codes = codes * np.uint64(0x9E3779B97F4A7C15) + rows.words[starts + step].astype(np.uint64)
    phrases = np.unique(codes, return_inverse=True)[1].reshape(-1)  # (G,) from 0
    pairs, times = np.unique(
        phrases * num_all + rows.class_indices[row_of[starts]], return_counts=True
    )
    num_captions = np.bincount(rows.class_indices[own], minlength=num_all)  # of each class
    is_typical = times >= TYPICAL_SHARE * num_captions[pairs % num_all]
    typical_in = np.bincount(pairs[is_typical] // num_all, minlength=int(phrases.max()) + 1)
    shared = starts[typical_in[phrases] > MAX_CLASS_SHARE * num_classes]
    details: dict[int, str] = {}
    for start, row in zip(shared.tolist(), row_of[shared].tolist(), strict=True):
        if row not in details:
            said = " ".join(rows.vocabulary[w] for w in rows.words[start : start + PHRASE_WORDS])
            details[row] = f"{said!r} is said in many classes"
    return details


def _ownerless_captions(rows: CaptionRows, own: np.ndarray) -> dict[int, str]:
    """Rows of one prompt whose whole caption stands under several classes and mostly under none."""
    copies: dict[bytes, list[int]] = {}
    for row in own.tolist():
        copies.setdefault(rows.words_of_row(row).tobytes(), []).append(row)
    details: dict[int, str] = {}
    for same in copies.values():
        if len(same) < MIN_COPIES:
            continue
        by_class = Counter(rows.class_indices[same].tolist())
        if max(by_class.values()) <= MAX_OWNER_SHARE * len(same):
            said = f"the same caption stands {len(same)} times, in {len(by_class)} classes"
            details |= dict.fromkeys(same, said)
    return details


def _camera_disagreement(rows: CaptionRows) -> Verdicts:
    judged = np.zeros(len(rows), bool)
    details: dict[int, str] = {}
    notes = []
    for prompt_id, own in rows.by_prompt():
        content = _Content(rows)  # anew: the stems of one prompt's captions are enough to hold
        takes = _takes(rows, own)
        for take in takes:
            sides = {row: side for row in take if (side := named_side(rows.texts[row] or ""))}
            if len(sides) > 1:
                judged[list(sides)] = True
                details |= _minority_sides(sides)
        nearest = {row: content.nearest(row, take) for take in takes for row in take}
        usual = float(np.median(list(nearest.values()))) if nearest else 0.0
        strangers = content.of_strangers(own)
        if len(takes) < MIN_TAKES or strangers is None:
            notes.append(f"{prompt_id} has {len(takes)} takes with two views, not {MIN_TAKES}")
        elif usual < strangers + MIN_SIMILARITY_GAP:
            notes.append(
                f"{prompt_id}: two views of a take share {usual:.0%} of their words, captions of "
                f"different classes {strangers:.0%}"
            )
        else:
            judged[list(nearest)] = True
            for row, share in nearest.items():
                if share <= strangers:
                    said = f"shares {share:.0%} of its words with the nearest other view"
                    details.setdefault(row, f"{said}, usual are {usual:.0%}")
    note = f"likeness not judged: {'; '.join(notes)}" if notes else ""
    return Verdicts.of(judged, details, note=note)


def _takes(rows: CaptionRows, own: np.ndarray) -> list[list[int]]:
    """Rows of one prompt by NTU take (all ids but the camera's equal), of two cameras or more."""
    views: dict[tuple[int | None, ...], list[int]] = {}
    for row in own.tolist():
        ids = ids_of_name(rows.sample_ids[row])
        if ids is not None and ids.dataset == NTU:
            take = (ids.setup_id, ids.subject_id, ids.repetition_id, ids.action_id)
            views.setdefault(take, []).append(row)
    return [take for take in views.values() if len(take) > 1]


def _minority_sides(sides: Mapping[int, str]) -> dict[int, str]:
    """Rows that name the side which fewer of the take's views name; all of them in a tie."""
    counts = Counter(sides.values())
    if len(counts) == 1:
        return {}
    most = max(counts.values())
    is_tie = counts["left"] == counts["right"]
    return {
        row: f"says {side}, another view of the take says {'right' if side == 'left' else 'left'}"
        for row, side in sides.items()
        if is_tie or counts[side] < most
    }


class _Content:
    """The stems of a row's content words, and how many of them two rows share (Jaccard)."""

    def __init__(self, rows: CaptionRows) -> None:
        self._rows = rows
        index: dict[str, int] = {}
        self._stems = np.array(
            [
                -1 if word in STOP_WORDS else index.setdefault(stem(word), len(index))
                for word in rows.vocabulary
            ]
        )
        self._known: dict[int, frozenset[int]] = {}

    def _of(self, row: int) -> frozenset[int]:
        if row not in self._known:
            stems = self._stems[self._rows.words_of_row(row)]
            self._known[row] = frozenset(stems[stems >= 0].tolist())
        return self._known[row]

    def similarity(self, row: int, other: int) -> float:
        """0 (nothing shared, or no content word at all) to 1."""
        ours, theirs = self._of(row), self._of(other)
        return len(ours & theirs) / max(1, len(ours | theirs))

    def nearest(self, row: int, take: Sequence[int]) -> float:
        """The similarity of a row with the most similar other view of its take."""
        return max(self.similarity(row, other) for other in take if other != row)

    def of_strangers(self, own: np.ndarray) -> float | None:
        """The median similarity of seeded pairs of different classes; None where there are none."""
        pairs = np.random.default_rng(0).choice(own, (NUM_STRANGERS, 2))
        classes = self._rows.class_indices[pairs]
        pairs = pairs[(classes[:, 0] != classes[:, 1]) & (classes >= 0).all(axis=1)]
        if not len(pairs):
            return None
        return float(np.median([self.similarity(row, other) for row, other in pairs.tolist()]))


COMPARING_RULES = (
    Rule(
        "boilerplate",
        f"has {PHRASE_WORDS} words in a row that are typical of more than a third of the classes, "
        "or stands word for word under several classes and mostly under none",
        _boilerplate,
        {
            "phrase_words": PHRASE_WORDS,
            "typical_share": TYPICAL_SHARE,
            "max_class_share": MAX_CLASS_SHARE,
            "min_classes": MIN_CLASSES,
            "min_copies": MIN_COPIES,
            "max_owner_share": MAX_OWNER_SHARE,
        },
    ),
    Rule(
        "length-outlier",
        "is far shorter or longer than the other captions of its prompt (robust z of log words)",
        _length_outlier,
        {"max_z": MAX_LENGTH_Z, "min_mad": MIN_LENGTH_MAD, "min_captions": MIN_CAPTIONS},
    ),
    Rule(
        "camera-disagreement",
        "is no more like the other views of its NTU take than captions of different classes are "
        "like each other, or names the other side than they do",
        _camera_disagreement,
        {
            "min_takes": MIN_TAKES,
            "min_similarity_gap": MIN_SIMILARITY_GAP,
            "num_strangers": NUM_STRANGERS,
        },
    ),
)
