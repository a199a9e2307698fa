"""Who is who in CTR-GCN's arrays, which hold no names: labels read, the order made or found.

Source: get_indices in the seq_transformation scripts of CTR-GCN (github Uason-Chen/CTR-GCN): the
training subjects (cameras, setups) ascending, inside each the samples by name; the test ones alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets_build.layouts import MAX_CLASSES
from datasets_build.npz_files import open_member
from datasets_build.protocols import (
    NTU,
    PROTOCOLS,
    Protocol,
    SampleIds,
    ids_of_name,
    listed_missing,
)

SPLITS = ("train", "test")

_PIECE_BYTES = 1 << 24  # our choice: labels are read in pieces of about this size

_NTU_PROTOCOLS = tuple(p for p in PROTOCOLS.values() if p.dataset == NTU and p.split_by)


def original_order(rows: Sequence[SampleIds], protocol: Protocol) -> dict[str, list[int]]:
    """The order of samples in CTR-GCN's arrays.

    Args:
        rows: ids with their sample_ids, in any order; those outside the protocol are passed over.
        protocol: one that splits by an id, or by lists of samples (which are ordered by name).

    Returns:
        "train" and "test": positions in `rows`, by the value of the id that splits, then by name.

    Raises:
        ValueError: a one-shot protocol: these arrays have no place for exemplars.
    """
    split_by = protocol.split_by
    if split_by is None:
        raise ValueError(
            f"protocol {protocol.name} is one-shot, and x_train and x_test have no place for its "
            "exemplars; choose a protocol that has only a training and a test part"
        )
    order: dict[str, list[int]] = {split: [] for split in SPLITS}
    for position, ids in enumerate(rows):
        split = protocol.split(ids)
        if split is not None:
            order[split].append(position)
    for positions in order.values():
        positions.sort(key=lambda at: (getattr(rows[at], split_by), rows[at].sample_id))
    return order


def read_labels(path: Path) -> tuple[dict[str, np.ndarray], int | None]:
    """0-based labels (N,) by split, and K where they are one-hot.

    Raises:
        ValueError: something else than labels, or no sample at all.
    """
    labels: dict[str, np.ndarray] = {}
    columns: dict[str, int | None] = {}
    for split in SPLITS:
        with open_member(path, f"y_{split}") as y:
            if len(y.shape) > 2 or y.dtype.kind not in ("biuf" if len(y.shape) == 2 else "iu"):
                raise ValueError(
                    f"{path}: y_{split} is {y.shape} of {y.dtype}; one-hot rows (N, K) or whole "
                    "numbers (N,) are expected"
                )
            columns[split] = y.shape[1] if len(y.shape) == 2 else None
            if (columns[split] or 0) > MAX_CLASSES:
                raise ValueError(
                    f"{path}: y_{split} has {y.shape[1]} classes; at most {MAX_CLASSES}"
                )
            step = max(1, _PIECE_BYTES // y.row_bytes)
            pieces = [
                _as_labels(y.rows(at, at + step), where=f"{path}: y_{split}", first=at)
                for at in range(0, len(y), step)
            ]
            labels[split] = np.concatenate([np.empty(0, np.int64), *pieces])
    if columns["train"] != columns["test"]:
        raise ValueError(
            f"{path}: y_train has {columns['train']} and y_test {columns['test']} classes"
        )
    if not any(array.size for array in labels.values()):
        raise ValueError(f"{path} holds no samples: y_train and y_test are empty")
    return labels, columns["train"]


def _as_labels(y: np.ndarray, *, where: str, first: int) -> np.ndarray:
    """(n,) int64 labels of (n, K) one-hot rows or (n,) numbers; `first` is the number of row 0."""
    if y.ndim == 2:
        is_good = (np.count_nonzero(y, axis=1) == 1) & (y.max(axis=1) == 1)
        labels = y.argmax(axis=1)
    else:
        is_good = (y >= 0) & (y < MAX_CLASSES)
        labels = y
    if not is_good.all():
        at = int(np.argmin(is_good))
        shown = "not one-hot" if y.ndim == 2 else f"{y[at]}, not a label of 0 .. {MAX_CLASSES - 1}"
        raise ValueError(f"{where}: row {first + at} is {shown}; each row is one sample's class")
    return labels.astype(np.int64)


def checked_num_classes(
    path: Path,
    labels: dict[str, np.ndarray],
    *,
    columns: int | None,
    class_names: tuple[str, ...] | None,
) -> int:
    """How many classes the arrays have, by their columns, the names or their greatest label.

    Raises:
        ValueError: another number of class names was given.
    """
    needed = columns or 1 + max(int(array.max()) for array in labels.values() if array.size)
    if class_names is not None:
        wrong = len(class_names) < needed or (columns is not None and len(class_names) != columns)
        if wrong:
            raise ValueError(
                f"{path} has {needed} classes, but {len(class_names)} class names were given"
            )
        return len(class_names)
    return needed


def find_samples(
    names: Sequence[str],
    labels: Mapping[str, np.ndarray],
    *,
    path: Path,
    num_classes: int | None,
) -> list[SampleIds]:
    """Which samples the rows of the arrays are: the training ones, then the test ones.

    Tried are the names as they stand, and the original's order under NTU's protocols over those of
    the arrays' classes: the usable ones (not on the list of missing skeletons), and all, as some
    made their arrays without that list. An order is taken where the numbers of samples and every
    label agree, and no other order's do.

    Args:
        names: NTU sample or file names; others and repeats are passed over.
        labels: 0-based labels (N,) of "train" and "test".
        path: the arrays' file, for messages.
        num_classes: of the arrays; None where their labels do not tell.

    Raises:
        ValueError: no order fits, or several do; the message says what was tried.
    """
    unique = {ids: None for ids in map(ids_of_name, names) if ids is not None}
    given = [ids for ids in unique if ids.dataset == NTU]
    missing = listed_missing(NTU)
    of_classes = [ids for ids in given if num_classes is None or ids.action_id <= num_classes]
    usable = [ids for ids in of_classes if ids.sample_id not in missing]
    num_train = len(labels["train"])
    tried = {
        "the names as they stand": _cut(given, num_train),
        "the usable names as they stand": _cut(usable, num_train),
    }
    for protocol in _NTU_PROTOCOLS:
        if num_classes in (None, protocol.num_classes):
            title = f"the order of {protocol.name}"
            tried[title] = _ordered(usable, protocol)
            if len(usable) < len(of_classes):
                tried[f"{title} with the listed missing samples in"] = _ordered(
                    of_classes, protocol
                )
    problems = {title: _disagreement(samples, labels) for title, samples in tried.items()}
    fitting = {
        tuple(tried[title]["train"] + tried[title]["test"]): title
        for title, problem in problems.items()
        if problem is None
    }
    if len(fitting) > 1:
        raise ValueError(
            f"{path}: several orders of the {len(given)} NTU names fit its labels "
            f"({'; '.join(fitting.values())}), so nobody can tell who is who; build without --names"
        )
    if not fitting:
        lines = "".join(f"\n  {title}: {problem}" for title, problem in problems.items())
        raise ValueError(
            f"{path}: no order of the {len(given)} NTU names fits; give the names that its arrays "
            "were made from (the .names.txt beside an export of ours fits as it stands), or build "
            f"without --names. Tried:{lines}"
        )
    (samples,) = fitting
    return list(samples)


def is_published_split(samples: Sequence[SampleIds], num_train: int) -> bool:
    """Whether one of NTU's protocols makes the first `num_train` training and the others test."""
    return any(
        all(
            protocol.split(ids) == ("train" if position < num_train else "test")
            for position, ids in enumerate(samples)
        )
        for protocol in _NTU_PROTOCOLS
    )


def _cut(samples: list[SampleIds], num_train: int) -> dict[str, list[SampleIds]]:
    return {"train": samples[:num_train], "test": samples[num_train:]}


def _ordered(samples: list[SampleIds], protocol: Protocol) -> dict[str, list[SampleIds]]:
    order = original_order(samples, protocol)
    return {split: [samples[at] for at in positions] for split, positions in order.items()}


def _disagreement(
    samples: Mapping[str, list[SampleIds]], labels: Mapping[str, np.ndarray]
) -> str | None:
    """How an order differs from the arrays; None where it does not."""
    sizes = {split: (len(samples[split]), len(labels[split])) for split in SPLITS}
    if any(ours != theirs for ours, theirs in sizes.values()):
        return (
            f"{sizes['train'][0]} + {sizes['test'][0]} samples, the arrays have "
            f"{sizes['train'][1]} + {sizes['test'][1]} (train + test)"
        )
    for split in SPLITS:
        expected = np.array([ids.action_id - 1 for ids in samples[split]], dtype=np.int64)
        wrong = np.flatnonzero(expected != labels[split])
        if wrong.size:
            at = int(wrong[0])
            return (
                f"{wrong.size} labels of y_{split} differ, the first in row {at}: "
                f"{labels[split][at]}, but {samples[split][at].sample_id} is {expected[at]}"
            )
    return None
