"""training.streams: the six input streams."""

import pytest
import torch

from datasets_build.joints import COCO_17, NTU_25, SKELETONS, UCLA_20
from training.streams import STREAMS, apply_stream, is_motion, stream_matrix

# 2-hop parents of the NTU tree, 1-based (protocols.md section 7).
NTU_GRANDPARENTS = {
    1: 21, 4: 21, 6: 21, 7: 5, 8: 6, 10: 21, 11: 9, 12: 10, 13: 2, 14: 1, 15: 13, 16: 14, 17: 2,
    18: 1, 19: 17, 20: 18, 22: 8, 23: 7, 24: 12, 25: 11,
}  # fmt: skip


def clips(skeleton, frames=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dims = 3
    x = torch.randn(2, 2, frames, skeleton.num_joints, dims, generator=generator)
    x[1, 1] = 0.0
    return x


@pytest.mark.parametrize("name", sorted(SKELETONS))
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("orphan", ["zero", "keep"])
def test_a_stream_is_its_matrix_then_the_frame_difference(name, stream, orphan):
    skeleton = SKELETONS[name]
    x = clips(skeleton).double()
    S = stream_matrix(skeleton, stream, orphan=orphan).double()
    expected = torch.einsum("ij,nmtjc->nmtic", S, x[..., : skeleton.joint_dims])
    if is_motion(stream):
        moved = torch.zeros_like(expected)
        for t in range(expected.shape[2] - 1):
            moved[:, :, t] = expected[:, :, t + 1] - expected[:, :, t]
        expected = moved
    got = apply_stream(x, skeleton, stream, orphan=orphan)
    assert got.shape == x.shape
    torch.testing.assert_close(got[..., : skeleton.joint_dims], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stream", STREAMS)
def test_absent_bodies_stay_zero(stream):
    assert torch.count_nonzero(apply_stream(clips(NTU_25), NTU_25, stream)[1, 1]) == 0


@pytest.mark.parametrize("skeleton", [NTU_25, UCLA_20])
def test_bone_of_the_root_joint_is_zero_unless_kept(skeleton):
    x = clips(skeleton)
    bone = apply_stream(x, skeleton, "bone")
    assert torch.count_nonzero(bone[..., skeleton.root, :]) == 0
    kept = apply_stream(x, skeleton, "bone", orphan="keep")
    torch.testing.assert_close(kept[..., skeleton.root, :], x[..., skeleton.root, :])


def test_second_order_bones_lead_to_the_published_grandparents():
    S = stream_matrix(NTU_25, "bone2")
    for joint in range(1, 26):
        row = torch.zeros(25)
        if joint in NTU_GRANDPARENTS:
            row[joint - 1] += 1.0
            row[NTU_GRANDPARENTS[joint] - 1] -= 1.0
        assert torch.equal(S[joint - 1], row), joint


def test_the_last_frame_of_a_motion_stream_is_zero():
    for stream in STREAMS:
        if is_motion(stream):
            assert torch.count_nonzero(apply_stream(clips(UCLA_20), UCLA_20, stream)[:, :, -1]) == 0


def test_a_clip_of_one_frame_has_no_motion():
    moved = apply_stream(clips(NTU_25, frames=1), NTU_25, "joint-motion")
    assert torch.count_nonzero(moved) == 0


def test_the_score_channel_of_a_2d_layout_is_left_alone():
    x = clips(COCO_17)
    for stream in STREAMS:
        torch.testing.assert_close(apply_stream(x, COCO_17, stream)[..., 2], x[..., 2])


def test_unknown_streams_and_wrong_layouts_are_refused_by_name():
    x = clips(UCLA_20)
    with pytest.raises(ValueError, match=r"'bones'.*joint, bone, bone2"):
        apply_stream(x, UCLA_20, "bones")
    with pytest.raises(ValueError, match=r"20 joints.*'ntu-25' has 25"):
        apply_stream(x, NTU_25, "bone")
    with pytest.raises(ValueError, match="orphan"):
        stream_matrix(NTU_25, "bone", orphan="drop")
