"""Who is who in PYSKL's annotation files: ids, labels, class names, and the names of splits."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets_build.packed import ListedSplit
from datasets_build.pickled_arrays import StoredArray
from datasets_build.protocols import (
    GENERIC,
    PROTOCOLS,
    Protocol,
    SampleIds,
    Split,
    class_list,
    ids_of_name,
)

# As the configs of PYSKL spell them.
_PREFIXES = {
    "ntu60-xsub": "xsub_",
    "ntu60-xview": "xview_",
    "ntu120-xsub": "xsub_",
    "ntu120-xset": "xset_",
    "nw-ucla": "",
}
_NAME = re.compile(r"(?:(.+)[_-])?(train|val|test)(\d*)")

_log = logging.getLogger(__name__)


def known_samples(path: Path, names: Sequence[str]) -> tuple[list[SampleIds], str]:
    """The ids in the names and their family; no ids where the names are not all of one family."""
    samples = [ids_of_name(name) for name in names]
    families = Counter(GENERIC if ids is None else ids.dataset for ids in samples)
    if len(families) > 1:
        counts = ", ".join(f"{num} {family}" for family, num in families.items())
        _log.warning("%s mixes names of several kinds (%s); all are read as generic", path, counts)
        return [], GENERIC
    return [ids for ids in samples if ids is not None], next(iter(families))


def benchmark_labels(dataset: str) -> dict[int, int]:
    """action_id to label in the class list of a known family."""
    classes = class_list(dataset, 120)  # of NTU all; the other family has one list
    return {action_id: label for label, (action_id, _) in enumerate(classes)}


def check_labels(path: Path, samples: Sequence[SampleIds], labels: Sequence[int]) -> None:
    """Hold the labels of a known family against the action numbers in its names.

    Raises:
        ValueError: names the first sample whose label is another one.
    """
    label_of = benchmark_labels(samples[0].dataset)
    for ids, label in zip(samples, labels, strict=True):
        expected = label_of.get(ids.action_id)
        if label != expected:
            raise ValueError(
                f"{path}: {ids.sample_id} has the label {label}, its name says action "
                f"{ids.action_id}, which is label {expected}; give the samples other names where "
                "the labels are meant to differ"
            )


def checked_class_names(
    path: Path, labels: Sequence[int], class_names: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The names given, or "class 0" and so on.

    Raises:
        ValueError: a label without a name, or without names a label that no sample has.
    """
    highest = max(labels)
    if class_names is not None:
        if highest >= len(class_names):
            raise ValueError(
                f"{path} has the label {highest}, but there are {len(class_names)} class names; "
                "labels are 0-based"
            )
        return class_names
    unused = sorted(set(range(highest)) - set(labels))
    if unused:
        raise ValueError(
            f"{path} has labels up to {highest}, but no sample of label {unused[0]}"
            f"{' (labels are 0-based)' if unused[0] == 0 else ''}; name all classes with "
            "--class-names where that is right"
        )
    return tuple(f"class {label}" for label in range(highest + 1))


def split_names(protocols: Sequence[Protocol]) -> list[dict[str, str]]:
    """For each protocol what PYSKL calls its parts, by "train", "test" and "exemplar".

    The test part is called val, as PYSKL has it; protocols that PYSKL does not know give
    NAME_train and NAME_val, one-shot ones also NAME_exemplar.

    Raises:
        ValueError: two protocols have the same names.
    """
    names = []
    owner: dict[str, str] = {}
    for protocol in protocols:
        prefix = _PREFIXES.get(protocol.name, f"{protocol.name}_")
        if prefix in owner:
            raise ValueError(
                f"protocols {owner[prefix]} and {protocol.name} would both be the split "
                f"{prefix}train of PYSKL; export them into two files"
            )
        owner[prefix] = protocol.name
        parts = {"train": f"{prefix}train", "test": f"{prefix}val"}
        if protocol.split_by is None:
            parts["exemplar"] = f"{prefix}exemplar"
        names.append(parts)
    return names


def listed_splits(
    path: Path, split: dict[Any, Any], samples: Mapping[str, SampleIds]
) -> tuple[ListedSplit, ...]:
    """The splits of a file: xsub_train and xsub_val are "xsub", train1 and test1 "split1", train
    and val (or test) "default". A published protocol's name gets "pyskl-" before it.

    Left out is a split that a published protocol makes of these samples, too: the ids tell it.
    Where there are three parts, "test" is the test part and "val" is left out. What does not pair
    up or cannot be used is left out too; the log says so.

    Args:
        path: the file, for the log.
        split: frame_dirs by name, as in the file.
        samples: the ids of every frame_dir that has an annotation; others are left out.

    Raises:
        ValueError: an array of names cannot be read.
    """
    parts: dict[str, dict[str, tuple[str, ...]]] = {}
    for key, listed in split.items():
        match = _NAME.fullmatch(key.lower()) if isinstance(key, str) else None
        listed = _names_in(path, key, listed)
        if match is None or listed is None:
            _log.warning("%s: split %.80r is left out: no part of a pair we know", path, key)
            continue
        known = dict.fromkeys(str(samples[name].sample_id) for name in listed if name in samples)
        num = sum(name not in samples for name in listed)
        if num:
            _log.warning("%s: %d samples of split %s have no annotation", path, num, key)
        of = parts.setdefault(_name(match), {})
        if match[2] in of:
            _log.warning("%s: split %s is left out: it is there twice", path, key)
        elif known:
            of[match[2]] = tuple(known)
    found = [_paired(path, name, of) for name, of in parts.items()]
    published = _published_splits(samples.values()) if any(found) else []
    return tuple(
        pair
        for pair in found
        if pair is not None and (set(pair.train), set(pair.test)) not in published
    )


def _published_splits(samples: Collection[SampleIds]) -> list[tuple[set[str], set[str]]]:
    """The training and the test sample_ids under each published protocol of the samples."""
    splits = []
    for protocol in PROTOCOLS.values():
        of: dict[Split | None, set[str]] = defaultdict(set)
        for ids in samples:
            of[protocol.split(ids)].add(str(ids.sample_id))
        splits.append((of["train"], of["test"]))
    return splits


def _name(match: re.Match[str]) -> str:
    """The name for --protocol: lower case letters, digits and "-", and no published protocol's."""
    prefix = re.sub(r"[^a-z0-9]+", "-", match[1] or "").strip("-")
    number = match[3]
    if prefix:
        name = f"{prefix}-{number}" if number else prefix
        return f"pyskl-{name}" if name in PROTOCOLS else name
    return f"split{number}" if number else "default"


def _names_in(path: Path, key: Any, listed: Any) -> tuple[str, ...] | None:
    """The names in a list, a tuple, a set or an array; None where it is something else.

    Raises:
        ValueError: an array cannot be read.
    """
    if isinstance(listed, StoredArray):
        try:
            listed = listed.read().tolist()
        except (ValueError, OSError, OverflowError) as error:
            raise ValueError(f"{path}: split {key!r:.80} cannot be read: {error}") from error
    if not isinstance(listed, list | tuple | set):
        return None
    if not all(isinstance(name, str) for name in listed):
        return None
    return tuple(map(str, sorted(listed) if isinstance(listed, set) else listed))


def _paired(path: Path, name: str, of: dict[str, tuple[str, ...]]) -> ListedSplit | None:
    test = "test" if "test" in of else "val"
    if not {"train", test} <= of.keys():
        parts = " and ".join(of) or "names without annotations"
        _log.warning("%s: split %s is left out: it has only %s", path, name, parts)
        return None
    if len(of) == 3:
        _log.warning("%s: split %s has train, val and test; val is left out", path, name)
    both = set(of["train"]) & set(of[test])
    if both:
        _log.warning(
            "%s: split %s is left out: %d samples, such as %s, are in both train and %s",
            *(path, name, len(both), min(both), test),
        )
        return None
    return ListedSplit(name, of["train"], of[test])
