"""training.graph: the adjacency of the joint trees."""

import pytest
import torch

from datasets_build.joints import NTU_25, SKELETONS, UCLA_20
from training.graph import adjacency


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_the_self_subset_is_the_identity_and_columns_sum_to_one_or_zero(name):
    A = adjacency(SKELETONS[name])
    V = SKELETONS[name].num_joints
    assert A.shape == (3, V, V)
    assert A.dtype == torch.float32
    torch.testing.assert_close(A[0], torch.eye(V))
    sums = A.sum(dim=1)
    assert torch.all(torch.isclose(sums, torch.ones(())) | (sums == 0))


def test_inward_edges_bring_the_child_to_its_parent():
    A = adjacency(UCLA_20)
    # Left elbow (5) hangs from the left shoulder (4), 0-based.
    assert A[1, 4, 5] == 1.0
    assert A[1, 5, 4] == 0.0


def test_outward_columns_share_one_among_the_children():
    A = adjacency(NTU_25)
    # The spine at the shoulders (20) has four children: 1, 2, 4 and 8.
    assert A[2, :, 20].nonzero().flatten().tolist() == [1, 2, 4, 8]
    torch.testing.assert_close(A[2, [1, 2, 4, 8], 20], torch.full((4,), 0.25))


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_outward_edges_are_the_inward_edges_turned_round(name):
    A = adjacency(SKELETONS[name])
    assert torch.equal(A[1] > 0, (A[2] > 0).T)
    assert int((A[1] > 0).sum()) == SKELETONS[name].num_joints - 1
