"""training.models.packing: every prefix and caption token lies where the plan says."""

import numpy as np
import pytest

from training.models.packing import pack


def walked(num_tokens, num_prefix, plan):
    """What each sequence reads, found by walking through the rows as attention does."""
    found = {}
    predicting = {}
    slots = {slot: s for s, slot in enumerate(plan.predicting)}
    assert len(slots) == len(plan.predicting)
    width = plan.source.shape[1]
    for row, (sources, positions) in enumerate(zip(plan.source, plan.position, strict=True)):
        for column, (source, position) in enumerate(zip(sources, positions, strict=True)):
            if position == 0:
                current = []
            assert position == len(current)  # positions run on within a sequence
            current.append(source)
            if position == num_prefix - 1:
                found.setdefault(current[0] // num_prefix, current)  # else: a slot left over
            slot = row * width + column
            if slot in slots:
                predicting.setdefault(current[0] // num_prefix, []).append(slots[slot])
    return found, predicting


@pytest.mark.parametrize("shares_rows", [True, False])
@pytest.mark.parametrize("num_prefix", [1, 9])
def test_each_sequence_is_its_prefix_and_its_caption_but_the_last_token(num_prefix, shares_rows):
    num_tokens = np.array([5, 1, 40, 0, 17, 17, 3])
    plan = pack(num_tokens, num_prefix, shares_rows=shares_rows)
    found, predicting = walked(num_tokens, num_prefix, plan)
    first = np.cumsum(num_tokens) - num_tokens
    for n, count in enumerate(num_tokens):
        prefix = [n * num_prefix + p for p in range(num_prefix)]
        tokens = [len(num_tokens) * num_prefix + first[n] + t for t in range(count - 1)]
        assert found[n][: num_prefix + max(count - 1, 0)] == prefix + tokens
        assert predicting.get(n, []) == list(range(first[n], first[n] + count))
    assert plan.sequence.tolist() == np.repeat(np.arange(7), num_tokens).tolist()
    total = (num_prefix + np.maximum(num_tokens, 1) - 1).sum()
    assert len(plan.source) == (-(-total // plan.source.shape[1]) if shares_rows else 7)


def test_rows_are_nearly_full():
    num_tokens = np.random.default_rng(0).integers(5, 60, 256)
    plan = pack(num_tokens, 9)
    assert (9 + num_tokens - 1).sum() / plan.source.size > 0.95


@pytest.mark.parametrize("median", [10, 24, 40, 60])
def test_rows_of_small_batches_are_nearly_full(median):
    rng = np.random.default_rng(0)
    used = slots = 0
    for _ in range(20):
        num_tokens = rng.lognormal(np.log(median), 0.35, 16).round().astype(int)
        plan = pack(num_tokens, 9)
        used += (9 + num_tokens - 1).sum()
        slots += plan.source.size
    assert used / slots > 0.92


def test_a_caption_longer_than_a_row_makes_rows_longer():
    assert pack(np.array([300, 2, 2]), 9).source.shape == (2, 308)


def test_captions_of_one_length_leave_no_room():
    assert pack(np.full(5, 30), 9).source.shape == (5, 38)
