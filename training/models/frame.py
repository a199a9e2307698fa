"""What CTR-GCN and HGLNet share: ten blocks, their maps, the product with the topology, the head.

Shapes: N samples, M bodies, B = N*M, T frames, V joints, C channels, K graph subsets, R numbers a
pair of joints. Inside a model a tensor is (B, C, V, T) with the channels innermost in memory
("channels last"), so that a 1x1 convolution is one matrix product over all sites, and normalisation
and temporal convolutions have fast kernels on the CPU and on GPUs.

A block is  y = ReLU(BN(spatial(x)) + down(x)),  out = ReLU(temporal(y) + shortcut(x)). The spatial
unit is the same for all topologies A (one (V, V) matrix for every clip, channel and subset):

    spatial(x)[b, c, i, t] = sum_k sum_j A[b, c, k, i, j] (Theta_k x)[b, c, j, t]

How that is computed: Theta of all subsets is one product whose result has its channels outermost,
(B, C, K, V, T); the sum over subsets and joints is one batched product of (V, K*V) with (K*V, T).
For it a topology is made and kept as (B, C, K, Vj, Vi), its joints transposed.

The frame (64 x 4, 128 x 3, 256 x 3 channels; stride 2 at blocks 5 and 8; block 1 without shortcut;
batch normalisation of the input; means over frames, joints and bodies; one linear layer) and the
initial values are CTR-GCN's (Chen et al., ICCV 2021), but for two: the
BNs of its temporal branches begin with weights of N(1, 0.02), ours with 1, and its last bias with
nn.Linear's default, ours with 0 (our choice: one draw less to explain).

Whole models in bf16 or fp16 are not supported: use autocast, which keeps topologies in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's users know
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from datasets_build.joints import Skeleton, skeleton_named
from training.models.shared_norm import SharedBatchNorm

_WIDTHS = (1, 1, 1, 1, 2, 2, 2, 4, 4, 4)  # channels of the ten blocks in units of base_channels
_STRIDED_BLOCKS = (4, 7)  # 0-based
_SPATIAL_BN_WEIGHT = 1e-6  # the block starts as its shortcut


def init_map(weight: Tensor, fan_out: int) -> nn.Parameter:
    """He initialisation by the fan out, as CTR-GCN."""
    return nn.Parameter(nn.init.normal_(weight, std=math.sqrt(2.0 / fan_out)))


def is_on_cpu(x: Tensor) -> bool:
    """Whether the forms that are best on the CPU compute x; tests compare them with the others."""
    return x.device.type == "cpu"


def _prefers_convolution(x: Tensor) -> bool:
    """Whether a 1x1 map is best computed as a convolution.

    On the CPU in float32: oneDNN's kernels reach twice the rate of the BLAS there.
    """
    return x.device.type == "cpu" and x.dtype == torch.float32


class _EveryFrame(torch.autograd.Function):
    """Every s-th frame; its gradient has the channels innermost, as all it is added to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        """(B, C, V, T) -> (B, C, V, ceil(T / stride))."""
        ctx.stride, ctx.shape = stride, x.shape
        return x[..., ::stride].contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient, with zeros at the frames left out."""
        B, C, V, T = ctx.shape
        full = grads[0].new_zeros(B, V, T, C).permute(0, 3, 1, 2)
        full[..., :: ctx.stride] = grads[0]
        return full, None


def pointwise(x: Tensor, weight: Tensor, *, stride: int = 1) -> Tensor:
    """A 1x1 convolution: weight (C_out, C_in) on x (B, C_in, V, T) -> (B, C_out, V, T / stride)."""
    if stride > 1:
        # Cut first: oneDNN's gradient of a strided 1x1 convolution writes outside its memory (torch
        # 2.15, float32, channels last, few channels).
        x = _EveryFrame.apply(x, stride)
    if is_on_cpu(x):
        return F.conv2d(x, weight[:, :, None, None])
    return F.linear(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)


def batch_norm(
    x: Tensor, norm: nn.BatchNorm2d | SharedBatchNorm, scale: Tensor | None = None
) -> Tensor:
    """norm(x), times a scalar that is folded into its affine map."""
    if scale is None:
        return norm(x)
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    assert norm.momentum is not None, "the models' norms have torch's default momentum"
    weight, bias = norm.weight * scale, norm.bias * scale
    if isinstance(norm, SharedBatchNorm):
        return norm.normalised(x, weight, bias)
    mean, var = norm.running_mean, norm.running_var
    return F.batch_norm(x, mean, var, weight, bias, norm.training, norm.momentum, norm.eps)


def by_subset(weight: Tensor) -> Tensor:
    """Weights (K, C, R) of each subset as one matrix (C*K, K*R) that leaves subsets apart."""
    K, C, R = weight.shape
    apart = torch.eye(K, dtype=weight.dtype, device=weight.device)[None, :, :, None]
    return (weight.transpose(0, 1)[:, :, None] * apart).reshape(C * K, K * R)


def expanded(weight: Tensor, parts: Tensor, dtype: torch.dtype) -> Tensor:
    """weight (P, Q) times parts (B, Q, V*V), computed in a dtype: (B, P, V*V)."""
    return torch.bmm(weight.to(dtype).expand(parts.shape[0], -1, -1), parts.to(dtype))


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's within it, else that of x."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class _TimeMean(torch.autograd.Function):
    """The mean over frames; its gradient is spread without being written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(B, C, V, T) -> (B, C, V), at least float32."""
        ctx.num_frames, ctx.dtype = x.shape[-1], x.dtype
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x.permute(0, 2, 3, 1).mean(dim=2, dtype=dtype).transpose(1, 2)  # in memory's order

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """(B, C, V) -> (B, C, V, T)."""
        share = (grads[0] / ctx.num_frames).to(ctx.dtype)
        return share[..., None].expand(*share.shape, ctx.num_frames)


class _GraphProduct(torch.autograd.Function):
    """sum_k A_k Theta_k x, with gradients that lie in memory as the tensors do that they belong to.

    Left to autograd, the gradients of x and A come out transposed and are copied, which costs as
    much as the products.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, theta: Tensor, bias: Tensor | None, topology: Tensor
    ) -> Tensor:
        """x (B, C_in, V, T), theta (C*K, C_in), bias (C*K,), topology (B*C, K*V, V).

        Returns y (B*C, V, T).
        """
        B, T = x.shape[0], x.shape[-1]
        if _prefers_convolution(x):
            features = F.conv2d(x, theta[:, :, None, None], bias).contiguous()  # (B, C*K, V, T)
        elif bias is None:
            features = torch.bmm(theta.expand(B, -1, -1), x.flatten(2))  # (B, C*K, V*T)
        else:
            features = torch.baddbmm(bias[:, None], theta.expand(B, -1, -1), x.flatten(2))
        features = features.view(-1, topology.shape[1], T)  # (B*C, K*V, T)
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, theta, topology, features)
        return torch.bmm(topology.transpose(1, 2), features)  # (B*C, V, T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """The gradients of x, theta, bias and the topology."""
        x, theta, topology, features = ctx.saved_tensors
        B, C_in, V, T = x.shape
        grad = grads[0].contiguous()  # (B*C, V, T)
        grad_topology = torch.bmm(features, grad.transpose(1, 2))  # (B*C, K*V, V)
        grad_features = torch.bmm(topology, grad).view(B, -1, V * T)  # (B, C*K, V*T)
        if _prefers_convolution(x):
            weight = theta[:, :, None, None]
            maps = grad_features.view(B, -1, V, T).contiguous(memory_format=torch.channels_last)
            grad_x = F.conv2d(maps, weight.transpose(0, 1))
            grad_theta, grad_bias = torch.ops.aten.convolution_backward(
                maps, x, weight, [len(theta)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
                [False, True, ctx.has_bias],
            )[1:]  # fmt: skip
            return grad_x, grad_theta.flatten(1), grad_bias, grad_topology
        sites = x.flatten(2).transpose(1, 2)  # (B, V*T, C_in)
        grad_x = torch.bmm(grad_features.transpose(1, 2), theta.expand(B, -1, -1))
        grad_x = grad_x.view(B, V, T, C_in).permute(0, 3, 1, 2)
        grad_theta = torch.bmm(grad_features, sites).sum(dim=0)
        grad_bias = grad_features.sum(dim=2).sum(dim=0) if ctx.has_bias else None
        return grad_x, grad_theta, grad_bias, grad_topology


class Shortcut(nn.Module):
    """A 1x1 convolution with BN where channels or frames change."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = init_map(torch.empty(out_channels, in_channels), out_channels)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, V, T) -> (B, C_out, V, ceil(T / stride))."""
        return self.norm(pointwise(x, self.weight, stride=self.stride))


class SpatialUnit(nn.Module):
    """Theta, the product with a topology, BN, shortcut and ReLU; subclasses make the topology.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        num_subsets: K.
        has_bias: whether Theta has a bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, num_subsets: int, has_bias: bool
    ) -> None:
        super().__init__()
        self.num_subsets = num_subsets
        # Rows are ordered (C_out, K), so that (K, V) is one axis of the product with the topology.
        self.theta = init_map(torch.empty(out_channels * num_subsets, in_channels), out_channels)
        self.theta_bias: nn.Parameter | None = None
        if has_bias:
            self.theta_bias = nn.Parameter(torch.zeros(out_channels * num_subsets))
        self.norm = nn.BatchNorm2d(out_channels)
        nn.init.constant_(self.norm.weight, _SPATIAL_BN_WEIGHT)
        self.down: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.down = Shortcut(in_channels, out_channels)

    def topology(self, pooled: Tensor, dtype: torch.dtype) -> Tensor:
        """A[b, c, k, j, i] as (B, C_out*K, V*V) of a dtype, from time means (B, C_in, V) in fp32.

        Its largest tensor is made in `dtype` directly; all before it in float32.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, V, T) -> (B, C_out, V, T)."""
        B, _, V, T = x.shape
        dtype = _compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            # Small and full of exponentials: kept in float32.
            A = self.topology(_TimeMean.apply(x), dtype)  # (B, C_out*K, V*V)
            y = _GraphProduct.apply(
                x.to(dtype),
                self.theta.to(dtype),
                None if self.theta_bias is None else self.theta_bias.to(dtype),
                A.view(-1, self.num_subsets * V, V),
            ).view(B, -1, V, T)
        y = self.norm(y.contiguous(memory_format=torch.channels_last))
        return y.add_(self.down(x)).relu_()


class TemporalBranches(nn.Module):
    """CTR-GCN's multi-scale temporal convolution, HGLNet's LTC (Eq. 9): four branches of C/4.

    A convolution over 5 frames, one over 5 frames two apart, the maximum of 3 frames, each behind a
    1x1 map, BN and ReLU, and a 1x1 map alone; BN on each. The 1x1 maps of the first three are one
    product, and the four last BNs one BN. No map has a bias: the BN behind it would cancel it.

    Args:
        channels: C, a multiple of 4.
        stride: of the frames.
    """

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"a temporal unit needs four equal branches, got {channels} channels")
        branch = channels // 4
        self.branch_channels = branch
        self.stride = stride
        self.inner = init_map(torch.empty(3 * branch, channels), branch)
        self.inner_norm = nn.BatchNorm2d(3 * branch)
        self.conv = init_map(torch.empty(branch, branch, 1, 5), branch * 5)
        self.dilated_conv = init_map(torch.empty(branch, branch, 1, 5), branch * 5)
        self.last = init_map(torch.empty(branch, channels), branch)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """(B, C, V, T) -> (B, C, V, ceil(T / stride)), times a scalar."""
        s = self.stride
        inner = self.inner_norm(pointwise(x, self.inner)).relu_()  # (B, 3C/4, V, T)
        first, second, third = inner.split(self.branch_channels, dim=1)
        parts = (
            F.conv2d(first, self.conv, stride=(1, s), padding=(0, 2)),
            F.conv2d(second, self.dilated_conv, stride=(1, s), padding=(0, 4), dilation=(1, 2)),
            F.max_pool2d(third, (1, 3), stride=(1, s), padding=(0, 1)),
            pointwise(x, self.last, stride=s),
        )
        return batch_norm(torch.cat(parts, dim=1), self.norm, scale)


class Block(nn.Module):
    """One of the ten: the spatial unit, then the temporal unit with the block's shortcut."""

    def __init__(self, spatial: nn.Module, temporal: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.spatial = spatial
        self.temporal = temporal
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, V, T) -> (B, C_out, V, T / stride)."""
        out = self.temporal(self.spatial(x))
        if self.shortcut is not None:
            out = out.add_(self.shortcut(x))
        return out.relu_()


class GraphNetwork(nn.Module):
    """The frame around the units of a model.

    Args:
        num_classes: classes of the head.
        skeleton: the joint layout or its name (datasets_build/joints.py).
        num_bodies: M; None: the layout's own number.
        in_channels: numbers a joint: its coordinates and, where the layout has one, its score.
        base_channels: width of the first four blocks, a multiple of 4; the features are 4 times as
            wide.
        dropout: on the features, before the classifier.
        make_spatial: (C_in, C_out) -> the spatial unit of a block.
        make_temporal: (C, stride) -> its temporal unit.

    Raises:
        ValueError: an unknown layout, or widths that do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        skeleton: str | Skeleton,
        *,
        num_bodies: int | None,
        in_channels: int,
        base_channels: int,
        dropout: float,
        make_spatial: Callable[[int, int], nn.Module],
        make_temporal: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        if base_channels < 4 or base_channels % 4:
            raise ValueError(f"base_channels is {base_channels}; choose a multiple of 4")
        layout = skeleton_named(skeleton)
        num_bodies = layout.num_bodies if num_bodies is None else num_bodies
        for name, value in (
            ("num_classes", num_classes),
            ("num_bodies", num_bodies),
            ("in_channels", in_channels),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; choose a whole number from 1")
        self.skeleton = layout.name
        self.num_classes = num_classes
        self.num_bodies = num_bodies
        self.num_joints = layout.num_joints
        self.in_channels = in_channels
        self.num_features = _WIDTHS[-1] * base_channels
        self.data_norm = nn.BatchNorm1d(self.num_bodies * self.num_joints * in_channels)
        blocks = []
        C_in = in_channels
        for i, width in enumerate(_WIDTHS):
            C_out = width * base_channels
            stride = 2 if i in _STRIDED_BLOCKS else 1
            shortcut: nn.Module | None = None
            if i > 0:
                has_same_shape = C_in == C_out and stride == 1
                shortcut = nn.Identity() if has_same_shape else Shortcut(C_in, C_out, stride=stride)
            blocks.append(Block(make_spatial(C_in, C_out), make_temporal(C_out, stride), shortcut))
            C_in = C_out
        self.blocks = nn.ModuleList(blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(C_in, num_classes)
        nn.init.normal_(self.head.weight, std=math.sqrt(2.0 / num_classes))
        nn.init.zeros_(self.head.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """The mean over frames, joints and bodies, (N, num_features).

        Args:
            x: (N, M, T, V, C).

        Raises:
            ValueError: other bodies, joints or channels than the model was made for.
        """
        if x.ndim != 5 or x.shape[0] == 0:
            raise ValueError(
                f"a batch has shape {tuple(x.shape)}; give skeletons (N, M, T, V, C): samples, "
                "bodies, frames, joints, channels"
            )
        N, M, T, V, C = x.shape
        if (self.num_bodies, self.num_joints, self.in_channels) != (M, V, C):
            raise ValueError(
                f"a batch of {M} bodies, {V} joints and {C} channels was given to a model of "
                f"{self.num_bodies}, {self.num_joints} and {self.in_channels} ({self.skeleton}); "
                "use the layout and the number of bodies that the data set has"
            )
        x = x.permute(0, 1, 3, 4, 2).reshape(N, M * V * C, T)
        x = self.data_norm(x).view(N * M, V, C, T)
        x = x.transpose(1, 2).contiguous(memory_format=torch.channels_last)  # (B, C, V, T)
        for block in self.blocks:
            x = block(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        features = x.permute(0, 2, 3, 1).mean(dim=(1, 2), dtype=dtype)  # in memory's order
        return features.view(N, M, -1).mean(dim=1)  # (N, num_features)

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes) of features (N, num_features)."""
        return self.head(self.dropout(features))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of skeletons (N, M, T, V, C)."""
        return self.forward_head(self.forward_features(x))
