import os

import pytest

from datasets_build.progress import SilentProgress

# The consoles of cli/ take their width when they are made; tests give their own where it matters.
os.environ.pop("COLUMNS", None)


class Heard(SilentProgress):
    """Keeps what a person would read."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.notes: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def advance(self, num_done: int = 1, *, num_failed: int = 0, note: str = "") -> None:
        self.notes.append(note)


@pytest.fixture
def heard() -> Heard:
    return Heard()
