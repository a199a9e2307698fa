"""Pictures of skeletons: shaded figures on a tiled floor, as the sensor that saw them sees them.

The view has the sensor's own perspective, is cut to the clip's whole motion and stands still. It is
not mirrored (the Kinect's own videos are): who faces the camera has the right hand on the picture's
left, so that "right" and "left" in a caption are the person's own. Left limbs are lighter than
right ones, the first body wears blue, the second red. Tiles are half a metre wide; each body has a
shadow on the floor.

A limb is the convex hull of balls, which in the picture is the hull of their discs. A hull is kept
as how far it reaches in K directions; the greatest of a pixel's K distances beyond that tells where
the edge is, and how deep inside the pixel lies gives the shading. Limbs are painted from far to
near. Only + - * / and square roots touch pixels, each rounded as IEEE 754 says, so the bytes do not
depend on threads or on a linear algebra library.

Letters: M bodies, T frames, V joints, C coordinates or colours, P parts of all bodies, B balls of
a part, K directions, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captioning.figure_view import NEAR_M, Floats, View, paint_background, place_view
from datasets_build.joints import Skeleton

Colour = tuple[int, int, int]

_NUM_DIRECTIONS = 16  # K, a multiple of 4
_LIGHT = (-0.20, -0.27)  # towards the light in the picture, in radii of the ball that it falls on


@dataclass(frozen=True)
class Look:
    """What one body wears; pairs are (left, right)."""

    trunk: Colour
    sleeves: tuple[Colour, Colour]
    trousers: tuple[Colour, Colour]
    shoes: tuple[Colour, Colour]
    skin: tuple[Colour, Colour]
    hair: Colour


_LOOKS = (
    Look(
        trunk=(62, 108, 190),
        sleeves=((128, 178, 244), (34, 66, 142)),
        trousers=((138, 142, 156), (62, 64, 80)),
        shoes=((235, 235, 238), (28, 28, 34)),
        skin=((232, 186, 152), (232, 186, 152)),
        hair=(66, 44, 32),
    ),
    Look(
        trunk=(196, 72, 52),
        sleeves=((246, 148, 112), (138, 32, 26)),
        trousers=((182, 160, 112), (98, 78, 46)),
        shoes=((240, 232, 220), (46, 32, 24)),
        skin=((216, 164, 124), (216, 164, 124)),
        hair=(30, 26, 26),
    ),
)
# Joints at the two ends of a limb, radii in metres there (our choice, a little thicker than life),
# what it shows, and by how many metres it is painted as if it were nearer: hands end their sleeves,
# and a standing person's thighs lie under the shirt.
_LIMBS = (
    ("shoulder", "elbow", 0.062, 0.052, "sleeves", 0.0),
    ("elbow", "wrist", 0.050, 0.038, "sleeves", 0.0),
    ("wrist", "hand", 0.040, 0.050, "skin", 0.02),
    ("hand", "hand tip", 0.046, 0.034, "skin", 0.02),
    ("hand", "thumb", 0.030, 0.022, "skin", 0.02),
    ("hip", "knee", 0.090, 0.068, "trousers", -0.10),
    ("knee", "ankle", 0.066, 0.050, "trousers", 0.0),
    ("ankle", "foot", 0.054, 0.046, "shoes", 0.01),
)
# The balls' joints, radius in metres and darkness of each body's shadows.
_SHADOWS = (
    (("base of spine", "left ankle", "right ankle"), 0.34, 0.35),
    (("left ankle", "left foot"), 0.13, 0.25),
    (("right ankle", "right foot"), 0.13, 0.25),
)
_NTU_NAMES = {  # where Kinect v2 has another word than Kinect v1
    "hip centre": ("base of spine",),
    "spine": ("middle of spine",),
    "shoulder centre": ("spine at shoulders", "neck"),
}


def draw(
    joints: Floats,
    skeleton: Skeleton,
    frames: Sequence[int],
    *,
    floor_slope: float,
    height: int,
    width: int,
) -> NDArray[np.uint8]:
    """Draw some frames of a clip.

    Args:
        joints: (M, T, V, C) of the whole clip, M at most 2, in the sensor's coordinates: x to its
            left, y up, z away from it, metres. A body that is not seen has zeros, and so has a
            joint that is not known; parts with such a joint are left out.
        skeleton: ntu-25 or ucla-20.
        frames: 0-based, in any order; empty gives (0, C, H, W).
        floor_slope: rise of the floor with distance where the clip itself does not show it.
        height: H.
        width: W; another shape of picture shows more to the sides, and stretches nothing.

    Returns:
        uint8 RGB (len(frames), C, H, W).
    """
    at = {
        name: index
        for index, own in enumerate(skeleton.joints)
        for name in (own, *_NTU_NAMES.get(own, ()))
    }
    view = place_view(joints, at, floor_slope, height=height, width=width)
    canvas = _Canvas(height, width)
    background = paint_background(view, height=height, width=width)
    chosen = joints[:, list(frames)]  # (M, T, V, C)
    shadows = _shadow_edges(chosen, at, view)
    hulls = _hulls_of(chosen, at, view)
    boxes = canvas.boxes(hulls.edges)
    out = np.empty((len(frames), 3, height, width), np.uint8)
    for t in range(len(frames)):
        picture = background.copy()
        for body in np.flatnonzero(chosen[:, t].any(axis=(1, 2))):
            for edges, (_, _, darkness) in zip(shadows[body, t], _SHADOWS, strict=True):
                canvas.darken(picture, edges, darkness)
        for p in hulls.order[t]:
            canvas.paint(
                picture,
                hulls.edges[t, p],
                hulls.lit_edges[t, p],
                box=boxes[t, p].tolist(),
                thickness=hulls.thickness[t, p],
                colour=hulls.colours[p],
            )
        out[t] = picture + np.float32(0.5)
    return out


# ---- the bodies ----


@dataclass(frozen=True)
class _Part:
    """The hull of some balls: centres (T, B, C) and radii (B,), metres."""

    centres: Floats
    radii: Sequence[float]
    colour: Colour
    nearer_m: float


def _parts(body: Floats, at: dict[str, int], look: Look) -> list[_Part]:
    """The parts of one body (T, V, C)."""
    parts: list[_Part] = []

    def add(centres: list[Floats], radii: tuple[float, ...], colour: Colour, nearer: float) -> None:
        parts.append(_Part(np.stack(centres, axis=1), radii, colour, nearer))

    def joint(name: str) -> Floats:
        return body[:, at[name]]  # (T, C)

    for side, name in enumerate(("left", "right")):
        for first, second, radius, end_radius, what, nearer in _LIMBS:
            if f"{name} {second}" in at:
                ends = [joint(f"{name} {first}"), joint(f"{name} {second}")]
                add(ends, (radius, end_radius), getattr(look, what)[side], nearer)
    left, right = joint("left shoulder"), joint("right shoulder")
    left_hip, right_hip = joint("left hip"), joint("right hip")
    hips = [1.2 * left_hip - 0.2 * right_hip, 1.2 * right_hip - 0.2 * left_hip]
    shoulders = [0.92 * left + 0.08 * right, 0.08 * left + 0.92 * right]
    top, neck, head = joint("spine at shoulders"), joint("neck"), joint("head")
    trunk = [*shoulders, *hips, joint("middle of spine"), top]
    add(trunk, (0.072, 0.072, 0.085, 0.085, 0.125, 0.090), look.trunk, 0.03)
    add(hips, (0.094, 0.094), look.trousers[1], -0.10)
    add([top, head], (0.052, 0.050), look.skin[0], 0.01)
    _add_head(add, head, across=_unit(right - left), up=_unit(head - neck), look=look)
    return parts


def _add_head(
    add: Callable[[list[Floats], tuple[float, ...], Colour, float], None],
    head: Floats,
    *,
    across: Floats,
    up: Floats,
    look: Look,
) -> None:
    """Hair, face, nose and eyes; the sensor does not see where a face looks: as the shoulders."""
    ahead = _unit(np.cross(up, across))
    skin = look.skin[0]
    hair = [head + 0.045 * up - 0.025 * ahead, head - 0.020 * up - 0.035 * ahead]
    face = [head + 0.020 * up + 0.020 * ahead, head - 0.060 * up + 0.025 * ahead]
    fringe = [head + 0.080 * up + 0.045 * ahead + s * across for s in (-0.035, 0.035)]
    nose = head - 0.015 * up + 0.105 * ahead
    add(hair, (0.104, 0.098), look.hair, 0.050)
    add(face, (0.086, 0.068), skin, 0.050)
    add(fringe, (0.044, 0.044), look.hair, 0.070)
    add([nose, nose + 0.02 * up], (0.020, 0.014), skin, 0.055)
    for s in (-0.036, 0.036):
        add([head + 0.012 * up + 0.092 * ahead + s * across], (0.014,), (34, 28, 28), 0.055)


def _unit(v: Floats) -> Floats:
    length = np.sqrt((v * v).sum(axis=-1, keepdims=True))
    return v / np.maximum(length, np.float32(1e-6))


@dataclass(frozen=True)
class _Hulls:
    """All parts of all bodies in the picture.

    Attributes:
        edges: (T, P, K) pixels that a part reaches in each direction.
        lit_edges: (T, P, K) the same for the part shifted towards the light.
        thickness: (T, P) radius of its largest ball in pixels.
        colours: (P, C).
        order: for each frame the parts that are seen, from far to near.
    """

    edges: Floats
    lit_edges: Floats
    thickness: Floats
    colours: Floats
    order: list[list[int]]


def _hulls_of(joints: Floats, at: dict[str, int], view: View) -> _Hulls:
    """The parts of bodies (M, T, V, C)."""
    parts = [
        part for body, look in zip(joints, _LOOKS, strict=False) for part in _parts(body, at, look)
    ]
    num_frames, most = joints.shape[1], max(len(part.radii) for part in parts)
    centres = np.empty((num_frames, len(parts), most, 3), np.float32)
    radii = np.empty((len(parts), most), np.float32)
    for p, part in enumerate(parts):  # a part with fewer balls repeats its first
        balls = [*range(len(part.radii))] + [0] * (most - len(part.radii))
        centres[:, p] = part.centres[:, balls]
        radii[p] = np.take(part.radii, balls)
    distance = centres[..., 2]  # (T, P, B)
    discs = view.pixels(centres)  # (T, P, B, 2)
    sizes = radii * np.float32(view.scale) / np.maximum(distance, NEAR_M)  # (T, P, B)
    shifted = discs + sizes[..., None] * np.array(_LIGHT, np.float32)
    nearer = np.array([part.nearer_m for part in parts], np.float32)
    # A joint that is not known lies in the sensor's own place.
    is_seen = distance.min(axis=2) > 0.05  # (T, P)
    order = np.argsort(nearer - distance.mean(axis=2), axis=1, kind="stable")
    return _Hulls(
        edges=_reach(discs, sizes),
        lit_edges=_reach(shifted, sizes),
        thickness=sizes.max(axis=2),
        colours=np.array([part.colour for part in parts], np.float32),
        order=[[p for p in row if is_seen[t, p]] for t, row in enumerate(order.tolist())],
    )


def _shadow_edges(joints: Floats, at: dict[str, int], view: View) -> Floats:
    """(M, T, len(_SHADOWS), K) where the shadows of bodies (M, T, V, C) reach on the floor."""
    turn = np.arange(_NUM_DIRECTIONS) * (2 * np.pi / _NUM_DIRECTIONS)
    ring = np.stack([np.cos(turn), 0 * turn, np.sin(turn)], axis=1).astype(np.float32)  # (K, C)
    edges = []
    for names, radius_m, _ in _SHADOWS:
        middle = joints[:, :, [at[name] for name in names]].mean(axis=2)  # (M, T, C)
        points = middle[:, :, None] + np.float32(radius_m) * ring  # (M, T, K, C)
        points[..., 1] = view.floor[0] + view.floor[1] * points[..., 2]
        edges.append(_reach(view.pixels(points), np.zeros(points.shape[:-1], np.float32)))
    return np.stack(edges, axis=2)


# ---- hulls in the picture ----


def _directions() -> Floats:
    """(2, K) unit vectors: right, ..., down, ..., left, ..., up, ..."""
    angles = np.arange(_NUM_DIRECTIONS) * (2 * np.pi / _NUM_DIRECTIONS)
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def _reach(centres: Floats, radii: Floats) -> Floats:
    """(..., K) how far hulls of discs (..., B, 2) of radii (..., B) reach in each direction."""
    x, y = _directions()
    along = centres[..., 0, None] * x + centres[..., 1, None] * y + radii[..., None]
    return along.max(axis=-2)


class _Canvas:
    """Paints hulls into pictures (C, H, W) of one size."""

    def __init__(self, height: int, width: int) -> None:
        x, y = _directions()
        self.size = np.array([width, height, width, height])
        self._columns = (np.arange(width, dtype=np.float32) + np.float32(0.5)) * x[:, None]
        self._rows = (np.arange(height, dtype=np.float32) + np.float32(0.5)) * y[:, None]

    def boxes(self, edges: Floats) -> NDArray[np.int64]:
        """(..., 4) first column and row and the ends of columns and rows that hulls touch."""
        right, down, left, up = (edges[..., i * _NUM_DIRECTIONS // 4] for i in range(4))
        ends = [np.floor(-left - 1), np.floor(-up - 1), np.ceil(right + 1), np.ceil(down + 1)]
        return np.clip(np.stack(ends, axis=-1), 0, self.size).astype(np.int64)

    def paint(
        self,
        picture: Floats,
        edges: Floats,
        lit_edges: Floats,
        *,
        box: Sequence[int],
        thickness: float,
        colour: Floats,
    ) -> None:
        """Paint one part: soft edge, round shading that is brightest towards the light."""
        cover = np.clip(0.5 - self._beyond(edges, box), 0, 1)
        depth = np.clip(self._beyond(lit_edges, box) / -thickness, 0, 1)
        shade = 0.55 + 0.6 * np.sqrt(depth * (2 - depth))
        x0, y0, x1, y1 = box
        patch = picture[:, y0:y1, x0:x1]
        patch += cover * (np.minimum(shade * colour[:, None, None], 255) - patch)

    def darken(self, picture: Floats, edges: Floats, darkness: float) -> None:
        """Paint one shadow, darkest in its middle."""
        box = self.boxes(edges).tolist()
        half_height = 0.5 * (edges[_NUM_DIRECTIONS // 4] + edges[3 * _NUM_DIRECTIONS // 4])
        depth = np.clip(self._beyond(edges, box) / -max(half_height, 1e-3), 0, 1)
        x0, y0, x1, y1 = box
        picture[:, y0:y1, x0:x1] *= 1 - darkness * (depth * (2 - depth))

    def _beyond(self, edges: Floats, box: Sequence[int]) -> Floats:
        """Distance of each pixel of a box from the edge, negative inside."""
        x0, y0, x1, y1 = box
        beyond = self._rows[:, y0:y1, None] - edges[:, None, None]  # (K, h, 1)
        return (self._columns[:, None, x0:x1] + beyond).max(axis=0)  # (h, w)
