"""How likely a language model finds texts, given the prefixes of skeletons.

Shapes: N samples, P prefix positions, D embedding width, S texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from training.methods.hocslm import HocSLMMethod
from training.models.language_model import FrozenLanguageModel
from training.skeleton_data import SkeletonStore


@torch.no_grad()
def prefixes(method: HocSLMMethod, store: SkeletonStore, *, batch_size: int) -> Iterator[Tensor]:
    """The prefixes (N, P, D) of a store, batch by batch in its order, in the view of tests."""
    for batch in store.test_batches(batch_size):
        yield method.ssf(method.encoder.forward_features(batch.x))  # (N, P, D)


def mean_log_likelihoods(
    language_model: FrozenLanguageModel,
    prefix: Tensor,
    tokens: Tensor,
    mask: Tensor,
    *,
    batch_size: int,
) -> Tensor:
    """Mean log-likelihood a token of every text given every prefix: (N, S) float32, on the CPU.

    Args:
        language_model: scores.
        prefix: (N, P, D).
        tokens: (S, L) texts with their end token, as `tokenize` gives them.
        mask: (S, L) True at real tokens, at least one each; on the CPU.
        batch_size: pairs of a prefix and a text scored at once.
    """
    num_texts = len(tokens)
    sums = []
    for pairs in torch.arange(len(prefix) * num_texts).split(batch_size):
        sample, text = pairs // num_texts, pairs % num_texts
        rows = prefix[sample.to(prefix.device)]
        sums.append(language_model.score(rows, tokens[text], mask[text]).cpu())
    return (torch.cat(sums).view(-1, num_texts) / mask.sum(dim=1)).float()  # (N, S)
