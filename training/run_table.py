"""What the tables of `hoc sweep` and `hoc zero-shot-sweep` have in common.

Who trained their runs, the sentences on those that failed, and their form in Markdown.
"""

from __future__ import annotations

import textwrap
import traceback
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets_build.manifest import read_json
from training.checkpoint import ENVIRONMENT_FILE, MADE_BY
from training.loop import NonFiniteLossError

_MOST_LETTERS = 160  # of a failure beside the table; our choice: two lines of a terminal


@dataclass(frozen=True)
class MadeBy:
    """What a start of a training ran.

    Attributes:
        git_commit: of the source tree; None outside a git checkout.
        device: "cpu", or the name of the accelerator.
    """

    git_commit: str | None
    device: str


def problem_of(error: Exception) -> tuple[str, str]:
    """What stopped a run, and its traceback: our own sentences bare, others with their class."""
    is_sentence = isinstance(error, (ValueError, OSError, RuntimeError, NonFiniteLossError))
    problem = str(error) if is_sentence else f"{type(error).__name__}: {error}"
    return problem, "".join(traceback.format_exception(error))


def makers(folder: Path) -> tuple[MadeBy, ...]:
    """The commits and devices of a run's starts, each pair once; empty before the first start."""
    path = folder / ENVIRONMENT_FILE
    if not path.is_file():
        return ()
    first = read_json(path, made_by=MADE_BY)
    starts = first.get("starts", [first])
    return tuple(dict.fromkeys(MadeBy(start["git_commit"], start["device"]) for start in starts))


def makers_notes(made_by: Iterable[MadeBy]) -> list[str]:
    """The sentence on who trained a table, where somebody did."""
    made = [f"{by.git_commit or 'an unknown commit'} on {by.device}" for by in made_by]
    return [f"Trained by {'; '.join(made)}."] if made else []


def failure_notes(problems: Iterable[tuple[str, str]], *, record: Path) -> list[str]:
    """A line for everything that failed, cut to what a terminal shows, and where the whole stands.

    Args:
        problems: name and sentence of each.
        record: the JSON file of the table.
    """
    notes = [
        f"Failed: {name}: {textwrap.shorten(problem, _MOST_LETTERS, placeholder=' ...')}"
        for name, problem in problems
    ]
    whole = f"The whole of what a failed run said is in {record.name}."
    return [*notes, whole] if notes else []


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Collection[str]
) -> str:
    """A table in Markdown; all columns but `texts` are numbers and stand on the right."""
    marks = ["---" if name in texts else "---:" for name in columns]
    lines = [[cell.replace("|", "\\|") for cell in cells] for cells in (columns, marks, *rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
