"""Draws performances: shaded figures in a room, and writes them as H.264.

Shapes: T frames, M bodies, P parts of all bodies, K points of an outline.

Each limb is the convex hull of two or more balls; in the picture that is the hull of their discs,
found for all frames at once as the furthest point in each of K directions. Parts are painted from
far to near, each in two or three nested tones that shift towards the light. The room stands still
and is painted once per clip. Pictures are drawn `supersample` times larger and averaged down.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from datasets_build.synthetic_room import paint_room
from datasets_build.synthetic_view import COLOUR_FOCAL, COLOUR_HEIGHT, Colour, colour_pixels, lit

if TYPE_CHECKING:
    from datasets_build.synthetic import Performance
    from datasets_build.synthetic_view import BodyLook

Floats = NDArray[np.float32]

_ASPECT = 16 / 9
# Radii in metres of the balls at the two ends of each limb; our choice, thicker than life so that
# limbs stay visible in a picture of 64 lines.
_LIMBS: tuple[tuple[int, int, float, float, str], ...] = (
    (4, 5, 0.062, 0.050, "shirt"), (5, 6, 0.050, 0.040, "sleeve"), (6, 21, 0.042, 0.036, "skin"),
    (8, 9, 0.062, 0.050, "shirt"), (9, 10, 0.050, 0.040, "sleeve"), (10, 23, 0.042, 0.036, "skin"),
    (12, 13, 0.092, 0.068, "trousers"), (13, 14, 0.068, 0.050, "trousers"),
    (16, 17, 0.092, 0.068, "trousers"), (17, 18, 0.068, 0.050, "trousers"),
    (14, 15, 0.050, 0.044, "shoes"), (18, 19, 0.050, 0.044, "shoes"),
    (2, 3, 0.052, 0.050, "skin"),
)  # fmt: skip
_THUMBS: tuple[tuple[int, int], ...] = ((7, 22), (11, 24))
_TONES = ((1.0, 0.72, 0.0), (0.74, 1.0, 0.20), (0.38, 1.16, 0.42))  # size, brightness, shift


def render(
    performance: Performance,
    frame_indices: Sequence[int],
    *,
    width: int,
    height: int,
    supersample: int = 2,
) -> NDArray[np.uint8]:
    """Draw some frames of a clip.

    Args:
        performance: the clip.
        frame_indices: 0-based, in any order, repeats allowed; empty gives (0, H, W, 3).
        width: picture width in pixels; the picture always shows the whole 16:9 view.
        height: picture height in pixels.
        supersample: factor of the larger picture that is averaged down.

    Returns:
        uint8 (T, H, W, 3).

    Raises:
        IndexError: a frame index lies outside the clip.
    """
    out = np.empty((len(frame_indices), height, width, 3), dtype=np.uint8)
    if len(frame_indices) == 0:
        return out
    size = (width * supersample, height * supersample)
    joints = performance.bodies[:, np.asarray(frame_indices)]  # (M, T, 25, 3)
    num_tones = 3 if size[1] >= 240 else 2
    outlines, colours, depth = _outlines(performance, joints, size, num_tones)
    order = np.argsort(-depth, axis=1, kind="stable")  # (T, P)
    flat = np.take_along_axis(outlines, order[:, :, None], axis=1)  # (T, P, tones*K*2)
    room = paint_room(performance, size)
    shadows = _shadows(performance, joints, size)
    dark = tuple(round(0.62 * c) for c in performance.look.floor)
    half = tuple(round(0.8 * c) for c in performance.look.floor)
    step = flat.shape[2] // num_tones
    # Only the box round the figures changes between frames: the rest is averaged down once.
    out[:] = np.asarray(room.reduce(supersample))
    boxes = _boxes(flat, shadows, size, supersample)
    picture = room.copy()
    polygon = ImageDraw.Draw(picture).polygon
    for t, polygons in enumerate(flat.tolist()):
        for wide, core in shadows[t]:
            polygon(wide, fill=half)
            polygon(core, fill=dark)
        for points, part in zip(polygons, order[t].tolist(), strict=True):
            for tone, colour in enumerate(colours[part]):
                polygon(points[tone * step : (tone + 1) * step], fill=colour)
        box = boxes[t]
        left, top, right, bottom = (edge // supersample for edge in box)
        out[t, top:bottom, left:right] = np.asarray(picture.reduce(supersample, box=box))
        picture.paste(room.crop(box), box)
    return out


def _boxes(
    outlines: Floats,
    shadows: list[list[tuple[list[float], list[float]]]],
    size: tuple[int, int],
    supersample: int,
) -> list[tuple[int, int, int, int]]:
    """For each frame the box (left, top, right, bottom) of what is drawn, on whole small pixels."""
    num_frames = len(outlines)
    points = [outlines.reshape(num_frames, -1, 2)]
    points.append(
        np.array([[wide for wide, _ in frame] for frame in shadows]).reshape(num_frames, -1, 2)
    )
    drawn = np.concatenate(points, axis=1)
    low = np.floor((drawn.min(axis=1) - 1.0) / supersample).astype(int) * supersample
    high = np.ceil((drawn.max(axis=1) + 2.0) / supersample).astype(int) * supersample
    last = np.array(size)
    low, high = np.clip(low, 0, last - supersample), np.clip(high, supersample, last)
    return [
        (x0, y0, x1, y1) for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True)
    ]


# ---- figures ----


def _outlines(
    performance: Performance, joints: Floats, size: tuple[int, int], num_tones: int
) -> tuple[Floats, list[list[Colour]], Floats]:
    """Outlines (T, P, tones*K*2) in pixels, tone colours of each part, depths (T, P) in metres."""
    fine = size[1] >= 240
    balls: list[Floats] = []  # each (T, n, 4): camera space and radius, n = 2 or 6
    colours: list[list[Colour]] = []
    bias: list[float] = []
    for body, look in zip(joints, performance.look.people, strict=True):
        for centres, radii, colour, nearer in _parts(body, look, fine=fine):
            ball = np.empty((*centres.shape[:2], 4), dtype=np.float32)
            ball[..., :3] = centres
            ball[..., 3] = radii
            balls.append(ball)
            colours.append([lit(colour, tone[1]) for tone in _TONES[:num_tones]])
            bias.append(nearer)
    num_points = 16 if fine else 10
    depth = np.empty((joints.shape[1], len(balls)), dtype=np.float32)
    outlines = np.empty((joints.shape[1], len(balls), num_tones * num_points * 2), dtype=np.float32)
    light = np.array([performance.look.light[0], -performance.look.light[1]], dtype=np.float32)
    for count in {ball.shape[1] for ball in balls}:
        chosen = [i for i, ball in enumerate(balls) if ball.shape[1] == count]
        group = np.stack([balls[i] for i in chosen], axis=1)  # (T, P', n, 4)
        depth[:, chosen] = group[..., 2].mean(axis=2) - np.array([bias[i] for i in chosen])
        outlines[:, chosen] = _hulls(group, size, num_points, num_tones, light)
    return outlines, colours, depth


def _hulls(
    balls: Floats, size: tuple[int, int], num_points: int, num_tones: int, light: Floats
) -> Floats:
    """(T, P, tones*K*2) outlines of the hulls of balls (T, P, n, 4) as seen in the picture."""
    # Hulls are found in square pixels and stretched to the picture afterwards.
    square = (round(size[1] * _ASPECT), size[1])
    centres = colour_pixels(balls[..., :3], width=square[0], height=square[1])  # (T, P, n, 2)
    focal = COLOUR_FOCAL * size[1] / COLOUR_HEIGHT
    radii = balls[..., 3] * focal / balls[..., 2]  # (T, P, n)
    angles = np.arange(num_points, dtype=np.float32) * np.float32(2 * np.pi / num_points)
    normals = np.stack([np.cos(angles), np.sin(angles)])  # (2, K)
    out = np.empty((*balls.shape[:2], num_tones, num_points, 2), dtype=np.float32)
    scale = np.array([size[0] / square[0], 1.0], dtype=np.float32)
    for tone, (shrink, _, shift) in enumerate(_TONES[:num_tones]):
        r = radii * np.float32(shrink)
        c = centres + (radii * np.float32(shift))[..., None] * light
        far = (c @ normals + r[..., None]).argmax(axis=2)[..., None]  # (T, P, K, 1)
        point = np.take_along_axis(c, far, axis=2)  # (T, P, K, 2)
        point += np.take_along_axis(r, far[..., 0], axis=2)[..., None] * normals.T
        out[:, :, tone] = point * scale - 0.5
    return out.reshape(*balls.shape[:2], -1)


def _parts(
    body: Floats, look: BodyLook, *, fine: bool
) -> list[tuple[Floats, NDArray[np.float32], Colour, float]]:
    """Ball centres (T, n, 3), radii (n,), colour and depth bias (m) of each part of one body."""
    colour_of = {
        "shirt": look.shirt, "trousers": look.trousers, "shoes": look.shoes, "skin": look.skin,
        "sleeve": look.shirt if look.has_long_sleeves else look.skin,
    }  # fmt: skip
    parts: list[tuple[Floats, NDArray[np.float32], Colour, float]] = []
    for first, second, r1, r2, what in _LIMBS:
        thick = 1.0 if what in ("skin", "shoes") else look.bulk
        nearer = {"skin": 0.02, "shoes": 0.02}.get(what, 0.0)
        if first in (12, 16):
            nearer = -0.08  # a standing person's near thigh lies under the shirt
        radii = np.array([r1 * thick, r2 * thick], dtype=np.float32)
        parts.append((body[:, [first, second]], radii, colour_of[what], nearer))

    bulk = look.bulk
    trunk = np.stack(
        [
            0.93 * body[:, 4] + 0.07 * body[:, 8], 0.07 * body[:, 4] + 0.93 * body[:, 8],
            1.25 * body[:, 12] - 0.25 * body[:, 16], 1.25 * body[:, 16] - 0.25 * body[:, 12],
            body[:, 1], body[:, 20],
        ],
        axis=1,
    )  # fmt: skip
    radii = np.array([0.070, 0.070, 0.080, 0.080, 0.125, 0.10], dtype=np.float32) * bulk
    parts.append((trunk, radii.astype(np.float32), look.shirt, 0.03))
    pelvis = (
        np.stack([trunk[:, 2], trunk[:, 3]], axis=1)
        - 0.035 * _unit(body[:, 1] - body[:, 0])[:, None]
    )
    parts.append((pelvis, np.full(2, 0.088 * bulk, dtype=np.float32), look.trousers, 0.01))

    across, up = _unit(body[:, 8] - body[:, 4]), _unit(body[:, 3] - body[:, 2])
    ahead = _unit(np.cross(up, across))
    head = body[:, 3] + 0.02 * up
    face = np.stack([head + 0.030 * up + 0.02 * ahead, head - 0.045 * up + 0.025 * ahead], axis=1)
    hair = np.stack([head + 0.055 * up - 0.02 * ahead, head - 0.01 * up - 0.035 * ahead], axis=1)
    if look.has_long_hair:
        fall = np.stack([head - 0.03 * ahead, head - 0.20 * up - 0.075 * ahead], axis=1)
        parts.append((fall, np.array([0.088, 0.070], dtype=np.float32), look.hair, -0.03))
    # The biases keep trunk < hair < face when the person faces the camera.
    parts.append((hair, np.array([0.100, 0.095], dtype=np.float32), look.hair, 0.05))
    parts.append((face, np.array([0.084, 0.066], dtype=np.float32), look.skin, 0.05))
    fringe = np.stack(
        [
            head + 0.075 * up + 0.045 * ahead - 0.03 * across,
            head + 0.075 * up + 0.045 * ahead + 0.03 * across,
        ],
        axis=1,
    )
    parts.append((fringe, np.array([0.045, 0.045], dtype=np.float32), look.hair, 0.07))
    if fine:
        for sign in (-1.0, 1.0):
            eye = head + 0.010 * up + 0.095 * ahead + sign * 0.034 * across
            eyes = np.stack([eye, eye - 0.004 * up], axis=1)
            parts.append((eyes, np.full(2, 0.011, dtype=np.float32), (30, 24, 24), 0.055))
        for hand, thumb in _THUMBS:
            radii = np.array([0.024, 0.015], dtype=np.float32)
            parts.append((body[:, [hand, thumb]], radii, look.skin, 0.03))
    return parts


def _unit(v: Floats) -> Floats:
    return v / np.sqrt(np.einsum("tc,tc->t", v, v))[:, None]


def _shadows(
    performance: Performance, joints: Floats, size: tuple[int, int]
) -> list[list[tuple[list[float], list[float]]]]:
    """For each frame and body the wide and the inner outline of the shadow on the floor, pixels."""
    world = performance.camera.to_world(joints.astype(np.float64))  # (M, T, 25, 3)
    middle = world[:, :, [0, 14, 18]].mean(axis=2)  # (M, T, 3)
    angles = np.arange(14) * (2 * np.pi / 14)
    ring = np.stack([np.cos(angles), np.zeros(14), np.sin(angles)], axis=1)  # (14, 3)
    # A body in the air casts a smaller shadow.
    rise = world[:, :, [14, 18], 1].min(axis=2) - 0.08
    radius = 0.34 / (1.0 + 2.0 * np.clip(rise, 0.0, 1.0))
    middle[..., 1] = 0.0
    flat = []
    for factor in (1.0, 0.68):
        points = middle[:, :, None] + factor * radius[:, :, None, None] * ring
        pixels = colour_pixels(performance.camera.from_world(points), width=size[0], height=size[1])
        flat.append((pixels - 0.5).reshape(*pixels.shape[:2], -1).tolist())
    num_bodies, num_frames = joints.shape[:2]
    return [[(flat[0][m][t], flat[1][m][t]) for m in range(num_bodies)] for t in range(num_frames)]


# ---- video ----


def write_video(path: Path, frames: NDArray[np.uint8], *, fps: int, crf: int = 23) -> None:
    """Write uint8 (T, H, W, 3) as H.264 in AVI, whole or not at all.

    H and W must be even (yuv420p). One thread encodes, so equal frames give equal bytes.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with av.open(str(temporary), "w", format="avi") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps))
            stream.width, stream.height = frames.shape[2], frames.shape[1]
            stream.pix_fmt = "yuv420p"
            # Measured: with macroblock trees x264's AVX-512 code gave 4 different files in 12 runs
            # of one input; without them, or without AVX-512, always the same.
            stream.options = {
                "crf": str(crf),
                "preset": "veryfast",
                "threads": "1",
                "x264-params": "mbtree=0",
            }
            for picture in frames:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
