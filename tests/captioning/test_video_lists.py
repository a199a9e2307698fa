from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioning.inputs import Video, collect_videos
from captioning.video_lists import read_list, read_plan

KINDS = ("csv", "tsv", "jsonl", "parquet")
PATHS = ["two words.mp4", "it's \"quoted\".mp4", "new\nline, tab\t.mp4", "Übung 動画.mp4",
         "#1 100%.mp4", " edge .mp4", "next\u2028line\x0b.mp4"]  # fmt: skip


def write_table(path: Path, columns: dict[str, list[str]]) -> Path:
    """A list in the format of its name; bytes that are no UTF-8 may stand in surrogate escapes."""
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix == ".parquet":
        arrays = [pa.array(map(os.fsencode, column), pa.binary()) for column in columns.values()]
        pq.write_table(pa.table(arrays, names=list(columns)), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        with path.open("w", newline="", errors="surrogateescape") as file:
            dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
            csv.writer(file, dialect).writerows([columns, *rows])
    return path


def listed(path: Path, **options: str) -> list[tuple[str, str | None]]:
    columns = {"path_column": None, "id_column": None, **options}
    return [(row.path, row.sample_id) for row in read_list(str(path), **columns, with_ids=False)]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_odd_names_come_back_as_they_were_written(tmp_path: Path, kind: str) -> None:
    paths = [*PATHS, os.fsdecode(b"caf\xe9.mp4")]
    source = write_table(tmp_path / f"list.{kind}", {"path": paths})
    assert listed(source) == [(path, None) for path in paths]
    videos = collect_videos([str(source)])
    assert {video.path for video in videos} == {str(tmp_path / path) for path in paths}
    assert "caf\\xe9" in {video.sample_id for video in videos}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="\0\r"), min_size=1), min_size=1, unique=True
    ),
    kind=st.sampled_from(KINDS),
)
def test_any_text_comes_back(tmp_path: Path, names: list[str], kind: str) -> None:
    names = [os.fsdecode(name.encode("utf-8", "ignore")) or "x" for name in names]
    ids = [f"id {number}" for number in range(len(names))]
    source = write_table(tmp_path / f"list.{kind}", {"id": ids, "video": names})
    assert listed(source) == list(zip(names, ids, strict=True))


def test_a_text_list_has_comments_blank_lines_and_either_line_end(tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    source.write_bytes(
        "\ufeff# clips\n\n a\rb.mp4 \r\n   \n  # more\n./#1.mp4\nü\u2028\x0b.mp4".encode()
        + b"\ncaf\xe9.mp4\n"
    )
    expected = [" a\rb.mp4 ", "./#1.mp4", "ü\u2028\x0b.mp4", "caf\udce9.mp4"]
    assert listed(source) == [(path, None) for path in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_usual_column_is_taken_and_a_named_one_before_it(
    tmp_path: Path, kind: str
) -> None:
    columns = {"file_name": ["f.mp4"], "video": ["v.mp4"], "mine": ["m.mp4"], "id": ["1"],
               "sample_id": ["s"], "key": ["k"]}  # fmt: skip
    source = write_table(tmp_path / f"list.{kind}", columns)
    assert listed(source) == [("v.mp4", "s")]
    assert listed(source, path_column="mine", id_column="key") == [("m.mp4", "k")]
    for option in ("path_column", "id_column"):
        with pytest.raises(ValueError, match="has no column 'mein'; it has file_name, video, mine"):
            listed(source, **{option: "mein"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_paths_rows_or_content_is_refused(tmp_path: Path, kind: str) -> None:
    source = write_table(tmp_path / f"list.{kind}", {"clip": ["a.mp4"], "label": ["1"]})
    with pytest.raises(ValueError, match=r"looked for path, video, .*it has clip, label: .*column"):
        listed(source)
    source = write_table(tmp_path / f"list.{kind}", {"path": []})
    # JSON lines without a line have no names either.
    with pytest.raises(ValueError, match="lists no video" if kind != "jsonl" else "no column"):
        listed(source)
    source.write_bytes(b"")
    with pytest.raises(ValueError, match=f"list.{kind} "):
        listed(source)


def test_a_text_list_without_paths_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# nothing yet\n\n")
    with pytest.raises(ValueError, match="lists no video"):
        listed(tmp_path / "list.txt")


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_path_or_id_is_refused_with_its_row(tmp_path: Path, kind: str) -> None:
    place = r"list\.parquet, row 2" if kind == "parquet" else rf"list\.{kind}, line "
    place += "" if kind == "parquet" else "2" if kind == "jsonl" else "3"
    source = write_table(tmp_path / f"list.{kind}", {"path": ["a", ""], "id": ["1", "2"]})
    with pytest.raises(ValueError, match=f"{place}: its path is empty"):
        listed(source)
    source = write_table(tmp_path / f"list.{kind}", {"path": ["a", "b"], "id": ["1", ""]})
    with pytest.raises(ValueError, match=f"{place}: its id is empty"):
        listed(source)
    source = write_table(tmp_path / f"list.{kind}", {"path": ["a", "b\0c"]})
    with pytest.raises(ValueError, match=f"{place}: its path holds a zero byte"):
        listed(source)


def test_rows_that_are_too_short_or_hold_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("label,path\n1,a.mp4\n\n2\n")
    with pytest.raises(ValueError, match=r"line 4: its path is empty"):
        listed(tmp_path / "list.csv")
    (tmp_path / "list.jsonl").write_text('{"path": "a.mp4"}\n\n{"path": 7}\n')
    with pytest.raises(ValueError, match=r"line 3: its path is 7, which is no text"):
        listed(tmp_path / "list.jsonl")
    (tmp_path / "list.jsonl").write_text('{"path": "\\ud800.mp4"}\n')
    with pytest.raises(ValueError, match=r"line 1: its path cannot be the name of a file"):
        listed(tmp_path / "list.jsonl")
    pq.write_table(pa.table({"path": [1, 2]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=r"row 1: its path is 1, which is no text"):
        listed(tmp_path / "list.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b'path\na.mp4\n"b.mp4\n', r"list\.csv, line 3: unexpected end of data"),
        ("list.jsonl", b'{"path": "a.mp4"}\n{"path"', r"list\.jsonl, line 2 is not JSON"),
        ("list.jsonl", b'["a.mp4"]\n', r"list\.jsonl, line 1 is not a JSON object"),
        ("list.parquet", b"PAR1 and then nothing", "not a readable Parquet file"),
    ],
)
def test_a_damaged_list_is_refused_with_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        listed(tmp_path / name)


def test_a_parquet_file_cut_short_is_refused(tmp_path: Path) -> None:
    source = write_table(tmp_path / "list.parquet", {"path": [f"{i}.mp4" for i in range(999)]})
    data = bytearray(source.read_bytes())
    data[200:2000] = bytes(1800)
    source.write_bytes(data)
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        listed(source)


def test_spreadsheet_csv_with_a_byte_order_mark_and_number_ids_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbfid;path".replace(b";", b",") + b"\r\n7,a.mp4")
    assert listed(tmp_path / "list.csv") == [("a.mp4", "7")]
    pq.write_table(pa.table({"id": [7], "path": ["a.mp4"]}), tmp_path / "list.parquet")
    assert listed(tmp_path / "list.parquet") == [("a.mp4", "7")]


def test_parquet_text_may_be_dictionary_encoded_or_large(tmp_path: Path) -> None:
    source = tmp_path / "list.parquet"
    ids = pa.array(["x", "y"], pa.large_string())
    paths = pa.array(["b.mp4", "a.mp4"]).dictionary_encode()
    pq.write_table(pa.table({"sample_id": ids, "path": paths}), source)
    assert listed(source) == [("b.mp4", "x"), ("a.mp4", "y")]


def test_rows_of_several_batches_are_numbered_through(tmp_path: Path) -> None:
    paths = [f"{number}.mp4" for number in range(10_000)]
    paths[9_998] = ""
    pq.write_table(pa.table({"path": paths}), tmp_path / "list.parquet", row_group_size=3_000)
    with pytest.raises(ValueError, match="row 9999: its path is empty"):
        listed(tmp_path / "list.parquet")


def test_id_columns_are_read_in_both_spellings_and_gaps_stay_empty(tmp_path: Path) -> None:
    table = pa.table({"path": ["a", "b"], "action_id": [3, 4], "action": ["sit", "run"],
                      "subject": [1.0, float("nan")], "camera_id": [None, 2]})  # fmt: skip
    pq.write_table(table, tmp_path / "list.parquet")
    rows = read_list(
        str(tmp_path / "list.parquet"), path_column=None, id_column=None, with_ids=True
    )
    assert [row.ids for row in rows] == [(3, 1, None, None, None), (4, None, 2, None, None)]


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.large_string()])
def test_a_plan_may_hold_its_paths_as_text_or_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    source = str(tmp_path / "plan.arrow")
    table = pa.table({"sample_id": ["x"], "path": pa.array([b"/v/caf\xc3\xa9.mp4"]).cast(kind)})
    with pa.ipc.new_file(source, table.schema) as writer:
        writer.write_table(table)
    assert [(row.sample_id, row.path) for row in read_plan(source)] == [("x", "/v/café.mp4")]


def test_a_table_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    source = str(tmp_path / "plan.arrow")
    table = pa.table({"path": ["x"]})
    with pa.ipc.new_file(source, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"not the plan .*no columns path and sample_id.* planned"):
        list(read_plan(source))


def test_a_file_that_does_not_exist_may_be_listed(tmp_path: Path) -> None:
    source = write_table(tmp_path / "list.csv", {"path": ["gone.mp4"], "id": ["g"]})
    assert collect_videos([str(source)]) == [Video("g", str(tmp_path / "gone.mp4"))]
