from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from datasets_build.bodies import BodySettings
from datasets_build.joints import NTU_25, UCLA_20
from datasets_build.manifest import sha256_file
from datasets_build.progress import SilentProgress
from training import describe, skeleton_files, train
from training import text_scores as text_scores_module
from training.command_config import DescribeConfig
from training.config import TrainConfig
from training.loading import one_clip
from training.skeleton_data import SkeletonStore
from training.text_scores import text_scores

WORDS = {8: "sits down", 10: "claps", 23: "waves"}
CLASSES = ("sit down", "clapping", "hand waving")


def caption_test_samples(row: dict[str, Any]) -> None:
    """Test samples get the caption of their class, but for one that has none."""
    if row["subject_id"] == 3:
        text = f"A person {WORDS[row['action_id']]}."
        is_bare = row["sample_id"] == "S001C001P003R001A010"
        row["captions"] = [] if is_bare else [{"prompt_id": "p0", "text": text, "request_key": "k"}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture
def trained(
    recipe: Callable[..., TrainConfig],
    hocslm: dict[str, Any],
    make_dataset: Callable[..., Path],
    shared: Path,
) -> Path:
    """One HocSLM run for this file, on a data set whose test samples have captions too."""
    data = shared.parent / "data"
    if not data.is_dir():
        make_dataset(data, change=caption_test_samples)
    config = recipe(data={"dataset": data}, method=hocslm)
    train.run(config.model_copy(update={"out": shared}), SilentProgress())
    return shared


def ask(run: Path, **changes: Any) -> describe.DescribeSummary:
    config = DescribeConfig(**{"run": run, "device": "cpu", "max_new_tokens": 8, **changes})
    return describe.run(config, SilentProgress())


def test_a_whole_split_is_described_measured_and_written(trained: Path) -> None:
    summary = ask(trained, every=True, batch_size=5)
    assert len(summary.descriptions) == 12
    table_file, json_file = summary.files
    assert table_file.name == "describe-test.parquet"
    rows = pq.read_table(table_file).to_pylist()
    assert [row["sample_id"] for row in rows] == sorted(d.sample_id for d in summary.descriptions)
    by_id = {entry.sample_id: entry for entry in summary.descriptions}
    for row in rows:
        entry = by_id[row["sample_id"]]
        assert row == {**asdict(entry), "named_classes": list(entry.named_classes),
                       "references": list(entry.references)}  # fmt: skip
        assert row["class_name"] == CLASSES[row["label"]]
    assert pq.ParquetFile(table_file).metadata.row_group(0).column(5).compression == "ZSTD"
    record = json.loads(json_file.read_text())
    named = [entry.names_action for entry in summary.descriptions]
    assert record["share_named"] == summary.share_named == pytest.approx(sum(map(bool, named)) / 12)
    assert record["naming"]["right"] == summary.share_named
    assert record["descriptions_sha256"] == sha256_file(table_file)
    assert record["settings"] == {
        "max_new_tokens": 8, "num_beams": 1, "synonyms": {}, "sentences": {}, "prompt_ids": [],
        "max_caption_tokens": 12,
    }  # fmt: skip
    assert "descriptions" not in record


def test_texts_are_measured_by_the_captions_of_the_split(trained: Path) -> None:
    summary = ask(trained, every=True)
    by_id = {entry.sample_id: entry for entry in summary.descriptions}
    assert by_id["S001C001P003R001A010"].references == ()
    assert by_id["S001C001P003R002A010"].references == ("A person claps.",)
    texts = [entry.text for entry in summary.descriptions]
    assert summary.scores == text_scores(texts, [e.references for e in summary.descriptions])
    assert summary.scores is not None
    assert summary.scores.samples == 11
    assert summary.naming is not None
    # "A person waves." does not say with what, so that it is no "hand waving".
    assert summary.naming.references_right == pytest.approx(7 / 11)
    hits = [entry.predicted_label == entry.label for entry in summary.descriptions]
    assert summary.naming.head_right == pytest.approx(sum(hits) / 12)


def test_references_are_of_the_prompts_that_the_run_learned_from(
    recipe: Callable[..., TrainConfig], hocslm: dict[str, Any]
) -> None:
    config = recipe(method={**hocslm, "prompt_ids": ["p1"]}, loop={"epochs": 1})
    train.run(config, SilentProgress())
    for entry in ask(config.out, every=True, split="train").descriptions:
        (reference,) = entry.references
        assert reference.endswith(" again.")  # the second caption; the first is of prompt p0


def test_without_the_library_it_says_what_is_not_measured(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(SilentProgress, "message", lambda self, text: said.append(text))
    for module in (describe, text_scores_module):
        monkeypatch.setattr(module, "has_library", lambda: False)
    scores = ask(trained, every=True).scores
    assert scores is not None
    assert scores.bleu is scores.chrf is None
    assert scores.rouge_l > 0
    assert any("hocslm[text]" in text for text in said)


def test_captions_do_not_change_what_is_said(
    trained: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    bare = make_dataset(tmp_path / "bare", captions="none")
    ours, theirs = ask(trained, every=True), ask(trained, every=True, dataset=bare)
    assert [d.text for d in ours.descriptions] == [d.text for d in theirs.descriptions]
    assert theirs.scores is None
    assert theirs.naming is not None
    assert theirs.naming.references_right is None
    # Results on another data set have files of their own.
    assert theirs.files[0].name.startswith("describe-test-small-")


def test_samples_come_in_the_order_asked_for_from_both_splits(trained: Path) -> None:
    names = ("S001C001P003R002A010", "S001C001P001R001A023", "S001C001P003R001A008")
    summary = ask(trained, sample_ids=names)
    assert tuple(entry.sample_id for entry in summary.descriptions) == names
    assert summary.files == ()
    assert not any(entry.references for entry in summary.descriptions)


def test_description_twice_gives_the_same_text(trained: Path) -> None:
    names = ("S001C001P003R002A010", "S001C001P003R001A008")
    assert ask(trained, sample_ids=names) == ask(trained, sample_ids=names)


def test_classes_taken_for_another_are_told(trained: Path, tmp_path: Path) -> None:
    table = tmp_path / "synonyms.csv"
    lines = ["sit down,person", *(f"{name},xylophone" for name in CLASSES[1:])]
    table.write_text("class,text\n" + "\n".join(lines) + "\n")
    summary = ask(trained, every=True, synonyms=(table,), max_new_tokens=4)
    assert summary.share_named == pytest.approx(1 / 3)
    assert summary.naming is not None
    assert [pair.taken_for for pair in summary.naming.confused] == ["sit down", "sit down"]


def test_synonyms_name_an_action_too(trained: Path, tmp_path: Path) -> None:
    table = tmp_path / "synonyms.txt"
    table.write_text("sit down,person\nclapping,person\nhand waving,person\nkicking,person\n")
    summary = ask(trained, every=True, synonyms=(table,))
    assert summary.share_named == 1  # each text has the word; each names all three equally
    assert summary.naming is not None
    assert summary.naming.several == 1
    record = json.loads(summary.files[1].read_text())
    assert record["settings"]["synonyms"] == {"synonyms.txt": sha256_file(table)}
    table.write_text("sit down,take a seat\n")
    with pytest.raises(ValueError, match="no text for 2 of 3 classes"):
        ask(trained, every=True, synonyms=(table,))


def test_texts_are_also_judged_by_the_closest_class_sentence(trained: Path, tmp_path: Path) -> None:
    table = tmp_path / "sentences.csv"
    lines = [f"{name},A person {word}." for name, word in zip(CLASSES, WORDS.values(), strict=True)]
    table.write_text("class,text\n" + "\n".join(lines) + "\n")
    assert ask(trained, every=True).closest is None
    summary = ask(trained, every=True, sentences=(table,))
    assert summary.closest is not None
    assert summary.closest.references_right == 1
    assert json.loads(summary.files[1].read_text())["closest"]["samples"] == 12


def test_samples_of_the_validation_split_are_found(
    recipe: Callable[..., TrainConfig], hocslm: dict[str, Any]
) -> None:
    config = recipe(data={"validation_subjects": [2]}, method=hocslm, loop={"epochs": 1})
    train.run(config, SilentProgress())
    names = ("S001C001P002R001A008", "S001C001P001R001A008", "S001C001P003R001A008")
    summary = ask(config.out, sample_ids=names)
    assert tuple(entry.sample_id for entry in summary.descriptions) == names


def test_an_unknown_sample_is_named(trained: Path) -> None:
    with pytest.raises(ValueError, match="S009C001P003R001A008"):
        ask(trained, sample_ids=("S001C001P003R001A008", "S009C001P003R001A008"))


def write_skeleton(file: Path, joints: np.ndarray) -> Path:
    """A .skeleton file of one body; joints (T, 25, 3)."""
    lines = [str(len(joints))]
    for frame in joints:
        lines += ["1", "72057594037944738 0 1 1 0 0 0 0.1 0.1 2", "25"]
        lines += [f"{x:.6f} {y:.6f} {z:.6f} 0 0 0 0 0 0 0 0 2" for x, y, z in frame]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_real_skeleton_file_is_described_without_a_data_set_row(trained: Path) -> None:
    source = Path(__file__).resolve().parents[3] / "shared" / "data" / "ntu"
    files = sorted(source.rglob("*.skeleton")) if source.is_dir() else []
    if not files:
        pytest.skip("../shared/data/ntu with real .skeleton files is not here")
    (entry,) = ask(trained, skeletons=(files[0],)).descriptions
    assert entry.sample_id == files[0].stem


def test_files_of_one_name_and_samples_are_told_apart_in_the_order_asked_for(
    trained: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    files = []
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "S001C001P003R001A008.skeleton"
        files.append(write_skeleton(file, rng.normal(1, 0.1, (16, 25, 3))))
    loaded, _ = describe.load_text_run(trained, dataset=None, device="cpu")
    clips = [skeleton_files.read_file_clip(file, loaded) for file in files]
    together = skeleton_files.joined(clips).x  # (N, M, T, V, C)
    assert all(torch.equal(row, clip.batch.x[0]) for row, clip in zip(together, clips, strict=True))
    assert not torch.equal(together[0], together[1])
    summary = ask(
        trained, sample_ids=("S001C001P003R001A008",), skeletons=tuple(files), batch_size=2
    )
    alone = [ask(trained, skeletons=(file,)).descriptions[0] for file in files]
    assert [*summary.descriptions[1:]] == alone
    assert (
        summary.descriptions[0]
        == ask(trained, sample_ids=("S001C001P003R001A008",)).descriptions[0]
    )


def test_a_file_that_cannot_be_described_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ask(trained, skeletons=(tmp_path / "a.skeleton",))
    broken = tmp_path / "b.skeleton"
    broken.write_text("nonsense")
    with pytest.raises(ValueError, match=r"b\.skeleton is not a readable \.skeleton file"):
        ask(trained, skeletons=(broken,))
    other = tmp_path / "a01_s01_e00_v03.json"
    other.write_text(json.dumps({"skeletons": [[[0.0, 1.0, 2.0]] * 20]}))
    with pytest.raises(ValueError, match=r"layout ucla-20 .* trained on layout ntu-25"):
        ask(trained, skeletons=(other,))
    video = tmp_path / "c.avi"
    video.write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="no skeleton file that can be read alone"):
        ask(trained, skeletons=(video,))


def test_a_clip_of_nw_ucla_is_described_from_its_json_file(
    recipe: Callable[..., TrainConfig],
    hocslm: dict[str, Any],
    write_rows: Callable[..., Path],
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    rows, clips = [], {}
    for view, repetition, action in itertools.product((1, 2, 3), (0, 1), (1, 12)):
        name = f"a{action:02d}_s01_e{repetition:02d}_v{view:02d}"
        clips[name] = rng.normal(0, 0.3, (9, 20, 3)).round(4).astype(np.float32)
        rows.append(
            {
                "sample_id": name, "dataset": "nw-ucla", "label": int(action == 12),
                "action_id": action, "subject_id": 1, "camera_id": view,
                "repetition_id": repetition, "num_frames": 9, "num_bodies": 1,
                "joints": clips[name].reshape(-1),
                "captions": [{"prompt_id": "p", "text": "A person claps.", "request_key": "k"}],
            }
        )  # fmt: skip
    classes = [(1, "pick up with one hand"), (12, "carry")]
    folder = write_rows(
        tmp_path / "ucla", rows, family="nw-ucla", skeleton=UCLA_20, classes=classes
    )
    config = recipe(
        data={"dataset": folder, "protocol": "nw-ucla", "view": "ucla"},
        method=hocslm,
        loop={"epochs": 1, "batch_size": 4},
    )
    train.run(config, SilentProgress())
    name = "a12_s01_e01_v03"
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps({"file_name": name, "skeletons": clips[name].tolist(), "label": 10}))
    assert ask(config.out, skeletons=(file,)) == ask(config.out, sample_ids=(name,))
    assert ask(config.out, skeletons=(file,)).descriptions[0].class_name == "carry"


def test_a_skeleton_file_is_centred_as_the_data_set_trained_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joints = np.random.default_rng(0).normal(1, 0.1, (16, 25, 3))
    joints[5] = 0  # CTR-GCN shifts empty frames of a single body like all others
    file = write_skeleton(tmp_path / "S001C001P003R001A008.skeleton", joints)
    stores: list[SkeletonStore] = []

    def spied(*args: Any, **options: Any) -> SkeletonStore:
        stores.append(one_clip(*args, **options))
        return stores[-1]

    monkeypatch.setattr(skeleton_files, "one_clip", spied)
    assert ask(trained, skeletons=(file,)).descriptions[0].class_name == "sit down"
    x = stores[0].batch(stores[0].in_order(), training=False).x[0, 0].numpy()  # (T, V, C)
    np.testing.assert_allclose(x, joints - joints[0, NTU_25.centre], atol=2e-6)


def test_bodies_of_a_skeleton_file_are_chosen_as_in_the_data_set(
    trained: Path, tmp_path: Path
) -> None:
    joints = np.random.default_rng(0).normal(1, 0.1, (16, 25, 3))
    file = write_skeleton(tmp_path / "S001C001P003R001A008.skeleton", joints)
    lines = file.read_text().splitlines()
    middle = 1 + 8 * 28  # a frame has 28 lines
    file.write_text("\n".join(["20", *lines[1:middle], *"0000", *lines[middle:]]) + "\n")
    loaded, _ = describe.load_text_run(trained, dataset=None, device="cpu")
    kept = replace(loaded.dataset, bodies=BodySettings(keep_gaps=True))
    without, with_gap = (
        skeleton_files.read_file_clip(file, run).batch.x[0, 0]  # (T, V, C)
        for run in (loaded, replace(loaded, dataset=kept))
    )
    assert (without.abs().sum(dim=(-1, -2)) > 0).all()
    assert not torch.allclose(with_gap, without)


def test_a_run_that_learned_no_text_is_refused(recipe: Callable[..., TrainConfig]) -> None:
    config = recipe(loop={"epochs": 1})
    train.run(config, SilentProgress())
    with pytest.raises(ValueError, match="learns no text"):
        ask(config.out, every=True)


def test_a_data_set_of_other_classes_or_another_skeleton_is_refused(
    trained: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_dataset(tmp_path / "other", class_order=(0, 1, 3))
    with pytest.raises(ValueError, match="trained on other classes"):
        ask(trained, every=True, dataset=other)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--split", "train"], "split: samples and files are described wherever they are from"),
        (["--sentences", "a.csv"], "sentences: samples and files are described"),
        (["--per-class"], "--per-class belongs to --all"),
    ],
)
def test_what_is_for_a_whole_split_is_refused_without_one(given: list[str], said: str) -> None:
    asked = ["describe", "no/such/run", "--sample", "S001C001P003R001A008"]
    done = CliRunner().invoke(app, [*asked, *given])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    whole = CliRunner().invoke(app, ["describe", "no/such/run", "--all", *given])
    assert "no/such/run" in " ".join(whole.output.split())
