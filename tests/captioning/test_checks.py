from __future__ import annotations

import pytest

from captioning.checks import classify, clean_caption, repeated_unit
from captioning.engines.interface import Generated


def answer(text: str, finish_reason: str = "stop") -> Generated:
    return Generated("a", "global", text, 100, 64, finish_reason, -0.1)


def test_white_space_is_cleaned_and_words_are_kept() -> None:
    assert (
        clean_caption(" A person\n\n waves  the left hand. \n") == "A person waves the left hand."
    )


@pytest.mark.parametrize(
    "text",
    [
        "A person claps three times and claps again and claps once more.",
        "The left arm goes up. The left arm goes up. Then both legs bend.",
        "no no no",
        "",
    ],
)
def test_a_sentence_that_repeats_a_phrase_is_no_loop(text: str) -> None:
    assert repeated_unit(text) is None


@pytest.mark.parametrize(
    ("text", "unit_length"),
    [
        ("A person " + "waves and " * 12, 10),
        ("A person is sitting down on a chair. " * 3, 37),
        ("the arm, " * 9 + "the a", 9),  # cut off by the limit
        ("h" * 70, 1),
    ],
)
def test_a_loop_is_found_with_its_shortest_unit(text: str, unit_length: int) -> None:
    assert len(repeated_unit(text) or "") == unit_length


def test_statuses_of_answers() -> None:
    assert classify(answer("A person waves.")) == ("success", None)
    assert classify(answer(" \n "))[0] == "empty"
    assert classify(answer("A person waves with", "length"))[0] == "truncated"
    assert classify(answer("waves and " * 12, "length"))[0] == "repetition"
