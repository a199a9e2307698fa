"""Body selection: equal to CTR-GCN's arrays on the golden sequences, and each rule by hand."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest

from datasets_build.bodies import BodySettings, centred, select_bodies, with_second_body
from datasets_build.ntu import read_skeleton
from datasets_build.sources import ClipError

DEFAULT = BodySettings()


def test_all_golden_sequences_equal_ctrgcns_arrays(shared):
    expected = np.load(shared / "data/golden/ntu_ctrgcn_preprocessed.npz")
    num_compared = 0
    with tarfile.open(shared / "data/golden/ntu_skeletons.tar.xz") as tar:
        for member in tar:
            if not member.isfile():
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            joints = select_bodies(read_skeleton(stream.read()), DEFAULT)
            ours = with_second_body(centred(joints, as_original=True), "zeros")  # (2, T, 25, 3)
            ours = ours.transpose(1, 0, 2, 3).reshape(-1, 150)
            theirs = expected[member.name.rsplit("/", 1)[-1].removesuffix(".skeleton")]
            assert ours.shape == theirs.shape, member.name
            assert np.abs(ours - theirs).max() <= 1e-6, member.name
            num_compared += 1
    assert num_compared == len(expected.files) == 33


@pytest.fixture
def recording(body, skeleton_text):
    """Builds a recording from (frames, way in metres) by body id."""

    def make(num_frames: int, tracks: dict[str, tuple[list[int], float]]):
        rng = np.random.default_rng(3)
        bodies = {i: (frames, body(rng, len(frames), way)) for i, (frames, way) in tracks.items()}
        return read_skeleton(skeleton_text(num_frames, bodies))

    return make


def test_single_body_skips_denoising_however_short(recording):
    clip = recording(3, {"1": ([0, 1, 2], 0.0)})
    joints = select_bodies(clip, DEFAULT)
    assert np.array_equal(joints[0], clip.bodies[0].joints)


def test_frames_without_a_body_are_dropped_unless_gaps_are_kept(recording):
    clip = recording(9, {"1": ([2, 3, 6, 7], 1.0)})
    assert select_bodies(clip, DEFAULT).shape == (1, 4, 25, 3)
    kept = select_bodies(clip, BodySettings(keep_gaps=True))
    assert kept.shape == (1, 6, 25, 3)
    assert kept.any(axis=(0, 2, 3)).tolist() == [True, True, False, False, True, True]


def test_eleven_frames_are_noise_and_twelve_are_not(recording):
    short = recording(30, {"1": (list(range(30)), 1.0), "2": (list(range(5, 16)), 1.0)})
    long = recording(30, {"1": (list(range(30)), 1.0), "2": (list(range(5, 17)), 1.0)})
    assert select_bodies(short, DEFAULT).shape[0] == 1
    assert select_bodies(long, DEFAULT).shape[0] == 2


def test_frames_that_only_noise_showed_are_dropped(recording):
    clip = recording(30, {"1": (list(range(20)), 1.0), "2": (list(range(20, 30)), 1.0)})
    assert select_bodies(clip, DEFAULT).shape == (1, 20, 25, 3)


def test_the_body_that_moves_more_comes_first(recording):
    clip = recording(20, {"1": (list(range(20)), 0.1), "2": (list(range(20)), 2.0)})
    joints = select_bodies(clip, DEFAULT)
    assert np.array_equal(joints[0], clip.bodies[1].joints)
    assert np.array_equal(joints[1], clip.bodies[0].joints)


def test_a_body_wider_than_high_is_dropped_but_never_the_last_one(body, skeleton_text):
    rng = np.random.default_rng(5)
    wide = body(rng, 20, 0.5)[..., [1, 0, 2]]  # lying: x and y exchanged
    high = body(rng, 20, 0.1)
    both = read_skeleton(skeleton_text(20, {"1": (range(20), wide), "2": (range(20), high)}))
    joints = select_bodies(both, DEFAULT)
    assert np.array_equal(joints, both.bodies[1].joints[None])
    two_wide = read_skeleton(skeleton_text(20, {"1": (range(20), wide), "2": (range(20), wide)}))
    assert np.array_equal(select_bodies(two_wide, DEFAULT), two_wide.bodies[1].joints[None])


def test_a_body_that_continues_another_is_merged_into_it(recording):
    tracks = {"1": (list(range(20)), 2.0), "2": (list(range(20, 40)), 0.5)}
    clip = recording(40, tracks)
    joints = select_bodies(clip, DEFAULT)
    assert joints.shape == (2, 40, 25, 3)
    assert np.array_equal(joints[0, :20], clip.bodies[0].joints)
    assert np.array_equal(joints[0, 20:], clip.bodies[1].joints)
    assert not joints[1].any()


def test_a_body_that_returns_is_moved_together_unless_gaps_are_kept(recording):
    returns = [*range(0, 10), *range(20, 30)]
    clip = recording(30, {"1": (list(range(30)), 2.0), "2": (returns, 0.2)})
    compact = select_bodies(clip, DEFAULT)[1].any(axis=(1, 2))
    in_time = select_bodies(clip, BodySettings(keep_gaps=True))[1].any(axis=(1, 2))
    assert np.flatnonzero(compact).tolist() == list(range(20))
    assert np.flatnonzero(in_time).tolist() == returns


def test_nothing_left_is_an_error_with_a_name(recording):
    clip = recording(8, {"1": (list(range(8)), 1.0), "2": (list(range(8)), 1.0)})
    with pytest.raises(ClipError, match="no_body_left"):
        select_bodies(clip, DEFAULT)


def test_centring_puts_the_first_seen_spine_at_zero_and_keeps_absent_frames_zero():
    joints = np.random.default_rng(0).uniform(1, 2, (2, 4, 25, 3)).astype(np.float32)
    joints[0, 0] = 0
    joints[1, 2] = 0
    result = centred(joints)
    assert not result[0, 0].any()
    assert not result[1, 2].any()
    assert result[0, 1, 1].tolist() == [0, 0, 0]
    assert np.array_equal(result[1, 3], joints[1, 3] - joints[0, 1, 1])
    assert result.dtype == np.float32


def test_the_original_puts_back_frames_of_two_bodies_only_and_those_that_sum_to_zero():
    """seq_transformation.py: `sum(axis=1) == 0`, looked at where there are two actors."""
    one = np.arange(1, 4 * 25 * 3 + 1, dtype=np.float32).reshape(1, 4, 25, 3)
    one[0, 2] = 0
    origin = one[0, 0, 1]
    assert np.array_equal(centred(one, as_original=True)[0, 2], np.tile(-origin, (25, 1)))
    two = np.concatenate([one, one])
    two[1, 3] = 1
    two[1, 3, :, 0] = -2  # sums to zero without being absent
    result = centred(two, as_original=True)
    assert not result[:, 2].any()
    assert not result[1, 3].any()
    assert centred(two)[1, 3].any()


def test_bodies_of_zeros_alone_are_nobody(recording, skeleton_text):
    zeros = np.zeros((20, 25, 3))
    for ids in (["1"], ["1", "2"]):
        data = skeleton_text(20, {body_id: (range(20), zeros) for body_id in ids})
        with pytest.raises(ClipError) as caught:
            select_bodies(read_skeleton(data), DEFAULT)
        assert caught.value.reason == "no_body_left"


def test_an_id_that_stands_twice_in_a_frame_is_refused_with_and_without_gaps(body, skeleton_text):
    joints = body(np.random.default_rng(0), 20, 1.0)
    lines = skeleton_text(20, {"1": (range(20), joints), "2": (range(20), joints)})
    recording = read_skeleton(lines.replace(b"\n2 0 1", b"\n1 0 1"))
    for keep_gaps in (False, True):
        with pytest.raises(ClipError) as caught:
            select_bodies(recording, BodySettings(keep_gaps=keep_gaps))
        assert caught.value.reason == "body_repeated"


def test_centring_leaves_an_empty_clip_alone():
    assert not centred(np.zeros((1, 3, 25, 3), np.float32)).any()


def test_second_body_is_zeros_or_a_copy():
    joints = np.ones((1, 2, 25, 3), np.float32)
    assert with_second_body(joints, "copy")[1].all()
    assert not with_second_body(joints, "zeros")[1].any()
    two = np.concatenate([joints, joints])
    assert with_second_body(two, "zeros") is two
