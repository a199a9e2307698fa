"""Two caption runs side by side: what is the same, changed, added and lost, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from captioning.compare import compare, word_edits
from cli.main import app
from datasets_build import schema
from datasets_build.manifest import write_json
from datasets_build.shards import index_entries, write_shard

DRINK, CLAP, KICK = "S001C001P001R001A001", "S001C001P001R001A010", "S001C001P001R001A024"


def write_run(
    folder: Path,
    captions: Mapping[tuple[str, str], str | None],
    *,
    parts: Mapping[str, Any] | None = None,
    repeat: int = 1,
) -> Path:
    """A finished run of (sample_id, prompt_id) to caption; None is a time-out."""
    folder.mkdir()
    rows = [
        {
            schema.SAMPLE_ID: sample_id,
            schema.PROMPT_ID: prompt_id,
            schema.CAPTION: caption,
            schema.STATUS: schema.STATUS_SUCCESS if caption else schema.STATUS_TIMEOUT,
            schema.SOURCE: schema.SOURCE_VIDEO,
            schema.REQUEST_KEY: f"{folder.name}-{sample_id}",
        }
        for (sample_id, prompt_id), caption in captions.items()
    ] * repeat
    table = pa.Table.from_pylist(rows, schema=schema.CAPTION_SCHEMA)
    shard = write_shard(folder / "captions-00000.arrow", table)
    write_json(folder / "index.json", {"shards": index_entries([shard])})
    if parts is not None:
        write_json(folder / "manifest.json", {"parts": parts})
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    a = write_run(
        tmp_path / "a",
        {
            (DRINK, "global"): "A man drinks from a red cup.",
            (DRINK, "changes"): "He lifts a cup, then drinks.",
            (CLAP, "global"): "A person claps.",
            (KICK, "global"): None,
            ("clip", "global"): "A dog runs.",
        },
        parts={"model": {"revision": "1", "dtype": "bf16"}, "prompts": {"a.b": "x"}},
    )
    b = write_run(
        tmp_path / "b",
        {
            ("clip", "global"): None,
            (DRINK, "global"): "A man drinks from a blue cup.",
            (DRINK, "changes"): "He lifts a cup, then drinks.",
            (KICK, "global"): "A person kicks a red ball.",
            ("new", "global"): None,
        },
        parts={"model": {"revision": "2", "dtype": "bf16"}, "prompts": {"a.b": "y" * 99}},
    )
    return a, b


def test_rows_meet_by_sample_and_prompt(runs):
    found = compare(*runs)
    assert found.num_rows == (5, 5)
    assert found.counts == {"same": 1, "changed": 1, "added": 1, "lost": 2, "without": 1}
    assert {name: {k: n for k, n in c.items() if n} for name, c in found.by_class.items()} == {
        "drink water": {"same": 1, "changed": 1},
        "clapping": {"lost": 1},
        "kicking something": {"added": 1},
        "(unknown)": {"lost": 1, "without": 1},
    }
    assert found.statuses == {
        ("(no row)", "timeout"): 1,
        ("success", "(no row)"): 1,
        ("success", "timeout"): 1,
        ("timeout", "success"): 1,
    }


def test_words_and_edits_come_from_changed_captions_only(runs):
    found = compare(*runs)
    assert (found.words_removed, found.words_added) == ([("red", 1)], [("blue", 1)])
    (example,) = found.examples
    assert (example.sample_id, example.prompt_id) == (DRINK, "global")
    assert example.edits == (
        ("same", "A man drinks from a"), ("removed", "red"), ("added", "blue"), ("same", "cup."),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [("a b c d", "b c x d e"), ("one", "two"), ("a a a", "a"), ("the end", "not the end")],
)
def test_edits_lead_from_one_text_to_the_other(old, new):
    edits = word_edits(old, new)
    assert " ".join(words for kind, words in edits if kind != "added") == old
    assert " ".join(words for kind, words in edits if kind != "removed") == new


def test_differing_parts_of_the_recipe_are_named_with_their_values(runs, tmp_path):
    found = compare(*runs)
    assert found.recipe == {"model.revision": ("1", "2"), "prompts.a.b": ("x", "y" * 57 + "...")}
    bare = write_run(tmp_path / "bare", {(DRINK, "global"): "A man drinks."})
    assert compare(runs[0], bare).recipe is None
    assert compare(runs[0], runs[0]).recipe == {}


def test_examples_are_spread_over_the_changed_captions(tmp_path):
    keys = [(f"S001C001P{p:03d}R001A001", "global") for p in range(1, 101)]
    a = write_run(tmp_path / "a", dict.fromkeys(keys, "A man drinks."))
    b = write_run(tmp_path / "b", dict.fromkeys(reversed(keys), "A woman drinks."))
    found = compare(a, b, limit=4)
    assert [e.sample_id for e in found.examples] == [keys[n][0] for n in (0, 25, 50, 75)]
    assert compare(a, b, limit=0).examples == []
    assert found.words_removed == [("man", 100)]


def test_runs_that_cannot_be_compared_get_a_sentence(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        compare(runs[0], tmp_path / "absent")
    twice = write_run(tmp_path / "twice", {(DRINK, "global"): "A man drinks."}, repeat=2)
    with pytest.raises(ValueError, match="has 1 rows more than pairs"):
        compare(runs[0], twice)


def test_the_command_prints_tables_or_json(runs):
    result = CliRunner().invoke(app, ["captions", "diff", *map(str, runs)])
    assert result.exit_code == 0, result.output
    for said in ("[-red-] {+blue+}", "Words new: blue 1", "model.revision", "kicking something"):
        assert said in result.output
    result = CliRunner().invoke(
        app, ["captions", "diff", *map(str, runs), "--json", "--limit", "0"]
    )
    value = json.loads(result.stdout)
    assert value["counts"]["lost"] == 2
    assert value["recipe"]["model.revision"] == {"a": "1", "b": "2"}
    assert value["examples"] == []
