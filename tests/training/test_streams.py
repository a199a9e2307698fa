"""training.streams: the six input streams."""

import pytest
import torch

from datasets_build.joints import COCO_17, NTU_25, SKELETONS, UCLA_20
from training.streams import STREAMS, apply_stream, is_motion, stream_matrix

# joint: parent and joint: grandparent, 1-based. NTU and UCLA: protocols.md sections 6 and 7 (UCLA's
# grandparents follow from its parents); COCO (17 key points, nose 1): the tree of PYSKL.
PARENTS = {
    "ntu-25": {
        1: 2, 2: 21, 3: 21, 4: 3, 5: 21, 6: 5, 7: 6, 8: 7, 9: 21, 10: 9, 11: 10, 12: 11, 13: 1,
        14: 13, 15: 14, 16: 15, 17: 1, 18: 17, 19: 18, 20: 19, 22: 23, 23: 8, 24: 25, 25: 12,
    },
    "ucla-20": {
        1: 2, 2: 3, 4: 3, 5: 3, 6: 5, 7: 6, 8: 7, 9: 3, 10: 9, 11: 10, 12: 11, 13: 1, 14: 13,
        15: 14, 16: 15, 17: 1, 18: 17, 19: 18, 20: 19,
    },
    "coco-17": {
        2: 1, 3: 1, 4: 2, 5: 3, 6: 1, 7: 1, 8: 6, 9: 7, 10: 8, 11: 9, 12: 6, 13: 7, 14: 12, 15: 13,
        16: 14, 17: 15,
    },
}  # fmt: skip
GRANDPARENTS = {
    "ntu-25": {
        1: 21, 4: 21, 6: 21, 7: 5, 8: 6, 10: 21, 11: 9, 12: 10, 13: 2, 14: 1, 15: 13, 16: 14, 17: 2,
        18: 1, 19: 17, 20: 18, 22: 8, 23: 7, 24: 12, 25: 11,
    },
    "ucla-20": {
        1: 3, 6: 3, 7: 5, 8: 6, 10: 3, 11: 9, 12: 10, 13: 2, 14: 1, 15: 13, 16: 14, 17: 2, 18: 1,
        19: 17, 20: 18,
    },
    "coco-17": {
        4: 1, 5: 1, 8: 1, 9: 1, 10: 6, 11: 7, 12: 1, 13: 1, 14: 6, 15: 7, 16: 12, 17: 13,
    },
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


@pytest.mark.parametrize("name", sorted(SKELETONS))
@pytest.mark.parametrize("orphan", ["zero", "keep"])
@pytest.mark.parametrize(("stream", "ancestors"), [("bone", PARENTS), ("bone2", GRANDPARENTS)])
def test_bones_lead_to_the_published_parents_and_grandparents(name, orphan, stream, ancestors):
    skeleton = SKELETONS[name]
    S = stream_matrix(skeleton, stream, orphan=orphan)
    assert torch.equal(stream_matrix(skeleton, f"{stream}-motion", orphan=orphan), S)
    for joint in range(1, skeleton.num_joints + 1):
        row = torch.zeros(skeleton.num_joints)
        ancestor = ancestors[name].get(joint)
        if ancestor is not None or orphan == "keep":
            row[joint - 1] = 1.0
        if ancestor is not None:
            row[ancestor - 1] = -1.0
        assert torch.equal(S[joint - 1], row), joint


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_second_order_bones_are_bones_added_along_the_tree(name):
    """(I - A^2) = (I - A) + A (I - A) with A[child, parent] = 1 (InfoGCN), where both exist."""
    skeleton = SKELETONS[name]
    A = torch.zeros(skeleton.num_joints, skeleton.num_joints)
    for child, parent in PARENTS[name].items():
        A[child - 1, parent - 1] = 1.0
    eye = torch.eye(skeleton.num_joints)
    assert torch.equal(stream_matrix(skeleton, "bone", orphan="keep"), eye - A)
    assert torch.equal(stream_matrix(skeleton, "bone2", orphan="keep"), eye - A @ A)


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
