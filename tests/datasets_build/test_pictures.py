"""Pictures of clips: what is drawn where, in which colour, and that films keep the clip's time."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from datasets_build.joints import COCO_17, NTU_25, UCLA_20, Skeleton
from datasets_build.pictures import STRIP_WIDTH, draw_strip, write_animation

LEFT, RIGHT, MIDDLE = (217, 95, 2), (28, 98, 178), (70, 70, 78)
LIGHT_LEFT = (250, 176, 108)
PAPER, RULE = (255, 255, 255), (226, 226, 230)
HEADER = 40  # title and legend

# A layout of one's own, as a laboratory with MediaPipe has it.
OWN_33 = Skeleton(
    name="own-33",
    joints=("nose", *(f"{s} p{n}" for n in range(16) for s in ("left", "right"))),
    parents=(0, 0, 0, *range(1, 31)),
    centre=0,
    num_bodies=1,
)


def standing(skeleton: Skeleton, num_frames: int = 8, *, x: float = 0.0) -> np.ndarray:
    """(1, T, V, C): upright before the sensor, lefts at larger x, a small walk to the right."""
    clip = np.zeros((1, num_frames, skeleton.num_joints, skeleton.num_channels), np.float32)
    rows = np.linspace(0.8, -0.8, skeleton.num_joints)
    for joint, name in enumerate(skeleton.joints):
        side = {"left": 0.3, "right": -0.3}.get(name.split()[0], 0.0)
        place = [x + side, rows[joint], 3.0]
        if skeleton.joint_dims == 2:
            place = [960 + 500 * place[0], 540 - 500 * place[1]]
        clip[0, :, joint, : skeleton.joint_dims] = place
    clip[0, :, :, 0] += np.linspace(0, 0.5, num_frames)[:, None] * (
        1 if skeleton.joint_dims == 3 else 500
    )
    if skeleton.has_score:
        clip[..., -1] = 0.9
    return clip


def places(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """(number, 2) rows and columns of a colour below the title."""
    found = np.argwhere((np.asarray(image) == colour).all(axis=-1))
    return found[found[:, 0] >= HEADER]


@pytest.mark.parametrize("skeleton", [NTU_25, UCLA_20, COCO_17, OWN_33], ids=lambda s: s.name)
def test_left_and_right_have_their_colours_and_up_is_up(skeleton: Skeleton) -> None:
    image = draw_strip(standing(skeleton, 1), skeleton, title="one pose")
    left, right, middle = (places(image, colour) for colour in (LEFT, RIGHT, MIDDLE))
    assert left[:, 1].mean() > right[:, 1].mean() + 50  # x runs to the right
    assert len(middle)
    raised = standing(skeleton, 1)
    head = skeleton.joints.index("nose" if "nose" in skeleton.joints else "head")
    raised[0, 0, head, 1] += 1.0 if skeleton.joint_dims == 3 else -500.0
    top = places(draw_strip(raised, skeleton, title=""), MIDDLE)
    assert top[:, 0].min() == HEADER + 14 - 2  # the raised joint is the highest thing drawn
    assert abs(top[0, 1] - STRIP_WIDTH / 2) < 5


@pytest.mark.parametrize("skeleton", [NTU_25, COCO_17], ids=lambda s: s.name)
@pytest.mark.parametrize("distance", [0.0, 2.5])
def test_nothing_is_clipped_and_one_scale_holds_for_all_poses(
    skeleton: Skeleton, distance: float
) -> None:
    one = standing(skeleton)
    other = standing(skeleton, x=distance) if distance else np.zeros_like(one)
    clip = np.concatenate([one, other])
    # One pose reaches further out than the others.
    clip[0, 3, 0, 0] += 0.4 if skeleton.joint_dims == 3 else 200
    image = draw_strip(clip, skeleton, title="S001C001P001R001A001")
    assert image.width == STRIP_WIDTH
    pixels = np.asarray(image)
    num_rows = 2 if distance else 1  # pairs are small in one row
    columns, height = 8 // num_rows, (image.height - HEADER) // num_rows
    panels = pixels[HEADER:].reshape(num_rows, height, columns, STRIP_WIDTH // columns, 3)
    panels = panels.transpose(0, 2, 1, 3, 4).reshape(8, height, -1, 3)
    figures = panels[:, : height - 24]  # the frame numbers stand below
    is_drawn = (figures != PAPER).any(-1) & (figures != RULE).any(-1)
    assert is_drawn.any(axis=(1, 2)).all()
    edge = 14 - 4  # the margin without the line's own width
    for border in (is_drawn[:, :edge], is_drawn[:, :, :edge], is_drawn[:, :, -edge:]):
        assert not border.any()
    heights = [np.ptp(np.flatnonzero(panel.any(axis=1))) for panel in is_drawn]
    assert np.ptp(heights) <= 1


def test_few_frames_are_shown_once_each() -> None:
    image = draw_strip(standing(NTU_25, 3), NTU_25, title="")
    columns = set(places(image, RULE)[:, 1].tolist())
    assert columns == {400, 800}


def test_a_body_that_is_not_seen_is_not_drawn() -> None:
    one = standing(NTU_25)
    absent = np.concatenate([one, np.zeros_like(one)])
    alone, with_absent = (draw_strip(clip, NTU_25, title="t") for clip in (one, absent))
    assert np.array_equal(np.asarray(alone), np.asarray(with_absent))
    both = draw_strip(np.concatenate([one, standing(NTU_25, x=1)]), NTU_25, title="t")
    assert not len(places(alone, LIGHT_LEFT))
    assert len(places(both, LIGHT_LEFT)) > 100
    # Frames in which nobody is seen are not among the poses.
    one[:, :6] = 0
    image = draw_strip(one, NTU_25, title="")
    assert set(places(image, RULE)[:, 1].tolist()) == {600}


def test_a_joint_that_is_not_known_is_left_out_with_its_bones() -> None:
    clip = standing(COCO_17, 1)
    clip[0, 0, COCO_17.joints.index("left wrist"), 2] = 0  # its score
    clip[0, 0, COCO_17.joints.index("left wrist"), 0] = 5000  # would make everything tiny
    image = draw_strip(clip, COCO_17, title="")
    assert np.ptp(places(image, LEFT)[:, 0]) > 250
    # Around a body's own middle (as CTR-GCN's arrays are) zeros are a place.
    raw = standing(NTU_25, 1)
    raw[..., 2] += np.linspace(0, 0.2, 25, dtype=np.float32)
    centred = raw - raw[:, :1, 1:2]
    assert not centred[0, 0, 1].any()
    spines = [places(draw_strip(one, NTU_25, title=""), MIDDLE) for one in (raw, centred)]
    assert abs(len(spines[0]) - len(spines[1])) < 0.02 * len(spines[0])
    assert abs(np.ptp(spines[0][:, 0]) - np.ptp(spines[1][:, 0])) <= 1


def test_a_long_title_stays_clear_of_the_legend() -> None:
    clip = standing(NTU_25, 2)
    without, with_title = (
        np.asarray(draw_strip(clip, NTU_25, title=t))[:HEADER] for t in ("", "many words " * 40)
    )
    legend = np.flatnonzero((without != PAPER).any(axis=(0, 2))).min()
    assert np.array_equal(without[:, legend - 10 :], with_title[:, legend - 10 :])
    assert (with_title[:, : legend - 20] != PAPER).any()


@pytest.mark.parametrize(("fps", "every"), [(30.0, 1), (10.0, 1), (100.0, 2)])
def test_a_gif_takes_as_long_as_the_clip(tmp_path: Path, fps: float, every: int) -> None:
    clip = standing(NTU_25, 31)
    path = tmp_path / "clip.gif"
    write_animation(path, clip, NTU_25, title="id", caption="class", fps=fps)
    with Image.open(path) as film:
        assert film.n_frames == -(-31 // every)
        times = []
        for frame in range(film.n_frames):
            film.seek(frame)
            times.append(film.info["duration"])
        assert film.info["loop"] == 0
    assert abs(sum(times) - 1000 * every * len(times) / fps) <= 5
    assert min(times) >= 20  # viewers slow down shorter ones
    assert [path.name for path in tmp_path.iterdir()] == ["clip.gif"]


def test_an_mp4_holds_every_frame_at_its_rate(tmp_path: Path) -> None:
    clip = standing(UCLA_20, 12)
    write_animation(tmp_path / "a.MP4", clip, UCLA_20, title="id", caption="class", fps=10)
    with av.open(tmp_path / "a.MP4") as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.average_rate, stream.pix_fmt, stream.codec.name) == (10, "yuv420p", "h264")
    assert len(frames) == 12
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    # The camera stands still: who walks to the right comes out further right.
    first, last = (
        (frame.min(axis=2) < 120)[70:-60].nonzero()[1] for frame in (frames[0], frames[-1])
    )
    assert last.mean() > first.mean() + 30


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    clip = standing(NTU_25)
    film = {"title": "", "caption": "", "fps": 30.0}
    with pytest.raises(ValueError, match=r"ends in \.gif or \.mp4"):
        write_animation(tmp_path / "a.avi", clip, NTU_25, **film)
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="frames a second"):
            write_animation(tmp_path / "a.gif", clip, NTU_25, **{**film, "fps": fps})
    with pytest.raises(ValueError, match="no frame of this clip shows a body"):
        draw_strip(np.zeros_like(clip), NTU_25, title="")
    with pytest.raises(ValueError, match="no frame of this clip shows a body"):
        write_animation(tmp_path / "a.gif", np.zeros_like(clip), NTU_25, **film)
    with pytest.raises(ValueError, match="ucla-20"):
        draw_strip(clip, UCLA_20, title="")
    assert not list(tmp_path.iterdir())
