"""training.transforms: batched crop, resize, rotation and the two published views."""

import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from datasets_build.joints import UCLA_20
from training.streams import apply_stream
from training.transforms import (
    NTU_DRAWS,
    StoredClips,
    _pool_sample,
    crop_and_resize,
    ntu_view,
    sample_draws,
    sample_key,
    ucla_num_draws,
    ucla_view,
)

SHARED = Path(__file__).resolve().parents[3] / "shared"


def ragged(lengths, num_bodies=2, num_joints=25, seed=0, dtype=torch.float32):
    """A padded batch whose padding is NaN: whoever reads it is found out."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), num_bodies, max(lengths), num_joints, 3)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    for i, length in enumerate(lengths):
        x[i, :, length:] = math.nan
    return x, torch.tensor(lengths)


def keys(num):
    return torch.tensor([sample_key(f"sample{i}") for i in range(num)])


# --- draws ---


def test_a_sample_key_is_stable_and_fits_63_bits():
    assert sample_key("S001C001P001R001A001") == sample_key("S001C001P001R001A001")
    assert all(0 <= sample_key(str(i)) < 2**63 for i in range(100))
    assert len({sample_key(str(i)) for i in range(1000)}) == 1000


def test_draws_follow_the_splitmix64_reference():
    """The vectorised generator equals the published algorithm on Python integers."""
    mask = 2**64 - 1

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    # splitmix64 with state 1234567 starts with 6457827717110365317 (the published test vector).
    assert mix((1234567 + 0x9E3779B97F4A7C15) & mask) == 6457827717110365317
    golden, seed, epoch, key = 0x9E3779B97F4A7C15, 7, 3, sample_key("a01_s01_e00_v01")
    state = mix(mix((seed + golden) & mask) ^ ((epoch * golden) & mask))
    state = mix(key ^ state)
    expected = [(mix((state + (i + 1) * golden) & mask) >> 40) / 2**24 for i in range(6)]
    got = sample_draws(seed, epoch, torch.tensor([key]), 6)[0]
    assert got.tolist() == expected


def test_draws_depend_on_seed_epoch_and_sample_but_not_on_the_batch():
    k = keys(5)
    draws = sample_draws(1, 2, k, 8)
    assert torch.equal(sample_draws(1, 2, k.flip(0), 8).flip(0), draws)
    assert torch.equal(sample_draws(1, 2, k[3:4], 8)[0], draws[3])
    assert torch.equal(sample_draws(1, 2, k, 3), draws[:, :3])
    assert not torch.equal(sample_draws(1, 3, k, 8), draws)
    assert not torch.equal(sample_draws(2, 2, k, 8), draws)


def test_draws_are_uniform_and_uncorrelated():
    draws = sample_draws(0, 0, keys(4000), 4)
    assert float(draws.min()) >= 0.0
    assert float(draws.max()) < 1.0
    histogram = torch.histc(draws, bins=10, min=0, max=1) / draws.numel()
    assert float((histogram - 0.1).abs().max()) < 0.01
    correlation = torch.corrcoef(torch.cat((draws.T, sample_draws(0, 1, keys(4000), 4).T)))
    assert float((correlation - torch.eye(8)).abs().max()) < 0.06


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_are_the_same_on_the_gpu():
    assert torch.equal(
        sample_draws(5, 6, keys(99), 7), sample_draws(5, 6, keys(99).cuda(), 7).cpu()
    )


# --- crop and resize ---


@pytest.mark.parametrize("num_frames", [1, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_crop_and_resize_equals_interpolate_along_time(num_frames, dtype):
    lengths = [1, 2, 7, 64, 65, 103, 300]
    x, sizes = ragged(lengths, num_joints=5, dtype=dtype)
    start = sizes // 5
    size = torch.maximum(sizes - 2 * start, torch.ones_like(sizes))
    got = crop_and_resize(x, sizes, start=start, size=size, num_frames=num_frames)
    for i in range(len(lengths)):
        clip = x[i, :, start[i] : start[i] + size[i]]  # (M, T, V, C)
        m, t, v, c = clip.shape
        flat = clip.permute(3, 2, 0, 1).reshape(1, 1, c * v * m, t)
        want = interpolate(flat, size=(c * v * m, num_frames), mode="bilinear", align_corners=False)
        want = want.view(c, v, m, num_frames).permute(2, 3, 1, 0)
        torch.testing.assert_close(
            got[i],
            want,
            rtol=0,
            atol=1e-12 if dtype.is_floating_point and dtype == torch.float64 else 2e-5,
        )


def test_clips_of_a_store_give_the_same_view_as_padded_ones():
    x, lengths = ragged([90, 64, 3])
    rows = torch.cat([x[i, m, :length] for i, length in enumerate(lengths) for m in range(2)])
    first = torch.tensor([[0, 90], [180, 244], [308, 311]])
    draws = sample_draws(0, 0, keys(3), NTU_DRAWS)
    for training in (True, False):
        got = ntu_view(StoredClips(rows, first), lengths, training=training, draws=draws)
        assert torch.equal(got, ntu_view(x, lengths, training=training, draws=draws))


def test_an_empty_clip_gives_zeros():
    x = torch.ones(2, 1, 3, 4, 3)
    lengths = torch.tensor([0, 3])
    view = ntu_view(x, lengths, num_frames=8, training=False)
    assert torch.count_nonzero(view[0]) == 0
    assert torch.all(view[1] == 1)


# --- the NTU view ---


def test_the_ntu_test_view_crops_the_centre_95_percent_as_the_original():
    lengths = [*range(1, 301, 7), 40, 80, 300]
    x, sizes = ragged(lengths, num_bodies=1, num_joints=2)
    got = ntu_view(x, sizes, training=False)
    for i, valid in enumerate(lengths):
        bias = int((1 - 0.95) * valid / 2)
        size = torch.tensor([valid - 2 * bias])
        want = crop_and_resize(
            x[i : i + 1], sizes[i : i + 1], start=torch.tensor([bias]), size=size, num_frames=64
        )
        torch.testing.assert_close(got[i : i + 1], want, rtol=0, atol=0)


def test_the_ntu_training_view_keeps_bone_lengths_and_absent_bodies():
    x, lengths = ragged([100, 60, 30])
    x[:] = x[:, :, :1]  # the same pose in every frame: the crop does not matter
    x[2, 1] = 0.0
    draws = sample_draws(0, 0, keys(3), NTU_DRAWS)
    view = ntu_view(x, lengths, training=True, draws=draws)
    assert view.shape == (3, 2, 64, 25, 3)
    assert torch.count_nonzero(view[2, 1]) == 0
    before = (x[:, :, 0, :, None] - x[:, :, 0, None]).norm(dim=-1)
    after = (view[:, :, 5, :, None] - view[:, :, 5, None]).norm(dim=-1)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(view[:, :, 0], x[:, :, 0])


def test_the_ntu_rotation_is_z_after_y_after_x():
    x, lengths = ragged([64], num_bodies=1, num_joints=3)
    draws = torch.tensor([[1.0 - 2**-24, 0.0, 1.0, 0.25, 0.75]])  # the whole clip
    rx, ry, rz = 0.3, -0.15, 0.15
    cos, sin = math.cos, math.sin
    Rx = torch.tensor([[1, 0, 0], [0, cos(rx), sin(rx)], [0, -sin(rx), cos(rx)]])
    Ry = torch.tensor([[cos(ry), 0, -sin(ry)], [0, 1, 0], [sin(ry), 0, cos(ry)]])
    Rz = torch.tensor([[cos(rz), sin(rz), 0], [-sin(rz), cos(rz), 0], [0, 0, 1]])
    want = torch.einsum("ij,nmtvj->nmtvi", Rz @ Ry @ Rx, x)
    view = ntu_view(x, lengths, training=True, draws=draws)
    torch.testing.assert_close(view, want, rtol=1e-5, atol=1e-5)


def test_the_ntu_rotation_turns_coordinates_only():
    x, lengths = ragged([100, 60])
    scored = torch.cat((x, x[..., :1].abs()), dim=-1)  # x, y, z, score
    draws = sample_draws(0, 0, keys(2), NTU_DRAWS)
    turned = ntu_view(x, lengths, training=True, draws=draws)
    view = ntu_view(scored, lengths, training=True, draws=draws)
    torch.testing.assert_close(view[..., :3], turned, rtol=0, atol=0)
    cut = ntu_view(scored, lengths, training=True, draws=draws, joint_dims=2)  # not turned at all
    torch.testing.assert_close(view[..., 3], cut[..., 3], rtol=0, atol=0)
    assert not torch.allclose(cut[..., :3], turned)
    still = ntu_view(x, lengths, training=True, draws=draws, rotation_rad=0.0)
    torch.testing.assert_close(cut[..., :3], still)


def test_training_crops_stay_inside_the_clip_and_keep_at_least_half():
    """Time itself as the coordinate shows which frames a crop covers."""
    lengths = torch.tensor([300, 200, 129, 64, 63, 10, 1])
    x = torch.arange(300.0).view(1, 1, 300, 1, 1).repeat(7, 1, 1, 1, 1)
    for i, length in enumerate(lengths):
        x[i, :, length:] = math.nan
    for epoch in range(40):
        draws = sample_draws(0, epoch, keys(7), NTU_DRAWS)
        view = ntu_view(x, lengths, training=True, draws=draws, joint_dims=1)[:, 0, :, 0, 0]
        assert torch.isfinite(view).all()
        assert (view[:, 0] >= 0).all()
        assert (view[:, -1] <= lengths - 1).all()
        span = view[:, -1] - view[:, 0]
        assert (span[:3] >= lengths[:3] * 0.5 - 4).all()
        torch.testing.assert_close(span[3], torch.tensor(63.0))


def test_a_training_view_does_not_depend_on_its_neighbours():
    x, lengths = ragged([100, 60, 30], seed=3)
    draws = sample_draws(9, 1, keys(3), NTU_DRAWS)
    together = ntu_view(x, lengths, training=True, draws=draws)
    alone = ntu_view(x[1:2], lengths[1:2], training=True, draws=draws[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0)


def test_training_without_draws_is_refused():
    x, lengths = ragged([9], num_bodies=1)
    with pytest.raises(ValueError, match="5 draws a sample, got none"):
        ntu_view(x, lengths, training=True)
    with pytest.raises(ValueError, match="54 draws a sample, got 5"):
        ucla_view(x, lengths, training=True, draws=torch.zeros(1, 5))


# --- the NW-UCLA view ---


def ucla_by_hand(clip, index, degrees=(0, 0)):
    """The published steps on one (T, V, 3) float64 clip, frame by frame order."""
    ax, ay = (math.radians(d) for d in degrees)
    Rx = np.array([[1, 0, 0], [0, math.cos(ax), math.sin(ax)], [0, -math.sin(ax), math.cos(ax)]])
    Ry = np.array([[math.cos(ay), 0, -math.sin(ay)], [0, 1, 0], [math.sin(ay), 0, math.cos(ay)]])
    points = (clip - clip[0, 1]).reshape(-1, 3) @ (Ry @ Rx)
    low, high = points.min(0), points.max(0)
    return ((points - low) / (high - low) * 2 - 1).reshape(clip.shape)[index]


def test_the_ucla_test_view_equals_the_published_steps():
    lengths = [1, 2, 25, 52, 134, 201]
    x, sizes = ragged(lengths, num_bodies=1, num_joints=20, dtype=torch.float64)
    got = ucla_view(x, sizes, training=False)
    for i, length in enumerate(lengths):
        index = np.linspace(0, length - 1, 52).astype(int)
        want = ucla_by_hand(x[i, 0, :length].numpy(), index)
        np.testing.assert_allclose(got[i, 0].numpy(), want, rtol=0, atol=1e-13)


def test_the_ucla_training_view_equals_the_published_steps():
    lengths = [1, 25, 134]
    x, sizes = ragged(lengths, num_bodies=1, num_joints=20, dtype=torch.float64)
    draws = sample_draws(0, 0, keys(3), ucla_num_draws(52))
    got = ucla_view(x, sizes, training=True, draws=draws)
    for i, length in enumerate(lengths):
        degrees = [math.floor(float(d) * 121) - 60 for d in draws[i, :2]]
        # Floyd's sampling, one sample at a time.
        pool, taken = 100 * length, []
        for step in range(52):
            top = pool - 52 + step
            place = math.floor(float(draws[i, 2 + step] * (top + 1)))
            taken.append(top if place in taken else place)
        assert len(set(taken)) == 52
        want = ucla_by_hand(x[i, 0, :length].numpy(), np.sort(taken) // 100, degrees)
        np.testing.assert_allclose(got[i, 0].numpy(), want, rtol=0, atol=1e-12)


def test_ucla_training_frames_are_evenly_likely_and_in_order():
    x = torch.arange(20.0).view(1, 1, 20, 1, 1).repeat(3000, 1, 1, 2, 3)
    x[:, :, :, 1] += 0.25  # two joints
    draws = sample_draws(0, 0, keys(3000), ucla_num_draws(52))
    draws[:, :2] = 60.5 / 121  # no rotation
    lengths = torch.full((3000,), 20)
    view = ucla_view(x, lengths, training=True, draws=draws)[:, 0, :, 0, 0]
    assert (view.diff(dim=1) >= 0).all()
    frames = ((view + 1) / 2 * 19.25).round().long()
    share = torch.bincount(frames.flatten(), minlength=20) / frames.numel()
    assert float((share - 0.05).abs().max()) < 0.003
    # Without replacement from 100 copies: variance of a frame's count is below the binomial's.
    counts = (frames == 3).sum(1).double()
    expected = 52 * 0.05 * 0.95 * (2000 - 52) / (2000 - 1)
    assert abs(float(counts.var()) - expected) < 0.2


def test_the_pool_is_drawn_from_as_by_floyds_algorithm_step_by_step():
    """Small pools, where many draws meet a place that is taken."""
    lengths = torch.tensor([1, 2, 3] * 100)
    draws = sample_draws(1, 0, keys(300), 52)
    got = _pool_sample(lengths, draws)
    for i, length in enumerate(lengths.tolist()):
        taken: list[int] = []
        for step in range(52):
            top = 100 * length - 52 + step
            place = math.floor(float(draws[i, step] * (top + 1)))
            taken.append(top if place in taken else place)
        assert got[i].tolist() == [place // 100 for place in sorted(taken)]


def test_more_frames_can_be_drawn_than_a_hundred_copies_hold():
    x, lengths = ragged([1, 2], num_bodies=1, num_joints=20)
    draws = sample_draws(0, 0, keys(2), ucla_num_draws(150))
    view = ucla_view(x, lengths, num_frames=150, training=True, draws=draws)
    assert view.shape == (2, 1, 150, 20, 3)
    assert torch.isfinite(view).all()
    assert (view[0] == view[0, :, :1]).all()


def test_an_axis_without_extent_becomes_zero_not_nan():
    x, lengths = ragged([5, 1], num_bodies=1, num_joints=20)
    x[..., 2] = 4.0
    x[1, 0, 0] = 1.5  # every joint at one place
    view = ucla_view(x, lengths, training=False)
    assert torch.isfinite(view).all()
    assert torch.count_nonzero(view[..., 2]) == 0
    assert torch.count_nonzero(view[1]) == 0


def test_the_ucla_view_refuses_two_bodies():
    x, lengths = ragged([5], num_joints=20)
    with pytest.raises(ValueError, match=r"one body.*got 2 bodies"):
        ucla_view(x, lengths, training=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ucla_test_inputs_equal_ctr_gcns_own(dtype):
    """In float32 too, if the clip was centred before it was rounded.

    Raw camera coordinates (2-3 m) rounded to float32 miss by 1.6e-6 in the bone-motion stream.
    """
    golden_path = SHARED / "data/golden/nwucla_ctrgcn_test_inputs.npz"
    zip_path = SHARED / "data/nw-ucla/all_sqe.zip"
    if not golden_path.is_file() or not zip_path.is_file():
        pytest.skip(f"{golden_path} or {zip_path} is not here")
    golden = np.load(golden_path)
    clips = []
    with zipfile.ZipFile(zip_path) as archive:
        for sample_id in golden["sample_id"]:
            with archive.open(f"all_sqe/{sample_id}.json") as file:
                clips.append(np.array(json.load(io.TextIOWrapper(file))["skeletons"]))
    lengths = torch.tensor([len(clip) for clip in clips])
    x = torch.zeros(len(clips), 1, int(lengths.max()), 20, 3, dtype=dtype)
    for i, clip in enumerate(clips):
        x[i, 0, : len(clip)] = torch.from_numpy(clip - clip[0, 1]).to(dtype)
    view = ucla_view(x, lengths, training=False)
    for stream in ("joint", "bone", "joint-motion", "bone-motion"):
        got = apply_stream(view, UCLA_20, stream)[:, 0].permute(0, 3, 1, 2)  # (N, C, T, V)
        want = torch.from_numpy(golden[stream.replace("-", "_")]).to(dtype)
        worst = float((got - want).abs().max())
        assert worst <= 1e-6, f"{stream}: {worst}"
