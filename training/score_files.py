"""Scores of an evaluated run as CTR-GCN's and PYSKL's ensembles read them.

Both join streams by position, so the order decides:
- "ctrgcn-pkl": a dict of name to logits (num_classes,), as `eval` in CTR-GCN's main.py pickles it
  (epoch1_test_score.pkl); its ensemble.py takes the items one after the other beside the labels of
  y_test. The names are those of feeders/feeder_ntu.py, "test_0" for the first row of x_test, in the
  order of our export to ctrgcn-npz (original_order). NW-UCLA's labels come from
  data/NW-UCLA/val_label.pkl instead, in whose order the scores must stand; the names are the
  samples' own (main.py numbers them, and nothing reads the names).
- "pyskl-pkl": a list of probabilities (num_classes,), as tools/test.py of PYSKL writes it (its
  recognizers average clips as "prob" unless told otherwise), in the order in which
  datasets/pose_dataset.py meets the annotations of a split: that of the annotation file, ours
  being in the order of the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from datasets_build import ctrgcn, pyskl, schema
from datasets_build.ctrgcn_samples import original_order
from datasets_build.dataset import SkeletonDataset
from datasets_build.manifest import replaced_file
from datasets_build.npz_files import ExportSummary
from datasets_build.pickles import pickled, read_pickle
from datasets_build.protocols import NW_UCLA, PROTOCOLS, Protocol, SampleIds
from training.build import read_run
from training.scores import read_evaluation, scores_file

ScoreFormat = Literal["ctrgcn-pkl", "pyskl-pkl"]
Part = Literal["test", "train"]

_NAME_KEYS = ("file_name", "frame_dir")  # val_label.pkl of NW-UCLA, PYSKL's annotations


@dataclass(frozen=True)
class _Scored:
    """Scores of a run, joined by sample_id.

    Attributes:
        of_sample: sample_id to its logits (num_classes,).
        action_ids: of the columns.
        dataset: what was scored.
        protocol: what split it.
        split: which part was scored.
    """

    of_sample: dict[str, np.ndarray]
    action_ids: list[int]
    dataset: SkeletonDataset
    protocol: Protocol
    split: Part


def export_scores(
    run: Path,
    path: Path,
    *,
    format: ScoreFormat,
    split: Part = "test",
    dataset: Path | None = None,
    order: Path | None = None,
) -> ExportSummary:
    """Write the scores of one evaluated split for another project's ensemble.

    Columns are the benchmark's classes, as in our exports of the data. A class that the run does
    not know gets each sample's lowest logit (ctrgcn-pkl) or probability 0 (pyskl-pkl).

    Args:
        run: a run folder that `hoc evaluate` scored.
        path: the .pkl to write; a file of that name is replaced when all is done.
        format: "ctrgcn-pkl" or "pyskl-pkl".
        split: "test" or "train".
        dataset: the data set that was scored, where it lies elsewhere now.
        order: names of the samples in the order wanted: val_label.pkl of NW-UCLA, an annotation
            file of PYSKL, or a text file with a name a line. Samples of the other part are passed
            over. None: the order of our own exports.

    Raises:
        FileNotFoundError: the run was not evaluated on that split, or its data set is not there.
        ValueError: the data set is another one, or the order does not name its samples once each.
    """
    if format not in get_args(ScoreFormat):
        raise ValueError(
            f"format {format!r} is not known; choose {' or '.join(get_args(ScoreFormat))}"
        )
    scored = _read_scored(run, split, dataset)
    rows = [
        SampleIds.of_row(row)
        for table in scored.dataset.tables(list(schema.ID_COLUMNS))
        for row in table.to_pylist()
    ]
    if order is not None:
        names = _names_in_order(order, rows, scored)
    elif format == "pyskl-pkl":
        names = [str(ids.sample_id) for ids in rows if scored.protocol.split(ids) == split]
    elif scored.dataset.family == NW_UCLA:
        raise ValueError(
            "CTR-GCN's ensemble.py reads NW-UCLA's labels from data/NW-UCLA/val_label.pkl and "
            "joins by position; give that file with --order (or a text file with a name a line)"
        )
    else:
        at = original_order(rows, scored.protocol)[split]
        names = [str(rows[i].sample_id) for i in at]
    if sorted(names) != sorted(scored.of_sample):
        raise ValueError(
            f"{scores_file(run, split)} holds {len(scored.of_sample)} samples, "
            f"{scored.dataset.folder} has {len(names)} of {scored.protocol.name} {split}, and they "
            "are not the same; score the run anew with `hoc evaluate`"
        )
    labels = _labels(scored, format)
    with replaced_file(path) as file:
        file.writelines(pickled(_value(names, scored, labels=labels, format=format)))
    return ExportSummary(
        path, {split: len(names)}, path.stat().st_size, _notes(scored, labels, order)
    )


def _read_scored(run: Path, split: Part, dataset: Path | None) -> _Scored:
    record = read_run(run)
    data = record.config.data
    if split == "train" and (data.validation_subjects or data.unseen_classes):
        raise ValueError(
            f"{run} has scores of a part of the training split (data.validation_subjects, "
            "data.unseen_classes), and other ensembles join whole ones by position; export its "
            "test scores"
        )
    found = read_evaluation(run, split)
    metrics = found.record
    opened = record.open_dataset(dataset)
    if opened.fingerprint != metrics["dataset_fingerprint"]:
        raise ValueError(
            f"{scores_file(run, split)} holds scores of {metrics['dataset']}, fingerprint "
            f"{metrics['dataset_fingerprint'][:12]}; {opened.folder} is another data set, or "
            "was built anew. Give the one that was scored as DATA"
        )
    protocol = opened.protocol(record.config.data.protocol)  # a name, or the path of a file
    record.check_protocol(protocol)
    return _Scored(
        of_sample=dict(zip(found.sample_ids, found.scores, strict=True)),
        action_ids=[entry["action_id"] for entry in record.classes],
        dataset=opened,
        protocol=protocol,
        split=split,
    )


def _names_in_order(path: Path, rows: Sequence[SampleIds], scored: _Scored) -> list[str]:
    """The samples that were scored, as a file orders them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no names, or a name that is not a sample of the data set or stands
            twice, so that positions would be off.
    """
    part_of = {str(ids.sample_id): scored.protocol.split(ids) for ids in rows}
    listed = _listed_names(path)
    for position, name in enumerate(listed):
        if name not in part_of:
            raise ValueError(
                f"{path} names {name} at position {position}, which is not in "
                f"{scored.dataset.folder}; scores joined by position would be off from there on"
            )
    names = [name for name in listed if part_of[name] == scored.split]
    absent = sorted(scored.of_sample.keys() - set(names))
    if absent or len(set(names)) != len(names):
        problem = f"does not name {absent[0]}" if absent else "names a sample twice"
        raise ValueError(
            f"{path} {problem}; it must have each of the {len(scored.of_sample)} samples of "
            f"{scored.protocol.name} {scored.split} once"
        )
    return names


def _listed_names(path: Path) -> list[str]:
    if path.suffix != ".pkl":
        if not path.is_file():
            raise FileNotFoundError(f"--order {path} does not exist; give a file of names")
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()]
    value = read_pickle(path)
    entries: Any = value.get("annotations") if isinstance(value, dict) else value
    key = _name_key(entries)
    if key is None:
        raise ValueError(
            f"{path} is no list of samples with a {' or '.join(_NAME_KEYS)}; give NW-UCLA's "
            "val_label.pkl, an annotation file of PYSKL, or a text file with a name a line"
        )
    return [str(entry[key]) for entry in entries]


def _name_key(entries: Any) -> str | None:
    """The key under which every entry has its name."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    return next((key for key in _NAME_KEYS if all(key in entry for entry in entries)), None)


def _labels(scored: _Scored, format: ScoreFormat) -> dict[int, int]:
    """The column of every action in the written scores."""
    is_published = PROTOCOLS.get(scored.protocol.name) == scored.protocol
    if format == "pyskl-pkl" and not is_published:
        return pyskl.label_of_action(scored.dataset)
    return ctrgcn.label_of_action(scored.dataset, scored.protocol)


def _value(
    names: Sequence[str], scored: _Scored, *, labels: dict[int, int], format: ScoreFormat
) -> Any:
    """What is pickled."""
    columns = [labels[action] for action in scored.action_ids]
    logits = np.stack([scored.of_sample[name] for name in names])  # (N, num_known)
    shape = (len(names), max(labels.values()) + 1)
    if format == "pyskl-pkl":
        values = np.exp(logits - logits.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
        full = np.zeros(shape, np.float32)
    else:
        values = logits
        full = np.repeat(logits.min(axis=1, keepdims=True), shape[1], axis=1)
    full[:, columns] = values  # (N, num_classes)
    if format == "pyskl-pkl":
        return list(full)
    if scored.dataset.family != NW_UCLA:
        names = [f"{scored.split}_{position}" for position in range(len(names))]
    return dict(zip(names, full, strict=True))


def _notes(scored: _Scored, labels: dict[int, int], order: Path | None) -> tuple[str, ...]:
    notes = [f"scores of {scored.protocol.name} {scored.split}, {len(labels)} classes"]
    if order is not None:
        notes.append(f"in the order of {order.name}")
    unknown = len(labels) - len(scored.action_ids)
    if unknown:
        notes.append(f"the run does not know {unknown} of these classes; they come last")
    return tuple(notes)
