"""The numbers are those of the programs that the field uses, computed once with their code."""

from __future__ import annotations

import math

import pytest

from training.text_scores import cider_d, rouge_l, text_scores

TEXTS = [
    "A person waves the right hand.",
    "A man sits down on a chair.",
    "Someone throws the ball twice.",
    "",
]
REFERENCES = [
    ["A person waves the right hand three times.", "The person is waving a hand."],
    ["A person sits down slowly.", "A man sits down on the chair.", "A man takes a seat."],
    ["A woman picks up a box."],
    ["A person claps."],
]


def test_texts_equal_to_a_reference_get_the_highest_scores() -> None:
    texts = [own[0] for own in REFERENCES]
    scores = text_scores(texts, [[text] for text in texts])
    assert scores is not None
    assert (scores.bleu, scores.chrf, scores.rouge_l) == pytest.approx((1, 1, 1))
    # Every reference is of another sample, so nothing weighs nothing; "A person claps." has no
    # four words in a row, which count as no agreement there.
    assert scores.cider_d == pytest.approx(10 * (3 + 3 / 4) / 4)


def test_case_does_not_count_and_texts_without_references_are_left_out() -> None:
    scores = text_scores(TEXTS, REFERENCES)
    assert scores is not None
    assert scores == text_scores([text.upper() for text in TEXTS], REFERENCES)
    assert scores == text_scores([*TEXTS, "more"], [*REFERENCES, []])
    assert (scores.samples, scores.references) == (4, 7)
    assert text_scores(["a"], [[]]) is None


def test_rouge_l_is_that_of_rouge_score() -> None:
    # rouge-score 0.1.2: RougeScorer(["rougeL"]), the best F1 of each sample, mean
    assert rouge_l(TEXTS, REFERENCES) == pytest.approx(0.428571428571, abs=1e-9)
    assert rouge_l(["a b c d"], [["b x d", "q"]]) == pytest.approx(2 * 2 / 7)


def test_cider_d_is_that_of_pycocoevalcap() -> None:
    # pycocoevalcap 1.2: CiderScorer(n=4, sigma=6.0) on lower-case words without punctuation
    assert cider_d(TEXTS, REFERENCES) == pytest.approx(1.877665944275, abs=1e-9)


def test_cider_d_by_hand() -> None:
    # Two samples of one word each: weight log 2 for both words, no longer n-grams.
    assert cider_d(["sits", "sits"], [["sits"], ["claps"]]) == pytest.approx(10 * (1 / 4) / 2)
    # Said twice: the count is clipped, the norm is not, and one word more costs exp(-1 / 72).
    twice = 0.5 * math.exp(-1 / 72)
    expected = 10 * (twice / 4) / 2
    assert cider_d(["sits sits", "x"], [["sits"], ["claps"]]) == pytest.approx(expected)
    assert cider_d(["a b"], [["a b"]]) == 0  # one sample: every n-gram is in all of them
