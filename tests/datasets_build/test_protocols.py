"""Protocols: the published counts, the missing lists and the one-shot exemplars."""

from __future__ import annotations

import pytest

from datasets_build.class_names import manifest_lines, ntu_class_names, nwucla_class_names
from datasets_build.protocols import (
    PROTOCOLS,
    SampleIds,
    class_list,
    ids_of_name,
    listed_missing,
    protocol_named,
    read_names,
    split_counts,
)


def part(protocol: str, name: str) -> str | None:
    ids = ids_of_name(name)
    assert ids is not None
    return protocol_named(protocol).split(ids)


def test_published_counts_come_out_of_the_list_of_available_samples(shared):
    names = read_names(shared / "data/ntu/ntu120_available_samples.txt.gz")
    counts = {c.protocol: (c.num_train, c.num_test, c.num_exemplar) for c in split_counts(names)}
    assert counts == {
        "ntu60-xsub": (40_091, 16_487, 0),
        "ntu60-xview": (37_646, 18_932, 0),
        "ntu120-xsub": (63_026, 50_919, 0),
        "ntu120-xset": (54_468, 59_477, 0),
        "ntu60-oneshot": (47_180, 9_388, 10),
        "ntu120-oneshot": (95_001, 18_924, 20),
        "nw-ucla": (0, 0, 0),
    }


def test_the_missing_list_is_taken_off_when_names_still_hold_it(shared):
    names = read_names(shared / "data/ntu/ntu120_available_samples.txt.gz")
    full = [*names, *listed_missing("ntu")]
    assert len(full) == 114_480
    xsub = next(c for c in split_counts(full) if c.protocol == "ntu60-xsub")
    assert (xsub.num_train, xsub.num_test, xsub.num_listed_missing) == (40_091, 16_487, 302)


def test_the_short_missing_list_is_the_beginning_of_the_long_one():
    short, long = manifest_lines("missing-ntu60.txt"), manifest_lines("missing-ntu120.txt")
    assert (len(short), len(long), len(set(long))) == (302, 535, 535)
    assert long[:302] == short
    assert all(int(name[-3:]) <= 60 for name in short)
    assert all(int(name[-3:]) > 60 for name in long[302:])


def test_parts_of_known_samples():
    assert part("ntu60-xsub", "S001C001P001R001A001") == "train"
    assert part("ntu60-xsub", "S001C001P003R001A001") == "test"
    assert part("ntu60-xsub", "S018C001P041R001A001") is None  # no such subject in the 60
    assert part("ntu60-xsub", "S018C001P008R001A061") is None
    assert part("ntu60-xview", "S001C001P001R001A001") == "test"
    assert part("ntu60-xview", "S001C002P001R001A001_rgb.avi") == "train"
    assert part("ntu120-xset", "S018C001P008R001A061.skeleton") == "train"
    assert part("ntu120-xset", "S017C001P008R001A060") == "test"
    assert part("nw-ucla", "a01_s01_e00_v02") == "train"
    assert part("nw-ucla", "a01_s01_e00_v03") == "test"
    assert part("nw-ucla", "a07_s01_e00_v03") is None
    assert part("nw-ucla", "S001C001P001R001A001") is None


def test_one_shot_exemplars_are_the_published_files():
    assert part("ntu120-oneshot", "S001C003P008R001A001") == "exemplar"
    assert part("ntu120-oneshot", "S018C003P008R001A115") == "exemplar"
    assert part("ntu120-oneshot", "S018C003P008R001A055") == "test"
    assert part("ntu120-oneshot", "S001C001P008R001A001") == "test"
    assert part("ntu120-oneshot", "S001C001P008R001A002") == "train"
    assert part("ntu60-oneshot", "S001C003P008R001A055") == "exemplar"
    assert part("ntu60-oneshot", "S001C003P008R001A061") is None


def test_train_and_test_values_never_overlap_and_sources_are_named():
    for protocol in PROTOCOLS.values():
        assert not protocol.train_values & protocol.test_values
        assert protocol.source
        assert len(class_list(protocol.dataset, protocol.num_classes)) == protocol.num_classes
    assert len(protocol_named("ntu120-xsub").train_values) == 53
    assert len(protocol_named("ntu60-xsub").train_values) == 20


def test_an_unknown_protocol_names_those_there_are():
    with pytest.raises(ValueError, match="ntu60-xsub, ntu60-xview"):
        protocol_named("ntu60")


def test_ids_of_a_row_equal_ids_of_its_name():
    row = {
        "sample_id": "S001C002P003R002A013",
        "dataset": "ntu", "action_id": 13, "subject_id": 3, "camera_id": 2, "setup_id": 1,
        "repetition_id": 2,
    }  # fmt: skip
    assert SampleIds.of_row(row) == ids_of_name("S001C002P003R002A013")


def test_class_lists_are_in_label_order():
    assert len(set(ntu_class_names())) == 120
    assert ntu_class_names()[9 - 1] == "stand up"
    assert ntu_class_names()[27 - 1] == "jump up"
    assert len(nwucla_class_names()) == 10
    assert class_list("nw-ucla", 10)[6] == (8, "donning")


def test_a_file_without_names_is_refused(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="none of its 2 lines"):
        read_names(path)
    with pytest.raises(FileNotFoundError):
        read_names(tmp_path / "absent.txt")
    broken = tmp_path / "names.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="not a text file with one sample name"):
        read_names(broken)


def test_counting_ignores_suffixes_and_repeats():
    names = ["S001C001P001R001A001.skeleton", "x/S001C001P001R001A001_rgb.avi", "readme", "a.txt"]
    xsub = split_counts(names)[0]
    assert (xsub.num_train, xsub.num_test, xsub.num_outside) == (1, 0, 2)
