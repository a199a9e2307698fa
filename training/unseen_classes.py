"""Classes that a recipe leaves out of training (data.unseen_classes), by name or action_id."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datasets_build.dataset import ClassEntry
from datasets_build.text_tables import ClassNames

_ACTION_NUMBER = re.compile(r"[Aa]?0*([1-9][0-9]*)", re.ASCII)
_MOST_SHOWN = 12  # classes that a message lists


def unseen_labels(classes: Sequence[ClassEntry], given: Sequence[int | str]) -> frozenset[int]:
    """The labels of the classes that data.unseen_classes names.

    Args:
        classes: of the data set.
        given: names, or action_ids as in file names: 3, "3" or "A003"; empty gives no label.

    Raises:
        ValueError: a class is not known or named twice, or all classes are named.
    """
    labels = [_label(classes, value) for value in given]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(
            f"data.unseen_classes names {classes[twice[0]].name!r} twice; name each class once"
        )
    if labels and len(labels) == len(classes):
        raise ValueError(
            f"data.unseen_classes names all {len(classes)} classes; leave some to train on"
        )
    return frozenset(labels)


def _label(classes: Sequence[ClassEntry], value: int | str) -> int:
    names = ClassNames("", {entry.action_id: entry.name for entry in classes})
    text = str(value).strip()
    number = _ACTION_NUMBER.fullmatch(text)
    action_id = names.action_id(text) or (int(number[1]) if number else None)
    for entry in classes:
        if entry.action_id == action_id:
            return entry.label
    shown = ", ".join(f"{entry.action_id} {entry.name}" for entry in classes[:_MOST_SHOWN])
    more = ", ..." if len(classes) > _MOST_SHOWN else ""
    raise ValueError(
        f"data.unseen_classes: {names.nearest(text)} is no class of the data set; give names or "
        f"action ids of: {shown}{more}"
    )
