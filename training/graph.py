"""The joint graph as the models see it: three normalised adjacency matrices.

Shapes: V joints, K = 3 subsets (self, inward, outward).

`A[k, i, j]` weighs what joint i receives from joint j in subset k, as in the CTR-GCN family:
inward edges lead from a child to its parent (towards the root), outward edges back. Each column is
divided by its sum, A D^-1, where the column is not empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datasets_build.joints import Skeleton


def adjacency(skeleton: Skeleton) -> Tensor:
    """The column-normalised adjacency (3, V, V), float32, of a layout's joint tree."""
    num_joints = skeleton.num_joints
    inward = torch.zeros(num_joints, num_joints)
    for child, parent in skeleton.bones:
        inward[parent, child] = 1.0
    subsets = torch.stack((torch.eye(num_joints), inward, inward.T))  # (3, V, V)
    return subsets / subsets.sum(dim=1, keepdim=True).clamp(min=1.0)
