"""The cross-entropy of a frozen language-model head, without ever holding all logits.

Shapes: S scored tokens, D width, W words of the vocabulary, c tokens of a chunk.

Hidden states become logits a chunk at a time. Since the head is frozen, all that a chunk's gradient
needs is there while its logits are: it is formed at once, and no (S, W) tensor ever exists.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's users know
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Our choice: at most 64 MiB of float32 logits at a time, and an eighth of all, but no fewer than 32
# tokens, below which a product is mostly reading the head.
CHUNK_LOGITS = 2**24
_CHUNKS = 8
_CHUNK_TOKENS = 32


def caption_loss(hidden: Tensor, head: nn.Linear, target: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of the negative log-likelihoods of tokens.

    Args:
        hidden: (S, D) states before the tokens; the gradient flows into them.
        head: D -> W, frozen.
        target: (S,) the tokens.
        weight: (S,) of each token in the sum.

    Returns:
        A scalar, float32 (float64 for float64).
    """
    loss: Tensor = _CaptionLoss.apply(hidden, head.weight, head.bias, target, weight)
    return loss


def log_likelihoods(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    """Of each token, (S,), without gradient; arguments as of `caption_loss`."""
    found = torch.empty(len(target), device=hidden.device, dtype=loss_dtype(hidden))
    with torch.no_grad():
        for rows in _chunks(hidden, head.weight):
            logits = head(hidden[rows]).to(found.dtype)  # (c, W)
            found[rows] = -F.cross_entropy(logits, target[rows], reduction="none")
    return found


def loss_dtype(x: Tensor) -> torch.dtype:
    """What sums over tokens are kept in."""
    return torch.promote_types(x.dtype, torch.float32)


def _chunks(hidden: Tensor, head: Tensor) -> list[slice]:
    size = min(max(len(hidden) // _CHUNKS, _CHUNK_TOKENS), max(1, CHUNK_LOGITS // len(head)))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


class _CaptionLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor
    ) -> Tensor:
        """See caption_loss; head (W, D), bias (W,)."""
        total = torch.zeros((), device=hidden.device, dtype=loss_dtype(hidden))
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else hidden.new_empty(0)
        for rows in _chunks(hidden, head):
            scores = F.linear(hidden[rows], head, bias).to(total.dtype).log_softmax(1)  # (c, W)
            place, scale = target[rows, None], weight[rows, None].to(total.dtype)
            total -= (scores.gather(1, place) * scale).sum()
            if needs_gradient:
                probabilities = scores.exp_()
                probabilities.scatter_add_(1, place, -torch.ones_like(scale))
                gradient[rows] = (probabilities.to(hidden.dtype) @ head) * scale
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The stored gradient, scaled."""
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None, None
