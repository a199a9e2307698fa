"""Judging one generated text: a caption, a loop, a stump or nothing."""

from __future__ import annotations

from captioning.engines.interface import Generated
from datasets_build.schema import (
    STATUS_EMPTY,
    STATUS_REPETITION,
    STATUS_SUCCESS,
    STATUS_TRUNCATED,
)

# our choice: three copies and 60 letters; a sentence may well say one short phrase twice
MIN_COPIES = 3
MIN_LOOP_LENGTH = 60


def clean_caption(text: str) -> str:
    """The text with every run of white space made one space, none at the ends."""
    return " ".join(text.split())


def repeated_unit(text: str) -> str | None:
    """The shortest unit that the end of a text repeats, or None where it does not loop.

    Characters are compared, not words, so it works for every language and for runs of one letter.
    The last copy may be cut off, as the token limit does it.
    """
    for period in range(1, len(text) // MIN_COPIES + 1):
        same = 0
        while same < len(text) - period and text[-1 - same] == text[-1 - same - period]:
            same += 1
        if same + period >= max(MIN_COPIES * period, MIN_LOOP_LENGTH):
            return text[-period:]
    return None


def classify(generated: Generated) -> tuple[str, str | None]:
    """The status of an answer and, where it is no success, the reason."""
    caption = clean_caption(generated.text)
    if not caption:
        return STATUS_EMPTY, "the model wrote nothing"
    unit = repeated_unit(caption)
    if unit is not None:
        return STATUS_REPETITION, f"the text ends in a loop of {unit[:60]!r}"
    if generated.finish_reason == "length":
        return (
            STATUS_TRUNCATED,
            f"the limit of {generated.num_generated_tokens} new tokens ended the text",
        )
    return STATUS_SUCCESS, None
