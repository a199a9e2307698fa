"""NumPy's .npz files without their arrays in memory: members written and read a few rows at a time.

An .npz is a zip whose members are .npy files. What `NpzWriter` writes is what `numpy.savez` writes
(uncompressed members, zip64), with fixed time stamps: equal arrays give equal bytes. Objects
(pickles) are neither written nor read.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike

from datasets_build.manifest import replaced_file

_PIECE_BYTES = 1 << 22  # our choice: what is read at once for a checksum
_MAX_HEADER_BYTES = 1 << 16  # our choice: NumPy itself refuses header texts above 10,000 characters
_MAX_INFLATION = 1100  # deflate packs at most 1032 bytes into one

# The parts of a zip file, from PKWARE's APPNOTE.TXT; version 45 is the first with zip64.
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_VERSION = 45
_UNIX = 3 << 8
_TIME, _DATE = 0, (1 << 5) | 1  # 1980-01-01, the earliest that a zip can tell
_IN_ZIP64 = 0xFFFFFFFF
_MODE = 0o600 << 16


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Attributes:
        path: the file.
        num_samples: by split.
        num_bytes: size of the file.
        notes: what the user should know, a sentence each.
    """

    path: Path
    num_samples: dict[str, int]
    num_bytes: int
    notes: tuple[str, ...] = ()


class NpzWriter:
    """Writes an .npz member by member, rows at a time: `with NpzWriter(path) as writer`.

    The file appears under its name when the block ends without an error; until then it is
    `path` + ".tmp". Members whose arrays are written in any order may be open at the same time.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is written before the block begins.

        Raises:
            FileNotFoundError: the folder is not there.
            ValueError: the path is a folder.
        """
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file to write")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"there is no folder {self.path.parent}; make that folder first"
            )
        self._opened = ExitStack()
        self._members: list[NpzArray] = []
        self._end = 0

    def __enter__(self) -> NpzWriter:
        self._file = self._opened.enter_context(replaced_file(self.path))
        return self

    def array(self, name: str, shape: Sequence[int], dtype: DTypeLike) -> NpzArray:
        """Reserve a member; fill it in a `with` block.

        Args:
            name: the key that `np.load` gives it.
            shape: with the number of rows first; all of them must be written.
            dtype: no objects.
        """
        member = NpzArray(self._file, name, shape=shape, dtype=np.dtype(dtype), offset=self._end)
        if member.name in {other.name for other in self._members}:
            raise ValueError(f"{self.path} already has an array {name}")
        self._members.append(member)
        self._end = member.end
        self._file.truncate(self._end)  # reads as zeros, and takes no room on most file systems
        return member

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._opened.__exit__(kind, error, traceback)
            return
        with self._opened:
            self._write_directory()

    def _write_directory(self) -> None:
        self._file.seek(self._end)
        num_bytes = sum(self._file.write(member.entry()) for member in self._members)
        num = len(self._members)
        sizes = (num, num, num_bytes, self._end)
        self._file.write(
            _END64.pack(b"PK\x06\x06", _END64.size - 12, _UNIX | _VERSION, _VERSION, 0, 0, *sizes)
            + _LOCATOR64.pack(b"PK\x06\x07", 0, self._end + num_bytes, 1)
            + _END.pack(b"PK\x05\x06", 0, 0, num, num, _IN_ZIP64, _IN_ZIP64, 0)
        )


class NpzArray:
    """One member of an NpzWriter: rows appended in order, or put where they belong."""

    def __init__(
        self, file: IO[bytes], name: str, *, shape: Sequence[int], dtype: np.dtype, offset: int
    ) -> None:
        """See NpzWriter.array; `offset` is where the member begins in the file."""
        if dtype.hasobject or not name.isascii():
            raise ValueError(f"array {name!r} of {dtype}: only plain dtypes and ASCII names")
        self.name = f"{name}.npy".encode()
        self.shape = tuple(int(size) for size in shape)
        self.dtype = dtype
        self._file = file
        self._offset = offset
        header = io.BytesIO()
        descr = npy_format.dtype_to_descr(dtype)
        npy_format.write_array_header_1_0(
            header, {"descr": descr, "fortran_order": False, "shape": self.shape}
        )
        self._header = header.getvalue()
        self._row_bytes = math.prod(self.shape[1:]) * dtype.itemsize
        self._num_bytes = len(self._header) + self.shape[0] * self._row_bytes
        self._start = offset + len(self._local_header(0))  # of the .npy
        self._is_written = np.zeros(self.shape[0], dtype=bool)
        self._num_appended = 0
        self._crc32: int | None = None

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self._start + self._num_bytes

    def __enter__(self) -> NpzArray:
        return self

    def append(self, rows: np.ndarray) -> None:
        """Write rows, (n, ...), after those appended before.

        Raises:
            ValueError: rows of another shape, or more than there is room for.
            TypeError: their dtype does not fit into the array's without a loss.
        """
        first = self._num_appended
        if rows.shape[1:] != self.shape[1:] or first + len(rows) > self.shape[0]:
            raise ValueError(f"rows {rows.shape} do not fit after row {first} of {self.shape}")
        self._write(first, rows)
        self._num_appended += len(rows)
        self._is_written[first : self._num_appended] = True

    def put(self, index: int, row: np.ndarray) -> None:
        """Write one row at its place; where it is shorter than the array's, zeros follow.

        Args:
            index: which row; each is written once.
            row: (t, ...) of the shape (T, ...) of a row, t at most T.

        Raises:
            ValueError: a row of another shape, or one that is there already.
            TypeError: its dtype does not fit into the array's without a loss.
        """
        fits = row.shape[1:] == self.shape[2:] and len(row) <= self.shape[1]
        if not fits or not 0 <= index < self.shape[0] or self._is_written[index]:
            raise ValueError(f"a row {row.shape} cannot be put at {index} of {self.shape}")
        self._write(index, row)
        self._is_written[index] = True

    def _write(self, index: int, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values.astype(self.dtype, casting="safe", copy=False))
        self._file.seek(self._start + len(self._header) + index * self._row_bytes)
        self._file.write(values.view(np.uint8).data if values.size else b"")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Complete the member: header and checksum, the latter from one read of what was written.

        Raises:
            ValueError: rows are missing.
        """
        if error is not None:
            return
        if not self._is_written.all():
            num = int(self._is_written.sum())
            raise ValueError(f"{num} of {self.shape[0]} rows of {self.name.decode()} were written")
        self._file.seek(self._start)
        self._file.write(self._header)
        self._file.seek(self._start)
        self._crc32 = _crc32(self._file, self._num_bytes)
        self._file.seek(self._offset)
        self._file.write(self._local_header(self._crc32))

    def _local_header(self, crc32: int) -> bytes:
        extra = struct.pack("<2H2Q", 1, 16, self._num_bytes, self._num_bytes)
        about = (_VERSION, 0, 0, _TIME, _DATE, crc32, _IN_ZIP64, _IN_ZIP64)
        return _LOCAL.pack(b"PK\x03\x04", *about, len(self.name), len(extra)) + self.name + extra

    def entry(self) -> bytes:
        """The member's entry in the zip's directory."""
        if self._crc32 is None:
            raise ValueError(f"{self.name.decode()} was not completed")
        extra = struct.pack("<2H3Q", 1, 24, self._num_bytes, self._num_bytes, self._offset)
        about = (_VERSION, 0, 0, _TIME, _DATE, self._crc32, _IN_ZIP64, _IN_ZIP64)
        lengths = (len(self.name), len(extra), 0)
        fields = (_UNIX | _VERSION, *about, *lengths, 0, 0, _MODE, _IN_ZIP64)
        return _CENTRAL.pack(b"PK\x01\x02", *fields) + self.name + extra


class ArrayRows:
    """One array of an .npz, read some rows at a time; fast when asked in ascending order.

    An uncompressed member (`numpy.savez`) is read where it lies. A compressed one is unpacked up to
    the rows asked for: going on from there costs nothing, a step back starts anew. Where rows were
    read from the first to the last in order, the member's checksum has been compared.

    Attributes:
        path: the file.
        name: the key that `np.load` gives it.
        shape: the number of rows first.
        dtype: of the numbers.
        row_bytes: size of one row; look at it before rows are read from a file not trusted.
        is_compressed: whether steps back, and large steps forward, are slow.
    """

    def __init__(self, path: Path, name: str) -> None:
        """See `open_member`."""
        self.path = Path(path)
        self.name = name
        with _explained(self.path, name), zipfile.ZipFile(self.path) as archive:
            info = _entry(archive, name)
            with archive.open(info) as stream:
                head = stream.read(_MAX_HEADER_BYTES)
            self.shape, self.dtype, self._start = _parse_header(head)
            self.row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
            if self._start + self.shape[0] * self.row_bytes != info.file_size:
                raise ValueError(
                    f"its header says {self.shape} of {self.dtype}, but {info.file_size} bytes "
                    "are there"
                )
            self.is_compressed = info.compress_type == zipfile.ZIP_DEFLATED
            self._expected_crc32 = info.CRC
            self._crc32 = zlib.crc32(head[: self._start])
            self._num_checked = 0  # rows from the first on that are in _crc32
            self._file: IO[bytes]
            if self.is_compressed:
                self._file = archive.open(info)  # keeps the zip open; compares the checksum itself
            else:
                self._start += _data_offset(self.path, info)
                self._file = self.path.open("rb")

    def __len__(self) -> int:
        return self.shape[0]

    def __enter__(self) -> ArrayRows:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1, read-only; fewer where the array ends before.

        Raises:
            ValueError: the file is damaged.
        """
        stop = min(stop, len(self))
        num_bytes = max(stop - start, 0) * self.row_bytes
        with _explained(self.path, self.name):
            self._file.seek(self._start + start * self.row_bytes)
            data = self._file.read(num_bytes)
            if len(data) != num_bytes:
                raise ValueError(f"it ends {num_bytes - len(data)} bytes too early")
            if data and start == self._num_checked and not self.is_compressed:
                self._num_checked = stop
                self._crc32 = zlib.crc32(data, self._crc32)
                if stop == len(self) and self._crc32 != self._expected_crc32:
                    raise ValueError("its checksum is not the one that the zip states")
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def open_member(path: Path, name: str) -> ArrayRows:
    """One array of an .npz file; nothing but its header has been read. Close it after use.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an .npz file, no such array in it, damaged, encrypted, pickled objects, in
            Fortran order, or a header that says something else than the zip.
    """
    _check_file(path)
    return ArrayRows(path, name)


def member_names(path: Path) -> list[str]:
    """The names of the arrays of an .npz file, in its order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an .npz file.
    """
    _check_file(path)
    with _explained(path), zipfile.ZipFile(path) as archive:
        return _names(archive)


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is a folder; give an .npz file")


@contextmanager
def _explained(path: Path, name: str | None = None) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # What zipfile, zlib and NumPy's header parser raise at damage has no common base below
        # Exception: BadZipFile, EOFError, zlib.error, NotImplementedError, SyntaxError, ...
        what = "it" if name is None else f"its array {name!r}"
        raise ValueError(
            f"{path} is not a usable .npz file, {what} cannot be read: {error or repr(error)}; "
            "write or download it anew"
        ) from error


def _entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The zip's entry of an array, its sizes checked before anything is unpacked."""
    if name not in _names(archive):
        raise ValueError(f"there is only {', '.join(_names(archive)) or 'nothing'}")
    info = archive.getinfo(f"{name}.npy")
    if info.flag_bits & 1:
        raise ValueError("it is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"it is packed by method {info.compress_type}, which NumPy never uses")
    inflation = 1 if info.compress_type == zipfile.ZIP_STORED else _MAX_INFLATION
    if info.file_size > info.compress_size * inflation:
        raise ValueError(f"it claims {info.file_size} bytes, packed into {info.compress_size}")
    return info


def _parse_header(head: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and where the numbers begin, from the first bytes of an .npy file."""
    stream = io.BytesIO(head)
    version = npy_format.read_magic(stream)
    if version not in _HEADER_READERS:
        raise ValueError(f"its .npy version {version} is not known")
    shape, is_fortran, dtype = _HEADER_READERS[version](stream)
    if dtype.hasobject or dtype.names or not dtype.itemsize:
        raise ValueError(
            f"it holds {dtype}; only numbers and texts are read, never pickled objects"
        )
    if not shape or min(shape) < 0 or 0 in shape[1:]:
        raise ValueError(f"its shape is {shape}; rows that hold something are expected")
    if is_fortran and len(shape) > 1:
        raise ValueError("it is in Fortran order; save numpy.ascontiguousarray of it")
    return shape, dtype, stream.tell()


_HEADER_READERS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the content of an uncompressed member begins: after its own header in the zip."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        *_, num_name, num_extra = _LOCAL.unpack(file.read(_LOCAL.size))
    offset = info.header_offset + _LOCAL.size + num_name + num_extra
    if offset + info.file_size > path.stat().st_size:
        raise ValueError("the file ends before it does")
    return int(offset)


def _crc32(file: IO[bytes], num_bytes: int) -> int:
    """The checksum of the next bytes of a file."""
    value = 0
    while num_bytes:
        piece = file.read(min(num_bytes, _PIECE_BYTES))
        value = zlib.crc32(piece, value)
        num_bytes -= len(piece)
    return value
