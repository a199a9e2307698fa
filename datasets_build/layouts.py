"""Joint layouts told in TOML: one's own recordings need no code (docs/own-recordings.md)."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from datasets_build.joints import SKELETONS, Skeleton
from datasets_build.settings import Settings, read_toml, resolve

MAX_JOINTS = 1_000  # our choice: MediaPipe Holistic, the largest layout in use, has 543
MAX_BODIES = 64  # our choice: two football teams and their referees
MAX_CLASSES = 10_000  # our choice: ten times the largest label set of the field

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,99}$"


@dataclass(frozen=True)
class LayoutFile:
    """What a layout file tells.

    Attributes:
        skeleton: the joint layout.
        class_names: in label order; None where the file names no classes.
    """

    skeleton: Skeleton
    class_names: tuple[str, ...] | None


def _joint(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("a joint is given by its name or its 0-based index")
    return value


def _all_differ(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse names that are blank, that cannot be printed, or that come twice."""
    for name in names:
        if not name.strip() or not name.isprintable():
            raise ValueError(f"{name!r} is not a name: it is blank or cannot be printed")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice[:5]))} comes more than once")
    return names


_Joint = Annotated[int | str, BeforeValidator(_joint)]
_Names = Annotated[tuple[str, ...], AfterValidator(_all_differ)]


class _LayoutToml(Settings):
    """The keys of a layout file.

    Attributes:
        name: in lower case; a built-in layout's only where the file says the same as that one.
        joints: names in index order; "left x" and "right x" are twins.
        bones: (child, parent) pairs; the one joint that is no child is the root.
        centre: the joint that coordinates are made relative to.
        num_bodies: bodies that a model takes.
        joint_dims: 3 (metres) or 2 (pixels).
        has_score: whether a confidence follows the coordinates.
        classes: class names in label order.
    """

    name: str = Field(pattern=NAME_PATTERN)
    joints: _Names = Field(min_length=1, max_length=MAX_JOINTS)
    bones: tuple[tuple[_Joint, _Joint], ...] = Field(max_length=MAX_JOINTS)
    centre: _Joint
    num_bodies: int = Field(default=1, ge=1, le=MAX_BODIES)
    joint_dims: Literal[2, 3] = 3
    has_score: bool = False
    classes: _Names | None = Field(default=None, min_length=1, max_length=MAX_CLASSES)


def layout_named(text: str) -> LayoutFile:
    """The layout of a built-in name, or of a TOML file.

    Raises:
        FileNotFoundError: a path at which no file is.
        ValueError: no such layout, or the file's mistakes.
    """
    if text in SKELETONS:
        return LayoutFile(SKELETONS[text], None)
    if text.endswith(".toml"):
        return read_layout(Path(text))
    raise ValueError(
        f"layout {text!r} is not known{nearest(text, SKELETONS)}; give one of "
        f"{', '.join(SKELETONS)}, or the path of a .toml file (docs/own-recordings.md)"
    )


def read_layout(path: Path) -> LayoutFile:
    """Read a layout file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: lists its mistakes, each in a sentence.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"layout {path} does not exist; give the path of a .toml file that lists joints and "
            "bones (docs/own-recordings.md has one to copy)"
        )
    values = resolve(_LayoutToml, read_toml(path), source=str(path))
    mistakes: list[str] = []
    centre = _index(values.centre, values.joints, "centre", mistakes)
    parents = _parents(values, mistakes)
    if mistakes:
        raise ValueError(f"this does not fit in {path}:\n  " + "\n  ".join(mistakes))
    skeleton = Skeleton(
        name=values.name,
        joints=values.joints,
        parents=parents,
        centre=centre,
        num_bodies=values.num_bodies,
        joint_dims=values.joint_dims,
        has_score=values.has_score,
    )
    if SKELETONS.get(skeleton.name, skeleton) != skeleton:
        raise ValueError(
            f"{path}: name {skeleton.name!r} belongs to a built-in layout that differs from this "
            "one; choose another name"
        )
    return LayoutFile(skeleton, values.classes)


def _parents(values: _LayoutToml, mistakes: list[str]) -> tuple[int, ...]:
    """For each joint its parent's index, the root its own; what is no tree goes to `mistakes`."""
    joints, num_before = values.joints, len(mistakes)
    parent_of: dict[int, int] = {}
    for number, bone in enumerate(values.bones):
        where = f"bones.{number}"
        child, parent = (_index(joint, joints, where, mistakes) for joint in bone)
        if child < 0 or parent < 0:
            continue
        if child == parent:
            mistakes.append(
                f"{where}: {joints[child]!r} is its own parent; leave the root's bone out"
            )
        elif child in parent_of:
            mistakes.append(
                f"{where}: {joints[child]!r} has two parents, {joints[parent_of[child]]!r} and "
                f"{joints[parent]!r}; bones are pairs of (child, parent)"
            )
        else:
            parent_of[child] = parent
    roots = [name for joint, name in enumerate(joints) if joint not in parent_of]
    if len(mistakes) == num_before and not roots:
        mistakes.append("bones: every joint has a parent, so they go in a circle; one is the root")
    elif len(mistakes) == num_before and len(roots) > 1:
        shown = ", ".join(map(repr, roots[:5])) + (", ..." if len(roots) > 5 else "")
        mistakes.append(f"bones: {len(roots)} joints have no parent ({shown}); only the root has")
    return tuple(parent_of.get(joint, joint) for joint in range(len(joints)))


def _index(joint: int | str, joints: tuple[str, ...], where: str, mistakes: list[str]) -> int:
    """The index of a joint; -1, and a sentence more, where there is no such one."""
    if isinstance(joint, str) and joint in joints:
        return joints.index(joint)
    if isinstance(joint, int) and 0 <= joint < len(joints):
        return joint
    if isinstance(joint, str):
        mistakes.append(f"{where}: {joint!r} is not one of joints{nearest(joint, joints)}")
    else:
        mistakes.append(f"{where}: joint index {joint} is not one of 0 .. {len(joints) - 1}")
    return -1


def nearest(name: str, names: Collection[str]) -> str:
    """`; did you mean 'x'?` with the nearest of the names, or nothing where none is near."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
