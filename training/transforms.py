"""From ragged skeleton clips to what a model sees: batched, on the training device.

Shapes: N samples, M bodies, Tmax frames of the longest clip, T frames out, V joints, C channels
(coordinates and, in some layouts, a score).

A ragged batch is a padded tensor (N, M, Tmax, V, C) or the clips of a store (StoredClips), and
`lengths` (N,), the real number of frames of each clip; what lies behind a clip's length is never
read. The two views follow CTR-GCN's feeders (feeder_ntu.py, feeder_ucla.py), written as gathers:
no sample is touched alone.

Randomness: every view takes its uniform numbers as a tensor, `draws` (N, number), made by
`sample_draws` from (seed, epoch, sample_id) alone. Order, batch size, workers, restarts and the
device therefore do not change what a sample becomes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64 (Steele, Lea and Flood, OOPSLA 2014)
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

NTU_DRAWS = 5  # crop length, crop start, three angles
NTU_MIN_CROP = 0.5  # the smallest share of a clip that is kept (CTR-GCN's p_interval)
UCLA_MAX_ANGLE_DEG = 60  # CTR-GCN feeders/feeder_ucla.py
_UCLA_COPIES = 100  # the pool that frames are drawn from holds each frame this often (ibid.), more
# often only where a clip of one frame would give fewer than the frames asked for


# --- draws -------------------------------------------------------------------------------------


def sample_key(sample_id: str) -> int:
    """A stable 63-bit number for a sample_id, the same on every machine."""
    digest = hashlib.blake2b(sample_id.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _mix(z: int) -> int:
    """The splitmix64 finaliser on Python integers."""
    z = ((z ^ (z >> 30)) * _MIX1) & _MASK64
    z = ((z ^ (z >> 27)) * _MIX2) & _MASK64
    return z ^ (z >> 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(z: Tensor) -> Tensor:
    """The splitmix64 finaliser on int64 tensors; products wrap modulo 2^64."""
    z = (z ^ _shifted(z, 30)) * _signed(_MIX1)
    z = (z ^ _shifted(z, 27)) * _signed(_MIX2)
    return z ^ _shifted(z, 31)


def sample_draws(seed: int, epoch: int, sample_keys: Tensor, num: int) -> Tensor:
    """Uniform numbers that depend on (seed, epoch, sample) only, equal on every device.

    Args:
        seed: the run's seed.
        epoch: counted from 0; for samples repeated within an epoch, give each pass its own number.
        sample_keys: (N,) int64, from sample_key.
        num: how many numbers a sample gets.

    Returns:
        (N, num) float32 in [0, 1), multiples of 2^-24; the first numbers do not depend on `num`.
    """
    run = _mix(_mix((seed + _GOLDEN) & _MASK64) ^ ((epoch * _GOLDEN) & _MASK64))
    start = _mix_tensor(sample_keys ^ _signed(run))  # (N,)
    steps = torch.arange(1, num + 1, device=sample_keys.device) * _signed(_GOLDEN)  # (num,)
    bits = _mix_tensor(start[:, None] + steps)  # (N, num)
    return _shifted(bits, 40).to(torch.float32) * 2.0**-24


def _uniform_integer(draw: Tensor, count: Tensor) -> Tensor:
    """Integers 0 .. count - 1 from uniform numbers; rounding never reaches `count`."""
    return torch.minimum((draw * count).floor().long(), count - 1)


# --- shared steps --------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredClips:
    """The clips of a batch where they lie: frame t of body m of clip n is rows[first[n, m] + t].

    Attributes:
        rows: (R, V, C), one a body and frame.
        first: (N, M) int64, the row of each body's first frame.
    """

    rows: Tensor
    first: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.rows.dtype

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.rows.device

    def frames(self, index: Tensor) -> Tensor:
        """Frames `index` (N, T), the same for all bodies of a clip: (N, M, T, V, C)."""
        at = self.first[:, :, None] + index[:, None]  # (N, M, T)
        flat = self.rows.flatten(1).index_select(0, at.flatten())  # (N*M*T, V*C)
        return flat.view(*at.shape, *self.rows.shape[1:])  # (N, M, T, V, C)


def _take_frames(x: Tensor | StoredClips, index: Tensor) -> Tensor:
    """Frames `index` (N, T) of x (N, M, Tmax, V, C): a new (N, M, T, V, C)."""
    if isinstance(x, StoredClips):
        return x.frames(index)
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x.transpose(1, 2)[rows, index].transpose(1, 2)


def _planes(x: Tensor) -> Tensor:
    """Each coordinate of x (N, M, T, V, C) by itself: (N, C, M*T*V), contiguous."""
    return x.flatten(1, 3).transpose(1, 2).contiguous()


def _rotate(planes: Tensor, rotation: Tensor) -> Tensor:
    """Points (N, 3, P) with every vector p replaced by R p, R (N, 3, 3)."""
    rotation = rotation.to(planes.dtype)
    # Sums of three products, not matmul: the same in float32 whatever TF32 or autocast say.
    turned = planes[:, 0:1] * rotation[:, :, 0:1]
    turned += planes[:, 1:2] * rotation[:, :, 1:2]
    turned += planes[:, 2:3] * rotation[:, :, 2:3]
    return turned  # (N, 3, P)


def _axis_rotations(angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations (N, 3, 3) about x, y and z by angles (N, 3) in radians (CTR-GCN's signs)."""
    cos, sin = angles.cos().unbind(1), angles.sin().unbind(1)
    zero, one = torch.zeros_like(cos[0]), torch.ones_like(cos[0])

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=-1).view(-1, 3, 3)

    about_x = matrix(one, zero, zero, zero, cos[0], sin[0], zero, -sin[0], cos[0])
    about_y = matrix(cos[1], zero, -sin[1], zero, one, zero, sin[1], zero, cos[1])
    about_z = matrix(cos[2], sin[2], zero, -sin[2], cos[2], zero, zero, zero, one)
    return about_x, about_y, about_z


def _compose(a: Tensor, b: Tensor) -> Tensor:
    """a b for (N, 3, 3), in full precision."""
    return (a[:, :, :, None] * b[:, None, :, :]).sum(2)


def crop_and_resize(
    x: Tensor | StoredClips, lengths: Tensor, *, start: Tensor, size: Tensor, num_frames: int
) -> Tensor:
    """The frames start .. start + size - 1 of each clip, resized linearly in time.

    Equal to F.interpolate(mode="bilinear", align_corners=False) along time alone, as two gathers
    and one mixture: no other frame is touched. A clip of one frame repeats it; a clip of no frame
    gives zeros.

    Args:
        x: (N, M, Tmax, V, C) padded clips, or those of a store.
        lengths: (N,) int64, real frames.
        start: (N,) int64, first frame of the crop.
        size: (N,) int64, frames in the crop, start + size <= lengths.
        num_frames: T, frames out.

    Returns:
        (N, M, T, V, C).
    """
    real = torch.promote_types(x.dtype, torch.float32)
    step = (size.to(real) / num_frames)[:, None]  # (N, 1)
    position = (torch.arange(num_frames, device=x.device, dtype=real) + 0.5) * step - 0.5
    position = position.clamp(min=0.0)  # (N, T)
    low = position.floor()
    weight = (position - low).to(x.dtype)  # (N, T)
    is_there = (lengths > 0)[:, None]
    last = (size - 1).clamp(min=0)[:, None]
    first = torch.minimum(low.long(), last)
    second = torch.minimum(first + 1, last)
    offset = start[:, None]
    before = _take_frames(x, first + offset)
    after = _take_frames(x, second + offset)  # (N, M, T, V, C)
    before *= ((1.0 - weight) * is_there)[:, None, :, None, None]
    after *= (weight * is_there)[:, None, :, None, None]
    return before.add_(after)


# --- the two views -------------------------------------------------------------------------------


def ntu_view(
    x: Tensor | StoredClips,
    lengths: Tensor,
    *,
    num_frames: int = 64,
    training: bool,
    draws: Tensor | None = None,
    joint_dims: int = 3,
    rotation_rad: float = 0.3,
) -> Tensor:
    """CTR-GCN's NTU view: crop, linear resize to `num_frames`, and for training a small rotation.

    Training: a share p ~ U(1/2, 1) of the clip, at least `num_frames` frames and at most all,
    from a uniform start; then R = Rz Ry Rx with angles ~ U(-rotation_rad, rotation_rad), one R a
    clip. Test: the middle 95 %. Absent (all-zero) bodies stay zero.

    Args:
        x: (N, M, Tmax, V, C), or the clips of a store; the first joint_dims channels are
            coordinates.
        lengths: (N,) int64.
        num_frames: T; CTR-GCN's 64 is also its least crop length.
        training: random crop and rotation, or the centre crop.
        draws: (N, at least NTU_DRAWS) uniform numbers; needed for training only.
        joint_dims: only 3 coordinates are rotated; 2-D layouts and scores are cropped and resized.
        rotation_rad: training: the largest angle about each axis, radians.

    Returns:
        (N, M, T, V, C).

    Raises:
        ValueError: training without enough draws.
    """
    if not training:
        # int((1 - 0.95) * length / 2) of the original equals length // 40 in its doubles.
        start = lengths // 40
        return crop_and_resize(
            x, lengths, start=start, size=lengths - 2 * start, num_frames=num_frames
        )
    draws = _checked_draws(draws, NTU_DRAWS)
    share = NTU_MIN_CROP + (1.0 - NTU_MIN_CROP) * draws[:, 0]
    size = (share * lengths).floor().long().clamp(min=num_frames)
    size = torch.minimum(size, lengths)
    start = _uniform_integer(draws[:, 1], lengths - size + 1)
    view = crop_and_resize(x, lengths, start=start, size=size, num_frames=num_frames)
    if joint_dims != 3:
        return view
    angles = (2.0 * draws[:, 2:5] - 1.0) * rotation_rad
    about_x, about_y, about_z = _axis_rotations(angles)
    rotation = _compose(about_z, _compose(about_y, about_x))  # (N, 3, 3)
    turned = _rotate(_planes(view[..., :3]), rotation)  # (N, 3, M*T*V)
    rotated = turned.transpose(1, 2).contiguous().view(*view.shape[:-1], 3)  # (N, M, T, V, 3)
    return rotated if view.shape[-1] == 3 else torch.cat((rotated, view[..., 3:]), dim=-1)


def ucla_view(
    x: Tensor,
    lengths: Tensor,
    *,
    num_frames: int = 52,
    training: bool,
    draws: Tensor | None = None,
    centre: int = 1,
) -> Tensor:
    """CTR-GCN's NW-UCLA view: centre, rotate (training), scale each axis to [-1, 1], sample frames.

    The middle of the spine in frame 0 becomes the origin; for training the clip is turned by
    independent whole degrees in [-60, 60] about x and y; each axis is then stretched so that its
    smallest and largest value over the whole clip are -1 and 1 (which cancels the original's random
    scale: left out). Frames: training draws `num_frames` of a pool that holds each frame 100 times,
    without replacement, in order; test takes int(linspace(0, length - 1, num_frames)).
    An axis without extent, a division by zero in the original, becomes 0.

    Args:
        x: (N, 1, Tmax, V, 3).
        lengths: (N,) int64, at least 1.
        num_frames: T.
        training: random view, or the test view.
        draws: (N, at least ucla_num_draws(num_frames)) uniform numbers; needed for training only.
        centre: index of the joint that becomes the origin.

    Returns:
        (N, 1, T, V, 3), dtype of x.

    Raises:
        ValueError: training without enough draws, more than one body, or other than 3 coordinates.
    """
    n, m, t_max, v, c = x.shape
    if m != 1 or c != 3:
        raise ValueError(
            f"the NW-UCLA view takes one body with 3 coordinates, got {m} bodies with {c}; "
            "set the view to 'ntu' in the recipe for this data set"
        )
    dtype = x.dtype
    # Double precision: metres away from the camera, stretched by up to an order of magnitude.
    x = x.double() if x.device.type != "mps" else x
    x = _planes(x - x[:, :, :1, centre : centre + 1])  # (N, 3, Tmax*V)
    if training:
        draws = _checked_draws(draws, ucla_num_draws(num_frames))
        count = torch.full_like(lengths, 2 * UCLA_MAX_ANGLE_DEG + 1)
        degrees = torch.stack([_uniform_integer(draws[:, i], count) for i in range(2)], dim=1)
        angles = (degrees - UCLA_MAX_ANGLE_DEG).to(x.dtype) * (math.pi / 180.0)  # (N, 2)
        about_x, about_y, _ = _axis_rotations(torch.nn.functional.pad(angles, (0, 1)))
        # The original multiplies row vectors, p Ry Rx; for columns that is (Ry Rx)^T.
        x = _rotate(x, _compose(about_y, about_x).transpose(1, 2))
        index = _pool_sample(lengths, draws[:, 2 : 2 + num_frames])  # (N, T)
    else:
        index = _even_frames(t_max, num_frames).to(x.device)[lengths]  # (N, T)
    x = x.view(n, 3, t_max, v)
    frames = torch.arange(t_max, device=x.device)
    is_padding = (frames >= lengths[:, None])[:, None, :, None]  # (N, 1, Tmax, 1)
    low = x.masked_fill(is_padding, math.inf).amin(dim=(2, 3), keepdim=True)
    high = x.masked_fill(is_padding, -math.inf).amax(dim=(2, 3), keepdim=True)  # (N, 3, 1, 1)
    extent = high - low
    has_extent = extent > 0
    x = x.take_along_dim(index[:, None, :, None], dim=2)  # (N, 3, T, V)
    scaled = (x - low) / torch.where(has_extent, extent, 1.0) * 2.0 - 1.0
    scaled = torch.where(has_extent, scaled, 0.0)
    return scaled.permute(0, 2, 3, 1).to(dtype).contiguous()[:, None]  # (N, 1, T, V, 3)


def ucla_num_draws(num_frames: int) -> int:
    """Uniform numbers a sample that ucla_view takes for training: two angles and each frame."""
    return 2 + num_frames


def _checked_draws(draws: Tensor | None, num: int) -> Tensor:
    if draws is None or draws.shape[1] < num:
        got = "none" if draws is None else str(draws.shape[1])
        raise ValueError(
            f"the training view needs {num} draws a sample, got {got}; see sample_draws"
        )
    return draws


def _pool_sample(lengths: Tensor, draws: Tensor) -> Tensor:
    """Sorted frames (N, T) drawn without replacement from the copies of range(length).

    Floyd's algorithm: the i-th of T steps draws a place from 0 .. P - T + i (P the pool's size) and
    takes the upper end itself where that place is already taken; every subset is equally likely.
    Here all steps at once: a place is replaced if an earlier step drew it too. A place that is
    taken as the upper end of an earlier step is not looked for: it and all upper ends are copies of
    the last frame, so the frame is the same.
    """
    num = draws.shape[1]
    copies = max(_UCLA_COPIES, num)
    step = torch.arange(num, device=draws.device)
    top = lengths[:, None] * copies - num + step  # (N, T)
    place = _uniform_integer(draws, top + 1)
    is_same = place[:, :, None] == place[:, None]  # (N, T, T)
    is_taken = (is_same & (step[:, None] > step)).any(2)  # (N, T)
    return torch.where(is_taken, top, place).sort(dim=1).values // copies


@lru_cache(maxsize=32)
def _even_frames(max_length: int, num_frames: int) -> Tensor:
    """A (max_length + 1, T) table: row L is int(linspace(0, L - 1, T)), with NumPy's rounding."""
    rows = [np.linspace(0, max(length - 1, 0), num_frames) for length in range(max_length + 1)]
    return torch.from_numpy(np.stack(rows).astype(np.int64))
