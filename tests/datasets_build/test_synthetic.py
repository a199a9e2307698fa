"""The demo set: captions say what the bodies do, pictures and files show the same bodies."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from datasets_build import synthetic_skeleton
from datasets_build.joints import NTU_25
from datasets_build.ntu import read_skeleton
from datasets_build.protocols import NTU
from datasets_build.synthetic import (
    ACTIONS,
    Performance,
    action_of_caption,
    describe,
    perform,
    render,
    repetitions_of_caption,
    side_of_caption,
    write_demo_set,
)
from datasets_build.synthetic_motion import FPS
from datasets_build.synthetic_skeleton import observe, skeleton_text
from datasets_build.synthetic_view import CAMERA_ANGLES_RAD, colour_pixels
from datasets_build.text_tables import ClassNames, read_texts

SHARED = Path(__file__).resolve().parents[3] / "shared"
CLIPS_EACH = 6
HAND = {"left": 7, "right": 11}
SHOULDER = {"left": 4, "right": 8}
ANKLE = {"left": 14, "right": 18}
OTHER = {"left": "right", "right": "left"}


def clips_of(action_id: int, count: int = CLIPS_EACH, **ids: int) -> list[Performance]:
    """Seeded clips of one action."""
    return [
        perform(np.random.default_rng([action_id, k]), action_id=action_id, **ids)
        for k in range(count)
    ]


def world(clip: Performance) -> np.ndarray:
    """(M, T, 25, 3) with the floor at y = 0."""
    return clip.camera.to_world(clip.bodies.astype(np.float64))


def person_axes(joints: np.ndarray) -> np.ndarray:
    """(3, 3) rows right, up, forward of a standing person, from (25, 3)."""
    right = joints[16] - joints[12]
    right[1] = 0.0
    right /= np.linalg.norm(right)
    up = np.array([0.0, 1.0, 0.0])
    return np.stack([right, up, np.cross(up, right)])


def num_peaks(values: np.ndarray, low: float, high: float) -> int:
    """How often a curve rises above `high` after having been below `low`."""
    count, armed = 0, True
    for value in values:
        if armed and value > high:
            count, armed = count + 1, False
        elif value < low:
            armed = True
    return count


# ---- captions ----


def test_captions_name_their_action_side_and_count():
    for action_id in ACTIONS:
        for clip in clips_of(action_id):
            text = describe(clip)
            assert action_of_caption(text) == action_id, text
            assert side_of_caption(text) == clip.side, text
            counted = ACTIONS[action_id].max_repetitions is not None
            assert repetitions_of_caption(text) == (clip.repetitions if counted else None), text
            assert text.endswith(f", {clip.speed}." if clip.speed else ".")


def test_captions_follow_the_paper_style():
    clip = clips_of(23, 1)[0]
    said = replace(clip, side="right", repetitions=3, speed="quickly")
    assert describe(said) == "A person waves the right hand three times, quickly."
    assert describe(replace(said, speed=None)) == "A person waves the right hand three times."


def test_sides_and_actions_are_not_read_from_other_words():
    assert side_of_caption("A person points to the left with the right hand.") == "right"
    assert side_of_caption("A person points to the left.") is None
    assert action_of_caption("A person sits down and stands up.") is None
    assert action_of_caption("A person drinks water.") is None
    assert action_of_caption("Two people walk up to each other and hug.") == 55


def test_sides_speeds_and_directions_are_all_drawn_about_equally_often():
    clips = [perform(np.random.default_rng(k), action_id=31) for k in range(150)]
    for values in (
        [clip.side for clip in clips],
        [clip.speed for clip in clips],
        [clip.direction for clip in clips],
    ):
        counts = [values.count(value) for value in set(values)]
        assert min(counts) > 0.55 * len(clips) / len(counts)


# ---- motion ----


@pytest.mark.parametrize("action_id", ACTIONS)
def test_bodies_have_rigid_bones_and_stay_on_the_floor_and_in_the_picture(action_id):
    for clip in clips_of(action_id):
        bodies = clip.bodies
        assert bodies.dtype == np.float32
        assert bodies.shape == (ACTIONS[action_id].num_people, clip.num_frames, 25, 3)
        assert 30 <= clip.num_frames <= 140
        for joint, parent in NTU_25.bones:
            if joint in (21, 22, 23, 24):  # CTR-GCN's hand chain is not the hand's bones
                continue
            length = np.linalg.norm(bodies[:, :, joint] - bodies[:, :, parent], axis=-1)
            assert np.ptp(length, axis=1).max() < 2e-3, NTU_25.joints[joint]
        assert world(clip)[..., 1].min() > 0.0
        pixels = colour_pixels(bodies, width=1, height=1)
        assert (pixels > 0).all()
        assert (pixels < 1).all()
        tallest = np.ptp(pixels[..., 1], axis=2).max()
        assert tallest > 0.4


@pytest.mark.parametrize("action_id", [8, 9, 10, 23, 27, 31])
def test_planted_feet_do_not_slide(action_id):
    for clip in clips_of(action_id):
        ankles = world(clip)[0][:, [14, 18]]
        assert np.ptp(ankles[..., [0, 2]], axis=0).max() < 5e-3


def test_hands_meet_once_a_clap():
    for clip in clips_of(10):
        gap = np.linalg.norm(clip.bodies[0, :, 7] - clip.bodies[0, :, 11], axis=-1)
        assert num_peaks(-gap, -0.15, -0.10) == clip.repetitions
        assert gap.min() < 0.09


def test_the_named_hand_waves_above_its_shoulder_as_often_as_said():
    for clip in clips_of(23):
        joints = world(clip)[0]
        raised = {s: (joints[:, HAND[s], 1] - joints[:, SHOULDER[s], 1]).max() for s in HAND}
        assert raised[clip.side] > 0.1 > raised[OTHER[clip.side]]
        right = person_axes(joints[0].copy())[0]
        reach = (joints[:, HAND[clip.side]] - joints[:, HAND[clip.side] - 2]) @ right
        is_up = joints[:, HAND[clip.side], 1] > joints[:, SHOULDER[clip.side], 1] + 0.1
        outward = (reach if clip.side == "right" else -reach)[is_up]
        middle = 0.5 * (outward.max() + outward.min())  # it starts outside: count the ways in
        assert num_peaks(middle - outward, -0.06, 0.06) == clip.repetitions


def test_the_named_foot_kicks_in_the_named_direction():
    for clip in clips_of(24, 10):
        joints = world(clip)[0]
        foot = joints[:, ANKLE[clip.side]]
        rise = foot[:, 1] - foot[0, 1]
        other = joints[:, ANKLE[OTHER[clip.side]], 1]
        assert rise.max() > 0.25
        assert np.ptp(other) < 0.05
        right, _, forward = (foot[np.argmax(rise)] - foot[0]) @ person_axes(joints[0].copy()).T
        outward = right if clip.side == "right" else -right
        named = {"forward": forward, "sideways": outward}
        assert named[clip.direction] > 0.4
        far = np.linalg.norm((foot - foot[0])[:, [0, 2]], axis=1)
        assert num_peaks(far, 0.3, 0.45) == clip.repetitions


def test_hops_lift_the_named_foot_and_hold_the_other():
    for clip in clips_of(26):
        joints = world(clip)[0]
        foot = joints[:, ANKLE[clip.side], 1] - joints[0, ANKLE[clip.side], 1]
        held = joints[:, ANKLE[OTHER[clip.side]], 1] - joints[:, ANKLE[clip.side], 1]
        assert num_peaks(foot, 0.02, 0.05) == clip.repetitions
        assert (held[foot > 0.05] > 0.2).all()


def test_jumps_lift_both_feet_as_often_as_said():
    for clip in clips_of(27):
        feet = world(clip)[0][:, [14, 18], 1]
        lowest = (feet - feet[0]).min(axis=1)
        assert num_peaks(lowest, 0.02, 0.06) == clip.repetitions


def test_the_named_hand_points_in_the_named_direction():
    for clip in clips_of(31, 12):
        joints = world(clip)[0]
        middle = joints[clip.num_frames // 2]
        arm = middle[HAND[clip.side]] - middle[SHOULDER[clip.side]]
        axes = person_axes(joints[0].copy())
        right, up, forward = axes @ (arm / np.linalg.norm(arm))
        named = {"forward": forward, "up": up, "to the right": right, "to the left": -right}
        assert max(named, key=named.__getitem__) == clip.direction
        rest = middle[HAND[OTHER[clip.side]]] - middle[SHOULDER[OTHER[clip.side]]]
        assert rest[1] < -0.3


def test_sitting_down_lowers_the_hips_and_standing_up_raises_them():
    for action_id, sign in ((8, -1.0), (9, 1.0)):
        for clip in clips_of(action_id):
            hips = world(clip)[0][:, 0, 1]
            assert sign * (hips[-1] - hips[0]) > 0.25
            assert clip.seat is not None
            assert abs(min(hips) - clip.seat[2]) < 0.15


def test_people_who_hug_put_their_hands_behind_each_other_and_walkers_do_not():
    for action_id in (55, 59):
        for clip in clips_of(action_id):
            end = world(clip)[:, -1]
            way = (end[1, 20] - end[0, 20]) * [1.0, 0.0, 1.0]
            distance = np.linalg.norm(way)
            start = world(clip)[:, 0, 20]
            assert np.linalg.norm((start[1] - start[0])[[0, 2]]) > distance + 0.8
            reach = [(end[0, hand] - end[0, 20]) @ way / distance for hand in (7, 11)]
            if action_id == 55:
                assert min(reach) > 0.8 * distance
                assert distance < 0.4
            else:
                assert max(reach) < 0.5 * distance
                assert distance > 0.4


def test_slow_clips_of_a_subject_take_longer_than_quick_ones():
    clips = [perform(np.random.default_rng(k), action_id=9, subject_id=4) for k in range(30)]
    frames = {s: [c.num_frames for c in clips if c.speed == s] for s in ("quickly", None, "slowly")}
    assert max(frames["quickly"]) < np.mean(frames[None]) < min(frames["slowly"])


def test_a_subject_keeps_its_bones_and_another_has_others():
    first, second = clips_of(27, 2, subject_id=5)
    other = clips_of(27, 1, subject_id=6)[0]
    thighs = [np.linalg.norm(c.bodies[0, 0, 13] - c.bodies[0, 0, 12]) for c in (first, second)]
    assert thighs[0] == pytest.approx(thighs[1], abs=1e-4)
    assert abs(np.linalg.norm(other.bodies[0, 0, 13] - other.bodies[0, 0, 12]) - thighs[0]) > 1e-3


def test_three_cameras_see_one_performance():
    seen = [
        perform(
            np.random.default_rng(3), action_id=24, subject_id=1, setup_id=1, camera_id=camera_id
        )
        for camera_id in CAMERA_ANGLES_RAD
    ]
    assert len({describe(clip) for clip in seen}) == 1
    for clip in seen[1:]:
        np.testing.assert_allclose(world(clip), world(seen[0]), atol=1e-5)
        assert np.abs(clip.bodies - seen[0].bodies).max() > 0.1


def test_unknown_action_and_camera_are_refused():
    with pytest.raises(ValueError, match="action_id 7 is not in the demo set"):
        perform(np.random.default_rng(0), action_id=7)
    with pytest.raises(ValueError, match="camera_id 4"):
        perform(np.random.default_rng(0), camera_id=4)


# ---- pictures ----


def test_every_joint_falls_on_the_drawn_figure():
    for action_id in (23, 8, 55):
        clip = clips_of(action_id, 1)[0]
        frames = [0, clip.num_frames // 2, clip.num_frames - 1]
        pictures = []
        for colour in ((250, 30, 30), (30, 30, 250)):
            people = tuple(
                replace(p, shirt=colour, trousers=colour, shoes=colour, skin=colour, hair=colour)
                for p in clip.look.people
            )
            painted = replace(clip, look=replace(clip.look, people=people))
            pictures.append(render(painted, frames, width=480, height=270).astype(int))
        is_figure = np.abs(pictures[0] - pictures[1]).sum(axis=-1) > 40  # (T, H, W)
        assert 0.01 < is_figure.mean() < 0.3
        pixels = colour_pixels(clip.bodies[:, frames], width=480, height=270).astype(int)
        for body in pixels:
            for t, joints in enumerate(body):
                x, y = np.delete(joints, [22, 24], axis=0).T  # thumbs are only a few pixels
                assert is_figure[t, y, x].all()


def test_the_right_hand_is_on_the_left_of_a_picture_from_the_front():
    for clip in clips_of(10, camera_id=2):
        pixels = colour_pixels(clip.bodies[0, 0], width=480, height=270)
        assert pixels[11, 0] < pixels[7, 0]


def test_a_frame_does_not_depend_on_the_frames_drawn_with_it():
    for action_id in (27, 59):
        clip = clips_of(action_id, 1)[0]
        together = render(clip, range(0, clip.num_frames, 5), width=96, height=64)
        alone = np.concatenate(
            [render(clip, [i], width=96, height=64) for i in range(0, clip.num_frames, 5)]
        )
        assert together.dtype == np.uint8
        assert together.shape[1:] == (64, 96, 3)
        np.testing.assert_array_equal(together, alone)
        assert len(np.unique(together, axis=0)) > 5


def test_rendering_nothing_gives_an_empty_array_and_no_supersampling_works():
    clip = clips_of(31, 1)[0]
    assert render(clip, [], width=32, height=18).shape == (0, 18, 32, 3)
    rough = render(clip, [0], width=96, height=64, supersample=1).astype(int)
    fine = render(clip, [0], width=96, height=64).astype(int)
    assert np.abs(rough - fine).mean() < 12
    with pytest.raises(IndexError):
        render(clip, [clip.num_frames], width=32, height=18)


def test_clothes_contrast_with_the_wall():
    for k in range(40):
        look = perform(np.random.default_rng(k)).look
        for person in look.people:
            gap = np.abs(np.array(person.shirt) - np.array(look.wall)).max()
            assert gap > 60


# ---- .skeleton files ----


def parse(text: str) -> tuple[np.ndarray, list[list[str]]]:
    """(T, M, 25, 12) numbers and the body lines; written anew here as a check on the writer."""
    lines = iter(text.split("\r\n"))
    frames, infos = [], []
    for _ in range(int(next(lines))):
        bodies = []
        for _ in range(int(next(lines))):
            infos.append(next(lines).split(" "))
            bodies.append([next(lines).split(" ") for _ in range(int(next(lines)))])
        frames.append(bodies)
    assert list(lines) == [""]
    return np.array(frames, dtype=np.float64), infos


def test_skeleton_files_have_the_fields_of_ntu():
    clip = clips_of(55, 1)[0]
    numbers, infos = parse(skeleton_text(clip, np.random.default_rng(0), width=480, height=270))
    assert numbers.shape == (clip.num_frames, 2, 25, 12)
    assert {len(info) for info in infos} == {10}
    assert len({info[0] for info in infos}) == 2
    pixels = colour_pixels(numbers[..., :3], width=480, height=270)
    np.testing.assert_allclose(numbers[..., 5:7], pixels, atol=1e-3)
    assert set(np.unique(numbers[..., 11])) == {1.0, 2.0}
    size = np.linalg.norm(numbers[..., 7:11], axis=-1)
    leaves = [3, 15, 19, 21, 22, 23, 24]
    assert (size[..., leaves] == 0).all()
    np.testing.assert_allclose(np.delete(size, leaves, axis=-1), 1.0, atol=1e-5)


def test_the_ntu_reader_reads_our_files():
    clip = clips_of(59, 1)[0]
    text = skeleton_text(clip, np.random.default_rng(0), width=480, height=270)
    recording = read_skeleton(text.encode("ascii"))
    assert recording.num_frames == clip.num_frames
    joints, state = observe(clip, np.random.default_rng(0))
    assert len(recording.bodies) == 2
    for track, seen, states in zip(recording.bodies, joints, state, strict=True):
        np.testing.assert_allclose(track.joints, seen, rtol=1e-6)
        np.testing.assert_array_equal(track.tracking, states)


def test_noise_is_a_few_millimetres_and_larger_where_joints_are_inferred():
    errors: dict[int, list[np.ndarray]] = {1: [], 2: []}
    for k, clip in enumerate(clips_of(23, 12)):
        joints, state = observe(clip, np.random.default_rng(k))
        error = np.linalg.norm(joints - clip.bodies, axis=-1)
        for value, found in errors.items():
            found.append(error[state == value])
    tracked, inferred = (np.concatenate(errors[value]) for value in (2, 1))
    assert 0.005 < tracked.mean() < 0.02 < inferred.mean() < 0.08
    assert 0.01 < len(inferred) / (len(tracked) + len(inferred)) < 0.2


def test_bone_orientations_agree_with_a_real_file():
    path = SHARED / "data/ntu/skeletons/S001C001P001R001A001.skeleton"
    if not path.is_file():
        pytest.skip("shared/data/ntu is not here")
    numbers, _ = parse(path.read_bytes().decode())
    ours = synthetic_skeleton._orientations(numbers[..., :3].transpose(1, 0, 2, 3))[0]
    theirs = numbers[:, 0, :, 7:11]
    for joint in (0, 1, 2, 4, 8, 12, 13, 16, 17, 20):  # where Kinect's reference axis is plain
        cosine = np.abs(np.einsum("tc,tc->t", ours[:, joint], theirs[:, joint]))
        assert np.median(cosine) > 0.95, NTU_25.joints[joint]
    # Where one quaternion is zero, so is the other.
    np.testing.assert_array_equal(
        np.abs(ours).sum(axis=(0, 2)) == 0, np.abs(theirs).sum(axis=(0, 2)) == 0
    )


# ---- the set on disk ----

SMALL = {"num_subjects": 3, "width": 96, "height": 54, "action_ids": (59,)}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "demo"
    summary = write_demo_set(folder, workers=1, **SMALL)
    assert (summary.num_clips, summary.num_written) == (9, 9)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_set_has_videos_skeletons_and_truth_that_agree(small_set):
    rows = [json.loads(line) for line in (small_set / "truth.jsonl").read_text().splitlines()]
    ids = [
        f"S{1 + (p - 1) % 4:03d}C{c:03d}P{p:03d}R001A{a:03d}"
        for p, a, c in itertools.product((1, 2, 3), (59,), (1, 2, 3))
    ]
    assert [row["sample_id"] for row in rows] == sorted(ids)
    for row in rows:
        with av.open(str(small_set / "videos" / f"{row['sample_id']}_rgb.avi")) as video:
            stream = video.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", FPS)
            assert sum(1 for _ in video.decode(video=0)) == row["num_frames"]
        text = (small_set / "skeletons" / f"{row['sample_id']}.skeleton").read_bytes().decode()
        numbers, _ = parse(text)
        assert numbers.shape[:2] == (row["num_frames"], row["num_people"])
        assert action_of_caption(row["caption"]) == row["action_id"]
    by_take = {(r["sample_id"][8:], r["caption"]) for r in rows}
    assert len(by_take) == 3


def test_the_verbs_of_a_set_are_a_table_of_texts_by_class(small_set):
    (row,) = read_texts(small_set / "synonyms.csv", ClassNames.of(NTU)).texts
    assert (row.key, row.text) == (("class", 59), "walk towards")


def test_bytes_do_not_depend_on_the_number_of_workers(small_set, tmp_path):
    write_demo_set(tmp_path / "again", workers=2, **SMALL)
    assert contents(tmp_path / "again") == contents(small_set)


def test_rerun_makes_only_what_is_missing_and_makes_it_the_same(small_set):
    before = contents(small_set)
    (small_set / "videos" / "S001C002P001R001A059_rgb.avi").unlink()
    summary = write_demo_set(small_set, workers=1, **SMALL)
    assert (summary.num_clips, summary.num_written) == (9, 1)
    assert contents(small_set) == before


def test_another_request_is_refused_and_named(small_set, tmp_path):
    with pytest.raises(ValueError, match=r"other values of seed; choose another folder"):
        write_demo_set(small_set, workers=1, seed=1, **SMALL)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no demo-set"):
        write_demo_set(tmp_path, workers=1, **SMALL)


def test_bad_sizes_are_refused_together_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"num_subjects is 2.*97x54.*action_ids \[5\]"):
        write_demo_set(tmp_path / "x", num_subjects=2, width=97, height=54, action_ids=(5,))
    assert not (tmp_path / "x").exists()
