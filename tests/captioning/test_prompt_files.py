from __future__ import annotations

from pathlib import Path

import pytest

from captioning.prompt_files import bundled_prompt_ids, parse_prompt, read_prompt, read_prompts


def test_bundled_prompts_carry_the_id_of_their_file_name() -> None:
    assert bundled_prompt_ids() == ["body-parts", "changes", "global"]
    assert [read_prompt(name).prompt_id for name in bundled_prompt_ids()] == bundled_prompt_ids()


def test_global_prompt_is_the_sentence_that_the_tiny_model_was_trained_with() -> None:
    assert (
        read_prompt("global").text
        == "Describe the action of the person in this video in one sentence."
    )


def test_front_matter_does_not_change_the_hash() -> None:
    first = parse_prompt("---\nid: a\npurpose: b\nexpected_form: c\n---\nSay it.\n", source="x")
    second = parse_prompt("---\nid: a\npurpose: z\nexpected_form: c\n---\n\nSay it.", source="x")
    assert first.sha256 == second.sha256
    assert first.text == "Say it."


def test_prompts_come_sorted_by_id_whatever_the_order_given() -> None:
    assert read_prompts(("global", "changes")) == read_prompts(("changes", "global"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Say it.", "no front matter"),
        ("---\nid: a\n---\nSay it.", "lacks purpose, expected_form"),
        ("---\nid: a\npurpose: b\nform: c\n---\nSay it.", "'form: c' is not understood"),
        ("---\nid: a\npurpose: b\nexpected_form: c\n---\n \n", "no text"),
    ],
)
def test_a_malformed_prompt_file_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_prompt(text, source="x.txt")


def test_an_unknown_prompt_is_refused_with_the_ids_there_are() -> None:
    with pytest.raises(FileNotFoundError, match="body-parts, changes, global"):
        read_prompt("globl")


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("---\nid: global\npurpose: b\nexpected_form: c\n---\nSay it.")
    with pytest.raises(ValueError, match="both have the id 'global'"):
        read_prompts(("global", str(path)))
