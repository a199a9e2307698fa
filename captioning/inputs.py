"""Which videos a run is about, and the sample_id of each."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets_build.ntu_names import parse_ntu_name

VIDEO_EXTENSIONS = (".avi", ".mkv", ".mov", ".mp4", ".webm")


@dataclass(frozen=True)
class Video:
    """One input file; `path` is absolute."""

    sample_id: str
    path: Path


def collect_videos(sources: Sequence[str], *, limit: int | None = None) -> list[Video]:
    """Find the videos of folders (searched to the bottom), globs and single files.

    The sample_id of `S001C001P001R001A001_rgb.avi` or `S001C001P001R001A001.avi` is the NTU name;
    that of any other file is its path below the folder given, without the extension. Hidden files
    are left out. One file named by two sources counts once.

    Args:
        sources: folders, globs, files.
        limit: keep only the first so many.

    Returns:
        At least one video, sorted by sample_id.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a source holds no video, or two files have the same sample_id.
    """
    by_id: dict[str, Path] = {}
    for source in sources:
        found = False
        for path, root in _files_of(source):
            found = True
            sample_id = sample_id_of(path, root=root)
            absolute = Path(os.path.abspath(path))
            other = by_id.setdefault(sample_id, absolute)
            if other != absolute:
                raise ValueError(
                    f"{other} and {absolute} both have the sample_id {sample_id!r}; "
                    "captions join to samples by that id, so rename or leave out one of them"
                )
        if not found:
            raise ValueError(
                f"{source} holds no video; looked for files ending in {_extensions()}, "
                "in subfolders too"
            )
    videos = [Video(sample_id, by_id[sample_id]) for sample_id in sorted(by_id)]
    return videos[:limit]


def sample_id_of(path: Path, *, root: Path) -> str:
    """The sample_id of a video found below `root`."""
    name = parse_ntu_name(path.name)
    if name is not None and path.stem in (str(name), f"{name}_rgb"):
        return str(name)
    text = path.relative_to(root).with_suffix("").as_posix()
    # Bytes of a file name that are no UTF-8 cannot stand in a table; they are spelled out.
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _files_of(source: str) -> Iterator[tuple[Path, Path]]:
    """Every video of a source with the folder that its sample_id is relative to."""
    path = Path(source).expanduser()
    if path.is_dir():
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if _is_video(Path(name)):
                    yield Path(folder) / name, path
    elif path.exists():
        if path.suffix.lower() not in VIDEO_EXTENSIONS:
            raise ValueError(f"{source} is not a video; videos end in {_extensions()}")
        yield path, path.parent
    elif glob.has_magic(source):
        root = path
        while glob.has_magic(str(root)):
            root = root.parent
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        yield from ((match, root) for match in matches if _is_video(match) and not match.is_dir())
    else:
        raise FileNotFoundError(
            f"{source} does not exist; give a folder of videos, a glob such as 'clips/*.mp4', "
            f"or a file ending in {_extensions()}"
        )


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS and not path.name.startswith(".")


def _extensions() -> str:
    return ", ".join(VIDEO_EXTENSIONS)
