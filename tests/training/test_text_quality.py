from __future__ import annotations

from pathlib import Path

import pytest

from datasets_build.class_names import ntu_class_names, nwucla_class_names
from datasets_build.dataset import open_dataset
from training.text_quality import ClassPhrases, ClosestSentence, Named, class_phrases, judge

UCLA = nwucla_class_names()


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("A person claps twice.", "clapping", True),
        ("A person waves the right hand.", "hand waving", True),
        ("A person sits down slowly.", "sit down", True),
        ("She sat down.", "sit down", True),
        ("A person stands up.", "sit down", False),
        ("The person stands. A door goes up.", "stand up", False),  # not in one sentence
        ("A person hops.", "hopping (one foot jumping)", True),
        ("A person kicks.", "kicking something", False),
        ("He puts on his cap.", "put on a hat/cap", True),
        ("He takes off his cap.", "put on a hat/cap", False),
        ("He picks it up using both hands.", "pick up with two hands", True),
        ("He picks it up using one hand.", "pick up with two hands", False),
        ("", "clapping", False),
    ],
)
def test_class_names_are_found_in_any_form_and_order_within_a_sentence(
    text: str, name: str, expected: bool
) -> None:
    assert bool(ClassPhrases([name])(text).labels) is expected


def test_every_class_name_names_its_class_and_none_more_specifically() -> None:
    for names in (UCLA, ntu_class_names()):
        phrases = ClassPhrases(names)
        for label, name in enumerate(names):
            assert label in phrases(f"A person: {name}.").best, name


def test_a_longer_phrase_is_more_specific_and_a_name_beats_a_synonym() -> None:
    names = ["throw", "throw up", "carry", "pick up"]
    phrases = ClassPhrases(names, [["toss"], ["vomit"], ["lug"], ["carry", "toss"]])
    assert phrases("He throws up.") == Named((0, 1), (1,))
    assert phrases("He carries it.") == Named((2, 3), (2,))
    assert phrases("He tosses it.") == Named((0, 3), (0, 3))
    assert phrases("He sleeps.") == Named()
    phrases = ClassPhrases(
        ["throw", "nausea", "carry", "donning"], [["cast"], ["throw up"], ["bear"], ["puts on"]]
    )
    assert phrases("She throws up.") == Named((0, 1), (1,))  # says more than the name
    assert phrases("She carries a box and puts it on a table.") == Named((2, 3), (2,))
    assert phrases("She puts a coat on.") == Named((3,), (3,))


def test_a_name_of_two_phrases_is_found_by_either() -> None:
    phrases = ClassPhrases(ntu_class_names())
    for text in ("A person bows.", "A person nods the head."):
        assert phrases(text).best == (34,)


def test_a_synonym_that_is_the_class_name_counts_as_the_name() -> None:
    phrases = ClassPhrases(["carry", "pick up"], [["carry"], ["carry"]])
    assert phrases("He carries it.").best == (0,)


def test_a_text_is_taken_for_the_class_of_the_closest_sentence() -> None:
    closest = ClosestSentence([["head: tilts; hand: grasps", "sit"], ["head: tilts; arm: swings"]])
    assert closest("Head tilts and arm swings.") == Named((1,), (1,))
    assert closest("sit") == Named((0,), (0,))
    assert closest("head tilts") == Named((0, 1), (0, 1))
    assert closest("nothing of it") == Named()


def test_texts_are_counted_as_right_only_several_none_and_confused() -> None:
    named = [
        Named((0,), (0,)),  # right, alone
        Named((0, 1), (0, 1)),  # right, but another as much
        Named((0, 1), (1,)),  # the other more specifically
        Named(),
        Named((2,), (2,)),
        Named((2,), (2,)),
    ]
    found = judge(
        named,
        [0, 0, 0, 0, 1, 1],
        [0, 0, 1, 0, 2, 1],
        references=[[Named((0,), (0,)), Named()], [], [], [], [], [Named((1,), (1,))]],
        class_names=["a", "b", "c"],
    )
    assert found.samples == 6
    assert found.right == pytest.approx(2 / 6)
    assert found.only == pytest.approx(1 / 6)
    assert found.several == pytest.approx(2 / 6)
    assert found.none == pytest.approx(1 / 6)
    assert found.agrees_with_head == pytest.approx(4 / 6)
    assert found.head_right == pytest.approx(4 / 6)
    assert found.references_right == pytest.approx(2 / 3)
    assert found.references_only == pytest.approx(2 / 3)
    assert [(c.name, c.samples, c.right, c.only, c.several, c.none) for c in found.per_class] == [
        ("a", 4, 2, 1, 2, 1),
        ("b", 2, 0, 0, 0, 0),
    ]
    pairs = [(p.truth, p.taken_for, p.num_samples, p.share) for p in found.confused]
    assert pairs == [("b", "c", 2, 1.0), ("a", "b", 1, 0.25)]


def test_synonyms_are_read_from_a_list_of_the_whole_family(
    dataset_folder: Path, tmp_path: Path
) -> None:
    table = tmp_path / "synonyms.txt"
    lines = [f"{name},{name}, do {name} well" for name in ntu_class_names()]
    lines[7] = "sit down,take a seat, have a seat"
    table.write_text("\n".join(lines))
    phrases = class_phrases(open_dataset(dataset_folder), [table])
    assert phrases("The man takes a seat.") == Named((0,), (0,))
    assert phrases("The man has a seat.") == Named((0,), (0,))
    assert class_phrases(open_dataset(dataset_folder), [])("The man takes a seat.") == Named()


def test_real_class_sentences_name_their_class() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "text"
    if not folder.is_dir():
        pytest.skip("../shared/data/text with real tables is not here")
    lists = (folder / "ucla_synonym_openai_t01.txt").read_text().splitlines()
    sentences = (folder / "ucla_sentence_openai_t01.txt").read_text().splitlines()
    phrases = ClassPhrases(UCLA, [line.split(",")[1:] for line in lists])
    texts = [sentence.split(";", 1)[1] for sentence in sentences]
    assert all(label in phrases(text).best for label, text in enumerate(texts))
    # It holds the words of "lift up", of another class.
    assert phrases("Doffing: the hand reaches up, the man lifts his leg.").best == (7,)
