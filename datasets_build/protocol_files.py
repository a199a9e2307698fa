"""One's own protocols in TOML: read, checked, written, and found by name.

A file splits in one of three ways: by an id (`split_by`, `train`, `test`), by lists of samples
(`train_samples`, `test_samples`), or one-shot (`novel`, `exemplars`).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets_build.layouts import MAX_CLASSES, NAME_PATTERN
from datasets_build.manifest import write_bytes_atomic
from datasets_build.packed import ListedSplit
from datasets_build.protocol_keys import ProtocolToml, ranges_of
from datasets_build.protocols import (
    GENERIC,
    NW_UCLA,
    PROTOCOLS,
    Protocol,
    class_list,
    ids_of_name,
    read_lines,
)
from datasets_build.settings import read_toml, resolve

FOLDER = "protocols"  # of a data set: its own protocols

_WAYS = (("split_by", "train", "test"), ("train_samples", "test_samples"), ("novel", "exemplars"))
_NUM_SHOWN = 5  # names that a message shows of many


def find_protocol(name: str, folder: Path | None) -> Protocol:
    """The protocol of a name.

    Args:
        name: a built-in protocol's, that of one in `folder`/protocols, or a path ending in .toml.
        folder: a data set's, if any.

    Raises:
        FileNotFoundError: a path at which no file is.
        ValueError: there is none of that name (the nearest is named first), or the file's mistakes.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    own = {} if folder is None else {path.stem: path for path in (folder / FOLDER).glob("*.toml")}
    if name in own:
        protocol = read_protocol(own[name])
        if protocol.name != name:
            raise ValueError(
                f"{own[name]} holds a protocol named {protocol.name!r}; give the file that name"
            )
        return protocol
    if name.endswith(".toml"):
        return read_protocol(Path(name))
    known = [*sorted(own), *PROTOCOLS]
    nearest_first = difflib.get_close_matches(name, known, n=len(known), cutoff=0)
    raise ValueError(
        f"protocol {name!r} is not known; choose one of {', '.join(nearest_first)}, or give the "
        "path of a .toml file"
    )


def read_protocol(path: Path) -> Protocol:
    """Read a protocol file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: lists its mistakes, each in a sentence.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"protocol {path} does not exist; give the path of a .toml file, or a name that "
            "`hoc protocols` lists"
        )
    values = resolve(ProtocolToml, read_toml(path), source=str(path))
    mistakes: list[str] = []
    _check_name(values.name, mistakes)
    num_classes = _num_classes(values, mistakes)
    protocol = Protocol(
        name=values.name,
        dataset=values.dataset,
        num_classes=num_classes,
        source=values.source or f"one's own ({path.name})",
        rule="",
        action_ids=values.actions,
    )
    given = [way for way in _WAYS if any(getattr(values, key) is not None for key in way)]
    if len(given) != 1:
        mistakes.append(
            "say in one way how samples are split: split_by with train and test, train_samples "
            f"with test_samples, or novel with exemplars; {len(given)} of them are given"
        )
    elif absent := [key for key in given[0] if getattr(values, key) is None]:
        mistakes.append(f"{', '.join(given[0])} belong together; {' and '.join(absent)} is missing")
    elif given[0] == _WAYS[0]:
        protocol = _split_by_id(protocol, values, mistakes)
    elif given[0] == _WAYS[1]:
        protocol = _split_by_lists(protocol, values, path, mistakes)
    else:
        protocol = _one_shot(protocol, values, mistakes)
    if mistakes:
        raise ValueError(f"this does not fit in {path}:\n  " + "\n  ".join(mistakes))
    return replace(protocol, rule=values.rule or _rule(protocol))


def listed_protocol(split: ListedSplit, *, dataset: str, num_classes: int, source: str) -> Protocol:
    """The protocol of a split that a packed source brought along.

    Raises:
        ValueError: its name or a sample's cannot stand in a file, a sample is in both parts, or
            there is none.
    """
    protocol = Protocol(
        split.name,
        dataset,
        num_classes,
        source,
        rule="",
        action_ids=None,
        split_by="sample_id",
    )
    mistakes: list[str] = []
    _check_name(split.name, mistakes)
    protocol = _with_values(
        protocol,
        _sample_ids(split.train, dataset, "train", mistakes),
        _sample_ids(split.test, dataset, "test", mistakes),
        mistakes,
    )
    if mistakes:
        raise ValueError(f"split {split.name!r} of {source}:\n  " + "\n  ".join(mistakes))
    return replace(protocol, rule=_rule(protocol))


def write_protocol(folder: Path, protocol: Protocol) -> Path:
    """Write a protocol as NAME.toml, and NAME-train.txt and NAME-test.txt where samples are listed.

    Equal protocols give equal bytes; `read_protocol` reads back what was written.

    Args:
        folder: made where it is absent.
        protocol: as `read_protocol` gave it.

    Returns:
        The path of the .toml, which is written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, str] = {
        "name": _quoted(protocol.name),
        "dataset": _quoted(protocol.dataset),
        "num_classes": str(protocol.num_classes),
        "source": _quoted(protocol.source),
        "rule": _quoted(protocol.rule),
    }
    if protocol.action_ids is not None:
        values["actions"] = _toml_list(protocol.action_ids)
    if protocol.split_by == "sample_id":
        for part, names in (("train", protocol.train_values), ("test", protocol.test_values)):
            values[f"{part}_samples"] = _written_list(folder, f"{protocol.name}-{part}.txt", names)
    elif protocol.split_by is not None:
        values["split_by"] = _quoted(protocol.split_by)
        values["train"] = _toml_list(protocol.train_values)
        values["test"] = _toml_list(protocol.test_values)
    else:
        exemplars = sorted(str(ids.sample_id) for ids in protocol.exemplars)
        values["novel"] = _toml_list(protocol.novel_action_ids)
        values["exemplars"] = f"[{', '.join(map(_quoted, exemplars))}]"
    path = folder / f"{protocol.name}.toml"
    text = "".join(f"{key} = {value}\n" for key, value in values.items())
    write_bytes_atomic(path, text.encode())
    return path


def _written_list(folder: Path, file: str, names: Iterable[int | str]) -> str:
    """The TOML value that stands for the names: the file that they are written to."""
    lines = "".join(f"{name}\n" for name in sorted(map(str, names)))
    if not lines:
        return "[]"
    write_bytes_atomic(folder / file, lines.encode())
    return _quoted(file)


def _check_name(name: str, mistakes: list[str]) -> None:
    if not re.fullmatch(NAME_PATTERN, name) or name.endswith(".toml"):
        mistakes.append(
            f"name: {name!r} is not of lower case letters, digits, '-', '_' and '.' (it names a "
            "file), 100 at most"
        )
    elif name in PROTOCOLS:
        mistakes.append(f"name: {name!r} is a built-in protocol's; choose another one")


def _num_classes(values: ProtocolToml, mistakes: list[str]) -> int:
    if values.actions is None:
        if values.num_classes is None:
            mistakes.append("num_classes: say how many classes there are, or list the actions")
        return values.num_classes or 0
    _check_actions(values.actions, values.dataset, "actions", mistakes)
    num = len(values.actions)
    if values.num_classes not in (None, num):
        mistakes.append(f"num_classes: it is {values.num_classes}, but actions holds {num}")
    return num


def _check_actions(actions: frozenset[int], dataset: str, where: str, mistakes: list[str]) -> None:
    known: Iterable[int] = range(1, MAX_CLASSES + 1)
    if dataset != GENERIC:
        known = [action_id for action_id, _ in class_list(dataset, 120)]
    if not actions:
        mistakes.append(f"{where}: the list is empty")
    elif unknown := sorted(actions.difference(known)):
        mistakes.append(
            f"{where}: {_shown(unknown)} is no action of {dataset} ({', '.join(ranges_of(known))})"
        )


def _split_by_id(protocol: Protocol, values: ProtocolToml, mistakes: list[str]) -> Protocol:
    assert values.train is not None
    assert values.test is not None
    if values.dataset == NW_UCLA and values.split_by == "setup_id":
        mistakes.append("split_by: nw-ucla samples have no setup_id")
    protocol = replace(protocol, split_by=values.split_by)
    return _with_values(protocol, values.train, values.test, mistakes)


def _split_by_lists(
    protocol: Protocol, values: ProtocolToml, path: Path, mistakes: list[str]
) -> Protocol:
    parts = []
    for key in ("train_samples", "test_samples"):
        names = getattr(values, key)
        if isinstance(names, str):
            names = _names_in(path.parent, names, key, mistakes)
        parts.append(_sample_ids(names, values.dataset, key, mistakes))
    return _with_values(replace(protocol, split_by="sample_id"), parts[0], parts[1], mistakes)


def _with_values(
    protocol: Protocol,
    train: frozenset[Any],
    test: frozenset[Any],
    mistakes: list[str],
) -> Protocol:
    if both := sorted(train & test):
        mistakes.append(f"{_shown(both)} is in train and in test")
    if not mistakes and not train | test:
        mistakes.append("train and test are empty")
    return replace(protocol, train_values=train, test_values=test)


def _one_shot(protocol: Protocol, values: ProtocolToml, mistakes: list[str]) -> Protocol:
    novel, names = values.novel, values.exemplars
    assert novel is not None
    assert names is not None
    if values.dataset == GENERIC:
        mistakes.append(
            "novel: generic samples have no names that tell their action; use train_samples and "
            "test_samples"
        )
        return protocol
    _check_actions(novel, values.dataset, "novel", mistakes)
    if values.actions is not None and (outside := sorted(novel - values.actions)):
        mistakes.append(f"novel: {_shown(outside)} is not in actions")
    samples = _sample_ids(names, values.dataset, "exemplars", mistakes)
    exemplars = frozenset(ids for ids in map(ids_of_name, samples) if ids is not None)
    actions = [ids.action_id for ids in exemplars]
    for action_id in sorted(novel.union(actions)):
        if action_id not in novel:
            mistakes.append(f"exemplars: action {action_id} has one, but is not novel")
        elif actions.count(action_id) != 1:
            mistakes.append(
                f"exemplars: novel action {action_id} has {actions.count(action_id)}, it needs one"
            )
    return replace(protocol, novel_action_ids=novel, exemplars=exemplars)


def _sample_ids(
    names: Iterable[str], dataset: str, where: str, mistakes: list[str]
) -> frozenset[str]:
    """The names as sample_ids; those that are none go to `mistakes`."""
    if dataset == GENERIC:
        found = {name: name if _is_sample_id(name) else None for name in names}
        example = "printable and without spaces around it"
    else:
        ids_of = {name: ids_of_name(name) for name in names}
        found = {
            name: ids.sample_id if ids is not None and ids.dataset == dataset else None
            for name, ids in ids_of.items()
        }
        example = "a01_s01_e00_v01" if dataset == NW_UCLA else "S001C001P001R001A001"
    bad = [name for name, sample_id in found.items() if sample_id is None]
    if bad:
        mistakes.append(f"{where}: {_shown(bad)} is no {dataset} sample name; expected {example}")
    return frozenset(sample_id for sample_id in found.values() if sample_id is not None)


def _is_sample_id(name: str) -> bool:
    return name.isprintable() and name.strip() == name != ""


def _names_in(folder: Path, file: str, where: str, mistakes: list[str]) -> list[str]:
    """The lines of a text file beside the protocol, without blank ones."""
    if Path(file).name != file:
        mistakes.append(
            f"{where}: {file!r} is not the name of a file in {folder}, beside the .toml"
        )
        return []
    try:
        return read_lines(folder / file, what="sample name")
    except (FileNotFoundError, ValueError) as error:
        mistakes.append(f"{where}: {error}")
        return []


def _rule(protocol: Protocol) -> str:
    """What a protocol does, in a sentence."""
    train, test = protocol.train_values, protocol.test_values
    if protocol.split_by == "sample_id":
        return f"train: {len(train)} listed samples; test: {len(test)} listed samples"
    if protocol.split_by is not None:
        parts = [
            f"{part}: {protocol.split_by} {', '.join(ranges_of(values)) or 'none'}"
            for part, values in (("train", train), ("test", test))
        ]
        return "; ".join(parts)
    novel = ", ".join(ranges_of(protocol.novel_action_ids))
    return (
        f"novel: actions {novel} with one exemplar each; test: their other samples; train: the "
        "other actions"
    )


def _toml_list(numbers: Iterable[Any]) -> str:
    return (
        f"[{', '.join(text if '-' not in text else _quoted(text) for text in ranges_of(numbers))}]"
    )


def _quoted(text: str) -> str:
    """A TOML string: JSON's form, but DEL is written as its number."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _shown(values: list[Any]) -> str:
    """The first few, and how many more."""
    more = len(values) - _NUM_SHOWN
    shown = ", ".join(map(repr, values[:_NUM_SHOWN]))
    return f"{shown} and {more} more" if more > 0 else shown
