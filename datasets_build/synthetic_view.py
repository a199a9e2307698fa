"""Where the demo set's cameras stand, how they project, and what the people and the room look like.

Camera space is Kinect's: x to the sensor's left, y up, z away from the sensor, metres, right-handed
(Microsoft CameraSpacePoint). Kinect stores mirrored pictures and NTU keeps them: in NTU's files
colorX grows with x, so a person's right hand appears on the picture's right. Ours are not mirrored
(our choice: "right hand" in a caption must be true to someone who looks at the picture), so here
colorX falls with x.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

# Kinect v2 intrinsics: colour 1920 x 1080, depth 512 x 424 (a fit to NTU files gives 1048-1063 and
# 366-368 pixels).
COLOUR_FOCAL, COLOUR_WIDTH, COLOUR_HEIGHT = 1081.4, 1920, 1080
DEPTH_FOCAL, DEPTH_WIDTH, DEPTH_HEIGHT = 365.5, 512, 424

CAMERA_ANGLES_RAD = {1: -np.pi / 4, 2: 0.0, 3: np.pi / 4}  # positions round the room, as in NTU


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: camera = rotation @ (world - position)."""

    rotation: NDArray[np.float64]  # (3, 3)
    position: NDArray[np.float64]  # (3,)

    def from_world(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 3) world metres to Kinect camera space."""
        return (points - self.position) @ self.rotation.T

    def to_world(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 3) camera space to world metres, floor at y = 0."""
        return points @ self.rotation + self.position


def colour_pixels(points: NDArray[np.floating], *, width: int, height: int) -> NDArray[np.floating]:
    """(..., 2) pixel coordinates of camera-space points (..., 3) in a picture of any size.

    The picture always shows the whole 16:9 view; another aspect ratio stretches it.
    """
    out = np.empty((*points.shape[:-1], 2), dtype=points.dtype)
    out[..., 0] = (
        0.5 * width - COLOUR_FOCAL * width / COLOUR_WIDTH * points[..., 0] / points[..., 2]
    )
    out[..., 1] = (
        0.5 * height - COLOUR_FOCAL * height / COLOUR_HEIGHT * points[..., 1] / points[..., 2]
    )
    return out


def depth_pixels(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """(..., 2) coordinates in the 512 x 424 depth picture."""
    out = np.empty((*points.shape[:-1], 2), dtype=points.dtype)
    out[..., 0] = 0.5 * DEPTH_WIDTH - DEPTH_FOCAL * points[..., 0] / points[..., 2]
    out[..., 1] = 0.5 * DEPTH_HEIGHT - DEPTH_FOCAL * points[..., 1] / points[..., 2]
    return out


def place_camera(
    bodies: NDArray[np.float64], *, angle_rad: float, height_m: float, fill: float, aside_m: float
) -> Camera:
    """A camera that keeps every joint of a whole clip in the picture.

    Args:
        bodies: (M, T, V, 3) world metres.
        angle_rad: position round the room; 0 is in front, positive to the people's right.
        height_m: height of the lens.
        fill: share of the picture's height that the clip's highest to lowest point takes.
        aside_m: how far the picture's middle lies beside the people's.
    """
    points = bodies.reshape(-1, 3)
    lowest, highest = points.min(axis=0), points.max(axis=0)
    highest[1] = max(highest[1] + 0.03, bodies[..., 3, 1].max() + 0.15)  # hands, top of the head
    lowest[1] -= 0.05
    target = 0.5 * (lowest + highest)
    sine, cosine = np.sin(angle_rad), np.cos(angle_rad)
    away = np.array([sine, 0.0, -cosine])  # from the people to the camera
    target = target + aside_m * np.array([cosine, 0.0, sine])
    corners = np.concatenate([points, lowest[None], highest[None]])
    corners[-2:, [0, 2]] = target[[0, 2]]
    distance = (highest[1] - lowest[1]) / fill * COLOUR_FOCAL / COLOUR_HEIGHT

    def camera_at(metres: float) -> Camera:
        return _looking_at(target, target * [1, 0, 1] + metres * away + [0, height_m, 0])

    for _ in range(3):
        pixels = colour_pixels(camera_at(distance).from_world(corners), width=2, height=2)
        reach = np.abs(pixels - 1.0).max(axis=0)
        # Half of the picture is 1: people fill `fill` of its height, and stay 8 % inside its sides.
        distance *= max(reach[1] / fill, reach[0] / 0.92)
    return camera_at(distance)


def _looking_at(target: NDArray[np.float64], position: NDArray[np.float64]) -> Camera:
    forward = target - position
    forward /= np.linalg.norm(forward)
    left = np.cross([0.0, 1.0, 0.0], forward)
    left /= np.linalg.norm(left)
    return Camera(np.stack([left, np.cross(forward, left), forward]), position)


@dataclass(frozen=True)
class BodyLook:
    """Clothes, skin and hair of one person."""

    shirt: Colour
    trousers: Colour
    shoes: Colour
    skin: Colour
    hair: Colour
    has_long_sleeves: bool
    has_long_hair: bool
    bulk: float  # factor on the thickness of the limbs


@dataclass(frozen=True)
class Thing:
    """A flat rectangle on a wall, or a box on the floor if `depth_m` > 0; metres, world axes."""

    wall: str  # "back", "left", "right"
    along_m: float  # centre along the wall
    bottom_m: float
    width_m: float
    height_m: float
    colour: Colour
    inner: Colour


@dataclass(frozen=True)
class Look:
    """Everything about a clip's picture that is not motion."""

    people: tuple[BodyLook, ...]
    wall: Colour
    floor: Colour
    chair: Colour
    light: tuple[float, float]  # towards the light in the picture: to the right, upwards
    back_wall_m: float  # how far behind the people
    side_wall_m: float
    things: tuple[Thing, ...]
    spare_chair: tuple[float, float] | None  # x, z of a chair that nobody uses


_SKINS: tuple[Colour, ...] = (
    (244, 206, 178), (226, 180, 145), (201, 150, 112), (160, 110, 78), (112, 74, 52), (82, 54, 40),
)  # fmt: skip
_HAIRS: tuple[Colour, ...] = (
    (24, 20, 20), (52, 36, 26), (96, 62, 34), (168, 126, 66), (120, 118, 118), (140, 60, 30),
)  # fmt: skip


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def luminance(colour: Colour) -> float:
    """Perceived brightness, 0 to 1 (Rec. 601 weights)."""
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255.0


def lit(colour: Colour, factor: float) -> Colour:
    """A colour made brighter or darker by a factor."""
    red, green, blue = (min(255, round(factor * c)) for c in colour)
    return red, green, blue


def _with_luminance(colour: Colour, wanted: float) -> Colour:
    now = luminance(colour)
    if now > wanted:
        return tuple(round(c * wanted / now) for c in colour)  # type: ignore[return-value]
    mix = (wanted - now) / (1.0 - now + 1e-6)
    return tuple(round(c + (255 - c) * mix) for c in colour)  # type: ignore[return-value]


def clothes_of_subject(subject_id: int, *, bright: bool) -> BodyLook:
    """What a subject wears, always the same; `bright` chooses its light or dark wardrobe."""
    rng = np.random.default_rng([subject_id, 77])
    hue, hue2 = rng.random(2)
    top = rng.uniform(0.62, 0.78) if bright else rng.uniform(0.22, 0.42)
    bottom = rng.uniform(0.45, 0.60) if bright else rng.uniform(0.10, 0.24)
    return BodyLook(
        shirt=_with_luminance(_hsv(hue, rng.uniform(0.55, 0.95), 0.8), top),
        trousers=_with_luminance(_hsv(hue2, rng.uniform(0.1, 0.7), 0.5), bottom),
        shoes=_with_luminance(_hsv(rng.random(), 0.6, 0.6), 0.75 if bright else 0.06),
        skin=_SKINS[int(rng.integers(2 if bright else len(_SKINS)))],
        hair=_HAIRS[int(rng.integers(len(_HAIRS)))],
        has_long_sleeves=bool(rng.random() < 0.4),
        has_long_hair=bool(rng.random() < 0.4),
        bulk=rng.uniform(0.95, 1.2),
    )


def draw_look(
    rng: np.random.Generator, *, people: tuple[BodyLook, ...], is_dark: bool, has_chair: bool
) -> Look:
    """A room that contrasts with the clothes: light walls, or a dark room for light clothes."""
    hue = rng.random()
    saturation = rng.uniform(0.02, 0.3)
    level = rng.uniform(0.10, 0.24) if is_dark else rng.uniform(0.66, 0.92)
    wall = _with_luminance(_hsv(hue, saturation, 0.7), level)
    floor_level = rng.uniform(0.05, 0.2) if is_dark else rng.uniform(0.45, 0.65)
    floor = _with_luminance(_hsv(rng.uniform(0.02, 0.7), rng.uniform(0.05, 0.4), 0.6), floor_level)
    back, side = rng.uniform(0.9, 2.0), rng.uniform(2.2, 3.2)
    things = []
    for _ in range(int(rng.integers(1, 5))):
        which = ("back", "left", "right")[int(rng.choice(3, p=[0.6, 0.2, 0.2]))]
        kind = ("door", "picture", "board", "shelf")[int(rng.integers(4))]
        width, height, bottom = {
            "door": (0.9, 2.05, 0.0),
            "picture": (rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.7), rng.uniform(1.3, 1.7)),
            "board": (rng.uniform(1.2, 2.0), rng.uniform(0.8, 1.1), rng.uniform(0.8, 1.1)),
            "shelf": (rng.uniform(0.7, 1.1), rng.uniform(1.0, 1.9), 0.0),
        }[kind]
        # Nothing on a wall comes near the clothes' brightness.
        shade = float(np.clip(level + rng.uniform(-0.14, 0.14), 0.05, 0.95))
        colour = _with_luminance(_hsv(rng.random(), rng.uniform(0.1, 0.5), 0.6), shade)
        inner = _with_luminance(colour, float(np.clip(shade + rng.uniform(-0.1, 0.1), 0.04, 0.96)))
        reach = side if which == "back" else back
        place = float(rng.uniform(-reach, reach))
        things.append(Thing(which, place, bottom, width, height, colour, inner))
    wood = _with_luminance(
        _hsv(rng.uniform(0.02, 0.14), rng.uniform(0.3, 0.7), 0.5),
        rng.uniform(0.45, 0.6) if is_dark else rng.uniform(0.25, 0.42),
    )
    angle = rng.uniform(0.2, np.pi - 0.2)
    spare, x = rng.random(), float(rng.choice([-1.0, 1.0]) * rng.uniform(0.9, 1.6))
    return Look(
        people=people,
        wall=wall,
        floor=floor,
        chair=wood,
        light=(float(np.cos(angle)), float(np.sin(angle))),
        back_wall_m=back,
        side_wall_m=side,
        things=tuple(things),
        spare_chair=(x, 0.6 * back) if spare < 0.25 and not has_chair else None,
    )
