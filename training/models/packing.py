"""Sequences of unequal length laid side by side in rows, so that little padding is computed.

Shapes: N sequences of a batch, P prefix positions, A rows, B slots a row, S caption tokens.

A sequence is a sample's prefix and its caption without the last token, which is only predicted.
Transformers tell the sequences of a row apart by their positions, which begin again at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Rows are tried from the longest sequence's length to this one (or twice that length), a step wider
# each time. Our choice: 2 to 7 % of the slots are left over, with one width for all batches up to
# 28 %; attention over still wider rows costs more than they save.
WIDEST_ROW = 192
STEP = 16


@dataclass(frozen=True)
class Packing:
    """Where everything lies.

    Attributes:
        source: (A, B) what a slot reads: n*P + p for position p of the prefix of sequence n,
            N*P + s for caption token s of the batch (sequence by sequence); 0 in slots left over.
        position: (A, B) place in its sequence; 0 in slots left over.
        predicting: (S,) the slot, counted through all rows, behind which caption token s comes.
        sequence: (S,) whose token it is.
        token: (S,) its place in its caption.
    """

    source: np.ndarray
    position: np.ndarray
    predicting: np.ndarray
    sequence: np.ndarray
    token: np.ndarray


def pack(num_tokens: np.ndarray, num_prefix: int, *, shares_rows: bool = True) -> Packing:
    """Lay out the sequences of a batch.

    Args:
        num_tokens: (N,) caption tokens, >= 0; N >= 1.
        num_prefix: P >= 1.
        shares_rows: whether sequences may share a row; else each has its own.
    """
    N, P = len(num_tokens), num_prefix
    lengths = P + np.maximum(num_tokens, 1) - 1
    longest, total = int(lengths.max()), int(lengths.sum())
    start, num_rows, width = np.arange(N) * longest, N, longest
    if shares_rows:
        order = np.argsort(-lengths, kind="stable")
        for wider in range(longest, min(max(WIDEST_ROW, 2 * longest), total) + 1, STEP):
            fitted, rows_needed = _first_fit(lengths, order, wider)
            if rows_needed * wider < num_rows * width:
                start, num_rows, width = fitted, rows_needed, wider

    owner = np.repeat(np.arange(N), lengths)  # (total,)
    step = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    first_token = np.cumsum(num_tokens) - num_tokens
    slot = start[owner] + step
    source = np.zeros(num_rows * width, np.int64)
    position = np.zeros(num_rows * width, np.int64)
    is_prefix = step < P
    source[slot] = np.where(is_prefix, owner * P + step, N * P + first_token[owner] + step - P)
    position[slot] = step

    sequence = np.repeat(np.arange(N), num_tokens)  # (S,)
    token = np.arange(len(sequence)) - first_token[sequence]
    predicting = start[sequence] + P - 1 + token
    shape = (num_rows, width)
    return Packing(source.reshape(shape), position.reshape(shape), predicting, sequence, token)


def _first_fit(lengths: np.ndarray, order: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """The first slot of each sequence, laid in this order, and the number of rows."""
    start = np.empty(len(lengths), np.int64)
    room = np.full(len(lengths), width)  # of each row; there are never more rows than sequences
    num_rows = 0
    for n in order:
        row = int(np.argmax(room >= lengths[n]))
        start[n] = row * width + width - room[row]
        room[row] -= lengths[n]
        num_rows = max(num_rows, row + 1)
    return start, num_rows
