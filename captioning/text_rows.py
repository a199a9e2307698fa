"""Which sample gets which texts, and the rows of schema.CAPTION_SCHEMA that they become."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captioning.checks import clean_caption
from datasets_build import schema
from datasets_build.manifest import canonical_json, sha256_bytes
from datasets_build.protocols import ids_of_name
from datasets_build.text_tables import ClassNames, Key, Text, TextTable

DEFAULT_PROMPT_ID = "text"

Row = dict[str, Any]
_NO_VALUES: Row = dict.fromkeys(schema.CAPTION_SCHEMA.names) | {schema.SOURCE: schema.SOURCE_TEXT}


@dataclass(frozen=True)
class Texts:
    """The texts of all tables, ready to be handed to samples.

    Attributes:
        by_key: rows of each key without a sample_id, sorted by prompt_id.
        first_prompt_id: what the row of a sample without any text carries.
        classes: of the samples, None where they have none.
        sha256s: of the tables.
    """

    by_key: Mapping[Key, list[Row]]
    first_prompt_id: str
    classes: ClassNames | None
    sha256s: tuple[str, ...]


def classes_of(sample_ids: Sequence[str]) -> ClassNames | None:
    """The classes of samples; None where their names are not all of one data set."""
    datasets = set()
    for sample_id in sample_ids:
        ids = ids_of_name(sample_id)
        datasets.add(None if ids is None else ids.dataset)
    only = datasets.pop() if len(datasets) == 1 else None
    return None if only is None else ClassNames.of(only)


def prepare(
    tables: Sequence[TextTable], classes: ClassNames | None, *, prompt_id: str | None
) -> Texts:
    """Give every text its prompt_id and make its row.

    Args:
        tables: at least one.
        classes: of the samples.
        prompt_id: see from_text.caption_from_text.

    Raises:
        ValueError: two texts of one class or sample have one prompt_id.
    """
    found: dict[Key, list[tuple[str, TextTable, Text]]] = defaultdict(list)
    for table in tables:
        usual = prompt_id or (DEFAULT_PROMPT_ID if len(tables) == 1 else table.path.stem)
        for text in table.texts:
            found[text.key].append((usual, table, text))
    numbered = {
        usual
        for texts in found.values()
        for usual, num in Counter(usual for usual, _, t in texts if t.prompt_id is None).items()
        if num > 1
    }
    by_key: dict[Key, list[Row]] = {}
    for key, texts in found.items():
        rows: dict[str, Row] = {}
        places: dict[str, str] = {}
        used: Counter[str] = Counter()
        for usual, table, text in texts:
            name = text.prompt_id or usual
            if text.prompt_id is None and usual in numbered:
                used[usual] += 1
                name = f"{usual}-{used[usual]}"
            if name in rows:
                raise ValueError(
                    f"{places[name]} and {table.place(text)} give {key[0]} {key[1]} two texts with "
                    f"the prompt_id {name!r}; give each its own, or leave the column out"
                )
            rows[name], places[name] = _row(table, text, name), table.place(text)
        by_key[key] = [rows[name] for name in sorted(rows)]
    return Texts(
        by_key=by_key,
        first_prompt_id=min(row[schema.PROMPT_ID] for rows in by_key.values() for row in rows),
        classes=classes,
        sha256s=tuple(table.sha256 for table in tables),
    )


def _row(table: TextTable, text: Text, prompt_id: str) -> Row:
    """The row of one text, but for its sample_id."""
    caption = clean_caption(text.text)
    source = f" ({text.source})" if text.source else ""
    request = [table.sha256, text.key, text.text, prompt_id, text.source]
    return _NO_VALUES | {
        schema.STATUS: schema.STATUS_SUCCESS if caption else schema.STATUS_EMPTY,
        schema.REASON: None if caption else f"{table.path.name} has no text in line {text.number}",
        schema.CAPTION: caption or None,
        schema.CAPTION_RAW: text.text,
        schema.PROMPT_ID: prompt_id,
        schema.MODEL_ID: f"text:{table.path.name}{source}",
        schema.MODEL_REVISION: f"sha256:{table.sha256[:16]}",
        schema.REQUEST_KEY: sha256_bytes(canonical_json(request).encode()),
    }


def rows_of(texts: Texts, sample_ids: Sequence[str]) -> Iterator[Row]:
    """The rows of all samples in the order of the ids, each sample's sorted by prompt_id."""
    for sample_id in sample_ids:
        rows = texts.by_key.get(("sample", sample_id), [])
        ids = ids_of_name(sample_id) if texts.classes is not None else None
        if ids is not None:
            rows = rows + texts.by_key.get(("class", ids.action_id), [])
            rows.sort(key=lambda row: row[schema.PROMPT_ID])
            names = [row[schema.PROMPT_ID] for row in rows]
            if len(set(names)) < len(names):
                raise ValueError(
                    f"the tables give {sample_id} two texts with one prompt_id, its own and its "
                    f"class's: {', '.join(names)}; give one of them another prompt_id"
                )
        for row in rows or [_missing_row(texts, sample_id)]:
            yield row | {schema.SAMPLE_ID: sample_id}


def _missing_row(texts: Texts, sample_id: str) -> Row:
    ids = ids_of_name(sample_id)
    reason = "no table has a text for this sample"
    if ids is not None and texts.classes is not None and any(k == "class" for k, _ in texts.by_key):
        name = texts.classes.names.get(ids.action_id, "not in the class list")
        reason = f"no table has a text for class {name!r} (action {ids.action_id})"
    request = [texts.sha256s, sample_id, None, texts.first_prompt_id]
    return _NO_VALUES | {
        schema.STATUS: schema.STATUS_ERROR,
        schema.REASON: reason,
        schema.PROMPT_ID: texts.first_prompt_id,
        schema.REQUEST_KEY: sha256_bytes(canonical_json(request).encode()),
    }
