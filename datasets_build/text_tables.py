"""Files of texts about classes or samples: tables with named columns, or one line a class.

- .csv, .tsv (with a header), .jsonl and .parquet: a column `sample_id`, or one that names the
  class, and a column of texts; optionally `prompt_id` and `source`.
- .txt: a class a line, either `name,text` (`name;text`; the text may hold more of them), or the
  text alone, line n for class n.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_build.manifest import sha256_bytes
from datasets_build.ntu_names import parse_ntu_name
from datasets_build.nwucla import parse_nwucla_name
from datasets_build.protocols import NTU, class_list

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
LINES_SUFFIX = ".txt"
SAMPLE_COLUMN = "sample_id"
NAME_COLUMNS = ("class", "class_name", "action", "action_name")  # "action" may hold a number
ACTION_ID_COLUMN, LABEL_COLUMN = "action_id", "label"  # from 1, as in file names; from 0
CLASS_COLUMNS = (*NAME_COLUMNS, ACTION_ID_COLUMN, LABEL_COLUMN)
TEXT_COLUMNS = ("text", "caption", "description", "sentence")

_ACTION_NUMBER = re.compile(r"[Aa]?0*([1-9][0-9]*)(\.0*)?", re.ASCII)
_NUM_NAMED = 5  # things that an error message shows of each kind

_NEEDS_SAMPLES = (
    "give with --samples the samples of one data set that get them, by NTU or NW-UCLA names: a "
    "list of names, skeletons, a data set or a caption run"
)

Key = tuple[str, str | int]  # ("sample", sample_id) or ("class", action_id)


@dataclass(frozen=True, slots=True)
class Text:
    """One text.

    Attributes:
        number: of its line or row in the file, from 1.
        key: whose text it is.
        text: as it stands in the file; empty where there is none.
        prompt_id: as the table says, or None.
        source: where it is from, as the table says, or None.
    """

    number: int
    key: Key
    text: str
    prompt_id: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class TextTable:
    """One file of texts.

    Attributes:
        path: absolute.
        sha256: of the file.
        form: "columns", "class names" or "label order": how a text was joined to its key.
        texts: in the order of the file.
    """

    path: Path
    sha256: str
    form: str
    texts: tuple[Text, ...]

    def place(self, text: Text) -> str:
        """What to call a text in a message."""
        return f"{self.path}, {_unit(self.path)} {text.number}"


@dataclass(frozen=True)
class ClassNames:
    """The classes of one data set.

    Attributes:
        dataset: "ntu" or "nw-ucla".
        names: name by action_id, in label order.
    """

    dataset: str
    names: Mapping[int, str]

    @classmethod
    def of(cls, dataset: str) -> ClassNames:
        """The whole class list: of NTU the 120, of which the first 60 are NTU RGB+D's."""
        return cls(dataset, dict(class_list(dataset, 120)))

    @property
    def action_ids(self) -> tuple[int, ...]:
        """In label order."""
        return tuple(self.names)

    @property
    def list_lengths(self) -> tuple[int, ...]:
        """How many lines a list of all classes in label order can have."""
        return (60, 120) if self.dataset == NTU else (len(self.names),)

    def action_id(self, name: str) -> int | None:
        """The class of that name; case, spaces, hyphens and underscores do not count."""
        return self._by_plain_name.get(_plain(name))

    @cached_property
    def _by_plain_name(self) -> dict[str, int]:
        return {_plain(name): action_id for action_id, name in self.names.items()}

    def nearest(self, name: str) -> str:
        """What to say about a name that is none."""
        near = difflib.get_close_matches(name.lower().strip(), self.names.values(), n=1)
        return f"{name.strip()!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def read_texts(path: Path, classes: ClassNames | None) -> TextTable:
    """Read one file of texts.

    Args:
        path: a file that ends in one of TABLE_SUFFIXES, or in .txt.
        classes: of the samples that get the texts; None where they have no classes, so that only a
            table of sample_ids will do.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, empty, lacks a column or names something that is not known.
    """
    suffix = path.suffix.lower()
    if suffix not in (*TABLE_SUFFIXES, LINES_SUFFIX):
        raise ValueError(
            f"{path} is not a file of texts; tables end in {', '.join(TABLE_SUFFIXES)}, "
            f"lists of one line a class in {LINES_SUFFIX}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a table of texts")
    path = Path(os.path.abspath(path))
    data = path.read_bytes()
    if suffix == LINES_SUFFIX:
        form, texts = _read_lines(path, data, classes)
    else:
        form, texts = "columns", _read_columns(path, data, classes)
    if not texts:
        raise ValueError(f"{path} holds no texts; give one a line or row")
    return TextTable(path, sha256_bytes(data), form, tuple(texts))


def sample_id_of(name: str) -> str:
    """The sample_id in an NTU or NW-UCLA file name, with or without path and suffix.

    Any other name is a sample_id as it stands.
    """
    stem = os.path.splitext(name.strip().replace("\\", "/").rsplit("/", 1)[-1])[0]
    stem = stem.removesuffix("_rgb")
    ids = parse_ntu_name(stem) or parse_nwucla_name(stem)
    return stem if ids is not None and str(ids) == stem else name.strip()


# ---- one line a class ----


def _read_lines(path: Path, data: bytes, classes: ClassNames | None) -> tuple[str, list[Text]]:
    if classes is None:
        raise ValueError(f"{path} holds texts of classes; {_NEEDS_SAMPLES}")
    lines = [
        (number, line)
        for number, line in enumerate(_decoded(path, data).split("\n"), start=1)
        if line.strip()
    ]
    texts: list[Text] = []
    strangers = []
    for number, line in lines:
        name, *rest = re.split(r"[,;\t]", line, maxsplit=1)
        action_id = classes.action_id(name)
        if action_id is None:
            strangers.append(f"line {number}: {classes.nearest(name[:60])}")
        else:
            # A line that is a class name and nothing else is its own text.
            text = rest[0] if rest else line
            texts.append(Text(number, ("class", action_id), text.removesuffix("\r")))
    if not strangers:
        return "class names", texts
    if len(texts) >= len(strangers):
        raise ValueError(
            f"{path}: {len(strangers)} of {len(lines)} lines begin with no class of "
            f"{classes.dataset}: {_some(strangers)}; the names are in manifests/"
        )
    if len(lines) not in classes.list_lengths:
        lengths = " or ".join(str(length) for length in classes.list_lengths)
        raise ValueError(
            f"{path} is no list of texts for {classes.dataset}: its lines do not begin with class "
            f"names ({_some(strangers)}), and it has {len(lines)} lines, not {lengths}, one for "
            "each class in label order"
        )
    ordered = zip(lines, classes.action_ids, strict=False)
    return "label order", [
        Text(number, ("class", action_id), line.removesuffix("\r"))
        for (number, line), action_id in ordered
    ]


# ---- named columns ----


def _read_columns(path: Path, data: bytes, classes: ClassNames | None) -> list[Text]:
    records = list(_records(path, data))
    if not records:
        return []
    given = list(dict.fromkeys(name for _, record in records for name in record))
    columns = {name.strip().lower(): name for name in reversed(given)}
    text_column = _first(columns, TEXT_COLUMNS)
    key_column = _first(columns, (SAMPLE_COLUMN, *CLASS_COLUMNS))
    if text_column is None or key_column is None:
        raise ValueError(
            f"{path} has the columns {', '.join(given) or '(none)'}; it needs {SAMPLE_COLUMN} or "
            f"one of {', '.join(CLASS_COLUMNS)}, and one of {', '.join(TEXT_COLUMNS)}"
        )
    key_of = _key_reader(path, key_column, classes)
    texts: list[Text] = []
    unknown: list[str] = []
    for number, record in records:
        values = {name: record.get(own) for name, own in columns.items()}
        text = values[text_column]
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{path}, {_unit(path)} {number}: its text is {text!r}, no text")
        try:
            key = key_of(values[key_column])
        except ValueError as error:
            unknown.append(f"{_unit(path)} {number}: {error}")
            continue
        prompt_id, source = (_text_or_none(values.get(name)) for name in ("prompt_id", "source"))
        texts.append(Text(number, key, text or "", prompt_id, source))
    if unknown:
        raise ValueError(
            f"{path}, column {columns[key_column]}: {len(unknown)} of {len(records)} rows belong "
            f"to nothing that is known: {_some(unknown)}"
        )
    return texts


def _key_reader(path: Path, column: str, classes: ClassNames | None) -> Callable[[Any], Key]:
    """What turns a value of the column into a key; it raises ValueError on one that is none."""
    if column == SAMPLE_COLUMN:
        return _sample_key
    if classes is None:
        raise ValueError(f"{path} holds texts of classes (column {column}); {_NEEDS_SAMPLES}")

    def class_key(value: Any) -> Key:
        text = "" if value is None else str(value).strip()
        match = _ACTION_NUMBER.fullmatch(text)
        action_id: int | None = None
        if column == LABEL_COLUMN:
            label = int(float(text)) if re.fullmatch(r"\d+(\.0*)?", text) else -1
            action_id = classes.action_ids[label] if 0 <= label < len(classes.names) else None
        elif match and column in (ACTION_ID_COLUMN, "action"):
            action_id = int(match[1]) if int(match[1]) in classes.names else None
        elif column != ACTION_ID_COLUMN:
            action_id = classes.action_id(text)
        if action_id is None:
            raise ValueError(
                classes.nearest(text) if column in NAME_COLUMNS
                else f"{text!r} is no {column} of {classes.dataset}"
            )  # fmt: skip
        return "class", action_id

    return class_key


def _sample_key(value: Any) -> Key:
    sample_id = sample_id_of(str(value)) if value is not None else ""
    if not sample_id:
        raise ValueError("no sample_id")
    return "sample", sample_id


def _records(path: Path, data: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and values by column of each row."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            rows = pq.read_table(pa.BufferReader(data)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
        yield from enumerate(rows, start=1)
    elif suffix == ".jsonl":
        for number, line in enumerate(_decoded(path, data).split("\n"), start=1):
            if line.strip():
                yield number, _json_record(path, number, line)
    else:
        dialect = "excel-tab" if suffix == ".tsv" else "excel"
        text = io.StringIO(_decoded(path, data), newline="")
        # strict: a quote that is never closed would silently swallow the rest of the file
        reader = csv.reader(text, dialect, strict=True)
        header: list[str] | None = None
        try:
            for values in reader:
                if not values:
                    continue
                if header is None:
                    header = values
                elif len(values) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(values)} fields, but the header has "
                        f"{len(header)}; a text with a comma stands in double quotes"
                    )
                else:
                    yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _json_record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number} is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number} is not a JSON object with named values")
    return record


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error


def _first(columns: Mapping[str, str], wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in columns), None)


def _text_or_none(value: Any) -> str | None:
    return (str(value).strip() or None) if value is not None else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


def _unit(path: Path) -> str:
    return "row" if path.suffix.lower() == ".parquet" else "line"


def _some(items: Sequence[str]) -> str:
    more = [f"and {len(items) - _NUM_NAMED} more"] if len(items) > _NUM_NAMED else []
    return "; ".join([*items[:_NUM_NAMED], *more])
