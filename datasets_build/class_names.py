"""Names of the action classes, read from manifests/classes-*.txt (one a line, in label order)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

MANIFESTS = Path(__file__).resolve().parent.parent / "manifests"

NTU_CLASSES = "classes-ntu120.txt"
NW_UCLA_CLASSES = "classes-nw-ucla.txt"


@cache
def manifest_lines(file: str) -> tuple[str, ...]:
    """The lines of a list in manifests/, without blank lines and comments (#).

    Raises:
        FileNotFoundError: the list is not part of this installation.
    """
    path = MANIFESTS / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing from this installation; install hocslm anew or run it from a "
            "complete checkout"
        )
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def ntu_class_names() -> tuple[str, ...]:
    """The 120 names of NTU RGB+D 120; the first 60 are NTU RGB+D's. Label = action_id - 1."""
    return manifest_lines(NTU_CLASSES)


def nwucla_class_names() -> tuple[str, ...]:
    """The 10 names of Northwestern-UCLA in label order."""
    return manifest_lines(NW_UCLA_CLASSES)
