"""What a Kinect would report of a performance: noise, inferred joints, and the .skeleton text.

The format is that of the NTU RGB+D files: the number of frames; for each frame the number of
bodies; for each body a line of ten fields (body id, clipped edges, confidence and state of both
hands, is restricted, lean x y, tracking state), the number of joints, and 25 lines of twelve fields
(x y z, depthX depthY, colorX colorY, orientation w x y z, tracking state), with CRLF line ends.
Ours differ from real files in one point: the pictures are not mirrored, see synthetic_view.

Shapes: M bodies, T frames, V = 25 joints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets_build.synthetic_view import colour_pixels, depth_pixels

if TYPE_CHECKING:
    from datasets_build.synthetic import Performance

Array = NDArray[np.float64]

TRACKED, INFERRED = 2, 1

# Standard deviation of the jitter in metres, by joint; our choice within what a standing person
# shows in real files (second differences of 2-5 mm at the trunk, 30-60 mm at hands and feet).
_JITTER_M = np.array(
    [4, 4, 4, 5, 5, 7, 9, 10, 5, 7, 9, 10, 4, 6, 8, 10, 4, 6, 8, 10, 4, 12, 12, 12, 12]
) * 1e-3  # fmt: skip
_INFERRED_M = 0.03
_CHAINS = ((5, 6, 7, 21, 22), (9, 10, 11, 23, 24), (13, 14, 15), (17, 18, 19))
_DROPS_PER_CHAIN = 0.35

# Orientation is that of the bone from `parent` to the joint: y along the bone, z near a reference.
_PARENT = np.array(
    [0, 0, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 1, 7, 7, 11, 11]
)
_ORIENTED = (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 20)
_FIRST_BODY_ID = 72057594037927936  # 2**56, where Kinect's body ids start


def observe(performance: Performance, rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """Noisy joints (M, T, V, 3) in metres and tracking states (M, T, V): 2 tracked, 1 inferred.

    Joints are inferred in random spans of a limb and where the trunk hides them from the camera.
    """
    clean = performance.bodies.astype(np.float64)
    num_bodies, num_frames = clean.shape[:2]
    state = np.full(clean.shape[:3], TRACKED)
    state[_hidden_behind_trunk(clean)] = INFERRED
    for body in range(num_bodies):
        for chain in _CHAINS:
            for _ in range(int(rng.poisson(_DROPS_PER_CHAIN))):
                start, length = int(rng.integers(num_frames)), int(rng.integers(3, 13))
                # The span takes the end of the limb, sometimes the whole limb.
                lost = chain[int(rng.integers(len(chain))) :]
                state[body, start : start + length, list(lost)] = INFERRED
    noise = _drifting(rng, clean.shape, memory=0.5) * _JITTER_M[:, None]
    lost_noise = _drifting(rng, clean.shape, memory=0.85) * _INFERRED_M
    return clean + noise + lost_noise * (state == INFERRED)[..., None], state


def _drifting(rng: np.random.Generator, shape: tuple[int, ...], *, memory: float) -> Array:
    """Unit-variance noise that is correlated over axis 1 (a first-order autoregression)."""
    noise = rng.standard_normal(shape)
    fresh = np.sqrt(1.0 - memory**2)
    for t in range(1, shape[1]):
        noise[:, t] = memory * noise[:, t - 1] + fresh * noise[:, t]
    return noise


def _hidden_behind_trunk(joints: Array) -> NDArray[np.bool_]:
    """(M, T, V) where a limb's joint lies behind the trunk as the camera sees it."""
    x, y = joints[..., 0] / joints[..., 2], joints[..., 1] / joints[..., 2]
    spine, base, top = joints[..., 1, :], joints[..., 0, :], joints[..., 20, :]
    half = 0.11 / spine[..., 2]
    near = np.abs(x - (spine[..., 0] / spine[..., 2])[..., None]) < half[..., None]
    low, high = (base[..., 1] / base[..., 2])[..., None], (top[..., 1] / top[..., 2])[..., None]
    hidden = near & (y > low) & (y < high) & (joints[..., 2] > spine[..., 2, None] + 0.08)
    hidden[..., [0, 1, 2, 3, 20]] = False
    return hidden


def _orientations(joints: Array) -> Array:
    """(M, T, V, 4) quaternions w x y z of the bone frames; zeros at limb ends, as Kinect's."""
    bone = joints - joints[:, :, _PARENT]
    bone[:, :, 0] = bone[:, :, 1]
    y = _unit(bone[:, :, list(_ORIENTED)])
    left = _unit(joints[:, :, 4] - joints[:, :, 8])
    forward = np.cross(left, _unit(joints[:, :, 20] - joints[:, :, 0]))
    reference = np.repeat(forward[:, :, None], len(_ORIENTED), axis=2)
    for i, joint in enumerate(_ORIENTED):
        if joint in (13, 14):
            reference[:, :, i] = left
        elif joint in (17, 18):
            reference[:, :, i] = -left
    # A bone that points along its reference has no frame; a touch of "up" gives it one.
    reference = reference + np.array([0.0, 1e-3, 0.0])
    x = _unit(np.cross(y, reference))
    matrix = np.stack([x, y, np.cross(x, y)], axis=-1)  # (M, T, J, 3, 3), columns are the axes
    out = np.zeros((*joints.shape[:3], 4))
    out[:, :, list(_ORIENTED)] = _quaternions(matrix)
    return out


def _quaternions(m: Array) -> Array:
    """(..., 4) w x y z of rotations (..., 3, 3), by the largest component (Shepperd 1978)."""
    d = np.einsum("...ii->...i", m)
    trace = d.sum(axis=-1, keepdims=True)
    squares = np.concatenate([1.0 + trace, 1.0 + 2.0 * d - trace], axis=-1)  # 4 times each squared
    s = m[..., [2, 0, 1], [1, 2, 0]] - m[..., [1, 2, 0], [2, 0, 1]]  # 4w (x, y, z)
    p = m[..., [1, 2, 0], [0, 1, 2]] + m[..., [0, 1, 2], [1, 2, 0]]  # 4 (xy, yz, zx)
    table = np.empty((*m.shape[:-2], 4, 4))
    table[..., range(4), range(4)] = squares
    for i in range(3):
        table[..., 0, i + 1] = table[..., i + 1, 0] = s[..., i]
        j, k = i + 1, (i + 1) % 3 + 1
        table[..., j, k] = table[..., k, j] = p[..., i]
    row = np.take_along_axis(table, squares.argmax(axis=-1)[..., None, None], axis=-2)[..., 0, :]
    return _unit(row)


def _unit(v: Array) -> Array:
    return v / np.sqrt(np.einsum("...c,...c->...", v, v))[..., None]


def skeleton_text(
    performance: Performance, rng: np.random.Generator, *, width: int, height: int
) -> str:
    """The clip's .skeleton file; colour coordinates are pixels of a width x height picture."""
    joints, state = observe(performance, rng)
    numbers = np.concatenate(
        [
            joints,
            depth_pixels(joints),
            colour_pixels(joints, width=width, height=height),
            _orientations(joints),
            state[..., None],
        ],
        axis=-1,
    )  # (M, T, V, 12)
    trunk = _unit(joints[:, :, 20] - joints[:, :, 0])
    across = _unit(joints[:, :, 8] - joints[:, :, 4])
    # Kinect's lean: to the right and forward, -1 to 1 for 45 degrees; here its sine.
    lean = np.stack([np.einsum("mtc,mtc->mt", trunk, across * [1, 0, 1]), -trunk[..., 2]], axis=-1)
    num_bodies, num_frames = joints.shape[:2]
    ids = _FIRST_BODY_ID + np.sort(rng.choice(20_000, num_bodies, replace=False))
    body_line = "%d 0 %d %d %d %d 0 %.7g %.7g 2\r\n25\r\n"
    joint_lines = ("%.7g " * 11 + "%d\r\n") * 25
    text = [f"{num_frames}\r\n"]
    flat = numbers.reshape(num_bodies, num_frames, -1).tolist()
    for t in range(num_frames):
        text.append(f"{num_bodies}\r\n")
        for m in range(num_bodies):
            hands = []
            for hand in (7, 11):  # confidence 1 and state 2 (open), or 0 and 1 (not tracked)
                hands += [1, 2] if state[m, t, hand] == TRACKED else [0, 1]
            text.append(body_line % (ids[m], *hands, *lean[m, t]))
            text.append(joint_lines % tuple(flat[m][t]))
    return "".join(text)
