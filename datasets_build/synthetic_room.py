"""The room of a clip: walls, floor, what hangs and stands there, and the chairs; painted once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datasets_build.synthetic_view import Colour, colour_pixels, lit

if TYPE_CHECKING:
    from datasets_build.synthetic import Performance

_NEAR_M = 0.3
_Fill = Callable[[NDArray[np.float64], Colour], None]  # paints a polygon (n, 3) of the world


def paint_room(performance: Performance, size: tuple[int, int]) -> Image.Image:
    """Walls, floor, what hangs and stands there, and the chairs."""
    look = performance.look
    picture = Image.new("RGB", size, look.floor)
    draw = ImageDraw.Draw(picture)

    def fill(corners: NDArray[np.float64], colour: Colour) -> None:
        points = _clipped(performance.camera.from_world(corners))
        if len(points) >= 3:
            pixels = colour_pixels(points, width=size[0], height=size[1])
            draw.polygon((pixels - 0.5).ravel().tolist(), fill=colour)

    back, side = look.back_wall_m, look.side_wall_m
    walls = {
        "left": (np.array([-side, 0.0, back]), np.array([0.0, 0.0, -1.0]), 0.90),
        "right": (np.array([side, 0.0, back]), np.array([0.0, 0.0, -1.0]), 0.94),
        "back": (np.array([0.0, 0.0, back]), np.array([1.0, 0.0, 0.0]), 1.0),
    }
    for name, (start, way, shade) in walls.items():
        low, high = (-side, side) if name == "back" else (0.0, 8.0)
        board = tuple(round(0.75 * c) for c in look.wall)
        fill(_rectangle(start, way, low, high, 0.0, 5.0), lit(look.wall, shade))
        fill(_rectangle(start, way, low, high, 0.0, 0.09), board)  # type: ignore[arg-type]
        for thing in look.things:
            if thing.wall == name:
                left = thing.along_m - thing.width_m / 2
                if name != "back":
                    left = abs(thing.along_m) + 0.3
                right, top = left + thing.width_m, thing.bottom_m + thing.height_m
                fill(
                    _rectangle(start, way, left, right, thing.bottom_m, top),
                    lit(thing.colour, shade),
                )
                fill(
                    _rectangle(
                        start, way, left + 0.07, right - 0.07, thing.bottom_m + 0.07, top - 0.07
                    ),
                    lit(thing.inner, shade),
                )
    if look.spare_chair is not None:
        _paint_chair(fill, look.spare_chair[0], look.spare_chair[1], 0.45, 0.4, look.chair)
    # Light falls off across the picture, away from the lamp.
    x = np.linspace(-0.5, 0.5, size[0], dtype=np.float32) * np.float32(look.light[0])
    y = np.linspace(0.5, -0.5, size[1], dtype=np.float32) * np.float32(look.light[1])
    fall = np.clip(0.97 + 0.12 * (x[None, :] + y[:, None]), 0.0, 1.08)
    shaded = np.asarray(picture, dtype=np.float32) * fall[:, :, None]
    picture = Image.fromarray(np.minimum(shaded, 255.0).astype(np.uint8))
    if performance.seat is not None:
        draw = ImageDraw.Draw(picture)
        x_m, z_m, height_m, yaw = performance.seat
        _paint_chair(fill, x_m, z_m, height_m, yaw, look.chair)
    return picture


def _paint_chair(
    fill: _Fill, x: float, z: float, seat_m: float, yaw: float, colour: Colour
) -> None:
    """A chair: middle of its seat at (x, z); its sitter looks along -z turned by `yaw`."""
    sine, cosine = np.sin(yaw), np.cos(yaw)
    right, rear = np.array([cosine, 0.0, -sine]), np.array([sine, 0.0, cosine])
    up, origin = np.array([0.0, 1.0, 0.0]), np.array([x, 0.0, z])

    def quad(corners: Sequence[tuple[float, float, float]], shade: float) -> None:
        points = [origin + r * right + u * up + b * rear for r, u, b in corners]
        fill(np.array(points), lit(colour, shade))

    w, d, back = 0.23, 0.22, seat_m + 0.46
    for r in (-w, w):  # rear legs with the posts of the back, then the front legs
        post = 0.03 if r < 0 else -0.03
        quad([(r, 0, d), (r + post, 0, d), (r + post, back, d + 0.05), (r, back, d + 0.05)], 0.62)
    for low, high in ((0.16, 0.28), (0.34, 0.46)):
        quad(
            [(-w, seat_m + low, d + 0.03), (w, seat_m + low, d + 0.03),
             (w, seat_m + high, d + 0.05), (-w, seat_m + high, d + 0.05)],
            0.95,
        )  # fmt: skip
    for r in (-w, w):
        post = 0.04 if r < 0 else -0.04
        quad([(r, 0, -d), (r + post, 0, -d), (r + post, seat_m, -d), (r, seat_m, -d)], 0.78)
        quad([(r, seat_m - 0.05, -d), (r, seat_m, -d), (r, seat_m, d), (r, seat_m - 0.05, d)], 0.6)
    quad([(-w, seat_m, -d), (w, seat_m, -d), (w, seat_m, d), (-w, seat_m, d)], 1.12)
    quad([(-w, seat_m - 0.06, -d), (w, seat_m - 0.06, -d), (w, seat_m, -d), (-w, seat_m, -d)], 0.85)


def _rectangle(
    start: NDArray[np.float64],
    way: NDArray[np.float64],
    low: float,
    high: float,
    bottom: float,
    top: float,
) -> NDArray[np.float64]:
    """(4, 3) corners of an upright rectangle from `low` to `high` along a wall."""
    return np.array(
        [
            start + s * way + [0.0, y, 0.0]
            for s, y in ((low, bottom), (high, bottom), (high, top), (low, top))
        ]
    )


def _clipped(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a polygon (n, 3) in front of the lens (Sutherland and Hodgman, one plane)."""
    kept = []
    for i, point in enumerate(points):
        previous = points[i - 1]
        if (point[2] > _NEAR_M) != (previous[2] > _NEAR_M):
            share = (_NEAR_M - previous[2]) / (point[2] - previous[2])
            kept.append(previous + share * (point - previous))
        if point[2] > _NEAR_M:
            kept.append(point)
    return np.array(kept).reshape(-1, 3)
