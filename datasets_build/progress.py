"""How a long stage tells its caller how far it is; the picture of it belongs to the caller."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a stage calls; cli/console.py draws it, SilentProgress ignores it."""

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        """A stage of `total` units begins (None: unknown); it ends any stage before it."""

    def advance(self, num_done: int = 1, *, num_failed: int = 0, note: str = "") -> None:
        """`num_done` more units are done, `num_failed` of them without success."""

    def message(self, text: str) -> None:
        """One line that the user should see and keep."""

    def finish(self) -> None:
        """The stage is over."""


class SilentProgress:
    """Says nothing; what a notebook or a test passes."""

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        """See Progress.start."""

    def advance(self, num_done: int = 1, *, num_failed: int = 0, note: str = "") -> None:
        """See Progress.advance."""

    def message(self, text: str) -> None:
        """See Progress.message."""

    def finish(self) -> None:
        """See Progress.finish."""
