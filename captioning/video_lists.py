"""Lists of videos: text, CSV, TSV, JSON lines, Parquet, and the plan of an earlier caption run."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.selection import ID_KEYS, IdValue
from datasets_build.schema import SAMPLE_ID

TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".parquet")
LIST_EXTENSIONS = (".txt", *TABLE_EXTENSIONS)
PATH_COLUMNS = ("path", "video", "video_path", "file_name")
SAMPLE_ID_COLUMNS = (SAMPLE_ID, "id")
_ROWS_AT_ONCE = 1 << 12  # our choice: larger ones cost memory and no less time
_BUFFER = 1 << 16  # bytes read at once; without it Arrow holds a whole column of a row group
_NUMBER = re.compile(r"([0-9]+)(\.0*)?", re.ASCII)  # a column with gaps becomes floats in pandas
_NO_VALUE = ("", "nan", "none")

Columns = Sequence[str | None]  # None: the list has no such column, its values are None
Rows = Iterator[tuple[int, Sequence[Any]]]  # number of the line or row from 1, and its values


@dataclass(frozen=True, slots=True)
class Listed:
    """One video of a list.

    Attributes:
        number: of its line (in a Parquet file or a plan: row), from 1.
        path: as it stands there; bytes that are no UTF-8 are surrogate escapes (os.fsdecode).
        sample_id: None where the list has no column of ids.
        ids: in the order of ID_KEYS; empty unless they were asked for.
    """

    number: int
    path: str
    sample_id: str | None
    ids: tuple[IdValue, ...]


def extension_of(source: str) -> str:
    """The extension in small letters, with its dot."""
    return os.path.splitext(source)[1].lower()


def place_of(source: str, number: int) -> str:
    """What to call a row in a message."""
    unit = "row" if extension_of(source) in (".parquet", ".arrow") else "line"
    return f"{source}, {unit} {number}"


def read_list(
    source: str, *, path_column: str | None, id_column: str | None, with_ids: bool
) -> Iterator[Listed]:
    """The videos of a list, one after the other.

    A text file has one path a line; blank lines and lines that begin with # are passed over, and
    spaces belong to the path. The other kinds have named columns (CSV and TSV: in the first line).

    Args:
        source: a file that ends in one of LIST_EXTENSIONS.
        path_column: column of paths; None takes the first of PATH_COLUMNS that is there.
        id_column: column of sample_ids; None takes the first of SAMPLE_ID_COLUMNS, if there is one.
        with_ids: read the columns action_id (or action), subject_id (or subject), ... too.

    Raises:
        ValueError: it is damaged, has no row or no such column, or a row lacks its path or id.
    """
    if extension_of(source) == ".txt":
        yield from _checked(source, ("path", None), _text_rows(source))
        return
    names = _column_names(source)
    wanted: list[str | None] = [
        _column(source, names, path_column, PATH_COLUMNS),
        _column(source, names, id_column, SAMPLE_ID_COLUMNS),
    ]
    if wanted[0] is None:
        raise ValueError(
            f"{source} has no column of paths; looked for {', '.join(PATH_COLUMNS)}, "
            f"it has {', '.join(names) or 'none at all'}: rename one or name it with --path-column"
        )
    if with_ids:
        wanted += [_column(source, names, None, (f"{key}_id", key)) for key in ID_KEYS]
    yield from _checked(source, wanted, _table_rows(source, wanted))


def read_plan(source: str) -> Iterator[Listed]:
    """The videos of a caption run's plan.arrow.

    Raises:
        ValueError: it is not a plan.
    """
    wanted = (PATH_COLUMNS[0], SAMPLE_ID)
    try:
        with pa.memory_map(source) as file, pa.ipc.open_file(file) as reader:
            if not {*wanted} <= {*reader.schema.names}:
                raise ValueError(f"it has no columns {' and '.join(wanted)}")
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            yield from _checked(source, wanted, _batch_rows(batches, wanted))
    except (ValueError, OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{source} is not the plan of a caption run ({error}); "
            "give the folder of a run that `hoc caption` has planned"
        ) from error


def _column(
    source: str, names: Sequence[str], given: str | None, usual: Sequence[str]
) -> str | None:
    if given is None:
        return next((name for name in usual if name in names), None)
    if given not in names:
        raise ValueError(f"{source} has no column {given!r}; it has {', '.join(names)}")
    return given


def _checked(source: str, columns: Columns, rows: Rows) -> Iterator[Listed]:
    """The rows with their path and sample_id checked.

    Raises:
        ValueError: no row, or one without path or id; it is named.
    """
    path_name, id_name = columns[:2]
    number = 0
    for number, (path, sample_id, *ids) in rows:
        if id_name is not None:
            if isinstance(sample_id, int):
                sample_id = str(sample_id)
            _check_text(sample_id, source, number, id_name)
        _check_text(path, source, number, path_name)
        yield Listed(number, path, sample_id, tuple(map(_id_value, ids)))
    if not number:
        raise ValueError(f"{source} lists no video; give one a line or row")


def _check_text(value: Any, source: str, number: int, column: str | None) -> None:
    problem = None
    if value is None or value == "":
        problem = "is empty"
    elif not isinstance(value, str):
        problem = f"is {value!r}, which is no text"
    elif "\0" in value:
        problem = "holds a zero byte; save the list as UTF-8"
    else:
        try:
            os.fsencode(value)
        except UnicodeEncodeError as error:
            problem = f"cannot be the name of a file ({error})"
    if problem:
        raise ValueError(f"{place_of(source, number)}: its {column} {problem}")


def _id_value(value: Any) -> IdValue:
    if value is None or type(value) is int:
        return value
    text = str(value).strip()
    match = _NUMBER.fullmatch(text)
    if match:
        return int(match[1])
    return None if text.lower() in _NO_VALUE else text


def _column_names(source: str) -> list[str]:
    """The names of a table's columns; of JSON lines: the keys of the first one."""
    extension = extension_of(source)
    if extension == ".parquet":
        with _parquet_errors(source), pq.ParquetFile(source) as file:
            return list(file.schema_arrow.names)
    if extension == ".jsonl":
        records = (record for _, record in _json_records(source))
        return list(next(records, {}))
    lines = (values for _, values in _csv_lines(source))
    return next(lines, [])


def _table_rows(source: str, wanted: Columns) -> Rows:
    extension = extension_of(source)
    if extension == ".parquet":
        columns = [name for name in wanted if name is not None]
        with (
            _parquet_errors(source),
            pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False) as file,
        ):
            batches = file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False)
            yield from _batch_rows(batches, wanted)
    elif extension == ".jsonl":
        for number, record in _json_records(source):
            yield number, [None if name is None else record.get(name) for name in wanted]
    else:
        lines = _csv_lines(source)
        _, header = next(lines)
        places = [None if name is None else header.index(name) for name in wanted]
        for number, values in lines:
            yield (
                number,
                [None if at is None or at >= len(values) else values[at] for at in places],
            )


def _text_rows(source: str) -> Rows:
    for number, line in _lines(source):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, (line, None)


def _json_records(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(source):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place_of(source, number)} is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place_of(source, number)} is not a JSON object with named values")
        yield number, record


def _csv_lines(source: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV or TSV file that are not blank, the header first."""
    dialect = "excel-tab" if extension_of(source) == ".tsv" else "excel"
    # utf-8-sig: spreadsheets write a byte order mark, which is no part of the first name.
    with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # strict: a quote that is never closed would silently swallow the rest of the file
        reader = csv.reader(file, dialect, strict=True)
        try:
            for values in reader:
                if values:
                    yield reader.line_num, values
        except csv.Error as error:
            raise ValueError(f"{place_of(source, reader.line_num)}: {error}") from error


def _lines(source: str) -> Iterator[tuple[int, str]]:
    """Lines without their ends; only a newline ends one, since names may hold other separators."""
    with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removesuffix("\n").removesuffix("\r")


def _batch_rows(batches: Iterable[pa.RecordBatch], wanted: Columns) -> Rows:
    first = 1
    for batch in batches:
        columns = [repeat(None) if name is None else _values(batch.column(name)) for name in wanted]
        yield from enumerate(zip(*columns, strict=False), start=first)
        first += batch.num_rows


def _values(column: pa.Array) -> list[Any]:
    """Python values; text as os.fsdecode gives it, because paths need not be UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    values: list[Any] = column.to_pylist()
    return [os.fsdecode(value) if isinstance(value, bytes) else value for value in values]


@contextmanager
def _parquet_errors(source: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{source} is not a readable Parquet file: {error}") from error
