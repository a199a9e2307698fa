"""The six input streams: {joint, bone, second-order bone} x {position, motion}.

Shapes: N samples, M bodies, T frames, V joints, C channels.

Each stream is one (V, V) matrix over the joints, x' = S x, and a flag for the frame difference
that may follow. HocSLM 4.2 and Table 7 name the streams; "second-order bone" is read as the
difference to the grandparent, x_v - x_grandparent(v), not as a second difference in time: as in
InfoGCN, whose six streams these are, and as Table 7's accuracies are near those of bones. Joints
without such an ancestor (the root, and for bone2 the root's children) become zero as in CTR-GCN and
ProtoGCN, or stay as they are as in InfoGCN.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from datasets_build.joints import Skeleton
from training.config import Orphan

STREAMS = ("joint", "bone", "bone2", "joint-motion", "bone-motion", "bone2-motion")
_ORDERS = {"joint": 0, "bone": 1, "bone2": 2}  # how many steps towards the root the ancestor lies


def is_motion(stream: str) -> bool:
    """Whether the stream is the frame difference of another.

    Raises:
        ValueError: no such stream.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream {stream!r} is not known; choose one of {', '.join(STREAMS)}")
    return stream.endswith("-motion")


def _order(stream: str) -> int:
    return _ORDERS[stream.removesuffix("-motion") if is_motion(stream) else stream]


def _ancestors(skeleton: Skeleton, order: int) -> list[int | None]:
    """For each joint the ancestor `order` steps towards the root, None where there is none."""
    found: list[int | None] = []
    for joint in range(skeleton.num_joints):
        ancestor: int | None = joint
        for _ in range(order):
            if ancestor is not None:
                ancestor = None if ancestor == skeleton.root else skeleton.parents[ancestor]
        found.append(ancestor)
    return found


def stream_matrix(skeleton: Skeleton, stream: str, *, orphan: Orphan = "zero") -> Tensor:
    """The (V, V) float32 matrix S of a stream: x'[i] = sum_j S[i, j] x[j].

    Args:
        skeleton: the joint layout.
        stream: one of STREAMS; a motion stream has the matrix of its position stream.
        orphan: what a joint without a k-th ancestor becomes: "zero", or "keep" its coordinates.

    Raises:
        ValueError: no such stream or convention.
    """
    order = _order(stream)
    if orphan not in ("zero", "keep"):
        raise ValueError(f"orphan is {orphan!r}; choose 'zero' (CTR-GCN) or 'keep' (InfoGCN)")
    matrix = torch.eye(skeleton.num_joints)
    if order == 0:
        return matrix
    for joint, ancestor in enumerate(_ancestors(skeleton, order)):
        if ancestor is not None:
            matrix[joint, ancestor] -= 1.0
        elif orphan == "zero":
            matrix[joint, joint] = 0.0
    return matrix


@lru_cache(maxsize=64)
def _subtrahend(
    skeleton: Skeleton, order: int, orphan: str, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """What stream_matrix takes away from each joint: (V,) indices, and a (V, 1) 0/1 weight."""
    ancestors = _ancestors(skeleton, order)
    # A joint minus itself is the zero that the "zero" convention asks for.
    index = torch.tensor([j if a is None else a for j, a in enumerate(ancestors)], device=device)
    if orphan == "zero":
        return index, None
    return index, torch.tensor([[0.0 if a is None else 1.0] for a in ancestors], device=device)


def apply_stream(x: Tensor, skeleton: Skeleton, stream: str, *, orphan: Orphan = "zero") -> Tensor:
    """One stream of a batch of skeletons; absent (all-zero) bodies stay zero.

    Args:
        x: (N, M, T, V, C). For layouts of `joint_dims` coordinates and further channels (a score),
            only the coordinates change; the further channels keep each joint's own value.
        skeleton: the joint layout; its V must be that of x.
        stream: one of STREAMS.
        orphan: see stream_matrix.

    Returns:
        The same shape and dtype. In motion streams x'[t] = x[t + 1] - x[t], the last frame is 0.

    Raises:
        ValueError: no such stream, or x has another number of joints.
    """
    if x.shape[-2] != skeleton.num_joints:
        raise ValueError(
            f"the skeletons have {x.shape[-2]} joints, layout {skeleton.name!r} has "
            f"{skeleton.num_joints}; give the layout that the data set was built with"
        )
    order, dims = _order(stream), skeleton.joint_dims
    coordinates, rest = x[..., :dims], x[..., dims:]
    if order > 0:
        # A gather, not a product with S: exact whatever precision products are set to (TF32, bf16).
        index, weight = _subtrahend(skeleton, order, orphan, x.device)
        other = coordinates.index_select(-2, index)
        coordinates = coordinates - (other if weight is None else other * weight.to(x.dtype))
    if is_motion(stream):
        difference = coordinates[:, :, 1:] - coordinates[:, :, :-1]
        last = torch.zeros_like(coordinates[:, :, :1])
        coordinates = torch.cat((difference, last), dim=2)  # (N, M, T, V, joint_dims)
    if rest.shape[-1] == 0:
        return coordinates
    return torch.cat((coordinates, rest), dim=-1)  # (N, M, T, V, C)
