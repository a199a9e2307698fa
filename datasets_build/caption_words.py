"""The words of a caption: cut, reduced to stems, and read for limbs; the words of a class name.

A small rule of our own stands for a stemmer: captions are plain English sentences, and all that is
asked is that "waves", "waving" and "wave" meet.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

Side = Literal["left", "right"]
LimbKind = Literal["arm", "leg"]

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_VOWEL = re.compile(r"[aeiouy]")

_WORDS_WITHOUT_CONTENT = """
a about after again all also an and another any are as at away be been before being between both but
by can did do does doing down during each for from had has have having he her here hers him his in
into is it its itself just more most not of off on once one only onto or other out over own same she
so some such than that the their them then there these they this those three through to together too
toward towards two under up upon very was were what when which while who with
appears appear seems seem begins begin starts start continues continue
person persons people man men woman women boy girl guy lady individual individuals someone somebody
human figure subject
"""
# Function words and the words for people: they say nothing about the action.
STOP_WORDS = frozenset(_WORDS_WITHOUT_CONTENT.split())
_IRREGULAR = {
    "ate": "eat", "eaten": "eat", "bent": "bend", "blew": "blow", "blown": "blow", "drank": "drink",
    "drawn": "draw", "drew": "draw", "drunk": "drink", "fallen": "fall", "feet": "foot",
    "fell": "fall", "gave": "give", "given": "give", "got": "get", "had": "have", "has": "have",
    "held": "hold", "hung": "hang", "knelt": "kneel", "knives": "knife", "lying": "lie",
    "ran": "run", "sat": "sit", "shaken": "shake", "shook": "shake", "shot": "shoot",
    "slid": "slide", "spoke": "speak", "spun": "spin", "stood": "stand", "struck": "strike",
    "swung": "swing", "taken": "take", "teeth": "tooth", "threw": "throw", "thrown": "throw",
    "took": "take", "tore": "tear", "torn": "tear", "tying": "tie", "using": "use", "wore": "wear",
    "worn": "wear", "written": "write", "wrote": "write",
}  # fmt: skip

ARM_WORDS = "arm|forearm|elbow|hand|wrist|fist"
LEG_WORDS = "leg|thigh|knee|ankle|foot|feet"
_LIMB = rf"(?P<limb>{ARM_WORDS}|{LEG_WORDS})s?\b"
_SIDE = r"(?P<side>left|right)\s+(?:(?:upper|lower|own)\s+)?"
_MOVES = (
    r"(?:wav|rais|lift|swing|extend|mov|stretch|kick|punch|shak|bend|rotat|circl|flap|tap|stomp"
    r"|slap|throw|toss|point|reach)\w*"
)
_SIDED_LIMB = re.compile(rf"\b{_SIDE}{_LIMB}")
_BOTH_SIDES = re.compile(r"\b(?:both|left and (?:the )?right|right and (?:the )?left)\b")
# "waves the right hand", "kicks forward with the left foot"; then "the right arm swings".
_ACTING_LIMBS = (
    re.compile(rf"\b(?:with|{_MOVES})\s+(?:(?!left\b|right\b)\w+\s+){{0,3}}(?:{_SIDE})?{_LIMB}"),
    re.compile(rf"\b{_SIDE}{_LIMB}\s+(?:is\s+|are\s+)?{_MOVES}"),
)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; hyphens part words, apostrophes do not."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


@cache
def stem(word: str) -> str:
    """What is left of a lower-case word without its ending: "waves", "waving" and "wave" are "wav".

    The endings -ing, -ies, -ied, -es, -ed and -s go where at least three letters with a vowel stay;
    then a doubled last consonant becomes one, a last -e goes and a last -y becomes -i.
    """
    word = word.removesuffix("'s")
    word = _IRREGULAR.get(word, word)
    if len(word) > 3 and not word.endswith("ss"):
        for ending, instead in (
            ("ing", ""), ("ies", "y"), ("ied", "y"), ("es", ""), ("ed", ""), ("s", ""),
        ):  # fmt: skip
            rest = word.removesuffix(ending) + instead
            if word.endswith(ending) and len(rest) >= 3 and _VOWEL.search(rest):
                word = rest
                break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou":
        word = word[:-1]
    if len(word) > 3 and word[-1] == "e":
        word = word[:-1]
    return word[:-1] + "i" if len(word) > 2 and word[-1] == "y" else word


@cache
def label_phrases(class_name: str) -> tuple[str, ...]:
    """A class name as a caption would copy it, in lower case, without brackets.

    "put on a hat/cap" gives "put on a hat" and "put on a cap". Of NTU's names "nod head/bow" alone
    parts phrases and not words.
    """
    if class_name == "nod head/bow":
        return "nod head", "bow"
    plain = re.sub(r"\s*\(.*?\)", "", class_name)
    choices = re.fullmatch(r"(.*?)([^\s/]+)/([^\s/]+)(.*)", plain)
    if choices is None:
        return (" ".join(words_of(plain)),)
    before, first, second, after = choices.groups()
    return tuple(" ".join(words_of(f"{before}{word}{after}")) for word in (first, second))


def named_side(text: str) -> Side | None:
    """The side of the limbs that a text names; None where it names no side, or both."""
    text = text.lower()
    sides: set[Side] = {
        "left" if match["side"] == "left" else "right" for match in _SIDED_LIMB.finditer(text)
    }
    return sides.pop() if len(sides) == 1 and not _BOTH_SIDES.search(text) else None


def acting_limbs(text: str) -> set[tuple[LimbKind, Side | None]]:
    """The limbs that a text says move or that something is done with, with the side where given.

    "waves the right hand" gives ("arm", "right"); a limb that is only a place ("a watch on the left
    wrist") is none. Both sides of one kind give the kind without a side.
    """
    text = text.lower()
    found: set[tuple[LimbKind, Side | None]] = set()
    for pattern in _ACTING_LIMBS:
        for match in pattern.finditer(text):
            kind: LimbKind = "arm" if re.fullmatch(ARM_WORDS, match["limb"]) else "leg"
            side: Side | None = "left" if match["side"] == "left" else "right"
            found.add((kind, side if match["side"] and not _BOTH_SIDES.search(text) else None))
    return found
