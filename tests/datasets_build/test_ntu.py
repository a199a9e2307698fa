"""The `.skeleton` reader: exact on good files, a named reason on bad ones."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_build.bodies import BodySettings, select_bodies
from datasets_build.ntu import MAX_BODIES, MAX_FRAMES, MAX_LINES, read_skeleton
from datasets_build.sources import ClipError


def reason_of(data: bytes) -> str:
    with pytest.raises(ClipError) as caught:
        read_skeleton(data)
    assert caught.value.detail
    return caught.value.reason


@pytest.fixture
def clip(body, skeleton_text):
    """Five frames: body 11 in all of them, body 22 in frames 1 and 3, nobody missing."""
    rng = np.random.default_rng(0)
    return skeleton_text(
        5, {"11": (range(5), body(rng, 5, 1.0)), "22": ([1, 3], body(rng, 2, 0.1))}
    )


def test_joints_frames_and_tracking_of_each_body_are_kept(clip):
    recording = read_skeleton(clip)
    assert recording.num_frames == 5
    first, second = recording.bodies
    assert (first.body_id, second.body_id) == ("11", "22")
    assert second.frames.tolist() == [1, 3]
    assert second.joints.shape == (2, 25, 3)
    assert second.joints.dtype == np.float32
    assert (second.tracking == 2).all()
    lines = clip.decode().splitlines()
    x, y, z = (float(field) for field in lines[4].split()[:3])  # frame 0, body 11, joint 0
    assert first.joints[0, 0].tolist() == [np.float32(x), np.float32(y), np.float32(z)]


def test_body_ids_that_differ_in_the_last_digit_stay_apart(body, skeleton_text):
    joints = body(np.random.default_rng(1), 3, 1.0)
    ids = ["72057594037931101", "72057594037931102"]  # equal as float64
    recording = read_skeleton(skeleton_text(3, {i: (range(3), joints) for i in ids}))
    assert [track.body_id for track in recording.bodies] == ids


def test_windows_line_ends_and_double_spaces_read_the_same(clip):
    plain = read_skeleton(clip)
    windows = clip.replace(b"\n", b"\r\n")
    spaced = clip.replace(b" ", b"  ")
    tabs = clip.replace(b" ", b"\t").replace(b"\n", b" \r\n")
    for variant in (windows, windows[:-1], windows[:-2], spaced, tabs, clip.rstrip()):
        other = read_skeleton(variant)
        for a, b in zip(plain.bodies, other.bodies, strict=True):
            assert np.array_equal(a.joints, b.joints)
            assert a.body_id == b.body_id


def test_file_cut_anywhere_is_truncated_or_empty(clip):
    end = len(clip.rstrip())
    rng = random.Random(0)
    # A cut inside the last field of the last line leaves a whole file, hence the two bytes.
    for at in [1, *rng.sample(range(2, end - 2), 60)]:
        assert reason_of(clip[:at]) in {"truncated", "bad_number"}, at
    assert reason_of(b" \n ") == "empty"


def test_defects_have_their_own_names(clip):
    lines = clip.split(b"\n")

    def changed(at: int, line: bytes) -> bytes:
        return b"\n".join([*lines[:at], line, *lines[at + 1 :]])

    assert reason_of(changed(3, b"24")) == "wrong_joint_count"
    assert reason_of(changed(0, b"abc")) == "bad_count"
    assert reason_of(changed(0, b"-1")) == "bad_count"
    assert reason_of(changed(0, b"9" * 6000)) == "bad_count"
    assert reason_of(changed(0, str(MAX_FRAMES + 1).encode())) == "bad_count"
    assert reason_of(changed(0, b"6")) == "truncated"
    assert reason_of(changed(0, b"4")) == "trailing_data"
    assert reason_of(changed(1, b"1000000000")) == "bad_count"
    for word in (b"nan", b"NaN", b"inf", b"-inf", b"1e999"):
        line = word + b" " + lines[4].split(b" ", 1)[1]
        assert reason_of(changed(4, line)) in {"not_finite", "bad_number"}, word
    assert reason_of(changed(4, b"5e5 " + lines[4].split(b" ", 1)[1])) == "out_of_range"
    assert reason_of(changed(4, b"x " + lines[4].split(b" ", 1)[1])) == "bad_number"
    assert reason_of(changed(4, lines[4].rsplit(b" ", 1)[0])) == "truncated"
    assert reason_of(clip.replace(b"0", b"\0", 1)) == "not_text"
    assert reason_of(b"3\n0\n0\n0\n") == "no_body"
    assert reason_of(b"RIFF\x12\x34 AVI LIST") == "bad_count"


def test_numbers_that_no_one_reads_may_be_infinite(clip):
    lines = clip.split(b"\n")
    fields = lines[4].split(b" ")
    fields[3] = b"-inf"  # depth coordinates of a joint outside the depth image
    lines[4] = b" ".join(fields)
    assert read_skeleton(b"\n".join(lines)).num_frames == 5


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_with_a_reason(data):
    assert reason_of(data)


def test_counts_that_no_file_holds_are_refused_before_they_cost_memory(clip):
    lines = clip.split(b"\n")
    joints = b"".join(line + b"\n" for line in lines[4:29])
    assert reason_of(b"\n".join([str(MAX_FRAMES).encode(), *lines[1:]])) == "truncated"
    assert reason_of(b"1\n" * (MAX_LINES + 1)) == "bad_count"
    bodies = [b"1\n%d 0\n25\n%s" % (i, joints) for i in range(MAX_BODIES + 1)]
    assert reason_of(b"%d\n%s" % (len(bodies), b"".join(bodies))) == "bad_count"
    recording = read_skeleton(b"%d\n%s" % (MAX_BODIES, b"".join(bodies[:-1])))
    assert len(recording.bodies) == MAX_BODIES


def test_a_carriage_return_inside_a_line_is_not_a_line_end(clip):
    lines = clip.split(b"\n")
    # Two joints on a line and an empty line beside it: the number of lines is right.
    lines[4:6] = [lines[4] + b"\r" + lines[5], b""]
    assert reason_of(b"\n".join(lines)) == "not_text"
    assert reason_of(clip.replace(b"\n", b"\r")) == "not_text"


def test_only_plain_digits_count(clip):
    for digit in ("\u0665", "\uff15", "\u2075", "5.0", "+5", "5_"):
        assert reason_of(clip.replace(b"5", digit.encode(), 1)) == "bad_count", digit
    lines = clip.split(b"\n")
    for number in ("\u0661.5", "1_0", "0x10", "1,5", "9" * 5000, ""):
        line = number.encode() + b" " + lines[4].split(b" ", 1)[1]
        reason = reason_of(b"\n".join([*lines[:4], line, *lines[5:]]))
        assert reason in {"bad_number", "not_text", "not_finite", "truncated"}, number


def test_details_stay_short_whatever_the_file_holds(clip):
    lines = clip.split(b"\n")
    for at in (0, 1, 3, 4):
        for piece in (b"9" * 100_000, b"\xff" * 100_000, b"x " * 50_000):
            with pytest.raises(ClipError) as caught:
                read_skeleton(b"\n".join([*lines[:at], piece, *lines[at + 1 :]]))
            assert len(str(caught.value)) < 300


SNIPPETS = [b"\n", b"\r", b" ", b"-", b"nan", b"1e39", b"9999999999", b"\0", b"\xff", b"2", b"_"]


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 20_000),
            st.integers(0, 200),
            st.one_of(st.sampled_from(SNIPPETS), st.binary(max_size=4)),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_changed_file_is_read_or_refused_but_never_crashes(clip, changes):
    data = clip
    for at, num_cut, piece in changes:
        at %= len(data) + 1
        data = data[:at] + piece + data[at + num_cut :]
    try:
        joints = select_bodies(read_skeleton(data), BodySettings(max_noise_frames=1))
    except ClipError:
        return
    assert np.isfinite(joints).all()
    assert joints.shape[1] <= 6
