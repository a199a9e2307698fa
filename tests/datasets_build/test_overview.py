"""`hoc inspect`: the numbers of a data set, one sample of it, and what the command prints."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from cli import look
from cli.main import guarded
from datasets_build import schema
from datasets_build.build import run
from datasets_build.config import BuildConfig
from datasets_build.dataset import SkeletonDataset, open_dataset
from datasets_build.overview import PromptCaptions, Spread, nearest_ids, overview, read_sample
from datasets_build.shards import read_shard

# Subjects 1 and 3: train and test of X-Sub; cameras 1 and 2: test and train of X-View.
NAMES = [f"S001C00{c}P00{p}R001A0{a:02d}" for c in (1, 2) for p in (1, 3) for a in (8, 9, 10)]


@pytest.fixture
def folder(ntu_folder, caption_run, tmp_path: Path) -> Path:
    """A data set of 12 samples in 3 parts; 8 have captions, 2 of them of two prompts."""
    source = ntu_folder(NAMES[:-1])
    ntu_folder(NAMES[-1:], num_frames=30)
    captions = caption_run(
        [(name, "success", "moves " * (number + 1), "global", None) for number, name in
         enumerate(NAMES[:8])]
        + [(name, "success", "one  two\nthree", "changes", None) for name in NAMES[:2]]
    )  # fmt: skip
    (source / "notes.skeleton").write_bytes(b"")
    config = BuildConfig(
        skeletons=(source,),
        captions=(captions,),
        out=tmp_path / "set",
        name="mini",
        keep_uncaptioned=True,
        allow=("bad-name",),
        shard_rows=5,
    )
    assert run(config).num_rows == 12
    return tmp_path / "set"


@pytest.fixture
def hoc() -> typer.Typer:
    app = typer.Typer()
    app.command("inspect")(guarded(look.inspect))
    return app


def test_numbers_of_a_data_set(folder: Path) -> None:
    found = overview(open_dataset(folder))
    assert (found.name, found.family, found.skeleton) == ("mini", "ntu", "ntu-25")
    assert (found.num_samples, found.num_captions, found.num_samples_without_caption) == (12, 10, 4)
    assert found.num_frames == 11 * 6 + 30
    assert found.frames == Spread(6, 6, 6, 6, 30)
    assert found.fps == 30
    assert found.bodies == {1: 12}
    assert found.left_out == {"bad-name": 1}
    assert found.prompts == [
        PromptCaptions("changes", 2, 10, Spread(3, 3, 3, 3, 3)),
        PromptCaptions("global", 8, 4, Spread(1, 2.75, 4.5, 6.25, 8)),
    ]
    by_action = {entry.action_id: entry for entry in found.classes}
    assert len(by_action) == 60
    assert (by_action[8].name, by_action[8].label) == ("sit down", 7)
    assert [(by_action[a].num_samples, by_action[a].num_captions) for a in (8, 9, 10, 11)] == [
        (4, 4), (4, 4), (4, 2), (0, 0),
    ]  # fmt: skip
    counts = {c.protocol: (c.num_train, c.num_test) for c in found.protocols}
    assert counts["ntu60-xsub"] == (6, 6)


def test_the_overview_reads_no_joints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    tables = SkeletonDataset.tables

    def noted(self: SkeletonDataset, columns=None):
        assert columns is not None
        asked.extend(columns)
        return tables(self, columns)

    monkeypatch.setattr(SkeletonDataset, "tables", noted)
    overview(open_dataset(folder))
    assert asked
    assert schema.JOINTS not in asked


def test_a_skeleton_only_set_has_no_prompts(ntu_folder, tmp_path: Path) -> None:
    run(BuildConfig(skeletons=(ntu_folder(NAMES[:3]),), out=tmp_path / "set"))
    found = overview(open_dataset(tmp_path / "set"))
    assert (found.prompts, found.num_captions, found.num_samples_without_caption) == ([], 0, 3)


def test_a_sample_is_found_in_whatever_part_it_lies(folder: Path) -> None:
    dataset = open_dataset(folder)
    for shard in dataset.shards:
        for row in read_shard(folder, shard).to_pylist():
            found = read_sample(dataset, row[schema.SAMPLE_ID])
            assert found.joints.shape == (1, row[schema.NUM_FRAMES], 25, 3)
            assert np.array_equal(found.joints.ravel(), np.float32(row.pop(schema.JOINTS)))
            assert found.row == row
    assert found.class_name == "clapping"
    assert found.splits["ntu60-xsub"] == "test"
    assert found.splits["ntu60-xview"] == "train"


def test_an_unknown_sample_is_answered_with_the_nearest(folder: Path) -> None:
    dataset = open_dataset(folder)
    for wanted in ("S001C002P003R001A0100", "s001c002p003r001a010", "S001C002P03R001A010"):
        with pytest.raises(ValueError, match=r"among its 12; the nearest: S001C002P003R001A010"):
            read_sample(dataset, wanted)
    for wanted in ("", "quite another"):
        with pytest.raises(ValueError, match="the nearest: S001"):
            read_sample(dataset, wanted)


def test_the_nearest_of_many_thousand_names_is_found() -> None:
    ids = [f"S{s:03}C{c:03}P{p:03}R{r:03}A{a:03}" for s, c, p, r, a in
           product(range(1, 18), (1, 2, 3), range(1, 9), (1, 2), range(1, 61))]  # fmt: skip
    for wanted in ("s007c002p003r001a010", "S007C002P003R001A0010", "S007C002P03R001A010"):
        assert nearest_ids(wanted, ids)[0] == "S007C002P003R001A010"


def test_inspect_prints_the_whole_set(folder: Path, hoc: typer.Typer) -> None:
    done = CliRunner().invoke(hoc, [str(folder)])
    assert done.exit_code == 0, done.output
    text = " ".join(re.sub(r"[^\w .,%:()-]", " ", done.output).split())
    for said in (
        "samples 12 (96 frames)",
        "bodies 1 in 12 (100.0%)",
        "seconds at 30 a second 0.2 0.2 0.2 0.2 1.0",
        "changes 2 10",
        "ntu60-xsub 6 6 0 0",
        "bad-name 1",
        "Classes: 3 of 60 have samples",
        "clapping 9 10 4 2",
        "Without a sample (57): drink water",
    ):
        assert said in text, said
    as_json = json.loads(CliRunner().invoke(hoc, [str(folder), "--json"]).stdout)
    assert as_json["frames"]["most"] == 30
    assert len(as_json["classes"]) == 60


def test_many_classes_are_shown_from_both_ends(
    folder: Path, hoc: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "MOST_CLASSES", 2)
    monkeypatch.setattr(look, "_NUM_ENDS", 1)
    short = CliRunner().invoke(hoc, [str(folder)]).output
    assert "sit down" in short
    assert "clapping" in short
    assert "stand up" not in short
    assert "stand up" in CliRunner().invoke(hoc, [str(folder), "--classes"]).output


def test_inspect_shows_a_sample_with_its_captions_and_a_strip(
    folder: Path, hoc: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(hoc, [str(folder), "--sample", NAMES[0]])
    assert done.exit_code == 0, done.output
    assert "changes: one  two\nthree" in done.output
    assert "global: moves" in done.output
    assert "A test sample under ntu60-xview" in done.output
    assert "ntu60-xsub, " not in done.output
    with Image.open(tmp_path / f"{NAMES[0]}.png") as picture:
        assert picture.width == 1200
    answer = CliRunner().invoke(
        hoc, [str(folder), "--sample", NAMES[0], "--json", "-o", "strip.png"]
    )
    value = json.loads(answer.stdout)
    assert (value["class_name"], value["splits"]["ntu60-xview"]) == ("sit down", "test")
    assert len(value["captions"]) == 2
    assert (tmp_path / "strip.png").read_bytes() == (tmp_path / f"{NAMES[0]}.png").read_bytes()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_inspect_animates(folder: Path, hoc: typer.Typer, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    arguments = [str(folder), "--animate", NAMES[-1], "--out"]
    assert CliRunner().invoke(hoc, [*arguments, str(films)]).exit_code == 0
    with Image.open(films / f"{NAMES[-1]}.gif") as film:
        assert film.n_frames == 30
    answer = CliRunner().invoke(hoc, [*arguments, str(films / "a.mp4"), "--fps", "12", "--json"])
    assert json.loads(answer.stdout)["fps"] == 12
    assert (films / "a.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sample", "S001"), "has no sample 'S001' among its 12; the nearest: "),
        (("--sample", NAMES[0], "--animate", NAMES[0]), "exclude each other"),
        (("--sample", NAMES[0], "--out", "a.gif"), "must end in .png"),
        (("--animate", NAMES[0], "--out", "a.png"), "must end in .gif or .mp4"),
        (("--animate", NAMES[0], "--fps", "0"), "0 frames a second cannot be shown"),
        (("--sample", NAMES[0], "--out", "no/such/a.png"), "the folder no/such does not exist"),
        (("--sample", NAMES[0], "--out", "set"), "would lie inside the data set"),
        (("--out", "a.png"), "--out names a picture"),
        (("--fps", "3"), "--fps is for --animate"),
        (("--classes", "--sample", NAMES[0]), "--classes is for the whole"),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_written(
    folder: Path,
    hoc: typer.Typer,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    before = sorted(folder.parent.rglob("*"))
    done = CliRunner().invoke(hoc, ["set", *arguments])
    assert done.exit_code == 2, done.output
    assert said in re.sub(r"\s+", " ", done.output)
    assert sorted(folder.parent.rglob("*")) == before


def test_a_sample_id_with_a_slash_makes_one_file_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = look._picture_path(open_dataset(folder), "../day 1/clip", None, suffixes=(".png",))
    assert path == Path(".._day_1_clip.png")
