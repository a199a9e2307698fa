"""NW-UCLA: reader, names, and the normalisation against the original's test inputs."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_build.nwucla import (
    MAX_FRAMES,
    MAX_JSON_BYTES,
    nwucla_normalised,
    parse_nwucla_name,
    published_coordinates,
    read_nwucla,
)
from datasets_build.sources import ClipError


def test_names_give_the_four_ids():
    name = parse_nwucla_name("all_sqe/a08_s03_e02_v01.json")
    assert name is not None
    assert (name.action_id, name.subject_id, name.repetition_id, name.camera_id) == (8, 3, 2, 1)
    assert str(name) == "a08_s03_e02_v01"
    assert parse_nwucla_name("a08_s03_e02.json") is None
    assert parse_nwucla_name("a08_s03_e02_v011.json") is None


def test_published_digits_come_back_exactly(nwucla_json):
    rng = np.random.default_rng(0)
    joints = rng.normal(0, 1, (30, 20, 3)) * 10.0 ** rng.integers(-6, 3, (30, 20, 3))
    joints[0, 0] = 0
    data = nwucla_json(joints)
    exact = np.array(json.loads(data)["skeletons"])
    assert np.array_equal(published_coordinates(read_nwucla(data))[0], exact)


def test_normalised_test_clips_equal_the_originals(shared):
    golden = np.load(shared / "data/golden/nwucla_ctrgcn_test_inputs.npz")
    with zipfile.ZipFile(shared / "data/nw-ucla/all_sqe.zip") as clips:
        for sample_id, expected in zip(golden["sample_id"], golden["joint"], strict=True):
            joints = read_nwucla(clips.read(f"all_sqe/{sample_id}.json"))
            frames = np.linspace(0, joints.shape[1] - 1, 52).astype(int)
            ours = nwucla_normalised(joints)[0, frames].transpose(2, 0, 1)  # (C, 52, V)
            assert np.abs(ours - expected).max() <= 1e-6, sample_id


def test_one_frame_and_flat_clips_normalise_to_finite_numbers():
    joints = np.random.default_rng(1).normal(size=(1, 1, 20, 3)).astype(np.float32)
    joints[..., 2] = 3.0
    result = nwucla_normalised(joints)
    assert result.min() == -1
    assert result.max() == 1
    assert not result[..., 2].any()


def reason_of(data: bytes) -> str:
    with pytest.raises(ClipError) as caught:
        read_nwucla(data)
    assert 0 < len(caught.value.detail) < 300
    return caught.value.reason


def test_defects_have_their_own_names(nwucla_json):
    good = nwucla_json(np.ones((2, 20, 3)))
    frames = good[good.index(b"[[[") : good.index(b"]]]") + 3]

    def first(number: bytes) -> bytes:
        return good.replace(b"1.0", number, 1)

    cases = [
        ("empty", b" "),
        ("not_json", good[:-20]),
        ("not_json", b"\xff\xfe"),
        ("not_json", first(b"\xd9\xa1")),  # an Arabic digit
        ("bad_number", first(b"1" * 5000)),
        ("not_json", b"[" * 100_000),
        ("not_json", b'{"skeletons": ' * 100_000),
        ("no_frames", b"[1]"),
        ("no_frames", b'{"skeletons": []}'),
        ("no_frames", b'{"skeletons": {"0": 1}}'),
        ("repeated_key", good[:-1] + b', "skeletons": ' + frames + b"}"),
        ("wrong_joint_count", json.dumps({"skeletons": [[[0, 0, 0]] * 19]}).encode()),
        ("wrong_joint_count", b'{"skeletons": [1e999]}'),
        ("bad_number", first(b'"x"')),
        ("bad_number", first(b'"1"')),
        ("bad_number", first(b"true")),
        ("bad_number", first(b"null")),
        ("bad_number", first(b"[]")),
        ("bad_number", first(b"1" * 400)),  # a whole number beyond float64
        ("bad_number", good[:-1] + b', "more": ' + b"7" * 2_000_000 + b"}"),
        ("bad_number", good.replace(b"1.0]", b"1.0, 1.0]", 1)),
        ("not_finite", first(b"NaN")),
        ("not_finite", first(b"-Infinity")),
        ("not_finite", first(b"1e999")),
        ("out_of_range", first(b"1e9")),
        ("out_of_range", first(b"1e308")),
        ("bad_count", b'{"skeletons": [' + b"0," * MAX_FRAMES + b"0]}"),
        ("too_large", good + b" " * MAX_JSON_BYTES),
    ]
    for reason, data in cases:
        assert reason_of(data) == reason, data[:60]


SNIPPETS = [b"NaN", b"Infinity", b"null", b"[", b"]", b"-", b"1e400", b'"', b"9" * 400, b"true"]


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 5_000),
            st.integers(0, 30),
            st.one_of(st.sampled_from(SNIPPETS), st.binary(max_size=4)),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_changed_file_is_read_or_refused_but_never_crashes(nwucla_json, changes):
    data = nwucla_json(np.random.default_rng(2).normal(size=(2, 20, 3)))
    for at, num_cut, piece in changes:
        at %= len(data) + 1
        data = data[:at] + piece + data[at + num_cut :]
    try:
        joints = read_nwucla(data)
    except ClipError:
        return
    assert np.isfinite(joints).all()
    assert joints.shape[::2] == (1, 20)
    assert joints.shape[1] <= 2
