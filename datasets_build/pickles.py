"""Pickles of plain data: read by a machine that can make nothing else, written in flat memory.

A pickle is a program; Python's own loader lets it import and call anything. `read_pickle` runs the
same program on a machine whose only values are numbers, text, bytes, lists, tuples, dicts, sets and
NumPy arrays: nothing is imported, called or allocated by name. What NumPy 1 and 2 write from
Python 2 and 3 is understood, protocols 0 to 5 (opcodes: pickletools in Python's documentation).
Long arrays stay in the file until they are asked for.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, BinaryIO

import numpy as np

from datasets_build.pickled_arrays import (
    ARRAY_CALLS,
    Count,
    PendingDtype,
    StoredArray,
    StoredBytes,
    encode,
    set_array_state,
    set_dtype_state,
)

MAX_OPCODES = 20_000_000  # our choice: some three times those of PYSKL's file of NTU RGB+D 120
KEPT_BYTES = 512  # our choice: what is longer stays in the file
BYTES_A_VALUE = 8  # our choice, see _Machine.bound: annotations of a single frame have 13
MAX_NUMBER_BYTES = 255  # of a whole number; NumPy's widest has 8

_PYTHON2_TEXT = re.compile(rb"""(['"])((?:[^\\]|\\(?:[\\'"nrt]|x[0-9a-f]{2}))*)\1""")


def read_pickle(path: Path) -> Any:
    """The value in a pickle of plain data; its arrays come as StoredArray.

    Bytes of more than KEPT_BYTES outside of arrays come as StoredBytes. Text that Python 2 wrote as
    bytes is taken as Latin-1; an OrderedDict becomes a dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it names anything but arrays and plain containers, is damaged or absurd; the
            message names the first thing that was refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a pickle file (.pkl)")
    with path.open("rb", buffering=1 << 16) as file:
        machine = _Machine(path, file)
        try:
            return machine.run()
        except (LookupError, TypeError, AttributeError, ArithmeticError, MemoryError) as error:
            problem = f"it is damaged ({type(error).__name__}: {error})"
        except ValueError as error:  # our own sentences, and those of numbers and text
            problem = str(error)
        except struct.error:
            problem = "the file ends in the middle of a value"
    raise ValueError(
        f"{path} is refused at byte {machine.position}: {problem}. Nothing in it was run; only "
        "NumPy arrays of numbers or text and plain containers of them are read. Get the file anew, "
        "or, where you trust it, load it with Python and save such values only"
    )


def pickled(value: Any) -> Iterator[bytes]:
    """The pickle of plain data, piece by piece, in memory that its length does not raise.

    It is protocol 3, which every Python 3 loads, and it names `numpy.core`, which every NumPy
    loads. Nothing is remembered on the way: a value that occurs twice is written twice.

    Args:
        value: str, int (32 bits), tuple, dict, float32 array, or anything to iterate over, which
            becomes a list and is taken only when its turn comes.
    """
    yield b"\x80\x03"
    yield from _opcodes(value)
    yield b"."


def _opcodes(value: Any) -> Iterator[bytes]:
    if isinstance(value, str):
        data = value.encode("utf-8")
        yield b"X" + struct.pack("<I", len(data)) + data
    elif isinstance(value, int):
        yield b"J" + struct.pack("<i", value)
    elif isinstance(value, np.ndarray):
        yield from _array_opcodes(value)
    elif isinstance(value, dict):
        yield b"}("
        for key, item in value.items():
            yield from _opcodes(key)
            yield from _opcodes(item)
        yield b"u"
    else:
        is_tuple = isinstance(value, tuple)
        yield b"(" if is_tuple else b"]("
        for item in value:
            yield from _opcodes(item)
        yield b"t" if is_tuple else b"e"


def _array_opcodes(array: np.ndarray) -> Iterator[bytes]:
    """What ndarray.__reduce__ gives, in the names of NumPy 1."""
    if array.dtype != np.float32:
        raise TypeError(f"arrays of float32 are written, not of {array.dtype}")
    data = array.astype("<f4", copy=False).tobytes()
    yield b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01"
    yield from _opcodes(array.shape)
    yield b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x89\x88tR(K\x03X\x01\x00\x00\x00<NNN"
    yield from (*_opcodes(-1), *_opcodes(-1))
    yield b"K\x00tb\x89B" + struct.pack("<I", len(data))
    yield data
    yield b"tb"


class _Machine:
    """The stack, the marks and the memo of one pickle that is being read."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.num_bytes = path.stat().st_size
        self.position = 0
        self.num_copied = 0
        self.num_values = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self.take(1)
            if code == b".":
                return self.pop()
            if code not in _OPCODES:
                raise ValueError(f"opcode {code!r} makes no plain data")
            _OPCODES[code](self)
        raise ValueError(f"it has more than {MAX_OPCODES} opcodes")

    def need(self, num_bytes: int) -> None:
        """Refuse a length that the rest of the file does not have."""
        left = self.num_bytes - self.position
        if not 0 <= num_bytes <= left:
            raise ValueError(f"{num_bytes} bytes are announced and {left} are left")

    def take(self, num_bytes: int) -> bytes:
        self.need(num_bytes)
        self.position += num_bytes
        return self.file.read(num_bytes)

    def number(self, layout: str) -> Any:
        """A number of fixed width, as struct describes it."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def long(self, num_bytes: int) -> int:
        """A whole number of any width."""
        if num_bytes > MAX_NUMBER_BYTES:
            raise ValueError(f"a number has {num_bytes} bytes")
        return int.from_bytes(self.take(num_bytes), "little", signed=True)

    def line(self) -> bytes:
        line = self.file.readline()
        self.position += len(line)
        if not line.endswith(b"\n"):
            raise ValueError("a line does not end")
        return line[:-1]

    def number_line(self) -> bytes:
        line = self.line()
        if len(line) > MAX_NUMBER_BYTES:
            raise ValueError(f"a number has {len(line)} characters")
        return line

    def content(self, num_bytes: int, *, is_text: bool = False) -> bytes | StoredBytes:
        """Bytes, passed over where they are many."""
        if num_bytes <= KEPT_BYTES:
            return self.take(num_bytes)
        self.need(num_bytes)
        stored = StoredBytes(self.path, self.position, num_bytes, is_text)
        self.file.seek(num_bytes, 1)
        self.position += num_bytes
        return stored

    def text(self, num_bytes: int) -> str | StoredBytes:
        """Text; where `_codecs.encode` waits for it, it is the content of an array."""
        if num_bytes > KEPT_BYTES and self.stack and self.stack[-1] is encode:
            return self.content(num_bytes, is_text=True)  # type: ignore[return-value]
        return self.take(num_bytes).decode("utf-8")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_new(self, value: Any) -> None:
        self.count_value()
        self.push(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self) -> None:
        self.count_value()
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """The values since the last mark."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def top(self, kind: type) -> Any:
        """What lies on top of the stack, if it is of that kind."""
        top = self.stack[-1]
        if type(top) is not kind:
            raise ValueError(f"it puts items into a {type(top).__name__}")
        return top

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]
        self.bound(len(self.memo))

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def count_value(self) -> None:
        """Count a container, a mark or the result of a call."""
        self.num_values += 1
        self.bound(self.num_values)

    def bound(self, num_values: int) -> None:
        """Refuse more values than a file of this size can need: one byte of it can make one, which
        takes up to 200 bytes of memory.
        """
        if num_values > 1_000 + self.num_bytes // BYTES_A_VALUE:
            raise ValueError("it makes too many containers for a file of its size")

    def count_copies(self, num_items: int) -> None:
        """Hold what opcodes copy below the size of the file: a short pickle could repeat one."""
        self.num_copied += num_items
        if self.num_copied > self.num_bytes:
            raise ValueError("it copies the same content again and again")


def _set(count: Count, items: list[Any]) -> set[Any]:
    count(len(items))
    return {_key(item) for item in items}


def _ordered_dict(count: Count) -> dict[Any, Any]:
    return {}


# What a pickle may call by name: our own functions, whatever theirs would do.
_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    **ARRAY_CALLS,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("collections", "OrderedDict"): _ordered_dict,
}


# The opcodes: each a function of the machine.


def _python2_line(machine: _Machine) -> None:
    match = _PYTHON2_TEXT.fullmatch(machine.line())
    if match is None:
        raise ValueError("a text is not in quotation marks")
    machine.push(match[2].decode("unicode_escape"))


def _int_line(machine: _Machine) -> None:
    line = machine.number_line()
    truth = {b"00": False, b"01": True}
    machine.push(truth[line] if line in truth else int(line.removesuffix(b"L")))


def _tuple(machine: _Machine, num: int) -> None:
    items = tuple(machine.stack[-num:])
    if len(items) != num:
        raise IndexError("a tuple lacks items")
    machine.count_value()
    machine.stack[-num:] = [items]


def _pop_any(machine: _Machine) -> None:
    if machine.stack:
        machine.pop()
    else:
        machine.pop_mark()


def _append(machine: _Machine) -> None:
    item = machine.pop()
    machine.top(list).append(item)


def _appends(machine: _Machine) -> None:
    items = machine.pop_mark()
    machine.top(list).extend(items)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.top(dict)[_key(key)] = value


def _set_items(machine: _Machine) -> None:
    items = machine.pop_mark()
    machine.top(dict).update(_as_dict(items))


def _add_items(machine: _Machine) -> None:
    items = machine.pop_mark()
    machine.top(set).update(_key(item) for item in items)


def _key(value: Any) -> Any:
    """A dict key or a member of a set: nothing whose hash could take long or collide at will."""
    is_number = value is None or (type(value) in (int, float, bool) and abs(value) < 2**60)
    if not is_number and not isinstance(value, str | bytes):
        raise ValueError(f"a key is a {type(value).__name__}, not text or a number")
    return value


def _as_dict(items: list[Any]) -> dict[Any, Any]:
    """A dict of keys and values that take turns."""
    if len(items) % 2:
        raise ValueError("a dict lacks a value")
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _name_in_lines(machine: _Machine) -> None:
    module, name = machine.line().decode("utf-8"), machine.line().decode("utf-8")
    machine.push(_named(module, name))


def _name_on_stack(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(_named(module, name))


def _instance(machine: _Machine) -> None:
    """Python 2's way to call a name; arrays are not made that way, but the name is told."""
    _name_in_lines(machine)
    raise ValueError("it makes an object of a class")


def _named(module: Any, name: Any) -> Callable[..., Any]:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name is not text")
    if (module, name) not in _CALLS:
        shown = ascii(f"{module}.{name}"[:80])[1:-1]
        raise ValueError(f"it names {shown}, which is no NumPy array or plain container")
    return _CALLS[module, name]


def _call(machine: _Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    if not isinstance(function, FunctionType) or not isinstance(arguments, tuple):
        raise ValueError("it calls something that is no function")
    machine.push_new(function(machine.count_copies, *arguments))


def _build(machine: _Machine) -> None:
    """Fill in an array or a dtype; nothing else has a state."""
    state, target = machine.pop(), machine.stack[-1]
    if isinstance(target, StoredArray):
        set_array_state(machine.count_copies, target, state)
    elif isinstance(target, PendingDtype):
        set_dtype_state(target, state)
    else:
        raise ValueError(f"it sets the state of a {type(target).__name__}")


def _protocol(machine: _Machine) -> None:
    protocol = machine.take(1)[0]
    if protocol > 5:
        raise ValueError(f"its protocol is {protocol}; 0 to 5 are known")


_OPCODES: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": _protocol,
    b"\x95": lambda m: m.need(m.number("<Q")),  # a frame: what follows is read the same without
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": _int_line,
    b"L": _int_line,
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"\x8a": lambda m: m.push(m.long(m.number("<B"))),
    b"\x8b": lambda m: m.push(m.long(m.number("<i"))),
    b"F": lambda m: m.push(float(m.number_line())),
    b"G": lambda m: m.push(m.number(">d")),
    b"C": lambda m: m.push(m.content(m.number("<B"))),
    b"B": lambda m: m.push(m.content(m.number("<I"))),
    b"\x8e": lambda m: m.push(m.content(m.number("<Q"))),
    b"\x96": lambda m: m.push(m.content(m.number("<Q"))),  # a bytearray
    b"\x8c": lambda m: m.push(m.text(m.number("<B"))),
    b"X": lambda m: m.push(m.text(m.number("<I"))),
    b"\x8d": lambda m: m.push(m.text(m.number("<Q"))),
    b"V": lambda m: m.push(m.line().decode("raw_unicode_escape")),
    # Python 2's strings, be they text or the content of an array: Latin-1, as NumPy advises.
    b"U": lambda m: m.push(m.take(m.number("<B")).decode("latin1")),
    b"T": lambda m: m.push(m.take(m.number("<i")).decode("latin1")),
    b"S": _python2_line,
    b"(": _Machine.mark,
    b"1": _Machine.pop_mark,
    b"0": _pop_any,
    b"2": lambda m: m.push(m.stack[-1]),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"]": lambda m: m.push_new([]),
    b"l": lambda m: m.push(m.pop_mark()),
    b"a": _append,
    b"e": _appends,
    b"}": lambda m: m.push_new({}),
    b"d": lambda m: m.push(_as_dict(m.pop_mark())),
    b"s": _set_item,
    b"u": _set_items,
    b"\x8f": lambda m: m.push_new(set()),
    b"\x90": _add_items,
    b"p": lambda m: m.put(int(m.number_line())),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(int(m.number_line())),
    b"h": lambda m: m.get(m.number("<B")),
    b"j": lambda m: m.get(m.number("<I")),
    b"c": _name_in_lines,
    b"i": _instance,
    b"\x93": _name_on_stack,
    b"R": _call,
    b"b": _build,
}
