"""Tests of captioning/from_text.py and text_rows.py, and of datasets_build/text_tables.py."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.from_text import caption_from_text, is_text_run, sample_ids_in, verify_text
from captioning.run import CaptionSummary
from datasets_build import schema
from datasets_build.join import read_captions
from datasets_build.manifest import fingerprint, read_json
from datasets_build.progress import SilentProgress
from datasets_build.protocols import ids_of_name
from datasets_build.shards import iterate_shards, read_index
from datasets_build.text_tables import ClassNames

SHARED = Path(__file__).resolve().parents[3] / "shared"

UCLA_NAMES = ["a01_s01_e00_v01", "a03_s02_e01_v02", "a03_s01_e01_v02", "a12_s10_e05_v03"]
NTU_NAMES = ["S001C001P001R001A001", "S001C002P003R002A013", "S018C003P008R001A120"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def make(name: str, content: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
        return path

    return make


@pytest.fixture
def ucla(write: Callable[[str, str], Path]) -> str:
    """A list of NW-UCLA names."""
    return str(write("ucla.txt", "\n".join(UCLA_NAMES) + "\n"))


@pytest.fixture
def ntu(write: Callable[[str, str], Path]) -> str:
    """A list of NTU names."""
    return str(write("ntu.txt", "".join(f"{name}.skeleton\r\n" for name in NTU_NAMES)))


def run(tables: Sequence[Path], samples: Sequence[str], out: Path, **options: Any):
    options = {"progress": SilentProgress()} | options
    return caption_from_text(list(tables), samples, out, **options)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    shards = read_index(folder / "index.json", made_by="hoc caption")
    return [row for table in iterate_shards(folder, shards) for row in table.to_pylist()]


def captions_in(folder: Path) -> dict[tuple[str, str], str]:
    return {(r["sample_id"], r["prompt_id"]): r["caption"] for r in rows_in(folder)}


# ---- tables with named columns ----


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("class", "drop trash"),
        ("class_name", " Drop  Trash"),
        ("action", "drop_trash"),
        ("action", "3"),
        ("action_id", "3"),
        ("action_id", "A003"),
        ("label", "2"),
        ("Label", "2.0"),
    ],
)
def test_a_text_of_a_class_reaches_exactly_its_samples(write, ucla, tmp_path, column, value):
    table = write("texts.csv", f'{column},text\n{value},"He drops,  it. "\n')
    summary = run([table], [ucla], tmp_path / "run")
    assert summary.num_videos == 4
    assert summary.counts == {"error": 2, "success": 2}
    captions = captions_in(tmp_path / "run")
    assert captions["a03_s01_e01_v02", "text"] == "He drops, it."
    assert captions["a03_s02_e01_v02", "text"] == "He drops, it."
    assert captions["a01_s01_e00_v01", "text"] is None


def test_action_numbers_are_those_of_file_names_and_labels_count_from_zero(write, ucla, tmp_path):
    by_id = write("by_id.csv", "action_id,text\n12,carries\n")
    by_label = write("by_label.csv", "label,text\n9,carries\n")
    for table in (by_id, by_label):
        out = tmp_path / table.stem
        run([table], [ucla], out)
        assert captions_in(out)["a12_s10_e05_v03", "text"] == "carries"


def test_every_form_of_table_gives_the_same_captions(write, ntu, tmp_path):
    records = [
        {"class": "drink water", "description": 'She drinks, "slowly".', "prompt_id": "global"},
        {"class": "put on a shoe", "description": "unused", "prompt_id": "global"},
        {"class": "rock paper scissors", "description": "They play.", "prompt_id": "global"},
    ]
    quoted = [[f'"{v.replace(chr(34), 2 * chr(34))}"' for v in r.values()] for r in records]
    header = list(records[0])
    write("a.csv", "\ufeff" + "\n".join(",".join(line) for line in [header, *quoted]) + "\n")
    write("a.tsv", "\r\n".join("\t".join(line) for line in [header, *quoted]))
    write("a.jsonl", "\n".join(json.dumps(record) for record in records) + "\n\n")
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    found = []
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        run([tmp_path / f"a.{suffix}"], [ntu], tmp_path / suffix)
        found.append(captions_in(tmp_path / suffix))
    assert found[0] == {
        ("S001C001P001R001A001", "global"): 'She drinks, "slowly".',
        ("S001C002P003R002A013", "global"): None,
        ("S018C003P008R001A120", "global"): "They play.",
    }
    assert all(captions == found[0] for captions in found[1:])


def test_texts_of_samples_need_no_list_of_samples(write, tmp_path):
    table = write(
        "texts.csv",
        "sample_id,caption,source\nS001C001P001R001A001_rgb.avi,She drinks.,Ann\nclip-7,Runs.,\n",
    )
    run([table], [], tmp_path / "run")
    rows = {row["sample_id"]: row for row in rows_in(tmp_path / "run")}
    assert rows["S001C001P001R001A001"]["caption"] == "She drinks."
    assert rows["S001C001P001R001A001"]["model_id"] == "text:texts.csv (Ann)"
    assert rows["clip-7"]["model_id"] == "text:texts.csv"


def test_several_texts_of_one_class_are_numbered_in_the_order_of_the_file(write, ucla, tmp_path):
    table = write("t.csv", "class,text\ndrop trash,one\nthrow,x\ndrop trash,two\ncarry,y\n")
    run([table], [ucla], tmp_path / "run")
    captions = captions_in(tmp_path / "run")
    assert captions["a03_s01_e01_v02", "text-1"] == "one"
    assert captions["a03_s01_e01_v02", "text-2"] == "two"
    assert captions["a12_s10_e05_v03", "text-1"] == "y"
    assert ("a12_s10_e05_v03", "text") not in captions


def test_several_tables_give_each_sample_a_caption_of_each(write, ucla, tmp_path):
    tables = [
        write("short.csv", "class,text\ndrop trash,He drops it.\n"),
        write("long.csv", "class,text\ndrop trash,He drops the bag.\ncarry,He carries.\n"),
    ]
    run(tables, [ucla], tmp_path / "run")
    captions = captions_in(tmp_path / "run")
    assert captions["a03_s01_e01_v02", "short"] == "He drops it."
    assert captions["a03_s01_e01_v02", "long"] == "He drops the bag."
    assert captions["a12_s10_e05_v03", "long"] == "He carries."
    run(tables, [ucla], tmp_path / "named", prompt_id="llm")
    assert captions_in(tmp_path / "named")["a03_s01_e01_v02", "llm-2"] == "He drops the bag."


def test_two_texts_with_one_prompt_id_are_refused(write, ucla, tmp_path):
    table = write("t.csv", "class,text,prompt_id\ncarry,one,p\ncarry,two,p\n")
    with pytest.raises(ValueError, match=r"line 2 and .*line 3 give class 12 two texts with the"):
        run([table], [ucla], tmp_path / "run")
    tables = [
        write("own.csv", "sample_id,text,prompt_id\na12_s10_e05_v03,one,p\n"),
        write("class.csv", "class,text,prompt_id\ncarry,two,p\n"),
    ]
    with pytest.raises(ValueError, match="give a12_s10_e05_v03 two texts with one prompt_id"):
        run(tables, [ucla], tmp_path / "other")


def test_a_text_without_a_word_is_a_row_with_a_reason(write, ucla, tmp_path):
    table = write("t.csv", 'class,text\ncarry,"  "\ndrop trash,He drops it.\n')
    summary = run([table], [ucla], tmp_path / "run")
    assert summary.counts == {"empty": 1, "error": 1, "success": 2}
    (row,) = (row for row in rows_in(tmp_path / "run") if row["status"] == "empty")
    assert (row["caption"], row["caption_raw"]) == (None, "  ")
    assert row["reason"] == "t.csv has no text in line 2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "name,text\na,b\n", "has the columns name, text; it needs sample_id or one of"),
        ("t.csv", "class,words\na,b\n", "and one of text, caption, description, sentence"),
        ("t.csv", "class,text\n", "holds no texts"),
        ("t.csv", "class,text\ncarry,one, two\n", "line 2: 3 fields, but the header has 2"),
        ("t.csv", 'class,text\ncarry,"one\n', "line 2: unexpected end of data"),
        ("t.csv", "class,text\ncary,one\nthrow,x\n", "line 2: 'cary' .did you mean 'carry'?."),
        ("t.csv", "action_id,text\n7,one\n", "line 2: '7' is no action_id of nw-ucla"),
        ("t.csv", "label,text\n10,one\n", "line 2: '10' is no label of nw-ucla"),
        ("t.csv", "sample_id,text\na99_s01_e00_v01,one\n", "1 of 1 texts are of none of the 4"),
        ("t.csv", "sample_id,text\n,one\n", "line 2: no sample_id"),
        ("t.jsonl", '{"class": "carry", "text": 3}', "line 1: its text is 3, no text"),
        ("t.jsonl", "{", "line 1 is not JSON"),
        ("t.parquet", "PAR1", "not a readable Parquet file"),
        ("t.xlsx", "", "is not a file of texts; tables end in .csv"),
        ("t.txt", "\n\n", "holds no texts"),
    ],
)
def test_a_faulty_table_is_refused_with_the_place(write, ucla, tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        run([write(name, content)], [ucla], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_table_that_is_not_utf_8_or_not_there_is_refused(ucla, tmp_path):
    (tmp_path / "latin.csv").write_bytes("class,text\ncarry,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv is not UTF-8 text"):
        run([tmp_path / "latin.csv"], [ucla], tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="give a table of texts"):
        run([tmp_path / "no.csv"], [ucla], tmp_path / "run")


def test_texts_of_classes_need_the_samples_of_one_data_set(write, ucla, ntu, tmp_path):
    table = write("t.csv", "class,text\nsit down,He sits.\n")
    for samples in ([], [ucla, ntu]):
        with pytest.raises(ValueError, match=r"texts of classes .*give with --samples the samples"):
            run([table], samples, tmp_path / "run")


# ---- one line a class ----


def test_lines_that_begin_with_class_names_are_joined_by_name_in_any_order(write, ucla, tmp_path):
    names = [*ClassNames.of("nw-ucla").names.values()]
    lines = [f" {name.upper()};{name}, then; stop\r\n" for name in reversed(names)]
    table = write("t.txt", "\ufeff" + "".join(lines) + "\n")
    run([table], [ucla], tmp_path / "run")
    assert captions_in(tmp_path / "run") == {
        (name, "text"): f"{ClassNames.of('nw-ucla').names[int(name[1:3])]}, then; stop"
        for name in UCLA_NAMES
    }


def test_lines_without_names_are_taken_in_label_order_with_a_word(write, ucla, heard, tmp_path):
    table = write("t.txt", "\n".join(f"Sentence, number {n}." for n in range(10)))
    run([table], [ucla], tmp_path / "run", progress=heard)
    assert captions_in(tmp_path / "run")["a12_s10_e05_v03", "text"] == "Sentence, number 9."
    assert captions_in(tmp_path / "run")["a03_s01_e01_v02", "text"] == "Sentence, number 2."
    assert heard.messages == [
        "t.txt: its lines begin with no class names; line n is taken as the text of class n of 10"
    ]
    manifest = read_json(tmp_path / "run/manifest.json", made_by="")
    assert manifest["joined_by"] == {str(table): "label order"}


def test_a_slip_in_a_class_name_is_refused_and_not_taken_in_order(write, ucla, tmp_path):
    lines = [f"{name},text" for name in ClassNames.of("nw-ucla").names.values()]
    lines[4] = "sit dwon,text"
    with pytest.raises(ValueError, match=r"1 of 10 lines .*line 5: 'sit dwon' .did you mean 'sit"):
        run([write("t.txt", "\n".join(lines))], [ucla], tmp_path / "run")


def test_a_list_of_another_length_than_the_classes_is_refused(write, ntu, tmp_path):
    table = write("t.txt", "\n".join(f"Sentence {n}." for n in range(61)))
    with pytest.raises(ValueError, match="it has 61 lines, not 60 or 120"):
        run([table], [ntu], tmp_path / "run")


def test_no_two_classes_differ_only_in_what_does_not_count():
    for dataset in ("ntu", "nw-ucla"):
        classes = ClassNames.of(dataset)
        assert [classes.action_id(name) for name in classes.names.values()] == [*classes.names]


# ---- samples ----


def test_samples_come_from_lists_skeletons_runs_and_data_sets(write, ucla, tmp_path):
    compressed = tmp_path / "names.txt.gz"
    compressed.write_bytes(gzip.compress(b"# ours\n\n" + "\n".join(UCLA_NAMES).encode()))
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in UCLA_NAMES:
            zipped.writestr(f"in/{name}.json", "{}")
    run([write("t.csv", "class,text\ncarry,one\n")], [ucla], tmp_path / "run")
    copy = tmp_path / "dataset"
    shutil.copytree(tmp_path / "run", copy)
    (copy / "index.json").rename(copy / "dataset.json")
    for source in (ucla, compressed, archive, tmp_path / "run", copy):
        assert sorted(sample_ids_in(str(source))) == sorted(UCLA_NAMES)
    with pytest.raises(ValueError, match=r"1 of 2 lines are no NTU or NW-UCLA names: 'what'"):
        sample_ids_in(str(write("odd.txt", "a01_s01_e00_v01\nwhat\n")))
    with pytest.raises(ValueError, match="names no samples; give a list of names"):
        sample_ids_in(str(write("x.avi", "")))
    with pytest.raises(FileNotFoundError):
        sample_ids_in(str(tmp_path / "nothing"))


def test_filters_leave_samples_out(write, ucla, tmp_path):
    table = write("t.csv", "sample_id,text\n" + "".join(f"{name},x\n" for name in UCLA_NAMES))
    summary = run([table], [ucla], tmp_path / "run", filters=["split=nw-ucla/test"])
    assert {row["sample_id"] for row in rows_in(tmp_path / "run")} == {"a12_s10_e05_v03"}
    assert summary.num_rows == 1


# ---- the folder ----


def test_rows_say_where_they_are_from_and_have_no_values_of_videos(write, ucla, tmp_path):
    table = write("t.csv", "class,text\ncarry, He  carries.\n")
    run([table], [ucla], tmp_path / "run", source_note="by hand, CC0")
    manifest = read_json(tmp_path / "run/manifest.json", made_by="")
    sha256 = manifest["parts"]["tables"][0]["sha256"]
    row = rows_in(tmp_path / "run")[-1]
    assert {name: value for name, value in row.items() if value is not None} == {
        "sample_id": "a12_s10_e05_v03",
        "status": "success",
        "caption": "He carries.",
        "caption_raw": " He  carries.",
        "prompt_id": "text",
        "source": "text",
        "model_id": "text:t.csv",
        "model_revision": f"sha256:{sha256[:16]}",
        "request_key": row["request_key"],
    }
    missing = rows_in(tmp_path / "run")[0]
    assert missing["reason"] == ("no table has a text for class 'pick up with one hand' (action 1)")
    assert manifest["parts"]["source_note"] == "by hand, CC0"
    assert manifest["fingerprint"] == fingerprint(manifest["parts"])


def test_a_run_is_deterministic_and_finished_once(write, ucla, tmp_path):
    table = write("t.csv", "class,text\ncarry,one\n")
    first: CaptionSummary = run([table], [ucla], tmp_path / "a")
    run([table], [ucla], tmp_path / "b")
    for name in ("captions-00000.arrow", "index.json", "plan.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = run([table], [ucla], tmp_path / "a")
    assert (first.was_finished, again.was_finished) == (False, True)
    assert (again.counts, again.failures) == (first.counts, first.failures)
    # What was lost or damaged is written again.
    before = (tmp_path / "a/captions-00000.arrow").read_bytes()
    (tmp_path / "a/captions-00000.arrow").write_bytes(b"x")
    (tmp_path / "b/index.json").unlink()
    for folder in ("a", "b"):
        assert not run([table], [ucla], tmp_path / folder).was_finished
        assert (tmp_path / folder / "captions-00000.arrow").read_bytes() == before
        assert verify_text(tmp_path / folder) == []


def test_a_folder_with_another_run_is_refused_and_what_differs_is_named(write, ucla, tmp_path):
    run([write("t.csv", "class,text\ncarry,one\n")], [ucla], tmp_path / "run")
    other = write("t.csv", "class,text\ncarry,two\n")
    with pytest.raises(ValueError, match=r"other texts, samples or settings .different: tables."):
        run([other], [ucla], tmp_path / "run")
    with pytest.raises(ValueError, match=r"different: source_note, tables"):
        run([other], [ucla], tmp_path / "run", source_note="new")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        run([other], [ucla], Path(ucla))


def test_shards_hold_1024_rows_each_and_later_stages_read_them(write, tmp_path):
    names = [f"S001C001P{p:03d}R{r:03d}A{a:03d}" for p in range(1, 20) for r in (1, 2)
             for a in range(1, 61)]  # fmt: skip
    samples = write("names.txt", "\n".join(names))
    table = write("t.csv", "action_id,text\n" + "".join(f"{a},action {a}\n" for a in range(1, 61)))
    summary = run([table], [str(samples)], tmp_path / "run")
    assert (summary.num_videos, summary.num_rows, summary.num_shards) == (2280, 2280, 3)
    shards = read_index(tmp_path / "run/index.json", made_by="")
    assert [shard.num_rows for shard in shards] == [1024, 1024, 232]
    captions = read_captions([tmp_path / "run"])
    assert {name: [c.text for c in found.captions] for name, found in captions.items()} == {
        name: [f"action {int(name[-3:])}"] for name in names
    }


def test_verify_finds_a_changed_table_a_changed_shard_and_a_changed_manifest(write, ucla, tmp_path):
    table = write("t.csv", "class,text\ncarry,one\n")
    run([table], [ucla], tmp_path / "run")
    assert is_text_run(tmp_path / "run")
    assert not is_text_run(tmp_path)
    assert verify_text(tmp_path / "run") == []
    table.write_text("class,text\ncarry,two\n")
    assert verify_text(tmp_path / "run") == [f"{table} has changed since its texts were taken"]
    table.unlink()
    assert verify_text(tmp_path / "run") == []
    manifest = tmp_path / "run/manifest.json"
    manifest.write_text(manifest.read_text().replace('"kind": "text"', '"kind": "texts"'))
    (problem,) = verify_text(tmp_path / "run")
    assert problem == "the parts in manifest.json do not give its fingerprint"
    shard = tmp_path / "run/captions-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert len(verify_text(tmp_path / "run")) == 2


def test_verify_makes_the_rows_again_from_the_table(write, ucla, tmp_path, monkeypatch):
    table = write("t.csv", "class,text\ncarry,one\n")
    # A run whose every hash is right, but that was written with other texts.
    monkeypatch.setattr("captioning.text_rows.clean_caption", lambda text: "another")
    run([table], [ucla], tmp_path / "run")
    monkeypatch.undo()
    assert verify_text(tmp_path / "run") == ["row 3 (a12_s10_e05_v03) is not what its table gives"]


# ---- the real files ----


def real(path: str) -> Path:
    found = SHARED / "data" / path
    if not found.is_file():
        pytest.skip(f"{found} is not here; it is not in the repository")
    return found


@pytest.mark.parametrize(
    ("name", "first_words"),
    [
        (
            "ucla_sentence_openai_t01",
            {3: "The man is standing on the curb, holding", 12: "He is a"},
        ),
        (
            "ucla_pasta_openai_t01",
            {1: "head: tilts slightly forward; hand: reaches", 6: "The man t"},
        ),
        ("ucla_synonym_openai_t01", {12: "transport, convey, move", 5: "take a seat, have a"}),
    ],
)
def test_the_published_texts_reach_every_nw_ucla_sample(tmp_path, name, first_words):
    samples = str(real("nw-ucla/all_sqe.zip"))
    summary = run([real(f"text/{name}.txt")], [samples], tmp_path / "run")
    assert summary.counts == {"success": 1484}
    texts: dict[int, set[str]] = {}
    for row in rows_in(tmp_path / "run"):
        texts.setdefault(int(row["sample_id"][1:3]), set()).add(row["caption"])
    assert sorted(texts) == [1, 2, 3, 4, 5, 6, 8, 9, 11, 12]
    assert all(len(found) == 1 for found in texts.values())
    for action_id, words in first_words.items():
        assert next(iter(texts[action_id])).startswith(words)


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("sentence_openai_t01", "class names", {1: "drinking water", 58: "shak", 120: "rock"}),
        ("pasta_openai_t01", "class names", {1: "head tilts back slightly; hand grasps cup"}),
        ("synonym_openai_t01", "class names", {5: "drip, fall, leak", 120: "RPS, roshambo"}),
        ("smie_ntu120_des", "label order", {6: "Pickup", 44: "headache", 119: "Supporting some"}),
        ("ntu120_label_map", "class names", {1: "drink water", 112: "high-five"}),
    ],
)
def test_the_published_texts_reach_the_right_ntu_samples(write, tmp_path, name, form, words):
    names = gzip.decompress(real("ntu/ntu120_available_samples.txt.gz").read_bytes()).decode()
    # Of the 113,945 every 29th: all classes, in seconds.
    chosen = names.split()[::29]
    samples = write("names.txt", "\n".join(chosen))
    summary = run([real(f"text/{name}.txt")], [str(samples)], tmp_path / "run")
    assert summary.counts == {"success": len(chosen)}
    texts: dict[int, set[str]] = {}
    for row in rows_in(tmp_path / "run"):
        ids = ids_of_name(row[schema.SAMPLE_ID])
        assert ids is not None
        texts.setdefault(ids.action_id, set()).add(row[schema.CAPTION])
    assert sorted(texts) == [*range(1, 121)]
    assert Counter(len(found) for found in texts.values()) == {1: 120}
    manifest = read_json(tmp_path / "run/manifest.json", made_by="")
    assert set(manifest["joined_by"].values()) == {form}
    for action_id, some in words.items():
        assert some in next(iter(texts[action_id]))
    assert verify_text(tmp_path / "run") == []
