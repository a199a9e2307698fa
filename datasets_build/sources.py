"""Where clips lie: folders and zip files, listed without opening a clip and read in place."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

# our choice: the largest NTU file (six bodies, some 300 frames) is below 5 MB
MAX_CLIP_BYTES = 32 * 1024 * 1024
# our choice: some 400,000 entries, four times NTU RGB+D 120's; larger than MAX_CLIP_BYTES
MAX_ZIP_DIRECTORY_BYTES = 48 * 1024 * 1024

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
class Clip:
    """One sample as read.

    Attributes:
        joints: (M, T, V, C) float32; T at least 1.
        num_source_frames: frames of the recording, those without a body included; None where they
            cannot be compared with its video's.
        image_size: (width, height) in pixels of the picture that 2-D joints were found in.
    """

    joints: np.ndarray
    num_source_frames: int | None
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ClipFile:
    """One file of a source.

    Attributes:
        container: the folder or the zip file that was given.
        member: the path inside it, with forward slashes.
        is_zipped: whether `container` is a zip file.
        num_bytes: size of the content as the file system or the zip directory states it.
        crc32: the zip directory's checksum, None in a folder.
        mtime_ns: when the file in the folder was written last, None in a zip.
    """

    container: Path
    member: str
    is_zipped: bool
    num_bytes: int
    crc32: int | None = None
    mtime_ns: int | None = None

    @property
    def name(self) -> str:
        """The last part of the path, with its suffix."""
        return self.member.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name.rsplit(".", 1)[0]

    @property
    def stamp(self) -> tuple[str, int, int | None, int | None]:
        """Equal as long as nobody touched it, wherever its folder or zip lies."""
        return (self.member, self.num_bytes, self.crc32, self.mtime_ns)

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
    elif _is_zip(container):
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
        ClipError: reason too_large (more than MAX_CLIP_BYTES) or cannot_read.
    """
    try:
        if file.is_zipped:
            return _read_zipped(file)
        with (file.container / file.member).open("rb") as stream:
            # Asked for as many bytes as there are, Python reserves no more memory than that.
            return stream.read(_clip_size(os.fstat(stream.fileno()).st_size))
    except (ClipError, MemoryError):
        raise
    except Exception as error:
        # OSError, BadZipFile, zlib.error, RuntimeError (encrypted), NotImplementedError (patched
        # data): what a damaged zip raises has no common base below Exception.
        raise ClipError("cannot_read", f"{type(error).__name__}: {error}") from error


def printable(name: str) -> str:
    """A file name as text: what the file system holds beside text is written as backslashes."""
    return name.encode("utf-8", "backslashreplace").decode()


def leaves_its_folder(member: str) -> bool:
    """Whether a zip entry's name points outside: absolute, with a drive, or through ".."."""
    path = PurePosixPath(member.replace("\\", "/"))
    has_drive = any(":" in part for part in path.parts[:1])  # "." and "" have no parts
    return path.is_absolute() or ".." in path.parts or has_drive


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
    seen: set[str] = set()
    for where, sub_folders, names in os.walk(folder, onerror=_stop, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link back
            sub_folders.clear()
            continue
        seen.add(real)
        sub_folders[:] = sorted(name for name in sub_folders if not name.startswith("."))
        for name in names:
            path = Path(where) / name
            try:
                status = path.stat()
            except FileNotFoundError:
                status = path.lstat()  # a link to nothing: `read_clip` says so
            is_file = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
            if is_file and not name.startswith("."):
                yield ClipFile(
                    folder,
                    path.relative_to(folder).as_posix(),
                    is_zipped=False,
                    num_bytes=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                )


def _stop(error: OSError) -> None:
    raise error


def _is_zip(path: Path) -> bool:
    with path.open("rb"):  # is_zipfile takes a file that it may not read for another kind
        pass
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True  # one of several disks, or damaged; `_opened_zip` says so


def _in_zip(path: Path) -> Iterator[ClipFile]:
    for entry in _opened_zip(path).infolist():
        parts = entry.filename.replace("\\", "/").split("/")
        if parts[-1] == "" or parts[-1].startswith(".") or parts[0] == "__MACOSX":
            continue  # a folder, a hidden file, a copy
        yield ClipFile(
            path, entry.filename, is_zipped=True, num_bytes=entry.file_size, crc32=entry.CRC
        )


def _read_zipped(file: ClipFile) -> bytes:
    opened = _opened_zip(file.container)
    entry = opened.getinfo(file.member)
    size = _clip_size(entry.file_size)
    if file.crc32 is not None and (size, entry.CRC) != (file.num_bytes, file.crc32):
        raise ClipError("cannot_read", "the zip has two entries of this name with other content")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python inflates the others without a bound.
        raise ClipError(
            "cannot_read",
            f"compressed by zip method {entry.compress_type}; only 0 (stored) and 8 (deflate) "
            "are read",
        )
    with opened.open(entry) as stream:
        data = stream.read(size + 1)  # to the end; a bomb that states less goes on after it
    if len(data) != size:
        raise ClipError("cannot_read", f"{len(data)} bytes where the zip states {size}")
    return data


def _clip_size(num_bytes: int) -> int:
    if num_bytes > MAX_CLIP_BYTES:
        raise ClipError("too_large", f"{num_bytes} bytes; no clip has more than {MAX_CLIP_BYTES}")
    return num_bytes


class _BoundedReads(io.FileIO):
    """A file that gives at most MAX_ZIP_DIRECTORY_BYTES at once, whatever a zip's header states."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_ZIP_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(
                f"its directory states {size} bytes; at most {MAX_ZIP_DIRECTORY_BYTES} can be true"
            )
        return super().read(size)

    def __del__(self) -> None:
        self.close()  # ZipFile leaves a file that it was given open; the cache drops both


def _opened_zip(path: Path) -> zipfile.ZipFile:
    """The zip, its directory read once a process: NTU's has tens of thousands of entries."""
    status = path.stat()
    return _opened_zip_of(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=8)
def _opened_zip_of(path: Path, version: tuple[int, int, int]) -> zipfile.ZipFile:
    try:
        opened = zipfile.ZipFile(_BoundedReads(path))
        # A zip bomb's entries share their compressed bytes.
        num_compressed = sum(entry.compress_size for entry in opened.infolist())
        if num_compressed > path.stat().st_size:
            raise zipfile.BadZipFile("its entries overlap")
    except MemoryError:
        raise
    except Exception as error:  # struct.error, OverflowError, ...: as in read_clip
        raise ValueError(
            f"{path} is not a readable zip file ({error}); download it anew"
        ) from error
    return opened
