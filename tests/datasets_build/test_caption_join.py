"""Joining captions: chosen prompts, and captions of test samples that are kept apart."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datasets_build import schema
from datasets_build.build import run
from datasets_build.build_record import HELD_OUT_FILE
from datasets_build.config import BuildConfig
from datasets_build.dataset import open_dataset
from datasets_build.manifest import read_json

TRAIN = ["S001C001P001R001A008", "S001C002P001R001A009"]  # subject 1 trains in ntu60-xsub
TEST = ["S001C001P003R001A008", "S001C002P003R001A009"]
NAMES = [*TRAIN, *TEST]


def captions_of(folder: Path) -> dict[str, list[str]]:
    (table,) = open_dataset(folder).tables([schema.SAMPLE_ID, schema.CAPTIONS])
    return {
        row[schema.SAMPLE_ID]: [c[schema.TEXT] for c in row[schema.CAPTIONS]]
        for row in table.to_pylist()
    }


@pytest.fixture
def two_prompts(caption_run) -> Path:
    rows = [(name, "success", f"{name} motion", "motion", 6) for name in NAMES]
    rows += [(name, "success", f"{name} brief", "brief", 6) for name in NAMES[:-1]]
    return caption_run([*rows, (NAMES[-1], "empty", None, "brief", 6)])


def test_a_sample_must_have_a_caption_of_each_chosen_prompt(ntu_folder, two_prompts, tmp_path):
    config = BuildConfig(
        skeletons=(ntu_folder(NAMES),),
        captions=(two_prompts,),
        prompts=("motion", "brief"),
        out=tmp_path / "out",
    )
    with pytest.raises(ValueError, match=r"no caption of prompt brief.*status empty"):
        run(config)
    summary = run(config.model_copy(update={"allow": ("no-caption",)}))
    assert (summary.num_rows, summary.num_captions) == (3, 6)
    assert read_json(tmp_path / "out" / "dataset.json", made_by="x")["counts"]["prompts"] == {
        "brief": 3,
        "motion": 3,
    }


def test_only_chosen_prompts_enter_and_an_unknown_one_is_refused(ntu_folder, two_prompts, tmp_path):
    source = ntu_folder(NAMES)
    config = BuildConfig(
        skeletons=(source,), captions=(two_prompts,), prompts=("motion",), out=tmp_path / "out"
    )
    assert run(config).num_captions == 4
    assert captions_of(tmp_path / "out")[NAMES[0]] == [f"{NAMES[0]} motion"]
    unknown = config.model_copy(update={"prompts": ("motoin",), "out": tmp_path / "other"})
    with pytest.raises(ValueError, match=r"--prompt motoin: .* they have brief, motion"):
        run(unknown)


def test_held_out_captions_of_test_samples_never_stand_in_a_row(ntu_folder, two_prompts, tmp_path):
    config = BuildConfig(
        skeletons=(ntu_folder(NAMES),),
        captions=(two_prompts,),
        hold_out=("ntu60-xsub",),
        out=tmp_path / "out",
    )
    summary = run(config)
    assert (summary.num_rows, summary.num_captions) == (4, 4)
    found = captions_of(tmp_path / "out")
    assert all(len(found[name]) == 2 for name in TRAIN)
    assert all(found[name] == [] for name in TEST)
    held = pq.read_table(tmp_path / "out" / HELD_OUT_FILE).to_pylist()
    assert [(row["sample_id"], row["text"]) for row in held] == [
        (TEST[0], f"{TEST[0]} brief"),
        (TEST[0], f"{TEST[0]} motion"),
        (TEST[1], f"{TEST[1]} motion"),
    ]
    assert "held-out-captions.parquet" in (tmp_path / "out" / "README.md").read_text()


def test_test_samples_may_lack_captions_that_would_be_held_out(ntu_folder, caption_run, tmp_path):
    trained = caption_run([(name, "success", "moves", "motion", 6) for name in TRAIN])
    config = BuildConfig(
        skeletons=(ntu_folder(NAMES),),
        captions=(trained,),
        hold_out=("ntu60-xsub",),
        out=tmp_path / "out",
    )
    assert run(config).num_rows == 4
    other = config.model_copy(update={"hold_out": ("ntu60-xview",), "out": tmp_path / "other"})
    with pytest.raises(ValueError, match="no-caption: 1"):
        run(other)  # S001C002P003R001A009 is a training sample there


def test_an_unknown_protocol_to_hold_out_is_refused(ntu_folder, two_prompts, tmp_path):
    config = BuildConfig(
        skeletons=(ntu_folder(NAMES),),
        captions=(two_prompts,),
        hold_out=("nw-ucla",),
        out=tmp_path / "out",
    )
    with pytest.raises(ValueError, match="--hold-out nw-ucla: no such protocol for these samples"):
        run(config)
