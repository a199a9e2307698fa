"""Where a drawn clip is seen from: the sensor's perspective, the floor, and the empty room.

Letters: M bodies, T frames, V joints, C coordinates or colours, N poses, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

NEAR_M = 0.4  # no joint is nearer to the lens
_MARGIN = 0.06  # of the picture, on each side
_TILE_M = 0.5
_FLOOR = (168, 160, 148)
_WALL = (214, 218, 222)


@dataclass(frozen=True)
class View:
    """How the sensor's space falls on the picture.

    A point (x, y, z) lands at column `middle_x - scale * x / z` and row `middle_y - scale * y / z`.

    Attributes:
        scale: pixels of one metre at a distance of one metre.
        middle_x: column straight ahead of the sensor; may lie outside the picture.
        middle_y: row straight ahead of the sensor.
        floor: height of the floor at z = 0 and its slope; height = floor[0] + floor[1] * z.
        wall_m: distance of the wall behind everybody.
    """

    scale: float
    middle_x: float
    middle_y: float
    floor: tuple[float, float]
    wall_m: float

    def pixels(self, points: Floats) -> Floats:
        """(..., 2) column and row of points (..., 3); pixel centres lie at halves."""
        depth = np.maximum(points[..., 2], NEAR_M)
        out = np.empty((*points.shape[:-1], 2), np.float32)
        out[..., 0] = self.middle_x - self.scale * points[..., 0] / depth
        out[..., 1] = self.middle_y - self.scale * points[..., 1] / depth
        return out


def place_view(
    joints: Floats, at: Mapping[str, int], floor_slope: float, *, height: int, width: int
) -> View:
    """The view that holds the whole motion of all bodies (M, T, V, C) of a clip.

    Args:
        joints: see figures.draw.
        at: index of each joint by its name.
        floor_slope: see figures.draw.
        height: H.
        width: W.
    """
    poses = joints[joints.any(axis=(2, 3))]  # (N, V, C)
    is_known = poses.any(axis=-1)  # (N, V)
    depth = np.maximum(poses[..., 2], NEAR_M)
    reach = 0.13 / depth  # half a head; limbs are thinner
    sides = []
    for axis in (0, 1):
        place = poses[..., axis] / depth
        lowest = np.where(is_known, place - reach, np.inf).min(axis=1)  # (N,)
        highest = np.where(is_known, place + reach, -np.inf).max(axis=1)
        # The sensor's slip of one frame in a hundred must not make everybody small.
        sides.append((float(np.percentile(lowest, 1)), float(np.percentile(highest, 99))))
    (left, right), (bottom, top) = sides
    scale = (1 - 2 * _MARGIN) * min(width / (right - left), height / (top - bottom))
    return View(
        scale=scale,
        middle_x=0.5 * (width + scale * (left + right)),
        middle_y=0.5 * (height + scale * (bottom + top)),
        floor=_fit_floor(poses, at, floor_slope),
        wall_m=float(np.percentile(depth.max(axis=1), 99)) + 0.8,
    )


def _fit_floor(poses: Floats, at: Mapping[str, int], slope: float) -> tuple[float, float]:
    """Height and slope of the floor under the lower foot of each pose (N, V, C)."""
    names = ("left ankle", "left foot", "right ankle", "right foot")
    feet = poses[:, [at[name] for name in names]]  # (N, 4, C)
    lower = np.argmin(feet[..., 1] - slope * feet[..., 2], axis=1)
    foot = feet[np.arange(len(feet)), lower].astype(np.float64)  # (N, C)
    y, z = foot[:, 1], foot[:, 2]
    apart = z - z.mean()
    # our choice: people who come and go less than 0.3 m (0.1 m2) say little about the slope
    slope += float((apart * (y - slope * z)).mean() / ((apart * apart).mean() + 0.1))
    ground = float(np.percentile(y - slope * z, 20))  # most of the time a foot is on the floor
    return min(ground - 0.05, -0.2), slope


def paint_background(view: View, *, height: int, width: int) -> Floats:
    """(C, H, W) the wall and the floor with its tiles."""
    row = (np.arange(height, dtype=np.float32) + np.float32(0.5))[:, None]
    column = (np.arange(width, dtype=np.float32) + np.float32(0.5))[None]
    ground, slope = view.floor
    steepness = (view.middle_y - row) / view.scale - slope  # of the line of sight over the floor
    z = ground / np.minimum(steepness, -1e-3)  # (H, 1), where the line of sight meets the floor
    is_floor = (steepness < 0) & (z < view.wall_m)
    z = np.minimum(z, view.wall_m)
    x = (view.middle_x - column) / view.scale * z  # (H, W)
    tiles = _stripes(x, z / view.scale) * _stripes(z, z * z / (view.scale * -ground))  # (H, W)
    wall = np.array(_WALL, np.float32)[:, None, None] * (1.0 - 0.1 * row / height)  # (C, H, 1)
    floor = np.array(_FLOOR, np.float32)[:, None, None] + 9.0 * tiles  # (C, H, W)
    return np.where(is_floor, floor, wall).astype(np.float32)


def _stripes(metres: Floats, pixel_m: Floats) -> Floats:
    """-1 and 1 by turns, each a tile wide, with soft edges where a pixel is `pixel_m` wide."""
    phase = metres / (2 * _TILE_M)
    wave = np.abs(phase - np.floor(phase) - 0.5) * 4 - 1
    return np.clip(wave * _TILE_M / (2 * np.maximum(pixel_m, 1e-4)), -1, 1)
