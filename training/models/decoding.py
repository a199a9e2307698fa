"""Text that follows a prefix of vectors: greedy and beam search, a batch at once.

Shapes: N samples, P prefix positions, D width, W words of the vocabulary, B beams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Writer:
    """The parts of a causal language model, and the tokens that end and fill a text.

    Attributes:
        decoder: embeddings (n, l, D) -> `last_hidden_state`, with a cache.
        embedding: tokens -> (..., D).
        head: D -> W.
        eos_id: ends a text.
        pad_id: fills the rows of texts that ended.
    """

    decoder: Any
    embedding: nn.Module
    head: nn.Linear
    eos_id: int
    pad_id: int

    def greedy(self, prefix: Tensor, max_new_tokens: int) -> Tensor:
        """(N, <= max_new_tokens) tokens after prefixes (N, P, D)."""
        reader = _Reader(self.decoder, self.head)
        logits = reader.read(prefix)
        is_open = torch.ones(len(prefix), dtype=torch.bool, device=logits.device)
        written: list[Tensor] = []
        while True:
            token = torch.where(is_open, logits.argmax(dim=-1), self.pad_id)
            written.append(token)
            is_open &= token != self.eos_id
            if len(written) == max_new_tokens or not bool(is_open.any()):
                return torch.stack(written, dim=1)
            logits = reader.read(self.embedding(token)[:, None])

    def beam_search(self, prefix: Tensor, max_new_tokens: int, num_beams: int) -> Tensor:
        """(N, <= max_new_tokens) tokens of the best beam of each prefix (N, P, D).

        Beams are compared by their mean log-likelihood a token (the end token included) in the end
        and by their sum on the way.
        """
        N, B, W = len(prefix), num_beams, self.head.out_features
        reader = _Reader(self.decoder, self.head)
        logits = reader.read(prefix.repeat_interleave(B, dim=0))  # (N*B, W)
        device = logits.device
        scores = torch.full((N, B), -torch.inf, device=device)
        scores[:, 0] = 0.0  # all beams start equal: let one of them speak
        written = torch.empty(N, B, 0, dtype=torch.long, device=device)
        lengths = torch.zeros(N, B, device=device)
        is_open = torch.ones(N, B, dtype=torch.bool, device=device)
        only_pad = torch.full((W,), -torch.inf, device=device)
        only_pad[self.pad_id] = 0.0  # a beam that ended keeps its score
        first = torch.arange(N, device=device)[:, None] * B
        for _ in range(max_new_tokens):
            steps = logits.log_softmax(dim=-1).view(N, B, W)
            steps = torch.where(is_open[..., None], steps, only_pad)
            scores, place = (scores[..., None] + steps).flatten(1).topk(B, dim=1)  # (N, B)
            beam, token = place // W, place % W
            is_open = is_open.gather(1, beam)
            lengths = lengths.gather(1, beam) + is_open
            written = written.gather(1, beam[..., None].expand(-1, -1, written.shape[2]))
            written = torch.cat((written, token[..., None]), dim=2)
            is_open = is_open & (token != self.eos_id)
            if not bool(is_open.any()):
                break
            reader.pick((first + beam).flatten())
            logits = reader.read(self.embedding(token.flatten())[:, None])
        best = (scores / lengths.clamp(min=1)).argmax(dim=1)
        return written[torch.arange(N, device=device), best]


class _Reader:
    """The decoder reading on: it remembers what it has read."""

    def __init__(self, decoder: Any, head: nn.Linear) -> None:
        from transformers import DynamicCache

        self._decoder = decoder
        self._head = head
        self._cache = DynamicCache(config=decoder.config)

    def read(self, embedded: Tensor) -> Tensor:
        """Float32 logits (n, W) after the last of the next embeddings (n, l, D)."""
        output = self._decoder(inputs_embeds=embedded, past_key_values=self._cache, use_cache=True)
        last = output.last_hidden_state[:, -1].to(self._head.weight.device)
        return self._head(last).float()  # type: ignore[no-any-return]

    def pick(self, rows: Tensor) -> None:
        """Go on with these of the rows read so far, in this order."""
        self._cache.reorder_cache(rows)  # type: ignore[arg-type]
