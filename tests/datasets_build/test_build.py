"""Building: same bytes every time, nothing left out in silence, interrupted builds continue."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_build import audits, schema
from datasets_build.bodies import BodySettings
from datasets_build.build import run
from datasets_build.build_record import JOURNAL_FILE
from datasets_build.config import BuildConfig
from datasets_build.dataset import joints_of, joints_of_table, open_dataset
from datasets_build.manifest import read_json, sha256_file, write_json
from datasets_build.progress import SilentProgress
from datasets_build.protocols import protocol_named
from datasets_build.shards import read_index

NAMES = [f"S001C00{c}P00{p}R001A0{a:02d}" for c in (1, 2) for p in (1, 3) for a in (8, 9, 10)]


def content(folder: Path) -> dict[str, bytes]:
    """Every file; of dataset.json all but the environment, which names the commit of the moment."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    record = json.loads(files["dataset.json"])
    del record["environment"]
    return {**files, "dataset.json": json.dumps(record).encode()}


def left_out(folder: Path) -> list[tuple[str, str]]:
    rows = pq.read_table(folder / "left_out.parquet").to_pylist()
    return [(row[schema.SAMPLE_ID], row[schema.REASON]) for row in rows]


def test_rows_hold_ids_labels_and_joints(ntu_folder, tmp_path):
    source = ntu_folder(NAMES)
    summary = run(BuildConfig(skeletons=(source,), out=tmp_path / "out", name="mini"))
    assert (summary.num_rows, summary.num_classes, summary.left_out) == (12, 60, {})
    dataset = open_dataset(tmp_path / "out")
    assert (dataset.name, dataset.family, dataset.skeleton.name) == ("mini", "ntu", "ntu-25")
    assert dataset.problems() == []
    (table,) = dataset.tables()
    assert table.schema == schema.DATASET_SCHEMA
    rows = table.to_pylist()
    assert [row[schema.SAMPLE_ID] for row in rows] == sorted(NAMES)
    first = rows[0]
    assert (first[schema.LABEL], first[schema.ACTION_ID], first[schema.SUBJECT_ID]) == (7, 8, 1)
    assert first[schema.CAPTIONS] == []
    views = joints_of_table(table, dataset.skeleton)
    for row, view in zip(rows, views, strict=True):
        assert view.shape == (1, 6, 25, 3)
        assert np.array_equal(joints_of(row, dataset.skeleton), view)
    assert 2.5 < views[0][..., 2].mean() < 3.6  # still in the sensor's coordinates
    sliced = joints_of_table(table.slice(4, 3), dataset.skeleton)
    assert np.array_equal(sliced[0], views[4])
    assert protocol_named("ntu60-xsub").split_of_row(first) == "train"


def test_one_and_two_processes_and_a_zip_give_the_same_part_bytes(ntu_folder, tmp_path):
    source = ntu_folder(NAMES)
    for workers in (1, 2):
        run(
            BuildConfig(
                skeletons=(source,), out=tmp_path / f"w{workers}", shard_rows=5, workers=workers
            )
        )
    assert content(tmp_path / "w1") == content(tmp_path / "w2")
    assert len(open_dataset(tmp_path / "w1").shards) == 3
    with zipfile.ZipFile(tmp_path / "clips.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.iterdir(), reverse=True):
            archive.write(path, f"nturgb+d_skeletons/{path.name}")
        archive.writestr("__MACOSX/._S001C001P001R001A008.skeleton", b"x")
    run(BuildConfig(skeletons=(tmp_path / "clips.zip",), out=tmp_path / "zip", shard_rows=5))
    for name in ("part-00000.arrow", "part-00001.arrow", "part-00002.arrow"):
        assert content(tmp_path / "zip")[name] == content(tmp_path / "w1")[name]


def test_present_classes_are_numbered_without_gaps(ntu_folder, tmp_path):
    run(BuildConfig(skeletons=(ntu_folder(NAMES),), out=tmp_path / "out", classes="present"))
    dataset = open_dataset(tmp_path / "out")
    assert [(c.label, c.action_id, c.name) for c in dataset.classes] == [
        (0, 8, "sit down"), (1, 9, "stand up"), (2, 10, "clapping"),
    ]  # fmt: skip
    (table,) = dataset.tables()
    assert {(r["action_id"], r["label"]) for r in table.to_pylist()} == {(8, 0), (9, 1), (10, 2)}


def test_actions_above_60_make_a_set_of_120_classes(ntu_folder, tmp_path):
    run(BuildConfig(skeletons=(ntu_folder(["S018C001P008R001A061"]),), out=tmp_path / "out"))
    dataset = open_dataset(tmp_path / "out")
    assert dataset.num_classes == 120
    assert dataset.second_body_for(protocol_named("ntu120-xsub")) == "copy"
    assert dataset.second_body_for(protocol_named("ntu60-xsub")) == "zeros"


def test_captions_join_by_sample_id_with_several_prompts(ntu_folder, caption_run, tmp_path):
    first = caption_run(
        [(name, "success", f"{name} moves", "motion", 6) for name in reversed(NAMES)]
    )
    second = caption_run([(NAMES[0], "success", "short", "brief", 7)], name="second")
    config = BuildConfig(
        skeletons=(ntu_folder(NAMES),), captions=(first, second), out=tmp_path / "out"
    )
    assert run(config).num_captions == 13
    (table,) = open_dataset(tmp_path / "out").tables()
    rows = {row[schema.SAMPLE_ID]: row for row in table.to_pylist()}
    assert [c["text"] for c in rows[NAMES[0]]["captions"]] == ["short", f"{NAMES[0]} moves"]
    assert rows[NAMES[1]]["captions"][0]["request_key"] == f"run-{NAMES[1]}-motion"


def test_a_build_stops_and_names_what_does_not_fit(ntu_folder, caption_run, tmp_path):
    source = ntu_folder(NAMES[:4])
    (source / f"{NAMES[3]}.skeleton").write_bytes(b"6\n1\n")
    (source / "notes.skeleton").write_bytes(b"")
    (source / "again").mkdir()
    (source / "again" / f"{NAMES[0]}.skeleton").write_bytes(b"")
    run_folder = caption_run(
        [
            (NAMES[0], "success", "one", "p", 6),
            (NAMES[1], "truncated", "two", "p", 6),
            (NAMES[2], "success", "three", "p", 60),
            (NAMES[3], "success", "four", "p", 6),
            ("S001C003P001R001A008", "success", "five", "p", 6),
        ]
    )
    config = BuildConfig(skeletons=(source,), captions=(run_folder,), out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"no-caption: 1 \(S001C001P001R001A009\).*truncated") as e:
        run(config)
    assert "--allow bad-name --allow duplicate --allow no-caption --allow no-skeleton" in str(
        e.value
    )
    assert not (tmp_path / "out" / "dataset.json").exists()
    known = ("bad-name", "duplicate", "no-caption", "no-skeleton")
    with pytest.raises(ValueError, match="the video has 60 frames, the skeleton 6") as e:
        run(config.model_copy(update={"allow": known}))
    assert "--allow frame-count --allow unreadable" in str(e.value)
    summary = run(config.model_copy(update={"allow": (*known, "frame-count", "unreadable")}))
    assert summary.num_rows == 1
    assert left_out(tmp_path / "out") == [
        (NAMES[0], "duplicate"),
        (NAMES[1], "no-caption"),
        (NAMES[2], "frame-count"),
        (NAMES[3], "unreadable"),
        ("S001C003P001R001A008", "no-skeleton"),
        ("notes", "bad-name"),
    ]
    assert summary.left_out == dict.fromkeys(sorted({*known, "frame-count", "unreadable"}), 1)


def test_truncated_and_absent_captions_enter_when_asked(ntu_folder, caption_run, tmp_path):
    source = ntu_folder(NAMES[:2])
    run_folder = caption_run([(NAMES[0], "truncated", "cut", "p", None)])
    base = {"skeletons": (source,), "captions": (run_folder,)}
    config = BuildConfig(**base, out=tmp_path / "a", accept_truncated=True, keep_uncaptioned=True)
    assert run(config).num_rows == 2
    assert (
        read_json(tmp_path / "a/dataset.json", made_by="")["counts"]["num_planned_uncaptioned"] == 1
    )
    assert run(BuildConfig(**base, out=tmp_path / "b", keep_uncaptioned=True)).num_captions == 0


def write_audit(
    run_folder: Path, dropped: dict[tuple[str, str], list[str]], *, rules: list[str]
) -> Path:
    """What `hoc audit` leaves: rows (sample_id, prompt_id) with their flags, all dropped."""
    folder = run_folder / "audit"
    folder.mkdir(exist_ok=True)
    rows = [
        {
            schema.SAMPLE_ID: sample_id,
            schema.PROMPT_ID: prompt_id,
            audits.FLAGS: flags,
            audits.DETAILS: flags,
            audits.CANNOT_TELL: [],
            audits.DROP: not set(rules).isdisjoint(flags),
        }
        for (sample_id, prompt_id), flags in dropped.items()
    ]
    pq.write_table(
        pa.Table.from_pylist(rows, schema=audits.AUDIT_SCHEMA), folder / audits.ROWS_FILE
    )
    shards = read_index(run_folder / "index.json", made_by="")
    record = {
        "run": {"name": run_folder.name, "shards_sha256": audits.shards_sha256(shards)},
        "drop_rules": rules,
        "total": {"dropped": len(rows)},
        "rows": {"sha256": sha256_file(folder / audits.ROWS_FILE)},
    }
    write_json(folder / audits.AUDIT_FILE, record)
    return folder


def test_captions_that_an_audit_drops_do_not_enter(ntu_folder, caption_run, tmp_path):
    source = ntu_folder(NAMES[:3])
    first = caption_run(
        [(name, "success", f"{name} {p}", p, 6) for name in NAMES[:3] for p in ("brief", "long")]
    )
    second = caption_run([(NAMES[0], "success", "kept", "brief", 6)], name="second")
    audit = write_audit(
        first,
        {
            (NAMES[0], "brief"): ["refusal"],
            (NAMES[1], "brief"): ["refusal", "meta-talk"],
            (NAMES[1], "long"): ["language"],
            (NAMES[2], "long"): ["meta-talk"],
        },
        rules=["refusal", "language"],
    )
    config = BuildConfig(
        skeletons=(source,), captions=(first, second), audits=(audit,), out=tmp_path / "out",
        allow=("no-caption",),
    )  # fmt: skip
    assert run(config).left_out == {"no-caption": 1}
    (entry,) = pq.read_table(tmp_path / "out" / "left_out.parquet").to_pylist()
    assert entry["detail"] == "dropped by audit: language, refusal"
    (table,) = open_dataset(tmp_path / "out").tables()
    texts = {r[schema.SAMPLE_ID]: [c["text"] for c in r["captions"]] for r in table.to_pylist()}
    assert texts == {
        NAMES[0]: ["kept", f"{NAMES[0]} long"],
        NAMES[2]: [f"{NAMES[2]} brief", f"{NAMES[2]} long"],
    }
    sources = read_json(tmp_path / "out/dataset.json", made_by="")["sources"]["captions"]
    assert [source["name"] for source in sources] == ["run", "second", "audit"]
    assert (sources[2]["audit_of"], sources[2]["drop_rules"]) == ("run", ["refusal", "language"])
    write_audit(first, {(NAMES[0], "brief"): ["refusal"]}, rules=["refusal"])
    with pytest.raises(ValueError, match="built from another request, different in: captions"):
        run(config)


def test_an_audit_of_other_captions_is_refused(ntu_folder, caption_run, tmp_path):
    first = caption_run([(NAMES[0], "success", "one", "p", 6)])
    second = caption_run([(NAMES[0], "success", "two", "p", 6)], name="second")
    audit = write_audit(first, {}, rules=[])
    config = BuildConfig(
        skeletons=(ntu_folder(NAMES[:1]),), captions=(second,), audits=(audit,), out=tmp_path / "o"
    )
    with pytest.raises(ValueError, match=r"is not an audit of the captions given: .* run 'run'"):
        run(config)
    assert run(config.model_copy(update={"captions": (second, first)})).num_captions == 2
    (audit / audits.ROWS_FILE).write_bytes(b"another table")
    with pytest.raises(ValueError, match=r"not the table that audit\.json was written with"):
        run(config)
    with pytest.raises(FileNotFoundError, match="hoc audit"):
        run(config.model_copy(update={"audits": (second,)}))


def test_listed_missing_samples_never_enter_and_are_no_error(ntu_folder, caption_run, tmp_path):
    listed = "S001C002P005R002A008"
    source = ntu_folder([listed, NAMES[0]])
    captions = caption_run([(n, "success", "x", "p", 6) for n in (listed, NAMES[0])])
    summary = run(BuildConfig(skeletons=(source,), captions=(captions,), out=tmp_path / "out"))
    assert (summary.num_rows, summary.left_out) == (1, {"listed-missing": 1})
    assert left_out(tmp_path / "out") == [(listed, "listed-missing")]
    config = BuildConfig(skeletons=(source,), out=tmp_path / "all", use_missing_list=False)
    assert run(config).protocols[0].num_train == 2  # subjects 5 and 1


def test_a_finished_build_is_kept_and_another_request_is_refused(ntu_folder, tmp_path):
    config = BuildConfig(skeletons=(ntu_folder(NAMES),), out=tmp_path / "out", shard_rows=4)
    run(config)
    before = content(tmp_path / "out")
    assert run(config).num_parts_kept == 3
    assert content(tmp_path / "out") == before
    with pytest.raises(ValueError, match=r"different in: options\.classes"):
        run(config.model_copy(update={"classes": "present"}))
    part = tmp_path / "out" / "part-00001.arrow"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is not what .*\(part-00001\.arrow has \d+ bytes"):
        run(config)


def test_an_interrupted_build_goes_on_from_its_journal(ntu_folder, tmp_path):
    source = ntu_folder(NAMES)
    bad = source / f"{NAMES[-1]}.skeleton"
    config = BuildConfig(skeletons=(source,), out=tmp_path / "out", shard_rows=3, workers=1)
    good = bad.read_bytes()
    bad.write_bytes(good.replace(b"\n25\n", b"\n24\n", 1))  # same size: the listing stays equal
    with pytest.raises(ValueError, match="wrong_joint_count"):
        run(config)
    journal = tmp_path / "out" / JOURNAL_FILE
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # the last line was cut off
    (tmp_path / "out" / "part-00001.arrow").write_bytes(b"damaged")
    bad.write_bytes(good)
    summary = run(config)
    assert (summary.num_rows, summary.num_parts_kept) == (12, 2)
    assert not journal.exists()
    run(BuildConfig(skeletons=(source,), out=tmp_path / "fresh", shard_rows=3, workers=1))
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    (tmp_path / "out" / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"is not empty and holds no data set \(but README.md\)"):
        run(config)


def test_parts_whose_sources_were_touched_are_made_anew(ntu_folder, tmp_path):
    source = ntu_folder(NAMES)
    config = BuildConfig(skeletons=(source,), out=tmp_path / "out", shard_rows=3, workers=1)
    bad = source / f"{NAMES[-1]}.skeleton"
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 2] + b"x" * (len(good) - len(good) // 2))
    with pytest.raises(ValueError, match="unreadable: 1"):
        run(config)
    first = source / f"{NAMES[0]}.skeleton"
    first.write_bytes(first.read_bytes().replace(b" 2\n", b" 1\n"))  # same size, another time
    os.utime(first, ns=(1, 1))
    bad.write_bytes(good)
    assert run(config).num_parts_kept == 2


def test_a_sample_that_could_not_be_read_is_tried_again(ntu_folder, tmp_path, monkeypatch):
    config = BuildConfig(
        skeletons=(ntu_folder(NAMES),), out=tmp_path / "out", shard_rows=3, workers=1
    )
    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", _open_without(f"{NAMES[4]}.skeleton"))
        with pytest.raises(ValueError, match="unreadable: 1"):
            run(config)
    summary = run(config)
    assert (summary.num_rows, summary.num_parts_kept) == (12, 3)


def _open_without(name):
    plain = Path.open

    def opened(self, *args, **kwargs):
        if self.name == name:
            raise OSError(5, "Input/output error")
        return plain(self, *args, **kwargs)

    return opened


def test_an_unfinished_build_goes_on_when_captions_or_files_were_put_right(
    ntu_folder, caption_run, tmp_path
):
    source = ntu_folder(NAMES)
    captioned = [(name, "success", "moves", "p", 6) for name in NAMES]
    config = BuildConfig(
        skeletons=(source,), captions=(caption_run(captioned[:-1]),), out=tmp_path / "out",
        shard_rows=3, workers=1,
    )  # fmt: skip
    bad = source / f"{NAMES[-1]}.skeleton"
    good = bad.read_bytes()
    bad.write_bytes(b"6\n1\n")
    with pytest.raises(ValueError, match="no-caption: 1"):
        run(config)
    whole = config.model_copy(update={"captions": (caption_run(captioned, name="whole"),)})
    with pytest.raises(ValueError, match="unreadable: 1"):
        run(whole)
    bad.write_bytes(good)
    assert run(whole).num_parts_kept == 3
    fresh = whole.model_copy(update={"out": tmp_path / "fresh"})
    run(fresh)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_parts_of_a_larger_try_are_removed(ntu_folder, tmp_path):
    source = ntu_folder(NAMES)
    config = BuildConfig(skeletons=(source,), out=tmp_path / "out", shard_rows=3, workers=1)
    bad = source / f"{NAMES[-1]}.skeleton"
    bad.write_bytes(b"6\n1\n")
    with pytest.raises(ValueError, match="unreadable: 1"):
        run(config)
    for name in NAMES[6:]:
        (source / f"{name}.skeleton").unlink()
    assert run(config).num_parts == 2
    assert len(list((tmp_path / "out").glob("part-*"))) == 2


def test_changed_content_of_equal_size_is_not_taken_for_the_same_input(ntu_folder, tmp_path):
    source = ntu_folder(NAMES)
    config = BuildConfig(skeletons=(source,), out=tmp_path / "out")
    run(config)
    first = source / f"{NAMES[0]}.skeleton"
    os.utime(first, ns=(1, 1))  # touched, not changed
    assert run(config).num_parts_kept == 1
    first.write_bytes(first.read_bytes().replace(b" 2\n", b" 1\n", 1))
    with pytest.raises(ValueError, match="built from other content"):
        run(config)


def test_nothing_that_is_not_ours_is_overwritten(ntu_folder, tmp_path):
    source = ntu_folder(NAMES)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and holds no data set \(but README.md\)"):
        run(BuildConfig(skeletons=(source,), out=tmp_path / "project"))
    with pytest.raises(ValueError, match="lies in the sources"):
        run(BuildConfig(skeletons=(source,), out=source / "set"))
    assert (tmp_path / "project" / "README.md").read_text() == "mine"
    assert not (source / "set").exists()


def test_files_beside_the_parts_are_checked_and_a_lost_card_is_written_anew(ntu_folder, tmp_path):
    out = tmp_path / "out"
    config = BuildConfig(skeletons=(ntu_folder(NAMES),), out=out)
    run(config)
    card = (out / "README.md").read_bytes()
    (out / "README.md").unlink()
    run(config)
    assert (out / "README.md").read_bytes() == card
    (out / "left_out.parquet").write_bytes(b"changed")
    assert open_dataset(out).problems() == [
        "left_out.parquet has another sha256 than dataset.json says"
    ]
    with pytest.raises(ValueError, match=r"is not what .*left_out\.parquet"):
        run(config)


def test_linked_folders_are_read_and_links_to_nothing_are_listed(ntu_folder, tmp_path):
    ntu_folder(NAMES[:6], folder="elsewhere")
    source = ntu_folder(NAMES[6:])
    (source / "more").symlink_to(tmp_path / "elsewhere")
    (source / "back").symlink_to(source)
    (source / "S001C003P001R001A001.skeleton").symlink_to(tmp_path / "gone")
    config = BuildConfig(skeletons=(source,), out=tmp_path / "out", allow=("unreadable",))
    assert run(config).num_rows == 12
    assert left_out(tmp_path / "out") == [("S001C003P001R001A001", "unreadable")]


def test_a_zip_that_was_replaced_is_read_anew(ntu_folder, tmp_path):
    archive = tmp_path / "clips.zip"
    for num in (5, 12):
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(ntu_folder(NAMES).iterdir())[:num]:
                file.write(path, path.name)
        assert run(BuildConfig(skeletons=(archive,), out=tmp_path / str(num))).num_rows == num


def test_options_that_would_do_nothing_are_refused(ntu_folder, nwucla_json, tmp_path):
    source = ntu_folder(NAMES)
    with pytest.raises(ValueError, match="--hold-out is about captions"):
        BuildConfig(skeletons=(source,), out=tmp_path / "out", hold_out=("ntu60-xsub",))
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "a01_s01_e00_v01.json").write_bytes(
        nwucla_json(np.random.default_rng(0).normal(size=(3, 20, 3)))
    )
    bodies = BodySettings(keep_gaps=True)
    with pytest.raises(ValueError, match=r"--keep-gaps is for NTU's \.skeleton files, not for nw-"):
        run(BuildConfig(skeletons=(clips,), out=tmp_path / "out", bodies=bodies))


def test_a_present_class_without_a_readable_sample_is_refused(ntu_folder, tmp_path):
    source = ntu_folder([*NAMES, "S001C001P001R001A050"])
    (source / "S001C001P001R001A050.skeleton").write_bytes(b"1\n0\n")
    config = BuildConfig(
        skeletons=(source,), out=tmp_path / "out", classes="present", allow=("unreadable",)
    )
    with pytest.raises(ValueError, match="no sample of punch/slap could be used"):
        run(config)


def test_one_name_of_no_action_does_not_make_120_classes(ntu_folder, tmp_path):
    source = ntu_folder([*NAMES, "S001C001P001R001A121"])
    config = BuildConfig(skeletons=(source,), out=tmp_path / "out", allow=("bad-name",))
    assert run(config).num_classes == 60


class _KillsAWorker(SilentProgress):
    """Kills one of the worker processes when the first part is done."""

    def advance(self, num_done=1, *, num_failed=0, note=""):
        for worker in multiprocessing.active_children()[:1]:
            worker.kill()


def test_a_build_that_loses_a_worker_ends_and_can_go_on(ntu_folder, tmp_path):
    source = ntu_folder([f"S00{s}C001P001R001A0{a:02d}" for s in range(1, 5) for a in range(1, 31)])
    config = BuildConfig(skeletons=(source,), out=tmp_path / "out", shard_rows=4, workers=2)
    with pytest.raises(RuntimeError, match="a worker process died"):
        run(config, _KillsAWorker())
    assert not multiprocessing.active_children()
    assert run(config).num_parts_kept >= 1
    run(config.model_copy(update={"out": tmp_path / "fresh"}))
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_a_name_that_is_no_text_is_listed_as_one(ntu_folder, tmp_path):
    source = ntu_folder(NAMES)
    (source / os.fsdecode(b"\xff\xfe.skeleton")).write_bytes(b"")
    config = BuildConfig(skeletons=(source,), out=tmp_path / "out", allow=("bad-name",))
    assert run(config).left_out == {"bad-name": 1}
    assert left_out(tmp_path / "out") == [("\\udcff\\udcfe", "bad-name")]


def test_two_builds_never_work_in_one_folder(ntu_folder, tmp_path):
    config = BuildConfig(skeletons=(ntu_folder(NAMES),), out=tmp_path / "out", workers=1)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / JOURNAL_FILE).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process builds a data set in"):
            run(config)
    assert run(config).num_rows == 12


def test_a_killed_build_ends_with_the_same_bytes(ntu_folder, tmp_path):
    source = ntu_folder([f"S00{s}C001P001R001A0{a:02d}" for s in range(1, 5) for a in range(1, 41)])
    program = (
        "import sys; from pathlib import Path\n"
        "from datasets_build.build import run\n"
        "from datasets_build.config import BuildConfig\n"
        "s, o = map(Path, sys.argv[1:])\n"
        "run(BuildConfig(skeletons=(s,), out=o, shard_rows=4, workers=1))\n"
    )
    root = Path(__file__).resolve().parents[2]
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(source), str(out)],
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    journal = out / JOURNAL_FILE
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") > 5:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the build ended before it could be killed"
    assert not (out / "dataset.json").exists()
    config = BuildConfig(skeletons=(source,), out=out, shard_rows=4, workers=1)
    assert run(config).num_parts_kept >= 4
    run(config.model_copy(update={"out": tmp_path / "fresh"}))
    assert content(out) == content(tmp_path / "fresh")


def test_hugging_face_datasets_opens_the_parts(ntu_folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    run(BuildConfig(skeletons=(ntu_folder(NAMES),), out=tmp_path / "out", shard_rows=5))
    parts = sorted(str(path) for path in (tmp_path / "out").glob("part-*.arrow"))
    one = datasets.Dataset.from_file(parts[0])
    assert one.num_rows == 5
    loaded = datasets.load_dataset(
        "arrow", data_files=parts, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["sample_id"][:] == sorted(NAMES)
    dataset = open_dataset(tmp_path / "out")
    assert joints_of(loaded[0], dataset.skeleton).shape == (1, 6, 25, 3)


def test_a_data_set_folder_is_a_hugging_face_data_set(ntu_folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    run(BuildConfig(skeletons=(ntu_folder(NAMES),), out=tmp_path / "out", shard_rows=5))
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["sample_id"][:] == sorted(NAMES)


def test_polars_and_duckdb_open_the_parts(ntu_folder, tmp_path):
    polars = pytest.importorskip("polars")
    duckdb = pytest.importorskip("duckdb")
    run(BuildConfig(skeletons=(ntu_folder(NAMES),), out=tmp_path / "out"))
    path = tmp_path / "out" / "part-00000.arrow"
    frame = polars.read_ipc_stream(path)
    assert frame["sample_id"].to_list() == sorted(NAMES)
    assert frame["joints"].list.len().to_list() == [6 * 25 * 3] * 12
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        rows = reader.read_all()  # duckdb finds it by its name
    assert rows.num_rows == 12
    found = duckdb.sql("select count(*) from rows where subject_id = 1").fetchall()
    assert found == [(6,)]


def test_real_nwucla_zip_gives_its_1484_clips(shared, tmp_path):
    source = shared / "data/nw-ucla/all_sqe.zip"
    summary = run(BuildConfig(skeletons=(source,), out=tmp_path / "out", name="nw-ucla", workers=1))
    assert (summary.num_rows, summary.num_classes, summary.left_out) == (1484, 10, {})
    (counts,) = summary.protocols
    assert (counts.num_train, counts.num_test) == (1020, 464)
    per_label = np.zeros((2, 10), int)
    shortest = 1000
    protocol = protocol_named("nw-ucla")
    for table in open_dataset(tmp_path / "out").tables():
        for row in table.drop_columns([schema.JOINTS]).to_pylist():
            per_label[int(protocol.split_of_row(row) == "test"), row[schema.LABEL]] += 1
            shortest = min(shortest, row[schema.NUM_FRAMES])
    assert per_label[0].tolist() == [102, 102, 96, 124, 101, 102, 99, 99, 98, 97]
    assert per_label[1].tolist() == [48, 50, 45, 49, 47, 47, 43, 43, 47, 45]
    assert shortest == 1


def test_real_ntu_files_become_rows(shared, tmp_path):
    source = shared / "data/ntu/skeletons"
    summary = run(BuildConfig(skeletons=(source,), out=tmp_path / "out", name="real"))
    assert (summary.num_rows, summary.left_out) == (3, {})
    (table,) = open_dataset(tmp_path / "out").tables()
    assert table[schema.NUM_FRAMES].to_pylist() == [103, 70, 124]
    assert table[schema.NUM_BODIES].to_pylist() == [1, 2, 1]


def test_wrong_sources_get_a_sentence(tmp_path, ntu_folder):
    def refusal(source: Path, **more: object) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            run(BuildConfig(skeletons=(source,), out=tmp_path / "out", **more))
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "does not exist" in refusal(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "S001C001P001R001A001.skeleton" in refusal(empty)
    assert "it is empty" in refusal(empty)
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "S001C001P001R001A001_rgb.avi").write_bytes(b"RIFF")
    assert "hoc caption --videos" in refusal(videos)
    no_zip = tmp_path / "clips.zip"
    no_zip.write_bytes(b"PK no zip at all")
    assert "neither a folder nor a zip file" in refusal(no_zip)
    source = ntu_folder(NAMES[:1])
    assert "is not a folder" in refusal(source, captions=(tmp_path / "no-run",))
    (tmp_path / "half").mkdir()
    assert "hoc caption" in refusal(source, captions=(tmp_path / "half",))
    assert "a01_s01_e00_v01.json" in refusal(source, format="nw-ucla")
    (source / "a01_s01_e00_v01.json").write_bytes(b"{}")
    assert "2 formats" in refusal(source)


def test_an_output_path_that_is_a_file_is_refused(tmp_path, ntu_folder):
    out = tmp_path / "out"
    out.write_text("x")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        run(BuildConfig(skeletons=(ntu_folder(NAMES[:1]),), out=out))


def test_unknown_allow_words_are_refused():
    with pytest.raises(ValueError, match="'captions' cannot be allowed; choose from no-caption"):
        BuildConfig(skeletons=(Path("x"),), out=Path("y"), allow=("captions",))


def test_an_unfinished_data_set_is_not_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="hoc build-dataset"):
        open_dataset(tmp_path)


def test_a_damaged_zip_entry_and_one_that_leaves_the_zip_are_listed(ntu_folder, tmp_path):
    source = ntu_folder(NAMES[:3])
    path = tmp_path / "clips.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(source / f"{NAMES[0]}.skeleton", f"{NAMES[0]}.skeleton")
        archive.write(source / f"{NAMES[1]}.skeleton", f"../../{NAMES[1]}.skeleton")
        archive.write(source / f"{NAMES[2]}.skeleton", f"{NAMES[2]}.skeleton")
        damaged_at = archive.getinfo(f"{NAMES[2]}.skeleton").header_offset + 200
    data = bytearray(path.read_bytes())
    data[damaged_at : damaged_at + 40] = b"\xff" * 40
    path.write_bytes(data)
    config = BuildConfig(
        skeletons=(path,), out=tmp_path / "out", allow=("bad-name", "unreadable"), workers=1
    )
    assert run(config).num_rows == 1
    assert left_out(tmp_path / "out") == [(NAMES[1], "bad-name"), (NAMES[2], "unreadable")]
