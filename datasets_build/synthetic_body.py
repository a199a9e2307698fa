"""The 25-joint NTU body: bone lengths and style of a subject, a pose over time, its joints.

Shapes: T frames, V = 25 joints (order: joints.NTU_25), C = 3 metres.

Axes of a person: x to the person's right, y up, z backwards (a person looks along -z), origin on
the floor under the standing pelvis. Triples named (right, up, forward) or (outward, up, forward) go
through `along`. Limbs are directions over time: legs by two-bone inverse kinematics from planted
feet, arms from joint directions or from a point to reach. Bone lengths never change within a clip.
All proportions and styles are our choice, near what NTU's skeletons show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Side = Literal["left", "right"]

SIDES: tuple[Side, Side] = ("left", "right")
SIGN = {"left": -1.0, "right": 1.0}  # of the x axis


@dataclass(frozen=True)
class Actor:
    """One subject: bone lengths in metres and the personal style of moving."""

    height_m: float
    trunk: float  # length factors of trunk, arms and legs
    arms: float
    legs: float
    shoulder_half_m: float
    hip_half_m: float
    tempo: float  # factor on every duration
    amplitude: float  # factor on the size of movements
    lean_rad: float  # posture: forward lean at rest
    arm_out_rad: float
    elbow_rad: float
    stance_half_m: float
    toe_out_rad: float
    right_share: float  # how often this subject prefers the right side

    @property
    def thigh(self) -> float:
        """Length of the thigh."""
        return 0.235 * self.height_m * self.legs

    @property
    def shin(self) -> float:
        """Length of the shin."""
        return 0.230 * self.height_m * self.legs

    @property
    def ankle(self) -> float:
        """Height of the ankle of a foot on the floor."""
        return 0.046 * self.height_m

    @property
    def upper_arm(self) -> float:
        """Length from shoulder to elbow."""
        return 0.155 * self.height_m * self.arms

    @property
    def forearm(self) -> float:
        """Length from elbow to wrist."""
        return 0.142 * self.height_m * self.arms

    @property
    def hand(self) -> float:
        """Length from wrist to the middle of the hand."""
        return 0.040 * self.height_m

    @property
    def pelvis_height(self) -> float:
        """Height of the base of the spine at rest, with knees not quite locked."""
        return 0.992 * (self.thigh + self.shin) + self.ankle + 0.02


def actor_of_subject(subject_id: int) -> Actor:
    """The body and style that belong to a subject id, always the same."""
    rng = np.random.default_rng([subject_id, 25])
    height = rng.uniform(1.55, 1.92)
    return Actor(
        height_m=height,
        trunk=rng.uniform(0.96, 1.04),
        arms=rng.uniform(0.95, 1.05),
        legs=rng.uniform(0.96, 1.04),
        shoulder_half_m=height * rng.uniform(0.092, 0.108),
        hip_half_m=height * rng.uniform(0.044, 0.052),
        tempo=rng.uniform(0.93, 1.07),
        amplitude=rng.uniform(0.88, 1.12),
        lean_rad=rng.uniform(-0.02, 0.09),
        arm_out_rad=rng.uniform(0.10, 0.24),
        elbow_rad=rng.uniform(0.10, 0.45),
        stance_half_m=rng.uniform(0.09, 0.15),
        toe_out_rad=rng.uniform(0.0, 0.3),
        right_share=rng.uniform(0.42, 0.58),
    )


# ---- profiles and vectors ----


def ease(t: Array, start: float, end: float) -> Array:
    """Minimum-jerk step from 0 at `start` to 1 at `end` (Flash and Hogan 1985)."""
    x = np.clip((t - start) / (end - start), 0.0, 1.0)
    return x * x * x * (10.0 + x * (6.0 * x - 15.0))


def along(right: Array | float, up: Array | float, forward: Array | float) -> Array:
    """(..., 3) vector from its parts to the right, up and forward."""
    shape = np.broadcast_shapes(np.shape(right), np.shape(up), np.shape(forward))
    out = np.empty((*shape, 3))
    out[..., 0], out[..., 1], out[..., 2] = right, up, forward
    out[..., 2] *= -1.0
    return out


def unit(v: Array) -> Array:
    """Vectors of length 1."""
    return v / np.sqrt(np.einsum("...c,...c->...", v, v))[..., None]


def turn(a: Array, b: Array, w: Array) -> Array:
    """Unit vectors from `a` to `b` on the great circle at fractions `w` (T,)."""
    a, b = np.broadcast_arrays(unit(a), unit(b))
    angle = np.arccos(np.clip(np.einsum("...c,...c->...", a, b), -0.9999, 0.9999))
    sine = np.sin(angle)
    return unit(
        a * (np.sin((1.0 - w) * angle) / sine)[..., None]
        + b * (np.sin(w * angle) / sine)[..., None]
    )


def yaw_matrix(yaw: Array | float) -> Array:
    """(..., 3, 3) turn about the vertical; positive is to the person's left."""
    yaw = np.asarray(yaw, dtype=float)
    out = np.zeros((*yaw.shape, 3, 3))
    out[..., 0, 0] = out[..., 2, 2] = np.cos(yaw)
    out[..., 0, 2] = np.sin(yaw)
    out[..., 2, 0] = -np.sin(yaw)
    out[..., 1, 1] = 1.0
    return out


def trunk_frame(twist: Array, lean: Array, bend: Array) -> Array:
    """(T, 3, 3) axes (columns right, up, back) after bend to the right, forward lean and twist."""
    cl, sl, cb, sb = np.cos(lean), np.sin(lean), np.cos(bend), np.sin(bend)
    out = np.zeros((len(lean), 3, 3))
    # Rx(-lean) @ Rz(-bend)
    out[:, 0, 0], out[:, 0, 1] = cb, sb
    out[:, 1, 0], out[:, 1, 1], out[:, 1, 2] = -cl * sb, cl * cb, sl
    out[:, 2, 0], out[:, 2, 1], out[:, 2, 2] = sl * sb, -sl * cb, cl
    return np.matmul(yaw_matrix(twist), out)


def two_bone(offset: Array, first: float, second: float, pole: Array) -> tuple[Array, Array]:
    """Unit directions of two bones that reach `offset` (T, 3) from their root, bent towards `pole`.

    A point out of reach is approached along its direction.
    """
    distance = np.sqrt(np.einsum("tc,tc->t", offset, offset))
    direction = offset / distance[:, None]
    distance = np.clip(distance, abs(first - second) + 0.02, 0.9985 * (first + second))
    along_m = (first**2 - second**2 + distance**2) / (2.0 * distance)
    out_m = np.sqrt(np.maximum(first**2 - along_m**2, 1e-9))
    pole = np.broadcast_to(pole, offset.shape)
    side = unit(pole - np.einsum("tc,tc->t", pole, direction)[:, None] * direction)
    middle = direction * along_m[:, None] + side * out_m[:, None]
    return middle / first, (direction * distance[:, None] - middle) / second


# ---- a pose over time and its joints ----


class Pose:
    """The state of one body over T frames; starts as quiet standing with sway and breath."""

    def __init__(self, actor: Actor, t: Array, rng: np.random.Generator) -> None:
        self.actor, self.t = actor, t
        phase, rate = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.25, 0.45, 3)
        wave = np.sin(2 * np.pi * rate[:, None] * t + phase[:3, None])  # (3, T)
        zero = np.zeros_like(t)
        self.pelvis = along(0.010 * wave[0], actor.pelvis_height, 0.008 * wave[1])  # (T, 3)
        self.twist = 0.02 * wave[2]
        self.lean = actor.lean_rad + 0.012 * wave[1]
        self.bend = 0.01 * wave[0]
        self.nod = zero + rng.uniform(-0.05, 0.12)
        self.gaze = zero + 0.0  # head turned to the left, radians
        breath = 0.004 * np.sin(2 * np.pi * 0.3 * t + phase[3])
        self.breath = breath
        self.ankle: dict[str, Array] = {}
        self.toe_down: dict[str, Array] = {}
        self.upper: dict[str, Array] = {}
        self.fore: dict[str, Array] = {}
        for side in SIDES:
            x = SIGN[side] * actor.stance_half_m
            self.ankle[side] = along(zero + x, actor.ankle, rng.uniform(-0.03, 0.03))
            self.toe_down[side] = zero + 0.0
            out = actor.arm_out_rad * rng.uniform(0.85, 1.15)
            flex = actor.elbow_rad * rng.uniform(0.8, 1.2)
            self.upper[side] = self.arm(side, np.sin(out), -np.cos(out), 0.04 + wave[2] * 0.01)
            self.fore[side] = self.arm(
                side, 0.4 * np.sin(out), -np.cos(flex), np.sin(flex) + wave[2] * 0.015
            )

    def arm(self, side: str, out: Array | float, up: Array | float, fwd: Array | float) -> Array:
        """(T, 3) unit direction in the trunk's axes from its outward, upward and forward parts."""
        v = along(SIGN[side] * np.asarray(out), up, fwd)
        return unit(np.broadcast_to(v, (len(self.t), 3)))

    def move_arm(self, side: str, upper: Array, fore: Array, w: Array) -> None:
        """Turn an arm towards directions by fraction `w` (T,)."""
        self.upper[side] = turn(self.upper[side], upper, w)
        self.fore[side] = turn(self.fore[side], fore, w)

    def reach(self, side: str, hand: Array, pole: Array) -> tuple[Array, Array]:
        """Arm directions that bring the hand to a point, in trunk axes from the spine's top."""
        shoulder = along(SIGN[side] * self.actor.shoulder_half_m, -0.02, 0.0)
        return two_bone(
            hand - shoulder, self.actor.upper_arm, self.actor.forearm + self.actor.hand, pole
        )

    def joints(self) -> Array:
        """(T, V, C) joint positions by forward kinematics."""
        a, h = self.actor, self.actor.height_m
        out = np.empty((len(self.t), 25, 3))
        hips = trunk_frame(0.5 * self.twist, 0.25 * self.lean, 0.5 * self.bend)
        waist = trunk_frame(0.7 * self.twist, 0.7 * self.lean, 0.8 * self.bend)
        chest = trunk_frame(self.twist, self.lean, self.bend)
        head = trunk_frame(self.twist + self.gaze, 0.6 * self.lean + self.nod, 0.5 * self.bend)
        out[:, 0] = self.pelvis
        out[:, 1] = out[:, 0] + 0.155 * h * a.trunk * waist[:, :, 1]
        out[:, 20] = out[:, 1] + 0.128 * h * a.trunk * chest[:, :, 1]
        out[:, 2] = out[:, 20] + 0.042 * h * chest[:, :, 1]
        out[:, 3] = out[:, 2] + 0.078 * h * head[:, :, 1]
        for side, first in (("left", 4), ("right", 8)):
            sign, tip = SIGN[side], 21 if side == "left" else 23
            upper = np.einsum("tij,tj->ti", chest, self.upper[side])
            fore = np.einsum("tij,tj->ti", chest, self.fore[side])
            # A raised arm lifts its shoulder; the constant length keeps the bone rigid.
            lift = -0.02 + 0.045 * (1.0 + self.upper[side][:, 1]) + self.breath
            across = sign * np.sqrt(a.shoulder_half_m**2 - lift**2)
            out[:, first] = (
                out[:, 20] + across[:, None] * chest[:, :, 0] + lift[:, None] * chest[:, :, 1]
            )
            out[:, first + 1] = out[:, first] + a.upper_arm * upper
            out[:, first + 2] = out[:, first + 1] + a.forearm * fore
            out[:, first + 3] = out[:, first + 2] + a.hand * fore
            out[:, tip] = out[:, first + 3] + 0.035 * h * fore
            thumb = -chest[:, :, 2] - 0.7 * sign * chest[:, :, 0]
            thumb = unit(thumb - np.einsum("tc,tc->t", thumb, fore)[:, None] * fore + 0.4 * fore)
            out[:, tip + 1] = out[:, first + 3] + 0.026 * h * thumb
        for side, first in (("left", 12), ("right", 16)):
            sign = SIGN[side]
            hip = out[:, 0] + sign * a.hip_half_m * hips[:, :, 0] - 0.02 * hips[:, :, 1]
            toe_yaw = -sign * a.toe_out_rad
            pole = -hips[:, :, 2] + 0.5 * a.toe_out_rad * sign * hips[:, :, 0]
            thigh, shin = two_bone(self.ankle[side] - hip, a.thigh, a.shin, pole)
            out[:, first] = hip
            out[:, first + 1] = hip + a.thigh * thigh
            out[:, first + 2] = out[:, first + 1] + a.shin * shin
            down = 0.35 + self.toe_down[side]
            foot = along(0.0, -np.sin(down), np.cos(down)) @ yaw_matrix(toe_yaw).T
            out[:, first + 3] = out[:, first + 2] + 0.080 * h * foot
        return out


def place(joints: Array, x: float, z: float, yaw: float) -> Array:
    """Turn a body about its origin and put it at (x, z) on the floor."""
    return joints @ yaw_matrix(yaw).T + np.array([x, 0.0, z])
