"""Arrays in pickles: what they are before they are read, and the calls that make them.

A pickle builds an array by calling functions of NumPy. The functions here stand in for those: they
note down what the array would be and allocate nothing; `StoredArray.read` makes it, from content
that was found to have its size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9]\d{0,3}")
_MAX_CHARACTER = 0x10FFFF  # Unicode's last
_NOT_NUMPYS = "it makes an array in a way that NumPy does not write"

Count = Callable[[int], None]  # told of what a call copies; raises ValueError when it is too much


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes that still lie in the file.

    Attributes:
        path: the file.
        offset: where they begin.
        num_bytes: how many.
        is_text: they are one character a byte, and those as UTF-8 (protocols below 3).
    """

    path: Path
    offset: int
    num_bytes: int
    is_text: bool

    def read(self) -> bytes:
        """Their content.

        Raises:
            ValueError: the file is shorter than it was, or its text is not such bytes.
            OSError: the file is gone.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.num_bytes)
        if len(data) != self.num_bytes:
            raise ValueError(f"{self.path} was cut while it was being read")
        return data.decode("utf-8").encode("latin1") if self.is_text else data


@dataclass(slots=True)
class StoredArray:
    """An array as a pickle describes it.

    Attributes:
        dtype: of numbers or text, with its byte order.
        stored_shape: the shape its content lies in.
        content: its numbers.
        order: "C" or "F".
        axes: the order in which the axes of `stored_shape` are taken; None as they are.
    """

    dtype: np.dtype[Any]
    stored_shape: tuple[int, ...] = (0,)
    content: bytes | StoredBytes = b""
    order: Any = "C"
    axes: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; nothing has been allocated for it and it may not fit the content."""
        shape = self.stored_shape
        return shape if self.axes is None else tuple(shape[axis] for axis in self.axes)

    def read(self) -> np.ndarray:
        """The array, read-only.

        Raises:
            ValueError: the content has another size than the shape, or is no text where the dtype
                is of text, or see StoredBytes.read.
            OSError: the file is gone.
        """
        content = self.content if isinstance(self.content, bytes) else self.content.read()
        expected = math.prod(self.stored_shape) * self.dtype.itemsize
        if len(content) != expected:
            raise ValueError(
                f"an array of shape {self.stored_shape} and type {self.dtype} takes {expected} "
                f"bytes, its content has {len(content)}"
            )
        array = np.frombuffer(content, self.dtype).reshape(self.stored_shape, order=self.order)
        check_text(array)
        return array if self.axes is None else array.transpose(self.axes)


def check_text(array: np.ndarray) -> None:
    """Refuse text that holds what is no character: NumPy would make broken texts of it.

    Raises:
        ValueError: it does; arrays of other kinds are passed over.
    """
    if array.dtype.kind != "U":
        return
    code = np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)
    codes = np.ascontiguousarray(array).reshape(-1).view(code)
    if (codes > _MAX_CHARACTER).any():
        raise ValueError(f"a text holds {codes.max():#x}, which is no character")


@dataclass(slots=True)
class PendingDtype:
    """A dtype whose byte order is still to come."""

    dtype: np.dtype[Any]


# The functions that pickles of arrays call, under the names that NumPy and Python write. Ours are
# called instead of theirs: they allocate nothing that the file does not hold.


def ndarray(count: Count, *_: Any) -> None:
    """numpy.ndarray: named only, as the first argument of `reconstruct`."""
    raise ValueError(_NOT_NUMPYS)


def reconstruct(count: Count, kind: Any, shape: Any, typecode: Any) -> StoredArray:
    """numpy.core.multiarray._reconstruct: an empty array; `set_array_state` fills it."""
    if kind is not ndarray or shape != (0,):
        raise ValueError(_NOT_NUMPYS)
    return StoredArray(np.dtype("f4"))  # its real type comes with its state


def set_array_state(count: Count, array: StoredArray, state: Any) -> None:
    """What ndarray.__setstate__ does."""
    _, shape, dtype, is_fortran, content = state
    _fill(count, array, shape, dtype, content)
    array.order = "F" if is_fortran else "C"


def frombuffer(
    count: Count, content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> StoredArray:
    """numpy.core.numeric._frombuffer: how protocol 5 writes an array."""
    array = StoredArray(dtype.dtype)
    _fill(count, array, shape, dtype, content)
    if order == "F":
        array.order = "F"
    elif order == "K":
        if not isinstance(axes, tuple) or len(axes) != len(array.stored_shape):
            raise ValueError(_NOT_NUMPYS)
        array.axes = tuple(range(len(axes))[axis] for axis in axes)
    elif order != "C":
        raise ValueError(_NOT_NUMPYS)
    return array


def _fill(count: Count, array: StoredArray, shape: Any, dtype: Any, content: Any) -> None:
    """What was announced, its kinds checked; the sizes are compared when the array is read."""
    is_shape = isinstance(shape, tuple) and len(shape) <= 8
    if not is_shape or any(type(num) is not int or num < 0 for num in shape):
        raise ValueError("the shape of an array is not made of at most 8 whole numbers")
    if not isinstance(content, bytes | StoredBytes):
        content = encode(count, content)
    array.dtype, array.stored_shape, array.content = dtype.dtype, shape, content


def scalar(count: Count, dtype: Any, content: Any) -> Any:
    """numpy.core.multiarray.scalar: one number or text."""
    if not isinstance(content, bytes):
        content = encode(count, content)
    count(len(content))
    return StoredArray(dtype.dtype, (1,), content).read()[0]


def make_dtype(count: Count, name: Any, *_: Any) -> PendingDtype:
    """numpy.dtype: numbers and text of a fixed length only."""
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        shown = ascii(name[:20]) if isinstance(name, str) else f"a {type(name).__name__}"
        raise ValueError(f"an array has items of type {shown}, not numbers or text")
    return PendingDtype(np.dtype(name))


def set_dtype_state(dtype: PendingDtype, state: Any) -> None:
    """What dtype.__setstate__ does: the byte order."""
    _, order, *_ = state  # the fields that follow are those of names which `make_dtype` refuses
    if order not in ("<", ">", "|", "="):
        raise ValueError("an array has no byte order")
    dtype.dtype = dtype.dtype.newbyteorder(order)


def encode(count: Count, text: Any, encoding: Any = "latin1") -> bytes | StoredBytes:
    """_codecs.encode: how protocols below 3 write bytes."""
    if encoding == "latin1" and isinstance(text, StoredBytes):
        return text  # made when it is read
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError("it makes bytes in a way that Python does not write")
    count(len(text))
    return text.encode("latin1")


def empty_bytes(count: Count) -> bytes:
    """bytes(): how protocols below 3 write no bytes."""
    return b""


ARRAY_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): ndarray,
    ("numpy", "dtype"): make_dtype,
    ("_codecs", "encode"): encode,
    ("builtins", "bytes"): empty_bytes,
    ("__builtin__", "bytes"): empty_bytes,
    ("numpy.core.multiarray", "_reconstruct"): reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): reconstruct,
    ("numpy.core.multiarray", "scalar"): scalar,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("numpy.core.numeric", "_frombuffer"): frombuffer,
    ("numpy._core.numeric", "_frombuffer"): frombuffer,
}
