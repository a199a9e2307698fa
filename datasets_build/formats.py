"""The skeleton formats a data set can be built from: how to know a file, name it and read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets_build.bodies import BodySettings, select_bodies
from datasets_build.joints import NTU_25, UCLA_20, Skeleton
from datasets_build.ntu import read_skeleton
from datasets_build.ntu_names import parse_ntu_name
from datasets_build.nwucla import parse_nwucla_name, read_nwucla
from datasets_build.protocols import NTU, NW_UCLA
from datasets_build.sources import Clip, ClipFile, describe_content, list_clips


@dataclass(frozen=True)
class SkeletonFormat:
    """One format of skeleton files.

    Attributes:
        name: the word for --format; also the data set family (see protocols.py).
        suffix: how the files' names end.
        skeleton: the joint layout.
        sample_id: the sample_id in a file name, None where the name is of another kind.
        read: the content of a file and the body settings to a clip; raises sources.ClipError.
    """

    name: str
    suffix: str
    skeleton: Skeleton
    sample_id: Callable[[str], str | None]
    read: Callable[[bytes, BodySettings], Clip]


def _read_ntu(data: bytes, bodies: BodySettings) -> Clip:
    recording = read_skeleton(data)
    return Clip(select_bodies(recording, bodies), recording.num_frames)


def _read_nwucla(data: bytes, bodies: BodySettings) -> Clip:
    joints = read_nwucla(data)
    return Clip(joints, None)  # the files hold chosen frames of the recordings


def _ntu_id(name: str) -> str | None:
    ids = parse_ntu_name(name)
    return None if ids is None else str(ids)


def _nwucla_id(name: str) -> str | None:
    ids = parse_nwucla_name(name)
    return None if ids is None else str(ids)


FORMATS: dict[str, SkeletonFormat] = {
    NTU: SkeletonFormat(NTU, ".skeleton", NTU_25, _ntu_id, _read_ntu),
    NW_UCLA: SkeletonFormat(NW_UCLA, ".json", UCLA_20, _nwucla_id, _read_nwucla),
}


def find_clips(paths: Sequence[Path], format_name: str) -> tuple[SkeletonFormat, list[ClipFile]]:
    """The format of the sources and every file with its suffix, sorted by path.

    Args:
        paths: folders or zip files.
        format_name: a key of FORMATS, or "auto".

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a source without such a file, or (auto) sources of more than one format.
    """
    wanted = list(FORMATS.values()) if format_name == "auto" else [FORMATS[format_name]]
    found: dict[str, list[ClipFile]] = {}
    for path in paths:
        files = list_clips(path)
        num_found = 0
        for skeleton_format in wanted:
            own = [file for file in files if _belongs(file, skeleton_format, len(wanted) > 1)]
            if own:
                found.setdefault(skeleton_format.name, []).extend(own)
                num_found += len(own)
        if not num_found:
            looked_for = " or ".join(f"{f.name} files ({_EXAMPLES[f.name]})" for f in wanted)
            raise ValueError(
                f"{path} holds no skeleton files: looked for {looked_for}, "
                f"but {describe_content(files)}"
            )
    if len(found) > 1:
        raise ValueError(
            f"the sources hold files of {len(found)} formats ({', '.join(found)}); "
            "build one data set of each, choosing with --format"
        )
    ((name, clips),) = found.items()
    return FORMATS[name], clips


_EXAMPLES = {NTU: "S001C001P001R001A001.skeleton", NW_UCLA: "a01_s01_e00_v01.json"}


def _belongs(file: ClipFile, skeleton_format: SkeletonFormat, is_guess: bool) -> bool:
    """Whether a file counts as a clip; when guessing, a .json must also have a clip's name."""
    if not file.name.lower().endswith(skeleton_format.suffix):
        return False
    is_general = skeleton_format.suffix == ".json"
    return not (is_guess and is_general) or skeleton_format.sample_id(file.name) is not None
