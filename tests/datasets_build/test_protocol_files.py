"""One's own protocols: three ways to split, mistakes as sentences, written and read back."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_build.packed import ListedSplit
from datasets_build.protocol_files import (
    find_protocol,
    listed_protocol,
    read_protocol,
    write_protocol,
)
from datasets_build.protocols import PROTOCOLS, Protocol, SampleIds, ids_of_name

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-recordings.md"

BY_ID = """
name = "lab-xsub"
dataset = "generic"
num_classes = 3
split_by = "subject_id"
train = ["1-3", 7]
test = [4, "5 - 6"]
"""
LISTED = """
name = "lab-random"
dataset = "generic"
num_classes = 3
train_samples = "train.txt"
test_samples = ["c", "d e"]
"""
ONE_SHOT = """
name = "my-oneshot"
dataset = "ntu"
actions = ["1-10"]
novel = [1, 7]
exemplars = ["S001C003P008R001A001", "S001C003P008R001A007.skeleton"]
"""


@pytest.fixture
def protocol(tmp_path: Path) -> Callable[[str], Protocol]:
    (tmp_path / "train.txt").write_text("a\n\n  b \n")

    def read(text: str) -> Protocol:
        path = tmp_path / "protocol.toml"
        path.write_text(text)
        return read_protocol(path)

    return read


def generic(sample_id: str = "x", action_id: int = 1, **ids: int) -> SampleIds:
    return SampleIds("generic", action_id, sample_id=sample_id, **ids)


def test_a_protocol_by_id_splits_by_numbers_and_ranges(protocol):
    found = protocol(BY_ID)
    assert [found.split(generic(subject_id=i)) for i in range(9)] == [
        None, "train", "train", "train", "test", "test", "test", "train", None,
    ]  # fmt: skip
    assert found.split(generic()) is None  # no subject
    assert found.split(generic(action_id=99, subject_id=1)) == "train"  # no actions: all
    assert found.split(SampleIds("ntu", 1, subject_id=1)) is None
    assert found.num_classes == 3
    assert found.rule == "train: subject_id 1-3, 7; test: subject_id 4-6"
    assert "protocol.toml" in found.source


def test_actions_narrow_a_protocol_down_and_count_its_classes(protocol):
    found = protocol(BY_ID.replace("num_classes = 3", 'actions = ["1-2", 5]\nsource = "us, 2020"'))
    assert (found.num_classes, found.source) == (3, "us, 2020")
    assert found.split(generic(action_id=5, subject_id=1)) == "train"
    assert found.split(generic(action_id=3, subject_id=1)) is None


def test_listed_samples_split_by_their_names(protocol, tmp_path):
    found = protocol(LISTED)
    assert [found.split(generic(name)) for name in ("a", "b", "c", "d e", "e")] == [
        "train", "train", "test", "test", None,
    ]  # fmt: skip
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(b"z\n"))
    assert protocol(LISTED.replace("train.txt", "train.txt.gz")).train_values == {"z"}


def test_listed_benchmark_samples_may_have_a_suffix(protocol):
    names = '["S001C001P001R001A001.skeleton", "S001C001P001R001A002"]'
    text = LISTED.replace('"generic"', '"ntu"').replace('"train.txt"', names)
    found = protocol(text.replace('["c", "d e"]', '["S001C001P001R001A003_rgb.avi"]'))
    name = ids_of_name("S001C001P001R001A001")
    assert name is not None
    assert found.split(name) == "train"
    assert found.test_values == {"S001C001P001R001A003"}


def test_one_shot_knows_its_exemplars_by_name(protocol):
    found = protocol(ONE_SHOT)
    assert found.num_classes == 10
    for name, split in {
        "S001C003P008R001A001": "exemplar",
        "S001C003P008R001A007": "exemplar",
        "S001C001P008R001A007": "test",
        "S001C003P008R001A002": "train",
        "S001C003P008R001A011": None,
    }.items():
        ids = ids_of_name(name)
        assert ids is not None
        assert found.split(ids) == split, name


def test_the_published_one_shot_protocol_can_be_told_in_toml(protocol):
    ours = PROTOCOLS["ntu60-oneshot"]
    names = [f"S001C003P008R001A{action:03d}" for action in range(1, 56, 6)]
    text = (
        f'name = "again"\ndataset = "ntu"\nactions = ["1-60"]\nnovel = {list(range(1, 56, 6))}\n'
        f"exemplars = {names}\n"
    )
    same = dict(name=ours.name, source=ours.source, rule=ours.rule)
    assert replace(protocol(text), **same) == ours


def test_the_documented_protocol_is_a_protocol(protocol):
    (block,) = (
        b for b in re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.S) if "split_by" in b
    )
    found = protocol(block)
    assert (found.name, found.dataset, len(found.train_values | found.test_values)) == (
        "lab-xsub", "generic", 20,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        (BY_ID, "split_by", "splitby", "splitby: no such key; did you mean 'split_by'?"),
        (BY_ID, '"lab-xsub"', '"ntu60-xsub"', "'ntu60-xsub' is a built-in protocol's"),
        (BY_ID, '"lab-xsub"', '"Lab"', "name: "),
        (BY_ID, '"lab-xsub"', '"lab.toml"', "name: 'lab.toml'"),
        (BY_ID, '"generic"', '"kinetics"', "dataset: "),
        (BY_ID, "num_classes = 3", "", "num_classes: say how many classes there are"),
        (BY_ID, "num_classes = 3", "num_classes = 3\nactions = [1]", "actions holds 1"),
        (BY_ID, "num_classes = 3", "actions = []", "actions: the list is empty"),
        (BY_ID, "num_classes = 3", "actions = [0]", "actions: 0 is no action of generic (1-10000)"),
        (BY_ID, '"1-3"', '"3-1"', "'3-1' does not run upwards"),
        (BY_ID, '"1-3"', '"one"', "'one' is neither a whole number nor a range"),
        (BY_ID, '"1-3"', "true", "True is neither"),
        (BY_ID, '"1-3"', '"1-9999999"', "within 0 .. 1000000"),
        (BY_ID, "[4,", "[7, 4,", "7 is in train and in test"),
        (BY_ID, 'test = [4, "5 - 6"]', "", "test is missing"),
        (BY_ID, "subject_id", "action_id", "split_by: "),
        (BY_ID, "num_classes", "novel = [1]\nnum_classes", "2 of them are given"),
        (LISTED, 'train_samples = "train.txt"\ntest_samples = ["c", "d e"]', "", "0 of them are"),
        (LISTED, '"train.txt"', '"absent.txt"', "train_samples: "),
        (LISTED, '"train.txt"', '"../train.txt"', "'../train.txt' is not the name of a file"),
        (LISTED, '"train.txt"', "[1]", "train_samples: it is a list of sample names"),
        (LISTED, '"train.txt"', '["c"]', "'c' is in train and in test"),
        (LISTED, '"train.txt"', '[" a"]', "train_samples: ' a' is no generic sample name"),
        (LISTED, '"generic"', '"nw-ucla"', "'a', 'b' is no nw-ucla sample name; expected a01_"),
        (ONE_SHOT, "[1, 7]", "[1, 7, 9]", "novel action 9 has 0, it needs one"),
        (ONE_SHOT, "[1, 7]", "[1]", "action 7 has one, but is not novel"),
        (ONE_SHOT, "[1, 7]", "[1, 7, 121]", "121 is no action of ntu (1-120)"),
        (ONE_SHOT, "1-10", "1-6", "novel: 7 is not in actions"),
        (ONE_SHOT, "C003P008R001A001", "", "'S001' is no ntu sample name"),
        (ONE_SHOT, '"ntu"', '"generic"', "generic samples have no names that tell their action"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence(protocol, text, old, new, said):
    assert text.count(old) == 1
    with pytest.raises(ValueError, match=re.escape(said)):
        protocol(text.replace(old, new))


def test_a_setup_is_nothing_that_nw_ucla_has(protocol):
    text = BY_ID.replace("generic", "nw-ucla").replace("num_classes = 3", "actions = [1, 12]")
    assert protocol(text).num_classes == 2
    with pytest.raises(ValueError, match="nw-ucla samples have no setup_id"):
        protocol(text.replace("subject_id", "setup_id"))


def test_mistakes_are_told_together(protocol):
    text = BY_ID.replace("lab-xsub", "nw-ucla").replace("num_classes = 3\n", "")
    with pytest.raises(ValueError, match=r"(?s)name: .*num_classes: .*7 is in train"):
        protocol(text.replace("[4,", "[7, 4,"))


@pytest.mark.parametrize("text", [BY_ID, LISTED, ONE_SHOT])
def test_what_is_written_reads_back_equal(protocol, tmp_path, text):
    found = protocol(text)
    path = write_protocol(tmp_path / "out", found)
    assert path == tmp_path / "out" / f"{found.name}.toml"
    assert read_protocol(path) == found
    content = path.read_bytes()
    assert write_protocol(tmp_path / "out", read_protocol(path)) == path
    assert path.read_bytes() == content


def test_a_listed_split_is_written_and_read_back(tmp_path):
    split = ListedSplit("k400", train=("b", "a \u00e9 \U0001f600", 'c"'), test=("d\\",))
    source = 'a "quoted" \\ source\x7f \U0001f600\n'
    folder = tmp_path / "protocols"
    protocol = listed_protocol(split, dataset="generic", num_classes=4, source=source)
    path = write_protocol(folder, protocol)
    assert sorted(p.name for p in folder.iterdir()) == [
        "k400-test.txt",
        "k400-train.txt",
        "k400.toml",
    ]
    found = read_protocol(path)
    assert (found.train_values, found.test_values) == (
        frozenset(split.train),
        frozenset(split.test),
    )
    assert (found.source, found.num_classes, found.split_by) == (source, 4, "sample_id")
    assert found.rule == "train: 3 listed samples; test: 1 listed samples"


def test_a_split_with_one_part_is_written_too(tmp_path):
    split = ListedSplit("only-test", train=(), test=("d",))
    protocol = listed_protocol(split, dataset="generic", num_classes=1, source="")
    path = write_protocol(tmp_path, protocol)
    assert read_protocol(path).test_values == {"d"}
    assert not read_protocol(path).train_values


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (ListedSplit("x", ("a",), ("a",)), "'a' is in train and in test"),
        (ListedSplit("x", (), ()), "train and test are empty"),
        (ListedSplit("x", ("a\nb",), ("c",)), "is no generic sample name"),
        (ListedSplit("../x", ("a",), ("c",)), "name: '../x'"),
        (ListedSplit("nw-ucla", ("a",), ("c",)), "built-in"),
    ],
)
def test_a_listed_split_that_no_file_can_hold_is_refused(split, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        listed_protocol(split, dataset="generic", num_classes=1, source="s")


def test_protocols_are_found_by_name_in_the_data_set_or_by_path(protocol, tmp_path):
    path = write_protocol(tmp_path / "protocols", protocol(BY_ID))
    assert find_protocol("ntu60-xsub", tmp_path) is PROTOCOLS["ntu60-xsub"]
    assert find_protocol("lab-xsub", tmp_path).num_classes == 3
    assert find_protocol(str(path), None).name == "lab-xsub"
    with pytest.raises(ValueError, match="'lab-sub' is not known; choose one of lab-xsub, "):
        find_protocol("lab-sub", tmp_path)
    with pytest.raises(ValueError, match=r"'lab-xsub' is not known.*ntu60-xsub"):
        find_protocol("lab-xsub", None)
    with pytest.raises(FileNotFoundError, match="hoc protocols"):
        find_protocol("absent.toml", tmp_path)
    path.rename(path.with_name("other.toml"))
    with pytest.raises(ValueError, match="a protocol named 'lab-xsub'; give the file that name"):
        find_protocol("other", tmp_path)


@settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_mutated_protocol_files_are_read_or_refused_with_a_sentence(protocol, data):
    base = data.draw(st.sampled_from([BY_ID, LISTED, ONE_SHOT]))
    at = data.draw(st.integers(0, len(base) - 1))
    end = data.draw(st.integers(at, min(at + 12, len(base))))
    snippet = data.draw(
        st.sampled_from(["", "[", "]", '"', "9" * 30, "-1", "nan", "{}", "1-2", "0x" + "f" * 99])
        | st.text(max_size=4).filter(lambda text: text.isprintable())
    )
    try:
        found = protocol(base[:at] + snippet + base[end:])
    except ValueError as error:
        if "protocol.toml" not in str(error):
            raise
    else:
        assert found.num_classes >= 1
        assert not found.train_values & found.test_values
