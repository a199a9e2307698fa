"""The audit: every rule flags what it is for, passes good captions, and knows when to be quiet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from captioning.audit import RULES, AuditConfig, AuditSummary, run
from captioning.audit_skeletons import ClipMotion, measure, num_people, read_motions
from captioning.label_words import RELATED_WORDS, label_stems
from cli.audit import audit as audit_command
from datasets_build import schema
from datasets_build.build import run as build
from datasets_build.caption_words import acting_limbs, label_phrases, named_side, stem
from datasets_build.class_names import ntu_class_names, nwucla_class_names
from datasets_build.config import BuildConfig
from datasets_build.dataset import open_dataset
from datasets_build.joints import NTU_25, UCLA_20
from datasets_build.manifest import write_json
from datasets_build.progress import SilentProgress
from datasets_build.shards import index_entries, write_shard
from datasets_build.synthetic import describe, perform
from datasets_build.synthetic_skeleton import skeleton_text

DRINK, CLAP, KICK = "S001C001P001R001A001", "S001C001P001R001A010", "S001C001P001R001A024"
Row = tuple[str, str | None] | tuple[str, str | None, str]


def write_run(folder: Path, rows: Sequence[Row], *, prompt_id: str = "global") -> Path:
    """A finished run in two shards; a row is (sample_id, caption) or also (..., status)."""
    folder.mkdir(parents=True)
    values = [
        {
            schema.SAMPLE_ID: row[0],
            schema.CAPTION: row[1],
            schema.STATUS: row[2] if len(row) > 2 else schema.STATUS_SUCCESS,
            schema.PROMPT_ID: prompt_id,
            schema.SOURCE: schema.SOURCE_VIDEO,
            schema.REQUEST_KEY: f"{folder.name}-{row[0]}",
        }
        for row in rows
    ]
    half = (len(values) + 1) // 2
    shards = [
        write_shard(
            folder / f"captions-{number:05d}.arrow",
            pa.Table.from_pylist(part, schema=schema.CAPTION_SCHEMA),
        )
        for number, part in enumerate((values[:half], values[half:]))
    ]
    index = {"fingerprint": f"fingerprint-{folder.name}", "shards": index_entries(shards)}
    write_json(folder / "index.json", index)
    return folder


def audited(folder: Path, **settings: object) -> AuditSummary:
    return run(AuditConfig(run=folder, num_workers=1, **settings), SilentProgress())


def flags_of(folder: Path, rule: str, **settings: object) -> dict[str, str]:
    """What one rule says of each sample: "flagged", "fine" or "cannot tell"."""
    audited(folder, **settings)
    return {
        row["sample_id"]: "flagged"
        if rule in row["flags"]
        else "cannot tell"
        if rule in row["cannot_tell"]
        else "fine"
        for row in pq.read_table(folder / "audit" / "audit.parquet").to_pylist()
    }


@pytest.mark.parametrize(
    ("rule", "sample_id", "caption", "verdict"),
    [
        ("label-missing", DRINK, "A man sips from a cup.", "fine"),
        ("label-missing", DRINK, "The person DRANK it all.", "fine"),
        ("label-missing", DRINK, "A man stands in a room.", "flagged"),
        ("label-missing", "a08_s01_e00_v01", "A woman puts her coat on.", "fine"),
        ("label-missing", "a08_s01_e00_v01", "A woman looks at the door.", "flagged"),
        ("label-missing", "cooking/clip-1", "A man stands in a room.", "cannot tell"),
        ("label-leak", DRINK, "The man will drink water.", "flagged"),
        ("label-leak", DRINK, "The man drinks water.", "fine"),
        ("label-leak", CLAP, "A person is Clapping.", "flagged"),
        ("label-leak", CLAP, "The action is classified as applause.", "flagged"),
        ("label-leak", CLAP, "A clip of the NTU dataset.", "flagged"),
        ("label-leak", CLAP, "A person claps in a classroom with a label on the wall.", "fine"),
        ("refusal", DRINK, "I'm sorry, but there is nothing to see.", "flagged"),
        ("refusal", DRINK, "As an AI language model, it is hard to say.", "flagged"),
        ("refusal", DRINK, "It is impossible to determine the action.", "flagged"),
        ("refusal", DRINK, "A person is unable to open the bottle.", "fine"),
        ("first-person", DRINK, "I see a man who drinks.", "flagged"),
        ("first-person", DRINK, "We\u2019re shown a man who drinks.", "flagged"),
        ("first-person", DRINK, "We see our friend.", "flagged"),
        ("first-person", DRINK, "A man drinks in an IKEA shop.", "fine"),
        ("meta-talk", DRINK, "In this video, a man drinks.", "flagged"),
        ("meta-talk", DRINK, "The image shows a man.", "flagged"),
        ("meta-talk", DRINK, "In the last frames he drinks.", "flagged"),
        ("meta-talk", DRINK, "A man takes a picture of a video screen.", "fine"),
        ("language", DRINK, "\u4e00\u4e2a\u4eba\u5728\u559d\u6c34", "flagged"),
        ("language", DRINK, "Ein Mann hebt langsam eine Tasse hoch.", "flagged"),
        ("language", DRINK, "A man in a caf\u00e9 sips na\u00efvely with care.", "fine"),
        ("language", DRINK, "Quick sip.", "fine"),
        ("status-failed", DRINK, None, "flagged"),
        ("status-failed", DRINK, "A man drinks.", "fine"),
        ("label-missing", DRINK, None, "cannot tell"),
        ("meta-talk", DRINK, None, "cannot tell"),
    ],
)
def test_a_rule_of_one_caption(rule, sample_id, caption, verdict, tmp_path):
    folder = write_run(tmp_path / "run", [(sample_id, caption), ("other", "A man waits.")])
    assert flags_of(folder, rule)[sample_id] == verdict


def test_captions_that_failed_are_not_judged_by_their_text(tmp_path):
    rows = [(DRINK, "I I I I", schema.STATUS_REPETITION), (CLAP, "I cl", schema.STATUS_TRUNCATED)]
    found = flags_of(write_run(tmp_path / "run", rows), "first-person")
    assert found == {DRINK: "cannot tell", CLAP: "flagged"}


def test_every_class_has_words_by_which_a_caption_names_it():
    names = {*ntu_class_names(), *nwucla_class_names()}
    assert names == set(RELATED_WORDS)
    assert all(len(label_stems(name)) > 1 for name in names)
    assert label_phrases("put on a hat/cap") == ("put on a hat", "put on a cap")
    assert label_phrases("check time (from watch)") == ("check time",)


def test_body_part_captions_need_not_name_the_action(tmp_path):
    folder = write_run(tmp_path / "run", [(DRINK, "The arm rises.")], prompt_id="body-parts")
    assert flags_of(folder, "label-missing") == {DRINK: "cannot tell"}


def test_forms_of_a_word_have_one_stem():
    for forms in (
        ["wave", "waves", "waving", "waved"],
        ["clap", "claps", "clapping", "clapped"],
        ["carry", "carries", "carrying", "carried"],
        ["throw", "throws", "threw", "thrown"],
        ["sneeze", "sneezes", "sneezing"],
        ["foot", "feet"],
        ["person", "person's"],
    ):
        assert len({stem(word) for word in forms}) == 1, forms
    assert len({stem(word) for word in ("sit", "sing", "string", "thing", "this")}) == 5


def test_length_outliers_are_far_from_the_others_of_their_prompt(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(f"clip-{n}", "word " * int(rng.integers(10, 16))) for n in range(100)]
    folder = write_run(tmp_path / "run", [*rows, ("long", "word " * 90), ("short", "word word")])
    found = flags_of(folder, "length-outlier")
    assert [name for name, verdict in found.items() if verdict == "flagged"] == ["long", "short"]
    few = write_run(tmp_path / "few", rows[:10])
    assert set(flags_of(few, "length-outlier").values()) == {"cannot tell"}


def _takes(num_actions: int, num_subjects: int, cameras: Sequence[int] = (1, 2, 3)) -> list[str]:
    return [
        f"S001C{c:03d}P{p:03d}R001A{a:03d}"
        for a in range(1, num_actions + 1)
        for p in range(1, num_subjects + 1)
        for c in cameras
    ]


def test_boilerplate_is_what_many_classes_say(tmp_path):
    rows = []
    for name in _takes(8, 20, cameras=[1]):
        action, subject = int(name[-3:]), int(name[9:12])
        text = (
            f"someone{subject} makes gesture{action} with tool{action} near wall number {subject}"
        )
        if action <= 3 and subject <= 2:  # in 3 of 8 classes, a tenth of each
            text += " while standing in a brightly lit office"
        if action <= 2:  # always, but in two classes only
            text += " as seen from the far corner today"
        if subject == 20:  # in every class, but in a twentieth of it
            text += " next to a row of empty chairs"
        rows.append((name, text))
    found = flags_of(write_run(tmp_path / "run", rows), "boilerplate")
    assert {name for name, verdict in found.items() if verdict == "flagged"} == {
        f"S001C001P{p:03d}R001A{a:03d}" for a in (1, 2, 3) for p in (1, 2)
    }
    few = write_run(tmp_path / "few", rows[:100])
    assert set(flags_of(few, "boilerplate").values()) == {"cannot tell"}


def test_a_caption_that_belongs_to_no_class_is_boilerplate(tmp_path):
    names = _takes(8, 10, cameras=[1])
    texts = {name: f"gesture{int(name[-3:])} is made" for name in names}
    for name in names[::5]:
        texts[name] = "A person stands."  # two in each class: whose is it?
    texts[names[1]] = "gesture2 is made"  # a mistake: this caption is mostly another class's
    found = flags_of(write_run(tmp_path / "run", list(texts.items())), "boilerplate")
    assert [name for name, verdict in found.items() if verdict == "flagged"] == names[::5]


def test_cameras_of_one_take_must_tell_of_one_thing(tmp_path):
    words = [f"gesture{letter}" for letter in "abcdefghijkl"]
    texts = {}
    for name in _takes(12, 2):
        action, camera = int(name[-3:]), int(name[5:8])
        extra = words[(action + camera) % 12]
        texts[name] = (
            f"a person shows {words[action - 1]} and moves the {words[action - 1]} {extra}"
        )
    odd, sided = "S001C002P001R001A001", ["S001C001P001R001A002", "S001C002P001R001A002"]
    texts[odd] = "two people leave a building quickly"
    texts[sided[0]] += " with the left hand"
    texts[sided[1]] += " with the right hand"
    for camera, side in ((1, "left"), (2, "left"), (3, "right")):
        texts[f"S001C{camera:03d}P001R001A003"] += f" with the {side} foot"
    folder = write_run(tmp_path / "run", list(texts.items()))
    found = flags_of(folder, "camera-disagreement")
    flagged = {name for name, verdict in found.items() if verdict == "flagged"}
    assert flagged == {odd, *sided, "S001C003P001R001A003"}
    rows = pq.read_table(folder / "audit/audit.parquet").to_pylist()
    details = {row["sample_id"]: row["details"] for row in rows}
    assert details[sided[0]][-1:] == ["says left, another view of the take says right"]


def test_views_are_not_compared_where_all_captions_are_alike(tmp_path):
    folder = write_run(tmp_path / "run", [(name, "A person stands.") for name in _takes(8, 3)])
    assert set(flags_of(folder, "camera-disagreement").values()) == {"cannot tell"}
    record = json.loads((folder / "audit/audit.json").read_text())
    assert "likeness not judged" in record["rules"]["camera-disagreement"]["note"]


@pytest.mark.parametrize(
    ("text", "limbs", "side"),
    [
        ("A person waves the right hand twice.", {("arm", "right")}, "right"),
        ("A person kicks sideways with the left foot.", {("leg", "left")}, "left"),
        ("She lifts both of her arms.", {("arm", None)}, None),
        ("The left arm swings, the right arm moves.", {("arm", "left"), ("arm", "right")}, None),
        ("A man wears a watch on the left wrist.", set(), "left"),
        ("A person points to the left.", set(), None),
        ("He raises his left and right hands.", set(), None),
    ],
)
def test_limbs_and_sides_are_read_from_a_caption(text, limbs, side):
    assert acting_limbs(text) == limbs
    assert named_side(text) == side


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("A person claps.", 1),
        ("Two people hug.", 2),
        ("A man and a woman shake hands.", 2),
        ("A person pats another person on the back.", 2),
        ("They walk towards each other.", 2),
        ("A group of people waits.", None),
        ("Three people stand.", None),
        ("The hand moves up.", None),
    ],
)
def test_people_are_counted_in_a_caption(text, number):
    assert num_people(text) == number


@pytest.mark.parametrize("skeleton", [NTU_25, UCLA_20], ids=lambda skeleton: skeleton.name)
def test_reach_of_a_limb_leaves_out_the_walk_of_the_body(skeleton):
    joints = np.zeros((2, 101, skeleton.num_joints, 3), np.float32)
    rest = np.random.default_rng(0).uniform(0.5, 1.5, (skeleton.num_joints, 3))
    walk = np.linspace(0, 2, 101)[:, None, None] * np.array([1.0, 0.0, 0.0])
    joints[0] = rest + walk
    for name in ("right wrist", "right hand"):
        joints[0, :, skeleton.joints.index(name), 1] += np.linspace(0, 1, 101)
    joints[0, 50] = joints[0, 50] + 40  # one wild frame
    joints[1, :20] = rest
    motion = measure(joints, skeleton)
    assert motion is not None
    assert motion.second_body_share == pytest.approx(20 / 101)
    assert motion.trunks_m[0] == pytest.approx(1.8, abs=0.03)  # nine tenths of 2 m
    assert motion.limbs_m[0] == pytest.approx((0, 0.9, 0, 0), abs=0.02)
    assert motion.trunks_m[1] == 0
    assert measure(np.zeros_like(joints), skeleton) is None


ONE_BODY, LEFT_HAND, KICKING, WALKING = (
    ClipMotion(0.0, (trunk,), (limbs,))
    for trunk, limbs in (
        (0.05, (0.06, 0.06, 0.05, 0.05)),
        (0.05, (0.60, 0.08, 0.05, 0.05)),
        (0.20, (0.20, 0.25, 0.08, 0.90)),
        (1.60, (0.30, 0.30, 0.40, 0.40)),
    )
)
TWO_BODIES = ClipMotion(0.9, (0.8, 0.8), ((0.5, 0.5, 0.4, 0.4),) * 2)
PASSER_BY = ClipMotion(0.3, (0.1, 1.0), ((0.1, 0.1, 0.1, 0.1),) * 2)


@pytest.mark.parametrize(
    ("rule", "caption", "motion", "verdict"),
    [
        ("people", "A person claps.", ONE_BODY, "fine"),
        ("people", "Two people hug.", ONE_BODY, "flagged"),
        ("people", "A person claps.", TWO_BODIES, "flagged"),
        ("people", "A person claps.", PASSER_BY, "cannot tell"),
        ("people", "A person claps.", None, "cannot tell"),
        ("moving-limb", "A person waves the left hand.", LEFT_HAND, "fine"),
        ("moving-limb", "A person waves the right hand.", LEFT_HAND, "flagged"),
        ("moving-limb", "A person waves the right hand.", ONE_BODY, "cannot tell"),
        ("moving-limb", "A person waves the right hand.", TWO_BODIES, "cannot tell"),
        ("moving-limb", "A person kicks with the right foot.", KICKING, "fine"),
        ("moving-limb", "A person waves a hand.", KICKING, "flagged"),
        ("moving-limb", "A person kicks with the right foot.", LEFT_HAND, "flagged"),
        ("moving-limb", "A person lifts a leg.", LEFT_HAND, "flagged"),
        ("moving-limb", "A person claps.", LEFT_HAND, "cannot tell"),
        ("still-or-moving", "A person stands still.", ONE_BODY, "fine"),
        ("still-or-moving", "A person stands still.", WALKING, "flagged"),
        ("still-or-moving", "A person is sitting on a chair.", WALKING, "flagged"),
        ("still-or-moving", "A person is sitting on a chair.", LEFT_HAND, "fine"),
        ("still-or-moving", "A person sits down.", WALKING, "cannot tell"),
        ("still-or-moving", "A person walks away.", ONE_BODY, "flagged"),
        ("still-or-moving", "A person walks away.", WALKING, "fine"),
        ("still-or-moving", "She runs a hand through her hair.", ONE_BODY, "cannot tell"),
    ],
)
def test_a_rule_that_looks_at_the_skeleton(rule, caption, motion, verdict, tmp_path, monkeypatch):
    motions = {} if motion is None else {KICK: motion}
    monkeypatch.setattr("captioning.audit.read_motions", lambda *_, **__: motions)
    folder = write_run(tmp_path / "run", [(KICK, caption)])
    assert flags_of(folder, rule, skeletons=(tmp_path,)) == {KICK: verdict}


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of made-up .skeleton files (every demo action, three subjects) and the truth."""
    folder = tmp_path_factory.mktemp("takes")
    truth = {}
    for action_id in (8, 9, 10, 23, 24, 26, 27, 31, 55, 59):
        for subject_id in (1, 2, 3):
            ids = {"action_id": action_id, "subject_id": subject_id, "setup_id": 1, "camera_id": 1}
            clip = perform(np.random.default_rng([action_id, subject_id]), **ids)
            text = skeleton_text(clip, np.random.default_rng(0), width=480, height=270)
            (folder / f"{clip.sample_id}.skeleton").write_text(text)
            truth[clip.sample_id] = describe(clip)
    return folder, truth


def test_true_captions_agree_with_their_skeletons_and_false_ones_do_not(takes, tmp_path):
    folder, truth = takes
    good = write_run(tmp_path / "good", list(truth.items()))
    record = audited(good, skeletons=(folder,)).record
    assert record["num_skeletons"] == 30
    assert record["total"]["flags"] == {}
    turned = {
        name: text.replace("left", "L").replace("right", "left").replace("L", "right")
        for name, text in truth.items()
    }
    bad = write_run(tmp_path / "bad", list(turned.items()))
    found = flags_of(bad, "moving-limb", skeletons=(folder,))
    sided = {name for name in truth if name[-3:] in ("023", "024", "031")}
    assert {name for name, verdict in found.items() if verdict == "flagged"} == sided
    alone = write_run(tmp_path / "alone", [(name, "A person moves.") for name in truth])
    found = flags_of(alone, "people", skeletons=(folder,))
    assert {name for name, verdict in found.items() if verdict == "flagged"} == {
        name for name in truth if name[-3:] in ("055", "059")
    }


def test_a_data_set_a_folder_and_two_processes_give_the_same_motions(takes, tmp_path, monkeypatch):
    monkeypatch.setattr("captioning.audit_skeletons.FILES_A_JOB", 8)
    folder, truth = takes
    build(BuildConfig(skeletons=(folder,), out=tmp_path / "set", use_missing_list=False))
    (folder / "S001C001P009R001A001.skeleton").write_text("no skeleton")
    wanted = {*truth, "S001C001P009R001A001", "absent"}
    quiet = SilentProgress()
    of_files = read_motions([folder], wanted, quiet, num_workers=1)
    assert of_files.keys() == truth.keys()
    assert read_motions([tmp_path / "set"], wanted, quiet, num_workers=1) == of_files
    assert read_motions([folder], wanted, quiet, num_workers=2) == of_files
    (folder / "S001C001P009R001A001.skeleton").unlink()


ROWS = [
    (DRINK, "I see that a man stands."),
    (CLAP, "In this video a person claps."),
    (KICK, "A person kicks a ball."),
    ("S001C001P001R001A023", None, schema.STATUS_TIMEOUT),
]


def test_drop_and_keep_choose_the_rules_that_drop(tmp_path):
    folder = write_run(tmp_path / "run", ROWS)

    def dropped(**settings: object) -> list[str]:
        audited(folder, **settings)
        rows = pq.read_table(folder / "audit/audit.parquet").to_pylist()
        return [row["sample_id"] for row in rows if row["drop"]]

    names = [row[0] for row in ROWS]
    assert dropped() == []
    assert dropped(drop=("label-missing",)) == names[:1]
    assert dropped(drop=("all",)) == [names[0], names[1], names[3]]
    assert dropped(drop=("all",), keep=("meta-talk", "status-failed")) == names[:1]
    assert dropped(drop=("meta-talk", "refusal"), keep=("meta-talk",)) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"drop": ("label-mising",)}, "did you mean 'label-missing'"),
        ({"keep": ("refusal",)}, "give drop too"),
        ({"drop": ("all",), "keep": ("all",)}, "leave out drop"),
        ({"drop": ("people",)}, "drop people needs skeletons"),
    ],
)
def test_rules_that_do_not_fit_get_a_sentence(settings, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        AuditConfig(run=tmp_path, **settings)


def test_the_record_counts_by_class_and_names_the_run(tmp_path):
    folder = write_run(tmp_path / "run", ROWS)
    record = audited(folder, drop=("first-person",)).record
    assert record["run"]["fingerprint"] == "fingerprint-run"
    assert record["drop_rules"] == ["first-person"]
    assert record["total"] == {
        "rows": 4, "captioned": 3, "flagged": 3, "dropped": 1,
        "flags": {"status-failed": 1, "label-missing": 1, "first-person": 1, "meta-talk": 1},
    }  # fmt: skip
    assert record["by_class"]["clapping"]["flags"] == {"meta-talk": 1}
    assert record["by_prompt"].keys() == {"global"}
    assert record["rules"].keys() == {n for n, rule in RULES.items() if not rule.needs_skeletons}
    rows = pq.read_table(folder / "audit/audit.parquet").to_pylist()
    assert [row["sample_id"] for row in rows] == [row[0] for row in ROWS]
    assert rows[0]["flags"] == ["label-missing", "first-person"]
    assert rows[0]["details"] == ["no word of 'drink water' or for it", "'i'"]
    before = {path.name: path.read_bytes() for path in (folder / "audit").iterdir()}
    audited(folder, drop=("first-person",))
    assert {path.name: path.read_bytes() for path in (folder / "audit").iterdir()} == before


def test_classes_of_other_videos_come_from_a_table(tmp_path):
    table = tmp_path / "classes.csv"
    table.write_text("sample_id,class\nkitchen/1,peel potato\nkitchen/2,peel potato\n")
    rows = [("kitchen/1", "A cook peels something."), ("kitchen/2", "A cook waits.")]
    folder = write_run(tmp_path / "run", rows)
    found = flags_of(folder, "label-missing", classes=table)
    assert found == {"kitchen/1": "fine", "kitchen/2": "flagged"}
    table.write_text("name,class\nkitchen/1,peel potato\n")
    with pytest.raises(
        ValueError, match="needs the columns sample_id and class; it has name, class"
    ):
        audited(folder, classes=table)


def test_an_unfinished_run_and_one_without_rows_end_in_order(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        audited(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="hoc caption"):
        audited(tmp_path)
    assert audited(write_run(tmp_path / "run", [])).record["total"]["rows"] == 0


def test_a_build_leaves_out_what_the_audit_drops(takes, tmp_path):
    folder, truth = takes
    texts = {**truth, next(iter(truth)): "A person waits."}
    captions = write_run(tmp_path / "run", list(texts.items()))
    audited(captions, drop=("label-missing",))
    config = BuildConfig(
        skeletons=(folder,),
        captions=(captions,),
        audits=(captions / "audit",),
        out=tmp_path / "set",
        use_missing_list=False,
    )
    with pytest.raises(ValueError, match=r"no-caption: 1 .*dropped by audit: label-missing"):
        build(config)
    assert build(config.model_copy(update={"allow": ("no-caption",)})).num_captions == 29
    assert open_dataset(tmp_path / "set").num_rows == 29


def test_the_command_prints_tables_or_json(tmp_path):
    folder = write_run(tmp_path / "run", [(n, "A person moves.") for n in _takes(30, 1, [1])])
    assert all(f"**{name}**" in (audit_command.__doc__ or "") for name in RULES)
    app = typer.Typer()
    app.command()(audit_command)
    result = CliRunner().invoke(app, [str(folder), "--drop", "label-missing"])
    assert result.exit_code == 0, result.output
    assert "The worst 20 of 30 classes" in result.output
    assert "audit.parquet" in result.output
    result = CliRunner().invoke(app, [str(folder), "--json", "--out", str(tmp_path / "elsewhere")])
    assert json.loads(result.stdout)["total"]["flags"]["label-missing"] == 30
    assert (tmp_path / "elsewhere" / "audit.json").is_file()
