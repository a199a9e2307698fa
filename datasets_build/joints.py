"""Joint names, bones, centres and left/right pairs of every skeleton layout: their only home.

Sources: Kinect v2 joint order of NTU RGB+D (Microsoft JointType and the NTU list), Kinect v1 order
of NW-UCLA, the COCO key-point order; bone pairs as the CTR-GCN family uses them (child, parent).
All indices here are 0-based; the published tables are 1-based.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Skeleton:
    """One skeleton layout.

    Attributes:
        name: the layout's name in recipes and data sets, for example "ntu-25".
        joints: joint names in index order, V of them.
        parents: for each joint the index of its parent; the root is its own parent.
        centre: index of the joint that coordinates are made relative to (the middle of the spine).
        num_bodies: number of bodies that a model of this layout takes by default.
        joint_dims: coordinates a joint: 3 (metres) or 2 (pixels).
        has_score: whether a confidence follows the coordinates as a channel of its own.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    centre: int
    num_bodies: int
    joint_dims: int = 3
    has_score: bool = False

    def __post_init__(self) -> None:
        _check_tree(self)

    @property
    def num_joints(self) -> int:
        """V, the number of joints."""
        return len(self.joints)

    @property
    def num_channels(self) -> int:
        """C, the numbers a joint has in a data set: its coordinates and, where given, its score."""
        return self.joint_dims + self.has_score

    @property
    def root(self) -> int:
        """The index of the joint that is its own parent."""
        return next(j for j, p in enumerate(self.parents) if j == p)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) pairs, without the root's pair with itself."""
        return tuple((j, p) for j, p in enumerate(self.parents) if j != p)

    @property
    def mirror(self) -> tuple[int, ...]:
        """For each joint the index of its left/right twin, or its own index."""
        index = {name: j for j, name in enumerate(self.joints)}
        return tuple(index.get(_other_side(name), j) for j, name in enumerate(self.joints))

    def as_json(self) -> dict[str, Any]:
        """JSON values, from which `skeleton_from_json` makes it again."""
        return {**asdict(self), "joints": list(self.joints), "parents": list(self.parents)}


def _check_tree(skeleton: Skeleton) -> None:
    """Refuse what is not one tree over the joints.

    Raises:
        ValueError: a sentence that names the layout and the joint.
    """
    name, num = f"skeleton {skeleton.name!r}", len(skeleton.joints)
    if len(set(skeleton.joints)) != num or not num:
        raise ValueError(f"{name}: joint names must be there and differ, got {skeleton.joints}")
    if len(skeleton.parents) != num:
        raise ValueError(f"{name} has {num} joints and {len(skeleton.parents)} parents")
    wrong = [p for p in (*skeleton.parents, skeleton.centre) if not 0 <= p < num]
    if wrong:
        raise ValueError(f"{name}: joint index {wrong[0]} is not one of 0 .. {num - 1}")
    roots = [j for j, parent in enumerate(skeleton.parents) if j == parent]
    if len(roots) != 1:
        raise ValueError(
            f"{name} has {len(roots)} roots (joints that are their own parent); it needs one"
        )
    for joint in range(num):
        at, steps = joint, 0
        while at != roots[0]:
            at, steps = skeleton.parents[at], steps + 1
            if steps > num:
                raise ValueError(
                    f"{name}: the parents of {skeleton.joints[joint]!r} go in a circle and never "
                    f"reach the root {skeleton.joints[roots[0]]!r}"
                )
    if skeleton.joint_dims not in (2, 3) or skeleton.num_bodies < 1:
        raise ValueError(
            f"{name}: joint_dims is {skeleton.joint_dims} (2 or 3 are known) and num_bodies "
            f"{skeleton.num_bodies} (at least 1)"
        )


def _other_side(name: str) -> str:
    if name.startswith("left "):
        return "right " + name.removeprefix("left ")
    if name.startswith("right "):
        return "left " + name.removeprefix("right ")
    return name


NTU_25 = Skeleton(
    name="ntu-25",
    joints=(
        "base of spine", "middle of spine", "neck", "head",
        "left shoulder", "left elbow", "left wrist", "left hand",
        "right shoulder", "right elbow", "right wrist", "right hand",
        "left hip", "left knee", "left ankle", "left foot",
        "right hip", "right knee", "right ankle", "right foot",
        "spine at shoulders", "left hand tip", "left thumb", "right hand tip", "right thumb",
    ),
    # The hand chains 22 -> 23 -> 8 and 24 -> 25 -> 12 (1-based) are CTR-GCN's, kept for parity.
    parents=(
        1, 20, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 20, 22, 7, 24, 11,
    ),
    centre=1,
    num_bodies=2,
)  # fmt: skip

UCLA_20 = Skeleton(
    name="ucla-20",
    joints=(
        "hip centre", "spine", "shoulder centre", "head",
        "left shoulder", "left elbow", "left wrist", "left hand",
        "right shoulder", "right elbow", "right wrist", "right hand",
        "left hip", "left knee", "left ankle", "left foot",
        "right hip", "right knee", "right ankle", "right foot",
    ),
    parents=(1, 2, 2, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18),
    centre=1,
    num_bodies=1,
)  # fmt: skip

COCO_17 = Skeleton(
    name="coco-17",
    joints=(
        "nose", "left eye", "right eye", "left ear", "right ear",
        "left shoulder", "right shoulder", "left elbow", "right elbow", "left wrist", "right wrist",
        "left hip", "right hip", "left knee", "right knee", "left ankle", "right ankle",
    ),
    # The tree PYSKL uses for COCO, rooted at the nose: hips hang from the shoulders.
    parents=(0, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14),
    centre=0,
    num_bodies=2,
    joint_dims=2,
    has_score=True,
)  # fmt: skip

SKELETONS: dict[str, Skeleton] = {s.name: s for s in (NTU_25, UCLA_20, COCO_17)}


def skeleton_named(name: str | Skeleton) -> Skeleton:
    """The layout of that name; a layout is returned as it is.

    Raises:
        ValueError: no such layout; the message lists those there are.
    """
    if isinstance(name, Skeleton):
        return name
    if name not in SKELETONS:
        raise ValueError(f"skeleton {name!r} is not known; choose one of {', '.join(SKELETONS)}")
    return SKELETONS[name]


def skeleton_from_json(value: dict[str, Any]) -> Skeleton:
    """The layout that `Skeleton.as_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    skeleton = Skeleton(
        **{**value, "joints": tuple(value["joints"]), "parents": tuple(value["parents"])}
    )
    if SKELETONS.get(skeleton.name, skeleton) != skeleton:
        raise ValueError(f"{skeleton.name!r} is the name of another layout of this program")
    return skeleton
