"""How a batch of clips is laid out when several prompts about each share what they can.

A row of the batch is a clip. Its cache holds the keys and values of
    prefix (chat start and video, padded on the right) | suffix 1 | suffix 2 | .. | answers
where the answers grow by one token a prompt at each step. The prompts are branches: a token sees
the prefix of its row and its own branch, nothing of the others, and its position goes on where the
prefix ends. So a branch is answered as if it were alone.

The cache is allocated once for the whole batch. Growing it by concatenation, as transformers does,
would copy all of it at each step: 2.5 GB at 8B with 35 clips.

Legend: B clips, P prompts, L tokens of a prefix, Q tokens that go in at once, S columns of the
cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrefixChunk:
    """Prefixes of neighbouring clips that go through the model together.

    Attributes:
        rows: which clips of the batch.
        ids: (rows, L) int64, padded on the right.
        positions: (3, rows, L) int64.
        is_visual: (rows, L), True where a visual token stands.
        visual: (visual tokens, width), in order.
        deepstack: further levels of the same shape.
    """

    rows: slice
    ids: Tensor
    positions: Tensor
    is_visual: Tensor
    visual: Tensor
    deepstack: Sequence[Tensor]


class BranchCache:
    """Keys and values of a batch, (B, heads, S, width) a layer, filled from left to right.

    Args:
        num_rows: B.
        num_columns: S, the most that will be filled.

    Attributes:
        rows: the rows that the next pass is about.
        length: columns that are filled already.
        places: None, and a pass is given the filled columns; or the columns that the next pass
            fills, as a tensor, and it is given all S: what a compiled pass needs.
    """

    def __init__(self, num_rows: int, num_columns: int) -> None:
        self.shape = (num_rows, num_columns)
        self._layers: list[tuple[Tensor, Tensor]] = []
        self.rows = slice(0, num_rows)
        self.length = 0
        self.places: Tensor | None = None

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what a pass adds, (rows, heads, Q, width) each; return all that it may look at.

        The model calls it in each layer, in their order.
        """
        if layer == len(self._layers):
            num_rows, num_columns = self.shape
            shape = (num_rows, key.shape[1], num_columns, key.shape[3])
            # Zeros: a hidden column that held NaN would still spoil the sum.
            self._layers.append((key.new_zeros(shape), value.new_zeros(shape)))
        keys, values = self._layers[layer]
        if self.places is not None:
            keys.index_copy_(2, self.places, key)
            values.index_copy_(2, self.places, value)
            return keys, values
        end = self.length + key.shape[2]
        keys[self.rows, :, self.length : end] = key
        values[self.rows, :, self.length : end] = value
        if self.length == 0:
            return key, value
        return keys[self.rows, :, :end], values[self.rows, :, :end]

    def clear(self) -> None:
        """Make it empty; its tensors stay where they are."""
        self.length, self.places = 0, None
        for tensors in self._layers:
            for tensor in tensors:
                tensor.zero_()

    def keep_addresses(self) -> None:
        """Tell the compiler that the tensors stay where they are."""
        for tensors in self._layers:
            for tensor in tensors:
                torch._dynamo.mark_static_address(tensor, guard=False)


class Branches:
    """Where the tokens of one batch stand and what they see, on the device.

    Args:
        lengths: tokens of each of the B prefixes, without padding.
        next_positions: the rotary position after each prefix.
        suffixes: the tokens of each of the P prompts.
        num_columns: S.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        next_positions: Sequence[int],
        suffixes: Sequence[Sequence[int]],
        *,
        num_columns: int,
        device: torch.device,
    ) -> None:
        self._lengths = torch.tensor(lengths, device=device)[:, None, None]  # (B, 1, 1)
        self._starts = torch.tensor(next_positions, device=device)[:, None]  # (B, 1)
        sizes = [len(suffix) for suffix in suffixes]
        self._sizes = torch.tensor(sizes, device=device)  # (P,)
        self._prefix_columns = max(lengths)
        self.first_column = self._prefix_columns + sum(sizes)  # of the answers
        branches = torch.arange(len(sizes))
        self._branch = branches.repeat_interleave(torch.tensor(sizes)).to(device)  # (Q,)
        self._place = torch.cat([torch.arange(size) for size in sizes]).to(device)  # (Q,)
        self._columns = torch.arange(num_columns, device=device)  # (S,)
        self._owner = (self._columns - self.first_column) % len(sizes)  # (S,)
        self._owner[: self._prefix_columns] = -1
        self._owner[self._prefix_columns : self.first_column] = self._branch
        self.ids = torch.tensor([[i for s in suffixes for i in s]], device=device)  # (1, Q)
        self.ends = self._sizes.cumsum(0) - 1  # (P,), the last token of each suffix

    def suffix_positions(self) -> Tensor:
        """(3, B, Q), for all suffixes one after the other."""
        return (self._starts + self._place).expand(3, -1, -1)

    def step_positions(self, step: int) -> Tensor:
        """(3, B, P), for the token of each branch that goes in at a step, counted from 1."""
        return (self._starts + self._sizes + (step - 1)).expand(3, -1, -1)

    def suffix_sight(self) -> Tensor:
        """(B, Q, columns up to the answers), True where a token of a suffix may look."""
        columns = self._columns[: self.first_column]
        is_own = self._owner[: self.first_column] == self._branch[:, None]
        is_past = columns <= columns[self._prefix_columns :, None]
        return (columns < self._lengths) | (is_own & is_past)

    def step_sight(self) -> Tensor:
        """(B, P, S), True where a token of an answer may look; what is not yet filled included."""
        branches = torch.arange(len(self._sizes), device=self._columns.device)
        return (self._columns < self._lengths) | (self._owner == branches[:, None])
