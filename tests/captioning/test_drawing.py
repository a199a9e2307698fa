"""Tests of captioning/drawing.py, figures.py and figure_view.py."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from captioning.decode_pool import DecodePool
from captioning.drawing import collect_skeletons, draw_frames, probe_skeleton
from captioning.frames import VideoError
from datasets_build.joints import NTU_25
from datasets_build.synthetic_body import Pose, actor_of_subject, place

SHARED = Path(__file__).resolve().parents[3] / "shared"
SIZE = {"height": 128, "width": 128}


def stand(num_frames: int = 6, *, raised: str | None = None, x: float = 0.0, z: float = 3.0):
    """(T, 25, 3) a person who faces the sensor, one arm raised sideways if asked."""
    pose = Pose(actor_of_subject(1), np.arange(num_frames) / 30, np.random.default_rng(0))
    if raised is not None:
        pose.upper[raised] = pose.arm(raised, 1.0, 0.3, 0.0)
        pose.fore[raised] = pose.arm(raised, 1.0, 0.6, 0.0)
    return place(pose.joints(), x, z, 0.0) - [0.0, 1.0, 0.0]


def write_ntu(path: Path, num_frames: int, bodies: Sequence[tuple[Sequence[int], np.ndarray]]):
    """A .skeleton file: for each body the frames that show it, and its joints there."""
    lines = [str(num_frames)]
    for frame in range(num_frames):
        seen = [
            (i, joints[list(frames).index(frame)])
            for i, (frames, joints) in enumerate(bodies)
            if frame in frames
        ]
        lines.append(str(len(seen)))
        for i, pose in seen:
            lines += [f"7205{i} 0 1 1 1 1 0 0.02 0.05 2", "25"]
            lines += [f"{a:.6f} {b:.6f} {c:.6f} 1 1 1 1 0 0 0 0 2" for a, b, c in pose]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_ucla(path: Path, joints: np.ndarray) -> str:
    """A NW-UCLA clip of the first twenty NTU joints, which have nearly the same places."""
    order = [*range(20)]
    order[2] = NTU_25.joints.index("spine at shoulders")
    frames = joints[:, order].round(5).tolist()
    path.write_text(json.dumps({"file_name": path.stem, "skeletons": frames, "label": 1}))
    return str(path)


def drawn(path: str, *, height: int = 128, width: int = 128) -> np.ndarray:
    """All frames, (T, H, W, C) as whole numbers."""
    num_frames = probe_skeleton(path).num_frames
    assert num_frames is not None
    pictures = draw_frames(path, range(num_frames), height=height, width=width)
    return pictures.transpose(0, 2, 3, 1).astype(int)


def blue(pictures: np.ndarray) -> np.ndarray:
    """(..., H, W) where the first body's shirt is."""
    return pictures[..., 2] - pictures[..., 0] > 60


def red(pictures: np.ndarray) -> np.ndarray:
    """(..., H, W) where the second body's shirt is."""
    return pictures[..., 0] - pictures[..., 2] > 90


@pytest.fixture
def person(tmp_path: Path) -> str:
    """The path of a clip of one standing person, six frames."""
    return write_ntu(tmp_path / "S001C001P001R001A023.skeleton", 6, [(range(6), stand())])


# ---- files ----


def test_skeletons_of_folders_and_zips_are_found_with_ids_and_sorted(tmp_path: Path):
    folder = tmp_path / "skeletons"
    (folder / "deep").mkdir(parents=True)
    for name in ("deep/S002C001P003R001A002", "S001C001P003R002A001", "other"):
        write_ntu(folder / f"{name}.skeleton", 2, [(range(2), stand(2))])
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(folder / "other.skeleton", "in/S003C001P003R001A003.skeleton")
    found = collect_skeletons([str(folder), str(archive)])
    assert [(v.sample_id, v.path) for v in found] == [
        ("S001C001P003R002A001", str(folder / "S001C001P003R002A001.skeleton")),
        ("S002C001P003R001A002", str(folder / "deep/S002C001P003R001A002.skeleton")),
        ("S003C001P003R001A003", f"{archive}!in/S003C001P003R001A003.skeleton"),
        ("other", str(folder / "other.skeleton")),
    ]
    chosen = collect_skeletons([str(folder), str(archive)], filters=["action=2-3"], limit=1)
    assert [v.sample_id for v in chosen] == ["S002C001P003R001A002"]
    assert len(collect_skeletons([str(folder)], pilot=2)) == 2


def test_two_files_with_one_sample_id_are_refused(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_ntu(tmp_path / folder / "S001C001P001R001A001.skeleton", 2, [(range(2), stand(2))])
    with pytest.raises(ValueError, match="both have the sample_id 'S001C001P001R001A001'"):
        collect_skeletons([str(tmp_path)])


def test_a_probe_counts_every_frame_of_the_recording(tmp_path: Path):
    path = write_ntu(tmp_path / "S001C001P001R001A001.skeleton", 9, [(range(2, 6), stand(4))])
    probe = probe_skeleton(path)
    assert (probe.problem_status, probe.codec, probe.num_frames) == (None, "ntu-skeleton", 9)
    assert probe.fps == 30
    assert probe.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_member_of_a_zip_is_probed_and_drawn_like_the_file_in_a_folder(tmp_path: Path):
    path = write_ucla(tmp_path / "a01_s01_e00_v01.json", stand(3))
    archive = tmp_path / "odd ! name.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.write(path, "all_sqe/a01_s01_e00_v01.json")
    (video,) = collect_skeletons([str(archive)])
    probe = probe_skeleton(video.path)
    assert probe == probe_skeleton(path)
    assert (probe.codec, probe.num_frames, probe.fps) == ("nw-ucla-json", 3, 10)
    assert np.array_equal(
        draw_frames(video.path, [0, 2], **SIZE), draw_frames(path, [0, 2], **SIZE)
    )


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("S001C001P001R001A001.skeleton", b"", "empty"),
        ("S001C001P001R001A001.skeleton", b"3\n1\n", "truncated"),
        ("a01_s01_e00_v01.json", b"{", "not_json"),
        ("clip.txt", b"3", "bad_name"),
        ("missing.skeleton", None, "the file cannot be read: FileNotFoundError"),
        ("archive.zip!missing.skeleton", None, "the file cannot be read: FileNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_drawn_is_a_reason(
    tmp_path: Path, name: str, content: bytes | None, reason: str
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    probe = probe_skeleton(str(path))
    assert probe.problem_status == "decode_error"
    assert probe.problem is not None
    assert probe.problem.startswith(reason)
    assert str(tmp_path) not in probe.problem
    with pytest.raises(VideoError, match=reason):
        draw_frames(str(path), [0, 1], **SIZE)


def test_a_recording_of_nobody_is_a_reason(tmp_path: Path):
    nobody = write_ucla(tmp_path / "a01_s01_e00_v01.json", np.zeros((4, 25, 3)))
    assert probe_skeleton(nobody).problem == "no_body_left: no frame shows a body"
    also = write_ntu(tmp_path / "x.skeleton", 3, [(range(3), np.zeros((3, 25, 3)))])
    assert probe_skeleton(also).problem == "no_body_left: no frame shows a body"


def test_frames_beyond_the_recording_or_in_disorder_are_refused(person: str):
    with pytest.raises(VideoError, match="frame 6 was planned, but the skeletons have only 6"):
        draw_frames(person, [0, 6], **SIZE)
    with pytest.raises(ValueError, match="must not decrease"):
        draw_frames(person, [2, 1], **SIZE)


# ---- pictures ----


def test_frames_come_in_the_wanted_shape_and_repeats_are_repeated(person: str):
    pictures = draw_frames(person, [0, 0, 3, 5], height=64, width=96)
    assert (pictures.shape, pictures.dtype) == ((4, 3, 64, 96), np.uint8)
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])


def test_a_frame_does_not_depend_on_which_others_are_drawn_or_in_which_process(person: str):
    every = draw_frames(person, range(6), **SIZE)
    with DecodePool(1, timeout_s=60) as pool:
        outcome = pool.take(pool.submit(partial(draw_frames, person, (1, 4), **SIZE)))
    assert outcome.problem is None
    assert np.array_equal(outcome.value, every[[1, 4]])


def test_a_frame_that_shows_nobody_is_the_empty_room(tmp_path: Path):
    frames = [3, 4, 7, 8]
    joints = stand(4)
    path = write_ntu(tmp_path / "S001C001P001R001A001.skeleton", 11, [(frames, joints)])
    pictures = drawn(path)
    room = pictures[0]
    shown = [t for t in range(11) if blue(pictures[t]).any()]
    assert shown == frames
    assert all(np.array_equal(pictures[t], room) for t in range(11) if t not in frames)


def test_bodies_stand_at_their_own_frames_when_a_noise_body_comes_first(tmp_path: Path):
    noise, actor = stand(3, x=1.0), stand(20)
    path = write_ntu(
        tmp_path / "S001C001P001R001A001.skeleton",
        30,
        [(range(1, 4), noise), (range(8, 28), actor)],
    )
    pictures = drawn(path, height=64, width=64)
    assert [t for t in range(30) if blue(pictures[t]).any()] == list(range(8, 28))


def test_a_raised_right_arm_is_dark_and_on_the_left_of_who_faces_the_camera(tmp_path: Path):
    def sides(raised: str) -> tuple[int, int, float]:
        """Shirt pixels left and right of the trunk, and how bright the arm is."""
        path = write_ntu(tmp_path / "x.skeleton", 4, [(range(4), stand(4, raised=raised))])
        picture = drawn(path)[2]
        shirt = blue(picture)
        middle = int(np.median(np.nonzero(shirt)[1]))
        left, right = shirt[:, : middle - 20], shirt[:, middle + 20 :]
        arm = picture[:, : middle - 20][left] if raised == "right" else None
        if arm is None:
            arm = picture[:, middle + 20 :][right]
        return int(left.sum()), int(right.sum()), float(arm.mean())

    left, right, dark = sides("right")
    assert left > 5 * max(right, 10)
    left, right, light = sides("left")
    assert right > 5 * max(left, 10)
    assert light > dark + 50


def test_two_bodies_have_two_colours_and_the_nearer_one_hides_the_other(tmp_path: Path):
    near, far = stand(20, z=2.5), stand(20, x=0.1, z=4.0)
    near[:, :, 0] += np.linspace(0, 0.3, 20)[:, None]  # moves more, so it is the first body

    def counts(second: np.ndarray) -> tuple[int, int]:
        path = write_ntu(tmp_path / "x.skeleton", 20, [(range(20), near), (range(20), second)])
        picture = drawn(path)[0]
        return int(blue(picture).sum()), int(red(picture).sum())

    beside = counts(far + np.array([1.5, 0.0, 0.0]))
    assert min(beside) > 100
    behind = counts(far)
    assert behind[0] > 100
    assert behind[1] < 0.3 * beside[1]


def test_the_whole_motion_stays_in_a_view_that_stands_still(tmp_path: Path):
    way = np.linspace(-1.2, 1.2, 16)
    joints = stand(16) + np.stack([way, 0 * way, 0.5 * way], axis=1)[:, None]
    pictures = drawn(write_ntu(tmp_path / "x.skeleton", 16, [(range(16), joints)]))
    shirt = blue(pictures)
    assert not shirt[:, [0, -1]].any()
    assert not shirt[:, :, [0, -1]].any()
    columns = [np.nonzero(mask)[1].mean() for mask in shirt]
    # The sensor's left, where x grows, is the picture's left.
    assert columns == sorted(columns, reverse=True)
    assert columns[0] - columns[-1] > 64
    # A corner shows the same wall in every frame.
    assert (pictures[:, :8, :8] == pictures[0, :8, :8]).all()


def test_another_shape_of_picture_stretches_nothing(person: str):
    def shape(pictures: np.ndarray) -> tuple[int, int]:
        rows, columns = np.nonzero(blue(pictures[0]))
        return int(np.ptp(rows)), int(np.ptp(columns))

    square = shape(drawn(person, height=160, width=160))
    wide = shape(drawn(person, height=160, width=288))
    assert square == wide


def test_both_layouts_draw_the_same_person_alike(tmp_path: Path):
    ntu = drawn(write_ntu(tmp_path / "x.skeleton", 4, [(range(4), stand(4))]))
    ucla = drawn(write_ucla(tmp_path / "a01_s01_e00_v01.json", stand(4)))
    overlap = (blue(ntu) & blue(ucla)).sum() / (blue(ntu) | blue(ucla)).sum()
    assert overlap > 0.8


def test_one_frame_unknown_joints_and_a_wild_joint_are_drawn(tmp_path: Path):
    joints = stand(1)
    joints[0, 14:16] = 0.0  # an ankle and a foot in the sensor's own place: not known
    known = blue(drawn(write_ucla(tmp_path / "a01_s01_e00_v01.json", joints)))
    assert known.sum() > 300
    wild = stand(300)
    wild[150, 7] = [900.0, -900.0, 0.01]  # one slip in 300 frames does not make anybody small
    path = write_ntu(tmp_path / "x.skeleton", 300, [(range(300), wild)])
    assert (
        blue(draw_frames(path, [0, 150], **SIZE).transpose(0, 2, 3, 1).astype(int))[0].sum() > 300
    )


# ---- real recordings ----


def test_real_ntu_recordings_show_their_people():
    folder = SHARED / "data/ntu/skeletons"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; it belongs to NTU RGB+D and is not in the repository")
    videos = {video.sample_id: video.path for video in collect_skeletons([str(folder)])}
    handshake = draw_frames(videos["S001C003P008R002A058"], [0, 40], **SIZE)
    pictures = handshake.transpose(0, 2, 3, 1).astype(int)
    assert blue(pictures).sum(axis=(1, 2)).min() > 200
    assert red(pictures).sum(axis=(1, 2)).min() > 200
    drinks = drawn(videos["S001C001P001R001A001"])
    assert len(drinks) == 103
    assert blue(drinks).sum(axis=(1, 2)).min() > 200
    assert not red(drinks).sum(axis=(1, 2)).max() > 200


def test_every_nw_ucla_recording_can_be_drawn():
    archive = SHARED / "data/nw-ucla/all_sqe.zip"
    if not archive.is_file():
        pytest.skip(f"{archive} is not here; NW-UCLA is not in the repository")
    videos = collect_skeletons([str(archive)])
    assert len(videos) == 1484
    for video in videos[::40]:
        probe = probe_skeleton(video.path)
        assert probe.problem is None
        assert probe.num_frames is not None
        last = draw_frames(video.path, [0, probe.num_frames - 1], height=64, width=64)
        assert blue(last.transpose(0, 2, 3, 1).astype(int)).sum(axis=(1, 2)).min() > 20
