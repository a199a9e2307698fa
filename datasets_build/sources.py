"""Where clips lie: folders and zip files, listed without opening a clip and read in place."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

# our choice: the largest NTU file (six bodies, some 300 frames) is below 5 MB
MAX_CLIP_BYTES = 32 * 1024 * 1024

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v")


class ClipError(ValueError):
    """One clip cannot enter a data set.

    Attributes:
        reason: a short fixed word, for example "truncated".
        detail: what was found and what was expected.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class ClipFile:
    """One file of a source.

    Attributes:
        container: the folder or the zip file that was given.
        member: the path inside it, with forward slashes.
        is_zipped: whether `container` is a zip file.
        num_bytes: size of the content as the file system or the zip directory states it.
        crc32: the zip directory's checksum, None in a folder.
    """

    container: Path
    member: str
    is_zipped: bool
    num_bytes: int
    crc32: int | None = None

    @property
    def name(self) -> str:
        """The last part of the path, with its suffix."""
        return self.member.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name.rsplit(".", 1)[0]

    def __str__(self) -> str:
        return f"{self.container}{'!' if self.is_zipped else '/'}{self.member}"


def list_clips(container: Path) -> list[ClipFile]:
    """Every file in a folder (with its sub-folders) or a zip, sorted by path.

    Names that start with a dot (and macOS's "__MACOSX" copies) are not clips and are not listed.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that is no zip.
    """
    if container.is_dir():
        files = list(_in_folder(container))
    elif not container.exists():
        raise FileNotFoundError(
            f"{container} does not exist; give a folder of skeleton files or a zip of them"
        )
    elif zipfile.is_zipfile(container):
        files = list(_in_zip(container))
    else:
        raise ValueError(
            f"{container} is neither a folder nor a zip file; "
            "give a folder of skeleton files or the zip as it was downloaded"
        )
    return sorted(files, key=lambda file: file.member)


def read_clip(file: ClipFile) -> bytes:
    """The content of one file.

    Raises:
        ClipError: it cannot be read, or is larger than MAX_CLIP_BYTES.
    """
    if file.num_bytes > MAX_CLIP_BYTES:
        raise _too_large(file)
    try:
        if file.is_zipped:
            with _opened_zip(file.container).open(file.member) as stream:
                data = stream.read(MAX_CLIP_BYTES + 1)
        else:
            with (file.container / file.member).open("rb") as stream:
                data = stream.read(MAX_CLIP_BYTES + 1)
    except Exception as error:
        # OSError, BadZipFile, zlib.error, RuntimeError (encrypted), NotImplementedError (unknown
        # compression): what a damaged zip raises has no common base below Exception.
        raise ClipError("cannot_read", f"{type(error).__name__}: {error}") from error
    if len(data) > MAX_CLIP_BYTES:
        raise _too_large(file)
    return data


def leaves_its_folder(member: str) -> bool:
    """Whether a zip entry's name points outside: absolute, with a drive, or through ".."."""
    path = PurePosixPath(member.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0]


def describe_content(files: list[ClipFile]) -> str:
    """What a source holds instead of skeletons, for an error message."""
    if not files:
        return "it is empty"
    videos = [file for file in files if file.name.lower().endswith(VIDEO_SUFFIXES)]
    if videos:
        return (
            f"it holds {len(videos)} video files such as {videos[0].name}; "
            "a folder of videos goes to `hoc caption --videos`"
        )
    return f"it holds {len(files)} other files such as {files[0].name}"


def _in_folder(folder: Path) -> Iterator[ClipFile]:
    for where, sub_folders, names in os.walk(folder):
        sub_folders[:] = sorted(name for name in sub_folders if not name.startswith("."))
        for name in names:
            path = Path(where) / name
            if not name.startswith(".") and path.is_file():
                member = path.relative_to(folder).as_posix()
                yield ClipFile(folder, member, is_zipped=False, num_bytes=path.stat().st_size)


def _in_zip(path: Path) -> Iterator[ClipFile]:
    for entry in _opened_zip(path).infolist():
        parts = entry.filename.replace("\\", "/").split("/")
        if entry.is_dir() or parts[-1].startswith(".") or parts[0] == "__MACOSX":
            continue
        yield ClipFile(
            path, entry.filename, is_zipped=True, num_bytes=entry.file_size, crc32=entry.CRC
        )


@lru_cache(maxsize=8)
def _opened_zip(path: Path) -> zipfile.ZipFile:
    """The zip, its directory read once a process: NTU's has tens of thousands of entries."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is not a readable zip file ({error}); download it anew"
        ) from error


def _too_large(file: ClipFile) -> ClipError:
    return ClipError(
        "too_large", f"more than {MAX_CLIP_BYTES} bytes (stated: {file.num_bytes}); no clip is"
    )
