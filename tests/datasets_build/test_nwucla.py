"""NW-UCLA: reader, names, and the normalisation against the original's test inputs."""

from __future__ import annotations

import json
import random
import zipfile

import numpy as np
import pytest

from datasets_build.nwucla import (
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


def test_defects_have_their_own_names(nwucla_json):
    good = nwucla_json(np.ones((2, 20, 3)))
    cases = {
        "empty": b" ",
        "not_json": good[:-20],
        "no_frames": b'{"skeletons": []}',
        "wrong_joint_count": json.dumps({"skeletons": [[[0, 0, 0]] * 19]}).encode(),
        "bad_number": good.replace(b"1.0", b'"x"', 1),
        "not_finite": good.replace(b"1.0", b"NaN", 1),
        "out_of_range": good.replace(b"1.0", b"1e9", 1),
    }
    for reason, data in cases.items():
        with pytest.raises(ClipError) as caught:
            read_nwucla(data)
        assert caught.value.reason == reason
    for data in (b"[" * 100_000, b"\xff\xfe", b"[1]", b"1" * 5000, b'{"skeletons": [1e999]}'):
        with pytest.raises(ClipError):
            read_nwucla(data)


def test_mutated_files_are_read_or_refused_but_never_crash(nwucla_json):
    good = nwucla_json(np.random.default_rng(2).normal(size=(2, 20, 3)))
    rng = random.Random(3)
    snippets = [b"NaN", b"Infinity", b"null", b"[", b"]", b"-", b"1e400", b'"', b"9" * 400, b"true"]
    num_refused = 0
    for _ in range(400):
        data = bytearray(good)
        at = rng.randrange(len(data))
        if rng.random() < 0.5:
            data[at:at] = rng.choice(snippets)
        else:
            data[at : at + rng.randint(1, 30)] = bytes([rng.randrange(256)])
        try:
            assert np.isfinite(read_nwucla(bytes(data))).all()
        except ClipError:
            num_refused += 1
    assert num_refused > 200
