"""Pictures of a clip: a strip of poses side by side, and an animation (GIF or MP4), of any layout.

Nothing is turned or mirrored: 3-D joints are seen along z with x to the right and y up, 2-D joints
lie as in their picture (y down). Left and right have colours of their own, told by the joints'
names; bodies after the first wear lighter tones. One picture has one scale, which holds all of it.

Letters: M bodies, T frames, V joints, C channels, P poses drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from datasets_build.joints import Skeleton
from datasets_build.manifest import write_bytes_atomic
from datasets_build.protocols import NTU, NW_UCLA

Floats = NDArray[np.float32]
Colour = tuple[int, int, int]

ANIMATION_SUFFIXES = (".gif", ".mp4")
# Frames a second that clips are shown at. NW-UCLA's files hold chosen frames and no times; with 10
# people walk as people do.
PLAYED_FPS = {NTU: 30.0, NW_UCLA: 10.0}
OTHER_FPS = 30.0  # our choice, for recordings of which nothing is known

# our choice, all of them: in pixels, made for a page 1200 wide
STRIP_WIDTH = 1200
_STRIP_FIGURE_HEIGHT = 340  # the most that one row of poses is high
_SECOND_ROW_PAYS = 1.5  # where it makes the figures that much larger
_ANIMATION_WIDTHS = (360, 720)
_ANIMATION_FIGURE_HEIGHT = 460
_MARGIN = 14  # around poses and texts
_HEADER, _FOOTER = 40, 24  # room for the title above and the frame numbers below
_FINER = 2  # lines are drawn this much larger and averaged down
_GIF_MOST_FPS = 50.0  # viewers slow down what is quicker

_PAPER, _INK, _RULE = (255, 255, 255), (40, 40, 46), (226, 226, 230)
_SIDES = ("left", "right", "middle")
# Orange and blue are told apart by every kind of eye. (first body, all others)
_TONES: tuple[dict[str, Colour], ...] = (
    {"left": (217, 95, 2), "right": (28, 98, 178), "middle": (70, 70, 78)},
    {"left": (250, 176, 108), "right": (132, 184, 236), "middle": (170, 170, 178)},
)


def draw_strip(
    joints: Floats, skeleton: Skeleton, *, title: str, num_poses: int = 8
) -> Image.Image:
    """Poses of a clip at even distances, side by side at their heights, their frames below.

    Args:
        joints: (M, T, V, C) of the clip. A body is drawn where it is seen (it is zeros elsewhere),
            and so is a joint.
        skeleton: its layout.
        title: stands above.
        num_poses: how many; a clip with fewer frames shows each once.

    Returns:
        RGB, STRIP_WIDTH wide; in two rows where that makes the figures larger.

    Raises:
        ValueError: no frame shows a body.
    """
    flat = _flat(joints, skeleton)
    frames = _even(flat.seen_frames(), num_poses)
    boxes = [flat.box([frame]) for frame in frames]
    top, bottom = min(box.top for box in boxes), max(box.bottom for box in boxes)
    widest = max(box.right - box.left for box in boxes)
    scales = {rows: _strip_scale(len(frames), rows, widest, bottom - top) for rows in (1, 2)}
    num_rows = 2 if scales[2] > _SECOND_ROW_PAYS * scales[1] else 1
    scale = scales[num_rows]
    num_columns = -(-len(frames) // num_rows)
    width = STRIP_WIDTH // num_columns
    height = math.ceil(scale * (bottom - top)) + 2 * _MARGIN + _FOOTER
    image = Image.new("RGB", (STRIP_WIDTH, _HEADER + num_rows * height), _PAPER)
    for number, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
        row, column = divmod(number, num_columns)
        left, upper = column * width, _HEADER + row * height
        middle = (box.left + box.right) / 2
        view = _View(scale, (middle, top), (width / 2, _MARGIN))
        image.paste(_figures(flat, frame, view, (width, height)), (left, upper))
        pen = ImageDraw.Draw(image)
        if column:
            pen.line([(left, upper + _MARGIN), (left, upper + height - _MARGIN)], fill=_RULE)
        label, at = f"frame {frame}", (left + width / 2, upper + height - _FOOTER / 2)
        pen.text(at, label, fill=_INK, font=_font(13), anchor="mm")
    legend_width = _draw_legend(image, flat.num_bodies, right=STRIP_WIDTH - _MARGIN, y=_HEADER // 2)
    room = STRIP_WIDTH - 3 * _MARGIN - legend_width
    _draw_text(image, title, (_MARGIN, _HEADER // 2), room=room, size=17)
    return image


def draw_animation(
    joints: Floats, skeleton: Skeleton, *, title: str, caption: str = "", every: int = 1
) -> Iterator[Image.Image]:
    """The frames of a clip one after the other, seen by a camera that stands still.

    Args:
        joints: see draw_strip.
        skeleton: its layout.
        title: the first line above.
        caption: the second line above.
        every: draw each so many-th frame only.

    Yields:
        RGB pictures of one size, both sides even (as MP4 wants them).

    Raises:
        ValueError: no frame shows a body.
    """
    flat = _flat(joints, skeleton)
    num_frames = joints.shape[1]
    box = flat.box(list(range(num_frames)))
    least, most = _ANIMATION_WIDTHS
    scale = min(
        (most - 2 * _MARGIN) / _extent(box.right - box.left),
        _ANIMATION_FIGURE_HEIGHT / _extent(box.bottom - box.top),
    )
    width = max(least, math.ceil(scale * (box.right - box.left)) + 2 * _MARGIN)
    height = math.ceil(scale * (box.bottom - box.top)) + 2 * _MARGIN
    header, footer = 2 * _HEADER - _MARGIN, 2 * _FOOTER
    width, total = width + width % 2, header + height + footer
    total += total % 2
    view = _View(scale, ((box.left + box.right) / 2, box.top), (width / 2, _MARGIN))
    ground = Image.new("RGB", (width, total), _PAPER)
    _draw_text(ground, title, (_MARGIN, header // 3), room=width - 2 * _MARGIN, size=16)
    _draw_text(ground, caption, (_MARGIN, header * 3 // 4), room=width - 2 * _MARGIN, size=14)
    _draw_legend(ground, flat.num_bodies, right=width - _MARGIN, y=total - _FOOTER // 2)
    for frame in range(0, num_frames, every):
        image = ground.copy()
        image.paste(_figures(flat, frame, view, (width, height)), (0, header))
        text = f"frame {frame} of {num_frames}"
        _draw_text(image, text, (_MARGIN, total - footer * 3 // 4), room=width, size=13)
        yield image


def write_animation(
    path: Path, joints: Floats, skeleton: Skeleton, *, title: str, caption: str, fps: float
) -> None:
    """Write a clip as a film at its own speed; a GIF quicker than 50 frames a second skips some.

    Args:
        path: ends in .gif or .mp4 (H.264).
        joints: see draw_strip.
        skeleton: its layout.
        title: the first line above.
        caption: the second line above.
        fps: frames of the clip a second.

    Raises:
        ValueError: another suffix, a rate that is not above 0, or no frame shows a body.
    """
    suffix = path.suffix.lower()
    if suffix not in ANIMATION_SUFFIXES:
        raise ValueError(f"{path}: a film's name ends in {' or '.join(ANIMATION_SUFFIXES)}")
    if not 0.1 <= fps <= 1000:
        raise ValueError(f"{fps:g} frames a second cannot be shown; give 0.1 to 1000")
    every = math.ceil(fps / _GIF_MOST_FPS) if suffix == ".gif" else 1
    images = draw_animation(joints, skeleton, title=title, caption=caption, every=every)
    encode = _gif if suffix == ".gif" else _mp4
    write_bytes_atomic(path, encode(images, fps / every))


def _gif(images: Iterator[Image.Image], fps: float) -> bytes:
    """Endless; its times are whole hundredths of a second that add up to the true ones."""
    palette = _palette()
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    ticks = [round(100 * number / fps) for number in range(len(frames) + 1)]
    durations = [10 * (end - start) for start, end in pairwise(ticks)]
    buffer = BytesIO()
    frames[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()


def _mp4(images: Iterator[Image.Image], fps: float) -> bytes:
    import av

    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = None
        for image in images:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                stream.width, stream.height = image.size
                stream.pix_fmt = "yuv420p"  # what every player takes
                stream.options = {"crf": "18"}
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        assert stream is not None, "a clip has a frame"
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _palette() -> Image.Image:
    """Every colour used, in 12 steps to the paper: one palette for all frames of a GIF."""
    colours = [_INK, *(tones[side] for tones in _TONES for side in _SIDES)]
    steps = np.linspace(0, 1, 12)[:, None]
    paper = np.array(_PAPER)
    table = np.concatenate([paper * steps + np.array(colour) * (1 - steps) for colour in colours])
    image = Image.new("P", (1, 1))
    image.putpalette(table.round().astype(np.uint8).tobytes())
    return image


# ---- from joints to the plane ----


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class _Flat:
    """A clip in the plane of its pictures.

    Attributes:
        points: (M, T, V, 2) to the right and down, in the clip's unit.
        is_known: (M, T, V).
        bones: (child, parent) of the layout.
        sides: "left", "right" or "middle" of each joint; a bone is on its child's side.
    """

    points: Floats
    is_known: NDArray[np.bool_]
    bones: tuple[tuple[int, int], ...]
    sides: tuple[str, ...]

    @property
    def num_bodies(self) -> int:
        return int(self.is_known.any(axis=(1, 2)).sum())

    def seen_frames(self) -> list[int]:
        frames: list[int] = np.flatnonzero(self.is_known.any(axis=(0, 2))).tolist()
        if not frames:
            raise ValueError("no frame of this clip shows a body: there is nothing to draw")
        return frames

    def box(self, frames: list[int]) -> _Box:
        """What holds all that is seen in some frames."""
        known = self.points[:, frames][self.is_known[:, frames]]  # (number, 2)
        if not len(known):
            raise ValueError("no frame of this clip shows a body: there is nothing to draw")
        (left, top), (right, bottom) = known.min(axis=0).tolist(), known.max(axis=0).tolist()
        return _Box(left, top, right, bottom)


def _flat(joints: Floats, skeleton: Skeleton) -> _Flat:
    dims = skeleton.joint_dims
    if joints.ndim != 4 or joints.shape[2:] != (skeleton.num_joints, skeleton.num_channels):
        raise ValueError(
            f"joints of shape {joints.shape} are not (bodies, frames, {skeleton.num_joints}, "
            f"{skeleton.num_channels}) as {skeleton.name} has them"
        )
    is_known = np.any(joints[..., :dims], axis=-1)  # (M, T, V)
    if skeleton.has_score:
        is_known = is_known & (joints[..., dims] > 0)
    elif dims == 3 and joints[..., 2].min() < 0 < joints[..., 2].max():
        # Around the body's own middle, not before a sensor: there 0, 0, 0 is a place like others.
        is_known = np.broadcast_to(is_known.any(axis=-1, keepdims=True), is_known.shape)
    up = np.array([1, -1] if dims == 3 else [1, 1], np.float32)
    sides = tuple(_side(joint) for joint in skeleton.joints)
    return _Flat(joints[..., :2] * up, is_known, skeleton.bones, sides)


def _side(joint: str) -> str:
    word = joint.split(" ")[0]
    return word if word in _SIDES else "middle"


def _even(frames: list[int], num: int) -> list[int]:
    """`num` of the frames at even distances, first and last included; all where they are fewer."""
    at = np.unique(np.linspace(0, len(frames) - 1, num).round().astype(int))
    return [frames[index] for index in at]


def _extent(length: float) -> float:
    """A length to divide by: a clip of one joint has none."""
    return max(length, 1e-6)


def _strip_scale(num_poses: int, num_rows: int, widest: float, highest: float) -> float:
    """Pixels a unit where that many rows hold every pose."""
    room = STRIP_WIDTH // -(-num_poses // num_rows) - 2 * _MARGIN
    return min(room / _extent(widest), _STRIP_FIGURE_HEIGHT / _extent(highest))


# ---- drawing ----


@dataclass(frozen=True)
class _View:
    """Where the plane falls on a picture: `point` lies at `pixel`, `scale` pixels make a unit."""

    scale: float
    point: tuple[float, float]
    pixel: tuple[float, float]

    def pixels(self, points: Floats) -> NDArray[np.float64]:
        return (points - np.array(self.point)) * self.scale + np.array(self.pixel)


def _figures(flat: _Flat, frame: int, view: _View, size: tuple[int, int]) -> Image.Image:
    """The bodies of one frame on a picture of that size; the first lies above the others."""
    large = Image.new("RGB", (size[0] * _FINER, size[1] * _FINER), _PAPER)
    pen = ImageDraw.Draw(large)
    places = view.pixels(flat.points[:, frame]) * _FINER  # (M, V, 2)
    line, dot = 3 * _FINER, 2.5 * _FINER
    for body in reversed(range(len(places))):
        is_known = flat.is_known[body, frame]
        colours = [_TONES[min(body, 1)][side] for side in flat.sides]
        for child, parent in flat.bones:
            if is_known[child] and is_known[parent]:
                ends = [tuple(places[body, child]), tuple(places[body, parent])]
                pen.line(ends, fill=colours[child], width=line)
        for joint in np.flatnonzero(is_known):
            x, y = places[body, joint]
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=colours[joint])
    return large.reduce(_FINER)


def _draw_legend(image: Image.Image, num_bodies: int, *, right: int, y: int) -> int:
    """Which colour is which, ending at `right`; returns how wide it is."""
    entries = [(side, _TONES[0][side]) for side in _SIDES]
    if num_bodies > 1:
        entries.append(("second body", _TONES[1]["middle"]))
    pen, font = ImageDraw.Draw(image), _font(13)
    left = right
    for text, colour in reversed(entries):
        left -= math.ceil(font.getlength(text))
        pen.text((left, y), text, fill=_INK, font=font, anchor="lm")
        left -= 24
        pen.rectangle((left, y - 2, left + 17, y + 1), fill=colour)
        left -= 14
    return right - left


def _draw_text(image: Image.Image, text: str, at: tuple[int, int], *, room: int, size: int) -> None:
    """One line from its left middle; what does not fit ends in dots."""
    font = _font(size)
    shown = text
    while font.getlength(shown) > room and len(shown) > 3:
        shown = shown[:-4].rstrip() + "..."
    ImageDraw.Draw(image).text(at, shown, fill=_INK, font=font, anchor="lm")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows the letters of most of Europe."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)
