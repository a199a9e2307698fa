"""The audit's rules that judge one caption by itself and its class.

audit_comparisons.py compares captions with each other, audit_skeletons.py with the skeletons. Every
threshold is our choice, set on made-up captions. A rule that cannot tell gives no flag.

Letters: R rows, W words of all rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captioning.audit_rows import CaptionRows, Rule, Verdicts
from captioning.label_words import label_stems
from datasets_build.caption_words import label_phrases, stem, words_of

# Prompts that ask for limbs and not for the action: their captions need not name it.
PARTS_PROMPTS = ("body-parts",)

LABEL_TALK = (
    r"\b(?:NTU|RGB\+D|data ?set|action (?:class|label|category|recognition|name)"
    r"|class (?:name|label)|labell?ed as|(?:the|an) action (?:of|is|being|called|class)"
    r"|classified as|category of)\b"
)
REFUSAL = (
    r"\bI(?:'m| am) (?:sorry|unable|not able)|\bI (?:cannot|can't|can not|could not|couldn't)\b"
    r"|\bas an? (?:AI|artificial intelligence|(?:large )?language model|assistant)\b"
    r"|\b(?:sorry|apologi[sz]e)\b"
    r"|\b(?:unable|impossible|not possible|insufficient|not enough information) to "
    r"(?:determine|describe|identify|tell|say|see|view|provide|analy[sz]e|process|make out)\b"
    r"|\bcannot be (?:determined|described|identified|seen)\b"
    r"|\bno (?:video|images?|frames?) (?:is|are|was|were|has been|have been)\b"
)
META_TALK = (
    r"\b(?:in|of|from|throughout|during|across) (?:this|the|these) "
    r"(?:short )?(?:video|clip|image|footage|sequence|scene|frame|shot)s?\b"
    r"|\b(?:video|clip|image|footage|sequence|scene|frame)s? "
    r"(?:shows?|depicts?|captures?|features?|displays?|begins?|starts?|ends?|opens?)\b"
    r"|\b(?:the|this|first|last|final|next|each|every|all|these) frames?\b"
)
FIRST_PERSON = frozenset(
    words_of(
        "i i'm i've i'd i'll me my mine myself "
        "we we're we've we'd we'll us our ours ourselves let's"
    )
)
# A plain English sentence of MIN_ENGLISH_WORDS words holds at least one of them.
ENGLISH = frozenset(
    words_of(
        "the is are was with and of their his her its person people man men woman women someone "
        "from they on to at"
    )
)
MIN_ENGLISH_WORDS = 6  # our choice: "A person stands up." may stop before any of ENGLISH comes
MAX_FOREIGN_LETTERS = 0.1  # our choice: a quoted sign or name passes, a sentence does not


def _status_failed(rows: CaptionRows) -> Verdicts:
    failed = np.flatnonzero(~rows.has_text).tolist()
    return Verdicts.of(np.ones(len(rows), bool), {row: rows.statuses[row] for row in failed})


def _label_missing(rows: CaptionRows) -> Verdicts:
    # One row a class and a last one, which index -1 finds, for rows of no known class.
    names_class = np.zeros((len(rows.class_names) + 1, len(rows.vocabulary)), bool)
    has_stems = np.zeros(len(names_class), bool)
    stems = [stem(word) for word in rows.vocabulary]
    for number, name in enumerate(rows.class_names):
        known = label_stems(name)
        names_class[number] = [word in known for word in stems]
        has_stems[number] = bool(known)
    of_word = names_class[rows.class_indices[rows.row_of_word], rows.words]  # (W,)
    named = np.zeros(len(rows), bool)
    named[rows.row_of_word[of_word]] = True
    asks_for_action = np.array([name not in PARTS_PROMPTS for name in rows.prompt_ids], bool)
    judged = rows.has_text & asks_for_action & has_stems[rows.class_indices]
    return Verdicts.of(
        judged,
        {
            row: f"no word of {rows.classes[row]!r} or for it"
            for row in np.flatnonzero(judged & ~named).tolist()
        },
    )


def _label_leak(rows: CaptionRows) -> Verdicts:
    details = {row: f"talks of labels: {said!r}" for row, said in _matches(rows, LABEL_TALK)}
    patterns = {name: _label_pattern(name) for name in rows.class_names}
    for row, (text, name) in enumerate(zip(rows.texts, rows.classes, strict=True)):
        match = patterns[name].search(text) if text is not None and name is not None else None
        if match is not None:
            details.setdefault(row, f"has the label word for word: {match.group()!r}")
    return Verdicts.of(rows.has_text & (rows.class_indices >= 0), details)


def _label_pattern(class_name: str) -> re.Pattern[str]:
    phrases = (r"\W+".join(phrase.split()) for phrase in label_phrases(class_name))
    return re.compile(rf"\b(?:{'|'.join(phrases)})\b", re.IGNORECASE)


def _matches(rows: CaptionRows, pattern: str) -> list[tuple[int, str]]:
    """Rows whose caption matches, and what does; Arrow finds them, Python cuts the words out."""
    texts = pa.array(rows.texts, pa.large_string())
    mask = pc.match_substring_regex(texts, pattern=pattern, ignore_case=True)
    compiled = re.compile(pattern, re.IGNORECASE)
    found = []
    for row in np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False)).tolist():
        match = compiled.search(rows.texts[row] or "")
        if match is not None:
            found.append((row, match.group()))
    return found


def _pattern(pattern: str) -> Callable[[CaptionRows], Verdicts]:
    """The judge that flags captions in which a regular expression finds something."""

    def judge(rows: CaptionRows) -> Verdicts:
        return Verdicts.of(rows.has_text, {r: f"{said!r}" for r, said in _matches(rows, pattern)})

    return judge


def _first_person(rows: CaptionRows) -> Verdicts:
    details = {}
    for row in np.flatnonzero(rows.rows_with_words(FIRST_PERSON)).tolist():
        words = (rows.vocabulary[word] for word in rows.words_of_row(row))
        details[row] = f"{next(word for word in words if word in FIRST_PERSON)!r}"
    return Verdicts.of(rows.has_text, details)


def _language(rows: CaptionRows) -> Verdicts:
    details = {}
    for row, text in enumerate(rows.texts):
        if text is not None and not text.isascii():
            letters = [letter for letter in text if letter.isalpha()]
            share = sum(not _is_latin(letter) for letter in letters) / max(1, len(letters))
            if share > MAX_FOREIGN_LETTERS:
                details[row] = f"{share:.0%} of its letters are not Latin"
    is_long = rows.num_words >= MIN_ENGLISH_WORDS
    for row in np.flatnonzero(is_long & ~rows.rows_with_words(ENGLISH)).tolist():
        details.setdefault(row, "none of the commonest English words")
    return Verdicts.of(rows.has_text, details)


def _is_latin(letter: str) -> bool:
    """Basic Latin to Latin Extended-B, and Latin Extended Additional."""
    return letter < "\u0250" or "\u1e00" <= letter <= "\u1eff"


CAPTION_RULES = (
    Rule(
        "status-failed",
        "the row has no caption: its status is neither success nor truncated",
        _status_failed,
    ),
    Rule(
        "label-missing",
        "no content word of its class name, and none of the words that stand for it",
        _label_missing,
        {"not_judged_prompts": list(PARTS_PROMPTS)},
    ),
    Rule(
        "label-leak",
        "says the class name exactly as the label list has it, or talks of labels; matters where "
        "captions must be independent of the labels",
        _label_leak,
        {"label_talk": LABEL_TALK},
    ),
    Rule("refusal", "declines or apologises", _pattern(REFUSAL), {"pattern": REFUSAL}),
    Rule(
        "first-person", "speaks as I or we", _first_person, {"words": sorted(FIRST_PERSON)}
    ),
    Rule(
        "meta-talk", "speaks of the video, image or frames", _pattern(META_TALK),
        {"pattern": META_TALK},
    ),
    Rule(
        "language",
        "is not written in Latin letters, or has none of the commonest English words",
        _language,
        {
            "max_foreign_letters": MAX_FOREIGN_LETTERS,
            "min_words": MIN_ENGLISH_WORDS,
            "words": sorted(ENGLISH),
        },
    ),
)  # fmt: skip
