"""The NTU RGB+D file name SsssCcccPpppRrrrAaaa: read and written in one place.

Source: the NTU RGB+D file-name convention (setup, camera, performer, replication, action; 1-based).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")


@dataclass(frozen=True, order=True)
class NtuName:
    """The five ids of an NTU sample; its text form is the sample_id."""

    setup_id: int
    camera_id: int
    subject_id: int
    repetition_id: int
    action_id: int

    def __str__(self) -> str:
        return (
            f"S{self.setup_id:03d}C{self.camera_id:03d}P{self.subject_id:03d}"
            f"R{self.repetition_id:03d}A{self.action_id:03d}"
        )


def parse_ntu_name(text: str) -> NtuName | None:
    """The ids at the start of a file name or path, or None where the name is not NTU's.

    "S001C002P003R002A013_rgb.avi", "S001C002P003R002A013.skeleton" and any path ending in such a
    name are understood.
    """
    name = text.replace("\\", "/").rsplit("/", 1)[-1]
    match = _NAME.match(name)
    if match is None or (len(name) > match.end() and name[match.end()] not in "._-"):
        return None
    return NtuName(*(int(group) for group in match.groups()))
