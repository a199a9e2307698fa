"""The ten motions of the demo set, each a function of the actors, the manner and a generator.

Shapes: M bodies, T frames, V = 25 joints, C = 3 metres; axes as in synthetic_body.

Every profile is a minimum-jerk step, a cosine or a ballistic flight. All amplitudes and times are
our choice: what looks right and fits about 45 to 110 frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets_build.synthetic_body import (
    SIDES,
    SIGN,
    Actor,
    Array,
    Pose,
    Side,
    along,
    ease,
    place,
    turn,
    unit,
)

FPS = 30
GRAVITY = 9.81


@dataclass(frozen=True)
class Manner:
    """How a motion is to be done.

    Attributes:
        side: the acting hand or foot.
        repetitions: how many times; 1 where counting makes no sense.
        pace: factor on durations: 1 ordinary, less is quicker.
        direction: one of the action's directions, or None.
    """

    side: Side | None
    repetitions: int
    pace: float
    direction: str | None


@dataclass(frozen=True)
class Motion:
    """What was performed.

    Attributes:
        bodies: (M, T, V, C) metres, floor at y = 0, world axes (a person of yaw 0 looks along -z).
        seat: height, and distance behind the origin, of the chair's seat; None without a chair.
    """

    bodies: Array
    seat: tuple[float, float] | None = None


def _timeline(*spans: float) -> tuple[Array, list[float]]:
    """Frame times of a clip of consecutive spans, and the moments between them (with 0 and end)."""
    moments = [0.0, *np.cumsum(spans).tolist()]
    return np.arange(round(moments[-1] * FPS) + 1) / FPS, moments


def _rest(rng: np.random.Generator) -> float:
    return rng.uniform(0.15, 0.4)


# ---- the motions; each takes the actors, the manner and a generator ----


def wave_hand(cast: Sequence[Actor], manner: Manner, rng: np.random.Generator) -> Motion:
    """The hand goes above the shoulder and the forearm swings once a repetition."""
    actor, side = cast[0], manner.side or "right"
    period = 0.52 * manner.pace * actor.tempo
    raise_s = 0.2 + 0.2 * manner.pace
    t, m = _timeline(_rest(rng), raise_s, period * manner.repetitions, raise_s, _rest(rng))
    pose = Pose(actor, t, rng)
    up = ease(t, m[1], m[2] + 0.1 * period) - ease(t, m[3] - 0.1 * period, m[4])
    phase = np.clip((t - m[2]) / period, 0.0, manner.repetitions)
    swing = rng.uniform(0.5, 0.68) * actor.amplitude * np.sin(2 * np.pi * phase)
    centre = rng.uniform(0.0, 0.2)
    upper = pose.arm(side, 0.8, rng.uniform(-0.3, 0.35), rng.uniform(0.15, 0.5))
    fore = pose.arm(side, np.sin(centre + swing), np.cos(centre + swing), 0.2)
    pose.move_arm(side, upper, fore, up)
    pose.bend = pose.bend - SIGN[side] * 0.05 * up
    return Motion(pose.joints()[None])


def clap(cast: Sequence[Actor], manner: Manner, rng: np.random.Generator) -> Motion:
    """Both hands meet in front of the chest once a repetition."""
    actor = cast[0]
    period = 0.44 * manner.pace * actor.tempo
    raise_s = 0.2 + 0.18 * manner.pace
    t, m = _timeline(_rest(rng), raise_s, period * manner.repetitions, raise_s, _rest(rng))
    pose = Pose(actor, t, rng)
    up = ease(t, m[1], m[2]) - ease(t, m[3], m[4])
    phase = np.clip((t - m[2]) / period, 0.0, manner.repetitions)
    gap = rng.uniform(0.26, 0.36) * actor.amplitude * (0.5 + 0.5 * np.cos(2 * np.pi * phase))
    height, ahead = rng.uniform(-0.20, -0.02), rng.uniform(0.28, 0.36)
    for side in SIDES:
        sign = SIGN[side]
        hand = along(sign * (0.022 + 0.5 * gap), height, ahead - 0.1 * gap)
        pole = along(sign * 0.7, -0.7, -0.1)
        pose.move_arm(side, *pose.reach(side, hand, pole), up)
    return Motion(pose.joints()[None])


def point(cast: Sequence[Actor], manner: Manner, rng: np.random.Generator) -> Motion:
    """One arm stretches out and holds, in a direction as the person sees it."""
    actor, side = cast[0], manner.side or "right"
    raise_s, hold_s = 0.52 * manner.pace * actor.tempo, 0.35 + 0.45 * manner.pace
    t, m = _timeline(_rest(rng), raise_s, hold_s, raise_s, _rest(rng))
    pose = Pose(actor, t, rng)
    tilt, swerve = rng.uniform(-0.08, 0.18), rng.uniform(-0.08, 0.08)
    right, up, forward, gaze = {
        "forward": (swerve, tilt, 1.0, 0.0),
        "up": (SIGN[side] * 0.15 + swerve, 1.0, 0.2 + tilt, 0.0),
        "left": (-1.0, tilt, 0.2 if side == "left" else 0.45, 0.5),
        "right": (1.0, tilt, 0.2 if side == "right" else 0.45, -0.5),
    }[manner.direction or "forward"]
    arm = pose.arm(side, SIGN[side] * right, up, forward)
    # The forearm follows the upper arm a little later, so the elbow opens as the arm comes up.
    late = 0.15 * raise_s
    out = ease(t, m[1], m[2] - late) - ease(t, m[3], m[4])
    pose.upper[side] = turn(pose.upper[side], arm, out)
    out = ease(t, m[1] + late, m[2]) - ease(t, m[3], m[4] - late)
    pose.fore[side] = turn(pose.fore[side], arm, out)
    pose.gaze = pose.gaze + gaze * out
    pose.twist = pose.twist + 0.35 * gaze * out
    pose.nod = pose.nod - (0.3 * out if manner.direction == "up" else 0.0)
    return Motion(pose.joints()[None])


def kick(cast: Sequence[Actor], manner: Manner, rng: np.random.Generator) -> Motion:
    """One leg draws back, swings out (forward or sideways) and returns, once a repetition."""
    actor, side = cast[0], manner.side or "right"
    other = SIDES[1 - SIDES.index(side)]
    sign = SIGN[side]
    period = 0.88 * manner.pace * actor.tempo
    t, m = _timeline(_rest(rng) + 0.1, period * manner.repetitions, _rest(rng) + 0.1)
    pose = Pose(actor, t, rng)
    back = np.zeros_like(t)
    out = np.zeros_like(t)
    for k in range(manner.repetitions):
        s = m[1] + k * period
        back += ease(t, s, s + 0.32 * period) - ease(t, s + 0.32 * period, s + 0.50 * period)
        out += ease(t, s + 0.30 * period, s + 0.58 * period) - ease(
            t, s + 0.62 * period, s + 0.98 * period
        )
    leg = (actor.thigh + actor.shin) * actor.amplitude
    reach, rise = rng.uniform(0.68, 0.82) * leg, rng.uniform(0.42, 0.62) * leg
    support = ease(t, m[1] - 0.1, m[1] + 0.2 * period) - ease(t, m[2] - 0.1 * period, m[2] + 0.1)
    if manner.direction == "sideways":
        step = along(sign * (reach * out - 0.05 * back), rise * out + 0.1 * back, 0.1 * back)
        pose.bend = pose.bend - sign * 0.28 * out
    else:
        step = along(
            -sign * 0.06 * out, rise * out + 0.30 * leg * back, reach * out - 0.32 * leg * back
        )
        pose.lean = pose.lean - 0.16 * out + 0.10 * back
    pose.ankle[side] = pose.ankle[side] + step
    pose.toe_down[side] = pose.toe_down[side] + 0.5 * back - 0.35 * out
    pose.pelvis = pose.pelvis + along(
        -sign * 0.7 * actor.stance_half_m * support, -0.015 * support, -0.03 * out
    )
    swing = out - 0.6 * back
    for arm_side, s in ((side, -1.0), (other, 1.0)):
        ahead = pose.arm(arm_side, 0.45, -0.7, 0.65 * s)
        bent = pose.arm(arm_side, 0.3, -0.5, 0.2 + 0.6 * s)
        pose.move_arm(arm_side, ahead, bent, 0.75 * np.clip(swing, 0.0, 1.0))
    return Motion(pose.joints()[None])


def _bounces(
    t: Array, start: float, period: float, num: int, *, dip_m: float, flight_s: float
) -> tuple[Array, Array, Array]:
    """Height of flight, depth of the crouch (metres) and "in the air" (0 to 1) of `num` bounces."""
    lift, dip, air = np.zeros_like(t), np.zeros_like(t), np.zeros_like(t)
    ground = period - flight_s
    for k in range(num):
        s = t - start - k * period
        leave, land = 0.55 * ground, 0.55 * ground + flight_s
        x = np.clip(s / leave, 0.0, 1.0)
        # Down slowly, up fast: the crouch is deepest at 65 % of the time before take-off.
        dip += dip_m * np.sin(np.pi * np.where(x < 0.65, x / 1.3, 0.5 + (x - 0.65) / 0.7)) ** 2
        x = np.clip((s - land) / (0.45 * ground), 0.0, 1.0)
        dip += 0.8 * dip_m * np.sin(np.pi * np.where(x < 0.4, x / 0.8, 0.5 + (x - 0.4) / 1.2)) ** 2
        x = np.clip(s - leave, 0.0, flight_s)
        lift += 0.5 * GRAVITY * x * (flight_s - x)
        air += np.sin(np.pi * x / flight_s)
    return lift, dip, air


def hop(cast: Sequence[Actor], manner: Manner, rng: np.random.Generator) -> Motion:
    """Hops on the foot of `side` while the other shin is held up."""
    actor, side = cast[0], manner.side or "right"
    other = SIDES[1 - SIDES.index(side)]
    period = 0.52 * manner.pace * actor.tempo
    lift_s = 0.25 + 0.12 * manner.pace
    t, m = _timeline(_rest(rng), lift_s, period * manner.repetitions, lift_s, _rest(rng))
    pose = Pose(actor, t, rng)
    held = ease(t, m[1], m[2]) - ease(t, m[3], m[4])
    flight = min(0.58 * period, 0.34) * np.sqrt(actor.amplitude)
    rise, dip, air = _bounces(
        t, m[2], period, manner.repetitions, dip_m=0.05 + 0.02 * manner.pace, flight_s=flight
    )
    up, back = rng.uniform(0.30, 0.42), rng.uniform(0.10, 0.24)
    pose.ankle[other] = pose.ankle[other] + along(
        -SIGN[other] * 0.03 * held, (up + 0.03 * air) * held + rise, -back * held
    )
    pose.toe_down[other] = pose.toe_down[other] + 0.9 * held
    pose.ankle[side] = pose.ankle[side] + along(-SIGN[side] * 0.03 * held, rise, 0.0 * held)
    pose.toe_down[side] = pose.toe_down[side] + 0.45 * air
    shift = SIGN[side] * (0.9 * actor.stance_half_m - 0.02)
    pose.pelvis = pose.pelvis + along(shift * held, rise - dip - 0.01 * held, 0.0)
    pose.lean = pose.lean + 0.08 * held + 0.8 * dip
    for s in SIDES:
        upper = pose.arm(s, rng.uniform(0.45, 0.75), -0.75 + 0.25 * air, 0.2)
        fore = pose.arm(s, 0.35, -0.25 + 0.3 * air, 0.8)
        pose.move_arm(s, upper, fore, held)
    return Motion(pose.joints()[None])


def jump(cast: Sequence[Actor], manner: Manner, rng: np.random.Generator) -> Motion:
    """Jumps straight up from both feet: crouch, flight, landing."""
    actor = cast[0]
    period = 0.95 * manner.pace * actor.tempo
    t, m = _timeline(_rest(rng), period * manner.repetitions, _rest(rng))
    pose = Pose(actor, t, rng)
    flight = min(0.47 * period, 0.5) * np.sqrt(actor.amplitude)
    depth = rng.uniform(0.16, 0.24) * actor.amplitude * min(manner.pace, 1.1) ** 0.5
    rise, dip, air = _bounces(t, m[1], period, manner.repetitions, dip_m=depth, flight_s=flight)
    for side in SIDES:
        pose.ankle[side] = pose.ankle[side] + along(0.0, rise, 0.0)
        pose.toe_down[side] = pose.toe_down[side] + 0.8 * air
    pose.pelvis = pose.pelvis + along(0.0, rise - dip, -0.35 * dip)
    pose.lean = pose.lean + 2.2 * dip
    raised = rng.uniform(0.2, 1.0)  # some throw the arms up, some keep them low
    for side in SIDES:
        drawn = np.clip(dip / depth, 0.0, 1.0)
        pose.move_arm(
            side, pose.arm(side, 0.25, -0.8, -0.55), pose.arm(side, 0.15, -0.9, -0.2), 0.8 * drawn
        )
        upper = pose.arm(side, 0.5, -0.3 + 0.9 * raised, 0.6)
        fore = pose.arm(side, 0.25, 0.2 + 0.8 * raised, 0.6)
        pose.move_arm(side, upper, fore, 0.95 * np.clip(air, 0.0, 1.0))
    return Motion(pose.joints()[None])


def _chair_motion(
    cast: Sequence[Actor], manner: Manner, rng: np.random.Generator, *, rises: bool
) -> Motion:
    actor = cast[0]
    move_s = (1.05 if rises else 1.15) * manner.pace * actor.tempo
    t, m = _timeline(_rest(rng) + 0.1, move_s, _rest(rng) + 0.1)
    pose = Pose(actor, t, rng)
    done = ease(t, m[1], m[2])
    low = 1.0 - done if rises else done  # 1 when seated
    seat_m = actor.height_m * rng.uniform(0.25, 0.275)
    back_m = 0.95 * actor.thigh + rng.uniform(0.0, 0.05)
    # The pelvis goes back before it goes down, and forward before it goes up.
    shift = np.sin(0.5 * np.pi * low) ** 0.9
    pelvis_low = seat_m + 0.085
    pose.pelvis = pose.pelvis + along(
        0.0, (pelvis_low - actor.pelvis_height) * low, -back_m * shift
    )
    x = np.clip((t - m[1]) / move_s, 0.0, 1.0)
    bow = np.sin(np.pi * x ** (0.75 if rises else 1.1)) ** 2
    pose.lean = pose.lean + rng.uniform(0.55, 0.8) * actor.amplitude * bow
    pose.lean = pose.lean - rng.uniform(0.05, 0.18) * low
    for side in SIDES:
        upper = pose.arm(side, 0.16, -0.85, 0.45)
        fore = pose.arm(side, rng.uniform(-0.25, 0.05), -0.3, 0.95)
        pose.move_arm(side, upper, fore, ease(low, 0.2, 0.9))
        ahead, flat = pose.arm(side, 0.15, -0.7, 0.7), pose.arm(side, 0.05, -0.3, 0.95)
        pose.move_arm(side, ahead, flat, 0.45 * bow)
    return Motion(pose.joints()[None], seat=(seat_m, back_m + 0.02))


def sit_down(cast: Sequence[Actor], manner: Manner, rng: np.random.Generator) -> Motion:
    """Bows, moves back and sits on the chair behind; the feet stay planted."""
    return _chair_motion(cast, manner, rng, rises=False)


def stand_up(cast: Sequence[Actor], manner: Manner, rng: np.random.Generator) -> Motion:
    """From sitting: bows forward and rises; the feet stay planted."""
    return _chair_motion(cast, manner, rng, rises=True)


def _walk(pose: Pose, way_m: float, start: float, end: float, lead: Side) -> None:
    """Walk `way_m` forward between two moments, with planted feet and swinging arms."""
    t, actor = pose.t, pose.actor
    num_steps = max(2, round(way_m / (0.36 * actor.height_m / 1.7)))
    x = np.clip((t - start) / (end - start), 0.0, 1.0)
    # Even walking with soft ends: the integral of a trapezoid of speed.
    ramp = 0.2
    progress = np.where(
        x < ramp,
        x * x / (2 * ramp),
        np.where(x > 1 - ramp, 1 - ramp - (1 - x) ** 2 / (2 * ramp), x - ramp / 2),
    ) / (1 - ramp)
    pose.pelvis = pose.pelvis + along(0.0, 0.0, way_m * progress)
    order = (lead, SIDES[1 - SIDES.index(lead)])
    stance = {side: np.zeros_like(t) for side in SIDES}
    lift = {side: np.zeros_like(t) for side in SIDES}
    swing = np.zeros_like(t)
    at = {side: 0.0 for side in SIDES}
    for step in range(num_steps + 1):
        side = order[step % 2]
        u = np.clip(progress * (num_steps + 1) - step, 0.0, 1.0)
        land = min(way_m, (step + 1) * way_m / num_steps)
        stance[side] += (land - at[side]) * ease(u, 0.0, 1.0)
        lift[side] += 0.10 * np.sin(np.pi * u) ** 2
        swing += (1.0 if side == "left" else -1.0) * np.sin(np.pi * u)
        at[side] = land
    for side in SIDES:
        pose.ankle[side] = pose.ankle[side] + along(0.0, lift[side], stance[side])
        pose.toe_down[side] = pose.toe_down[side] + 4.0 * lift[side]
        # The arm swings with the other leg.
        ahead = swing * (1.0 if side == "right" else -1.0)
        pose.upper[side] = unit(pose.upper[side] + along(0.0, 0.0, 0.42 * ahead))
        pose.fore[side] = unit(pose.fore[side] + along(0.0, 0.0, 0.5 * ahead + 0.1 * abs(swing)))
    pose.pelvis[:, 1] -= 0.02 * np.abs(swing) + 0.012 * np.clip(4 * x * (1 - x), 0, 1)
    pose.lean = pose.lean + 0.05 * np.clip(4 * x * (1 - x), 0, 1)


def _face_to_face(poses: Sequence[Pose], way_m: float, gap_m: float) -> Motion:
    """Two poses that have each walked `way_m`, put on the x axis so that `gap_m` is left."""
    far = way_m + gap_m / 2
    first = place(poses[0].joints(), -far, 0.0, -np.pi / 2)
    second = place(poses[1].joints(), far, 0.0, np.pi / 2)
    return Motion(np.stack([first, second]))


def walk_together(cast: Sequence[Actor], manner: Manner, rng: np.random.Generator) -> Motion:
    """Two people walk towards each other and stop in front of each other."""
    way, gap = rng.uniform(0.65, 0.85), rng.uniform(0.55, 0.75)
    walk_s = way / 0.85 * manner.pace * cast[0].tempo
    t, m = _timeline(_rest(rng), walk_s, _rest(rng) + 0.35)
    poses = [Pose(actor, t, rng) for actor in cast]
    for pose in poses:
        _walk(pose, way, m[1], m[2], SIDES[int(rng.integers(2))])
    return _face_to_face(poses, way, gap)


def hug(cast: Sequence[Actor], manner: Manner, rng: np.random.Generator) -> Motion:
    """Two people walk up to each other and put their arms round each other."""
    way, gap = rng.uniform(0.6, 0.8), rng.uniform(0.29, 0.34)
    walk_s, close_s = way / 0.85 * manner.pace * cast[0].tempo, 0.25 + 0.3 * manner.pace
    t, m = _timeline(_rest(rng), walk_s, close_s, 0.5 + 0.35 * manner.pace)
    poses = [Pose(actor, t, rng) for actor in cast]
    closed = ease(t, m[2] - 0.35 * walk_s, m[3])
    over = SIDES[int(rng.integers(2))]  # the arm that goes over the other's shoulder, for both
    for pose, other in zip(poses, cast[::-1], strict=True):
        _walk(pose, way, m[1], m[2], SIDES[int(rng.integers(2))])
        pose.lean = pose.lean + 0.10 * closed
        pose.bend = pose.bend + SIGN[over] * 0.07 * closed
        rise = 0.283 * (other.height_m * other.trunk - pose.actor.height_m * pose.actor.trunk)
        rise += other.pelvis_height - pose.actor.pelvis_height
        for side in SIDES:
            up = np.clip(rise, -0.15, 0.15) + (0.02 if side == over else -0.22)
            hand = along(SIGN[side] * -0.10, up, gap + 0.03)
            pole = along(SIGN[side] * 1.0, 0.15 if side == over else -0.3, 0.0)
            hand = np.broadcast_to(hand, (len(t), 3))
            # On the way the arms open outwards, then close.
            pose.move_arm(
                side,
                pose.arm(side, 0.75, -0.1, 0.65),
                pose.arm(side, 0.3, 0.1, 0.9),
                0.9 * ease(closed, 0.0, 0.6),
            )
            pose.move_arm(side, *pose.reach(side, hand, pole), ease(closed, 0.35, 1.0))
    return _face_to_face(poses, way, gap)
