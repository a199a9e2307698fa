"""SSF, the trainable part: a skeleton feature becomes a caption's prefix (HocSLM Eqs. 11-13).

Shapes: N samples, F feature width, D language-model width, Lp prompt positions.

    Eq. 12  v = LayerNorm(W_2 ReLU(W_1 F_s + b_1) + b_2) in R^D
    Eq. 13  prefix = [v; P], P in R^(Lp x D) learnable; the caption's embeddings follow it

The frozen language model that reads the prefix, and the losses (Eq. 14), are elsewhere
(training/models/language_model.py, training/methods/hocslm.py).

Where we had to choose: the hidden width is blank in the paper
(1024), the prompt's length is (8), and so is what both parts start as. Here the prefix starts as
large as the language model's own embeddings are (`scale`, their root mean square): P is normal with
that deviation, and so large is the LayerNorm's gain. Much larger tokens drown what the first layers
add to them: with a gain of 1, 7 times SmolLM2's scale, the loss falls more slowly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SSF(nn.Module):
    """Projection and learnable prompt.

    Args:
        num_features: F, width of the encoder's features.
        width: D, width of the language model's embeddings.
        hidden: width between W_1 and W_2.
        prompt_length: Lp; 0 leaves the skeleton's token alone.
        scale: of the language model's embeddings (FrozenLanguageModel.embedding_scale).
    """

    def __init__(
        self,
        num_features: int,
        width: int,
        *,
        hidden: int = 1024,
        prompt_length: int = 8,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if min(num_features, width, hidden) < 1 or prompt_length < 0:
            raise ValueError(
                f"SSF needs positive widths and a prompt length of 0 or more, got num_features="
                f"{num_features}, width={width}, hidden={hidden}, prompt_length={prompt_length}"
            )
        norm = nn.LayerNorm(width)
        nn.init.constant_(norm.weight, scale)
        self.project = nn.Sequential(
            nn.Linear(num_features, hidden), nn.ReLU(), nn.Linear(hidden, width), norm
        )
        self.prompt = nn.Parameter(torch.empty(prompt_length, width))
        nn.init.normal_(self.prompt, std=scale)

    def forward(self, features: Tensor) -> Tensor:
        """The prefix [v; P], (N, 1 + Lp, D), of features (N, F)."""
        token = self.project(features)[:, None]  # (N, 1, D)
        prompt = self.prompt.to(token.dtype).expand(len(token), -1, -1)
        return torch.cat((token, prompt), dim=1)  # (N, 1 + Lp, D)
