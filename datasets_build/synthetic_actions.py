"""The ten actions of the demo set and the sentences that describe them.

The captions follow one small grammar, one phrasing for each combination of attributes:

    A person sits down on a chair[, SPEED].
    A person stands up from a chair[, SPEED].
    A person claps the hands COUNT[, SPEED].
    A person waves the SIDE hand COUNT[, SPEED].
    A person kicks (forward|sideways) with the SIDE foot COUNT[, SPEED].
    A person hops on the SIDE foot COUNT[, SPEED].
    A person jumps up COUNT[, SPEED].
    A person points (forward|up|to the left|to the right) with the SIDE hand[, SPEED].
    Two people walk up to each other and hug[, SPEED].
    Two people walk towards each other and stop[, SPEED].

    SIDE  = left | right                     the person's own
    COUNT = once | twice | three times | four times | five times
    SPEED = slowly | quickly                 an ordinary speed is not mentioned
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from datasets_build import synthetic_motion as motion
from datasets_build.synthetic_body import Actor, Side
from datasets_build.synthetic_motion import Manner, Motion

if TYPE_CHECKING:
    from datasets_build.synthetic import Performance

Speed = Literal["slowly", "quickly"]

_COUNTS = {1: "once", 2: "twice", 3: "three times", 4: "four times", 5: "five times"}


@dataclass(frozen=True)
class SyntheticAction:
    """One action of the demo set.

    Attributes:
        action_id: its number in NTU RGB+D (1-based).
        name: NTU's name for it.
        phrase: the caption without speed; {side}, {count} and {direction} are filled in.
        verb: words that stand for this action, and no other, in a caption; the first may end in s.
        move: the motion.
        max_repetitions: the largest count by speed (slowly, ordinary, quickly); None: not counted.
        directions: direction names of the caption; empty: none.
        num_people: bodies in the clip.
    """

    action_id: int
    name: str
    phrase: str
    verb: str
    move: Callable[[Sequence[Actor], Manner, np.random.Generator], Motion]
    min_repetitions: int = 1
    max_repetitions: tuple[int, int, int] | None = None
    directions: tuple[str, ...] = ()
    num_people: int = 1

    @property
    def has_side(self) -> bool:
        """Whether a left or right hand or foot acts."""
        return "{side}" in self.phrase


ACTIONS: dict[int, SyntheticAction] = {
    action.action_id: action
    for action in (
        SyntheticAction(
            8, "sit down", "A person sits down on a chair", "sit down", motion.sit_down
        ),
        SyntheticAction(
            9, "stand up", "A person stands up from a chair", "stand up", motion.stand_up
        ),
        SyntheticAction(
            10, "clapping", "A person claps the hands {count}", "clap", motion.clap,
            min_repetitions=2, max_repetitions=(3, 4, 5),
        ),
        SyntheticAction(
            23, "hand waving", "A person waves the {side} hand {count}", "wave",
            motion.wave_hand, min_repetitions=2, max_repetitions=(3, 4, 4),
        ),
        SyntheticAction(
            24, "kicking something", "A person kicks {direction} with the {side} foot {count}",
            "kick", motion.kick, max_repetitions=(1, 2, 2),
            directions=("forward", "sideways"),
        ),
        SyntheticAction(
            26, "hopping", "A person hops on the {side} foot {count}", "hop", motion.hop,
            min_repetitions=2, max_repetitions=(3, 4, 4),
        ),
        SyntheticAction(
            27, "jump up", "A person jumps up {count}", "jump", motion.jump,
            max_repetitions=(1, 2, 3),
        ),
        SyntheticAction(
            31, "pointing to something with finger",
            "A person points {direction} with the {side} hand", "point", motion.point,
            directions=("forward", "up", "to the left", "to the right"),
        ),
        SyntheticAction(
            55, "hugging other person", "Two people walk up to each other and hug", "hug",
            motion.hug, num_people=2,
        ),
        SyntheticAction(
            59, "walking towards each other", "Two people walk towards each other and stop",
            "walk towards", motion.walk_together, num_people=2,
        ),
    )
}  # fmt: skip


def describe(performance: Performance) -> str:
    """The sentence that this clip's attributes give; see the grammar above."""
    text = ACTIONS[performance.action_id].phrase.format(
        side=performance.side,
        count=_COUNTS[performance.repetitions],
        direction=performance.direction,
    )
    return text + (f", {performance.speed}." if performance.speed else ".")


def action_of_caption(text: str) -> int | None:
    """The action_id whose verb phrase stands in the text; None if none or more than one does."""
    found = []
    for action_id, action in ACTIONS.items():
        first, *others = action.verb.split()
        if re.search(rf"\b{' '.join([f'{first}s?', *others])}\b", text, re.IGNORECASE):
            found.append(action_id)
    return found[0] if len(found) == 1 else None


def side_of_caption(text: str) -> Side | None:
    """The side of the acting hand or foot; "to the left" is a direction, not a side."""
    match = re.search(r"\b(left|right) (?:hand|foot|leg|arm)\b", text, re.IGNORECASE)
    if match is None:
        return None
    return "left" if match.group(1).lower() == "left" else "right"


def repetitions_of_caption(text: str) -> int | None:
    """The count that the text names, or None."""
    for number, word in _COUNTS.items():
        if re.search(rf"\b{word}\b", text, re.IGNORECASE):
            return number
    return None
