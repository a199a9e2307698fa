"""Batch normalisation with the statistics of all processes, on GPUs and on the CPU.

torch's SyncBatchNorm is for GPUs alone and would not see factors that models fold into their norms
(frame.py). Shapes: C channels; the other axes are normalised over.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - the name torch's users know
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation whose training statistics are those of all processes' parts together."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes will do."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return self.normalised(input, self.weight, self.bias)

    def normalised(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The norm with another affine map (C,)."""
        assert self.running_mean is not None, "made by share_statistics from norms that track"
        assert self.running_var is not None, "as the mean"
        if not self.training or not (dist.is_initialized() and dist.get_world_size() > 1):
            mean, var, momentum = self.running_mean, self.running_var, self.momentum or 0.0
            return F.batch_norm(x, mean, var, weight, bias, self.training, momentum, self.eps)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.new_full((1,), x.numel() / x.shape[1], dtype=wide.dtype)
        # Mean first, then the squares about it: a sum of squares would lose digits.
        sums = _SumOverProcesses.apply(torch.cat((wide.sum(axes), count)))
        mean = sums[:-1] / sums[-1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        centred = wide - mean.view(shape)
        var = _SumOverProcesses.apply(centred.square().sum(axes)) / sums[-1]
        with torch.no_grad():
            share = self.momentum or 0.0
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            unbiased = var * (sums[-1] / (sums[-1] - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        gain = weight * torch.rsqrt(var + self.eps)
        return (centred * gain.view(shape) + bias.view(shape)).to(x.dtype)


def share_statistics(module: nn.Module) -> None:
    """Turn every batch norm of a module into one over all processes; names and tensors stay."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.__class__ = SharedBatchNorm
