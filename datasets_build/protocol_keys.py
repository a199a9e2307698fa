"""The keys of a protocol file, and the numbers and ranges that stand in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictInt

from datasets_build.layouts import MAX_CLASSES, NAME_PATTERN
from datasets_build.settings import Settings

_MAX_ID = 1_000_000  # our choice: keeps "1-999999999" from filling the memory
_RANGE = re.compile(r"(\d{1,7})(?: *- *(\d{1,7}))?")


def _numbers(value: Any) -> frozenset[int]:
    """The ids in a list of whole numbers and texts such as "5-9", both ends included."""
    numbers: set[int] = set()
    for item in value if isinstance(value, list) else [value]:
        is_number = isinstance(item, int) and not isinstance(item, bool)
        match = _RANGE.fullmatch(item.strip()) if isinstance(item, str) else None
        if not is_number and match is None:
            raise ValueError(f'{item!r} is neither a whole number nor a range such as "5-9"')
        first = item if match is None else int(match[1])
        last = int(match[2]) if match is not None and match[2] else first
        if not 0 <= first <= last <= _MAX_ID:
            raise ValueError(f"{item!r} does not run upwards within 0 .. {_MAX_ID}")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def _sample_list(value: Any) -> str | tuple[str, ...]:
    """The name of a file, or names of samples."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError("it is a list of sample names, or the name of a text file of them")


_Numbers = Annotated[frozenset[int], BeforeValidator(_numbers)]
_SampleList = Annotated[Any, BeforeValidator(_sample_list)]


class ProtocolToml(Settings):
    """The keys of a protocol file.

    Attributes:
        name: for --protocol.
        dataset: the family of samples; one's own recordings are "generic".
        num_classes: classes of its samples; as many as `actions` where these are given.
        source: where the rule was published.
        rule: the rule in a sentence; made from the values where absent.
        actions: 1-based action ids that belong to it; all where absent. For generic samples the
            action id is label + 1.
        split_by: the id that decides.
        train: its values that make a training sample.
        test: its values that make a test sample.
        train_samples: names, or a text file of them beside this file (.gz too).
        test_samples: likewise.
        novel: one-shot: action ids of classes that are seen once.
        exemplars: one-shot: names of the samples that are seen, one a novel action.
    """

    name: str = Field(pattern=NAME_PATTERN)
    dataset: Literal["ntu", "nw-ucla", "generic"]
    num_classes: StrictInt | None = Field(default=None, ge=1, le=MAX_CLASSES)
    source: str | None = None
    rule: str | None = None
    actions: _Numbers | None = None
    split_by: Literal["subject_id", "camera_id", "setup_id", "repetition_id"] | None = None
    train: _Numbers | None = None
    test: _Numbers | None = None
    train_samples: _SampleList | None = None
    test_samples: _SampleList | None = None
    novel: _Numbers | None = None
    exemplars: tuple[str, ...] | None = None


def ranges_of(numbers: Iterable[Any]) -> list[str]:
    """Ascending "3" and "5-9" that hold the whole numbers given."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]
