"""Which of the videos found are taken: filters on their ids, and a balanced pilot sample."""

from __future__ import annotations

import hashlib
import heapq
import logging
import re
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from datasets_build.nearest import did_you_mean
from datasets_build.protocols import PROTOCOLS, Protocol, SampleIds, ids_of_name

log = logging.getLogger(__name__)

SPLIT = "split"
OUTSIDE = "outside the protocol"
_NUMBERS = re.compile(r"([0-9]+)(?:\s*-\s*([0-9]+))?", re.ASCII)
_MAX_SHOWN = 12  # our choice: runs of values in a message

IdValue = int | str | None


@dataclass(frozen=True, slots=True)
class Ids:
    """What is known of one video; None where it is not known, text where a list has no number.

    `dataset` is "ntu" or "nw-ucla" where the file is named that way: equal numbers of two data
    sets are different classes and people. The other fields are the keys of filters.
    """

    dataset: str | None = None
    action: IdValue = None
    subject: IdValue = None
    camera: IdValue = None
    setup: IdValue = None
    repetition: IdValue = None


ID_KEYS = tuple(field.name for field in fields(Ids))[1:]


def ids_from_names(*names: str) -> Ids:
    """The ids in the first of the names (or paths) that is NTU's or NW-UCLA's; else none."""
    for name in names:
        ids = ids_of_name(name)
        if ids is not None:
            return Ids(
                ids.dataset,
                ids.action_id,
                ids.subject_id,
                ids.camera_id,
                ids.setup_id,
                ids.repetition_id,
            )
    return Ids()


@dataclass(frozen=True)
class Filter:
    """One condition on the ids of a video.

    Attributes:
        text: as it was given.
        key: one of ID_KEYS, or "split".
        ranges: first and last number of each range that passes (not for "split").
        protocol: only for "split".
        part: "train", "test" or "exemplar", only for "split".
    """

    text: str
    key: str
    ranges: tuple[tuple[int, int], ...] = ()
    protocol: Protocol | None = None
    part: str = ""

    def value_of(self, ids: Ids) -> IdValue:
        """What the filter looks at; None where the video lacks the id."""
        if self.protocol is None:
            value: IdValue = getattr(ids, self.key)
            return value
        if any(getattr(ids, key) is None for key in self._needed_ids()):
            return None
        known: dict[str, Any] = {f"{key}_id": getattr(ids, key) for key in ID_KEYS}
        # Ids that stand in the columns of a list do not say whose they are: they are believed.
        sample = SampleIds(dataset=ids.dataset or self.protocol.dataset, **known)
        return self.protocol.split(sample) or OUTSIDE

    def accepts(self, value: IdValue) -> bool:
        """Whether a video with that value is kept."""
        if self.protocol is not None:
            return value == self.part
        return isinstance(value, int) and any(low <= value <= high for low, high in self.ranges)

    def missing(self) -> str:
        """The name of what a video without a value lacks."""
        return " or ".join(f"{key}_id" for key in self._needed_ids())

    def _needed_ids(self) -> tuple[str, ...]:
        if self.protocol is None:
            return (self.key,)
        if self.protocol.split_by is None:  # one-shot: the exemplar is told by all of its ids
            return ID_KEYS
        return ("action", self.protocol.split_by.removesuffix("_id"))


def parse_filters(texts: Sequence[str]) -> list[Filter]:
    """Read filters such as "action=1,5,50-60", "camera=2" or "split=ntu60-xsub/train".

    Raises:
        ValueError: an unknown key, protocol or part, or values that are no numbers or ranges.
    """
    return [_parse_filter(text) for text in texts]


def choose(
    sample_ids: Sequence[str],
    ids: Iterable[Ids],
    *,
    filters: Sequence[Filter] = (),
    pilot: int | None = None,
) -> list[int]:
    """Positions of the samples that pass all filters and, if asked, belong to the pilot.

    The pilot is built one sample at a time and classes take turns, so that the counts of any two
    classes differ by at most one unless a class has no more samples. In its turn a class gives a
    sample of the subject that it has used least (then: that the pilot has used least), and of the
    camera used least in the same sense. Ties go by the sha256 of the ids; of equal ids the sample
    with the lowest sha256 of its sample_id comes first. So the pilot does not depend on the order
    of the samples, a smaller pilot is part of a larger one, and a further sample with the ids of
    others that are not all taken changes one place at most. Samples without one of the ids count as
    one more class, subject or camera; where none has any, the lowest hashes are taken.

    Args:
        sample_ids: all different, and valid UTF-8.
        ids: of each sample, in the same order; read once.
        filters: see parse_filters.
        pilot: how many samples to take; all if there are no more.

    Returns:
        Ascending positions in `sample_ids`; empty only where that is.

    Raises:
        ValueError: pilot is below 1, no sample has the id of a filter, or none passes.
    """
    if pilot is not None and pilot < 1:
        raise ValueError(f"a pilot of {pilot} videos is none; give a number of at least 1")
    tallies: list[Counter[IdValue]] = [Counter() for _ in filters]
    groups: _Groups = defaultdict(lambda: defaultdict(list))
    kept = []
    for position, sample in enumerate(ids):
        passes = True
        for condition, tally in zip(filters, tallies, strict=True):
            value = condition.value_of(sample)
            tally[value] += 1
            passes = passes and condition.accepts(value)
        if passes:
            kept.append(position)
            if pilot is not None:
                label = sample.dataset, sample.action
                groups[label][sample.subject, sample.camera].append(position)
    if sample_ids:
        _check(filters, tallies, num_kept=len(kept), num_samples=len(sample_ids))
    if pilot is None or pilot >= len(kept):
        return kept
    if len(groups) == 1 and len(next(iter(groups.values()))) == 1:
        log.warning("all videos have the same ids or none; the pilot takes %d by hash", pilot)
    return sorted(_balanced(groups, sample_ids, pilot))


_Label = tuple[str | None, IdValue]  # data set and action
_Cell = tuple[IdValue, IdValue]  # subject and camera
_Groups = dict[_Label, dict[_Cell, list[int]]]  # positions


def _balanced(groups: _Groups, sample_ids: Sequence[str], num: int) -> list[int]:
    """The first `num` of the greedy order that `choose` describes; empties the cells it uses."""
    used: Counter[Hashable] = Counter()
    heaps: dict[_Label, list[tuple[tuple[int, ...], bytes, _Cell]]] = {}

    def counted(label: _Label, cell: _Cell) -> tuple[Hashable, ...]:
        (subject, camera), (dataset, _) = cell, label
        return (
            ("subject", subject, label),
            ("subject", subject, dataset),
            ("camera", camera, label),
            ("camera", camera, dataset),
        )

    def counts(label: _Label, cell: _Cell) -> tuple[int, ...]:
        return tuple([used[key] for key in counted(label, cell)])

    for label, cells in groups.items():
        for positions in cells.values():
            # The last one is the next.
            positions.sort(key=lambda position: _digest(sample_ids[position]), reverse=True)
        heaps[label] = [((0, 0, 0, 0), _digest(repr((label, cell))), cell) for cell in cells]
        heapq.heapify(heaps[label])  # digests differ, so cells are never compared
    chosen: list[int] = []
    turns = deque(sorted(groups, key=lambda label: _digest(repr(label))))
    while turns and len(chosen) < num:
        label = turns.popleft()
        heap = heaps[label]
        # Counts only grow, so an entry that is up to date and on top is the least of all.
        while heap[0][0] != (now := counts(label, heap[0][2])):
            heapq.heapreplace(heap, (now, *heap[0][1:]))
        cell = heap[0][2]
        positions = groups[label][cell]
        chosen.append(positions.pop())
        used.update(counted(label, cell))
        if not positions:
            heapq.heappop(heap)
        if heap:
            turns.append(label)
    return chosen


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _parse_filter(text: str) -> Filter:
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not values:
        raise ValueError(
            f"filter {text!r} is not of the form key=values; write for example action=1,5,50-60"
        )
    keys = (*ID_KEYS, SPLIT)
    if key not in keys:
        raise ValueError(f"filter {text!r}: there is no key {key!r}; {_nearest(key, keys)}")
    if key == SPLIT:
        name, _, part = (piece.strip() for piece in values.partition("/"))
        if name not in PROTOCOLS:
            raise ValueError(
                f"filter {text!r}: there is no protocol {name!r}; {_nearest(name, PROTOCOLS)}"
            )
        protocol = PROTOCOLS[name]
        parts = ("train", "test") if protocol.split_by else ("train", "test", "exemplar")
        if part not in parts:
            valid = " or ".join(f"split={name}/{part}" for part in parts)
            raise ValueError(f"filter {text!r} does not name a part of the protocol; write {valid}")
        return Filter(text, key, protocol=protocol, part=part)
    ranges = []
    for piece in values.split(","):
        match = _NUMBERS.fullmatch(piece.strip())
        if match is None:
            raise ValueError(
                f"filter {text!r}: {piece.strip()!r} is no number or range; "
                f"write for example {key}=1,5,50-60"
            )
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise ValueError(f"filter {text!r}: the range {piece.strip()} ends before it begins")
        ranges.append((low, high))
    return Filter(text, key, ranges=tuple(ranges))


def _check(
    filters: Sequence[Filter],
    tallies: Sequence[Counter[IdValue]],
    *,
    num_kept: int,
    num_samples: int,
) -> None:
    """Complain about filters that cannot work, and log what they leave out for want of an id."""
    for condition, tally in zip(filters, tallies, strict=True):
        if tally[None] == num_samples:
            raise ValueError(
                f"filter {condition.text!r}: none of the {num_samples} videos has "
                f"{condition.missing()}; ids come from names such as "
                "S001C002P003R001A004_rgb.avi (NTU) or a01_s02_e00_v03.avi (NW-UCLA, without a "
                "setup), or from the columns action_id, subject_id, camera_id, setup_id and "
                "repetition_id of a list"
            )
        if tally[None]:
            log.warning(
                "filter %s: %d of %d videos have no %s and are left out",
                condition.text,
                tally[None],
                num_samples,
                condition.missing(),
            )
    if filters and not num_kept:
        lines = []
        for condition, tally in zip(filters, tallies, strict=True):
            num = sum(count for value, count in tally.items() if condition.accepts(value))
            lines.append(f"{condition.text} ({num} pass; present: {_shown(tally)})")
        raise ValueError(f"none of the {num_samples} videos passes {' and '.join(lines)}")


def _shown(tally: Iterable[IdValue]) -> str:
    """Values for people: 1-3, 7, wave."""
    runs: list[list[int]] = []
    for number in sorted(value for value in tally if isinstance(value, int)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [f"{low}-{high}" if low < high else f"{low}" for low, high in runs]
    texts += sorted(value for value in tally if isinstance(value, str))
    more = [f"and {len(texts) - _MAX_SHOWN} more"] if len(texts) > _MAX_SHOWN else []
    return ", ".join(texts[:_MAX_SHOWN] + more)


def _nearest(name: str, valid: Iterable[str]) -> str:
    return did_you_mean(name, valid).rstrip() or f"choose one of {', '.join(valid)}"
