"""Pickles: what NumPy and Python write is read; what a pickle could do beside that is not."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasets_build import pickles
from datasets_build.pickled_arrays import StoredArray, StoredBytes
from datasets_build.pickles import pickled, read_pickle

PROTOCOLS = range(6)


def in_memory(value: Any) -> Any:
    """The value with its arrays read."""
    if isinstance(value, StoredArray | StoredBytes):
        return value.read()
    if isinstance(value, dict):
        return {key: in_memory(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(in_memory(item) for item in value)
    return value


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Any]:
    """Reads bytes as a pickle."""

    def read(data: bytes) -> Any:
        path = tmp_path / "some.pkl"
        path.write_bytes(data)
        return in_memory(read_pickle(path))

    return read


@pytest.fixture
def refusal(read: Callable[[bytes], Any]) -> Callable[[bytes], str]:
    """The sentence that refuses bytes as a pickle."""

    def refusal(data: bytes) -> str:
        with pytest.raises(ValueError, match="Nothing in it was run") as caught:
            read(data)
        return str(caught.value)

    return refusal


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    joints = rng.normal(size=(2, 30, 25, 3))
    return [
        joints.astype(np.float16),
        joints.astype(np.float32),
        joints.astype(">f8"),
        np.asfortranarray(joints[:, :1, :2]),
        joints[:, :2].transpose(0, 2, 1, 3),
        rng.integers(-300, 300, (4,), np.int16),
        np.array([True, False]),
        np.array(["one", "three"]),
        np.zeros((0, 3)),
        np.array(2.5),
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("names", [b"numpy.core", b"numpy._core"])
def test_arrays_of_either_numpy_are_read_in_every_protocol(read, protocol, names):
    data = pickle.dumps(arrays(), protocol)
    if protocol < 4:  # names are lines there, without a length before them
        data = data.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", names)
        assert names in data
    for found, expected in zip(read(data), arrays(), strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_read_in_every_protocol(read, protocol):
    value = {
        "numbers": [0, 255, 65_535, -1, 2**31 - 1, -(2**70), 1.5, float("inf")],
        "scalars": (np.int64(-7), np.float16(0.5), np.str_("name"), np.bool_(True)),
        "texts": ["", "ascii", "\u00e9\u20ac\U0001f600", "two\nlines", "x" * 2_000],
        "bytes": (b"", b"\x00\xff", b"\xff" * 2_000),
        "others": [None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}],
        "set": {"a", 1, None},
        3: collections.OrderedDict(a=1, b=2),
    }
    found = read(pickle.dumps(value, protocol))
    assert found == value
    assert repr(found["scalars"]) == repr(value["scalars"])
    assert type(found[3]) is dict


def test_what_occurs_twice_is_one_object(tmp_path):
    path = tmp_path / "twice.pkl"
    names = ["a"]
    for protocol in PROTOCOLS:
        path.write_bytes(pickle.dumps([names, {"x": names}], protocol))
        first, second = read_pickle(path)
        assert second["x"] is first


def test_pickles_of_python_2_are_read(read):
    content = np.arange(3, dtype="<f4").tobytes() + b"\xff\x80\x00\x00"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(L4L\nt"
        b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    )
    text = b"S" + ascii(content)[1:].encode() + b"\n"
    for body in (text, b"U" + bytes([len(content)]) + content, b"T\x10\0\0\0" + content):
        found = read(b"(dS'keypoint'\n" + array + body + b"tbs.")
        assert found["keypoint"].tobytes() == content
    assert read(b"\x80\x02(U\x02\xe9!S'it\\'s'\nS\"a\"\nt.") == ("\u00e9!", "it's", "a")


def test_long_arrays_stay_in_the_file(tmp_path):
    path = tmp_path / "long.pkl"
    joints = np.random.default_rng(0).normal(size=(1000, 75)).astype(np.float32)
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps([joints + i for i in range(10)], protocol))
        tracemalloc.start()
        found = read_pickle(path)
        num_kept, num_most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert num_most < 200_000 < joints.nbytes
        assert num_kept < 50_000
        assert np.array_equal(found[7].read(), joints + 7)


def test_file_that_is_cut_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "cut.pkl"
    path.write_bytes(pickle.dumps(np.zeros(1000), 4))
    found = read_pickle(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="was cut"):
        found.read()


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class Plain:
    """A class of somebody's own."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_calls_are_refused_by_name_and_not_made(refusal, tmp_path, protocol):
    mark = tmp_path / "was-run"
    attacks = {
        f"{os.system.__module__}.system": Call(os.system, f"touch {mark}"),
        ".eval": Call(eval, f"open({str(mark)!r}, 'w')"),
        ".exec": Call(exec, f"open({str(mark)!r}, 'w')"),
        ".getattr": Call(getattr, "text", "upper"),
        "numpy.load": Call(np.load, str(mark), None, True),
        "numpy.fromfile": Call(np.fromfile, "/dev/zero"),
        ".open": Call(open, str(mark), "w"),
        ".bytearray": Call(bytearray, 10**12),
    }
    for name, attack in attacks.items():
        for value in (attack, [1, {"keypoint": attack}]):
            assert name in refusal(pickle.dumps(value, protocol))
    assert not mark.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_classes_are_refused_by_name(refusal, protocol):
    for value, name in (
        (Plain, "Plain"),
        (Plain(), "copy_reg" if protocol < 2 else "Plain"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "_mareconstruct"),
        (np.recarray((1,), [("x", "f4")]), "recarray"),
        (np.random.default_rng(0), "generator"),
        (Path("x"), "pathlib"),
        (frozenset({1}), "frozenset" if protocol < 4 else "opcode"),
        (1j, "complex"),
        (slice(1), "slice"),
    ):
        assert name in refusal(pickle.dumps(value, protocol))


def text(value: str) -> bytes:
    """The opcode that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


@pytest.mark.parametrize(
    "name",
    [
        "numpy.core.multiarray.__builtins__",
        "numpy.core.multiarray.multiarray.__builtins__",
        "numpy.__class__",
        "numpy.ndarray.__reduce__",
        "builtins.bytes.fromhex",
        "_codecs.lookup",
        "_codecs.decode",
        "numpy.core.multiarray.fromfile",
        "numpy.core.numeric._frombuffer.__globals__",
        "numpy\0.ndarray",
        "copyreg._reconstructor",
    ],
)
def test_dotted_and_neighbouring_names_are_refused(refusal, name):
    for module, rest in ((name.rsplit(".", 1)), name.split(".", 1)):
        on_stack = b"\x80\x04" + text(module) + text(rest) + b"\x93."
        assert ascii(name)[1:-1] in refusal(on_stack)
        in_lines = b"c" + module.encode() + b"\n" + rest.encode() + b"\n."
        assert ascii(name)[1:-1] in refusal(in_lines)


def test_opcodes_that_make_objects_are_refused(refusal):
    assert "os.system" in refusal(b"(S'id'\nios\nsystem\n.")  # INST
    assert "opcode b'o'" in refusal(b"(cnumpy\nndarray\nK\x01o.")  # OBJ
    for code in (b"\x81", b"\x92"):  # NEWOBJ, NEWOBJ_EX
        assert f"opcode {code!r}" in refusal(b"\x80\x04cnumpy\nndarray\n(K\x01t" + code + b".")
    for data in (b"Pid\n.", b"K\x01Q.", b"\x82\x01.", b"\x83\x01\x01.", b"\x84\1\1\1\1.", b"\x97."):
        assert "makes no plain data" in refusal(b"\x80\x05" + data)
    assert "its protocol is 6" in refusal(b"\x80\x06N.")
    assert "state of a dict" in refusal(b"\x80\x02}}b.")
    assert "no function" in refusal(b"\x80\x02K\x01)R.")
    assert "items into a Stored" in refusal(
        pickle.dumps(np.zeros(3), 2)[:-1] + b"(K\x00K\x01u."  # item assignment on an array
    )


RECONSTRUCT = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
FLOAT32 = (
    b"cnumpy\ndtype\n(X\2\0\0\0f4\x89\x88tR(K\3X\1\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
)
HUGE = b"\x8a\x07" + (2**50).to_bytes(7, "little")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x03cnumpy\nndarray\n(" + HUGE + b"\x85tR.",
        RECONSTRUCT + HUGE + b"\x85C\x01btR.",
        RECONSTRUCT + b"K\x00\x85C\x01btR(K\1" + HUGE + b"\x85" + FLOAT32 + b"\x89C\4abcdtb.",
        b"\x80\x05cnumpy.core.numeric\n_frombuffer\n(C\4abcd" + FLOAT32 + HUGE + b"\x85U\1CtR.",
        b"\x80\x02K\1r\xff\xff\xff\x7f0N.",  # LONG_BINPUT: Python's own list would grow to 2**31
        b"\x80\x04]p99999999999999999999\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**63) + b"abc.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x02B\xff\xff\xff\xffabc.",
        b"\x80\x02T\xff\xff\xff\x7fabc.",
        b"\x80\x02T\xff\xff\xff\xffabc.",
        b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        b"I" + b"9" * 5_000 + b"\n.",
    ],
)
def test_nothing_absurd_is_allocated(read, data):
    tracemalloc.start()
    with contextlib.suppress(ValueError):  # some are harmless here and give a value
        read(data)
    num_most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_most < 1_000_000


def test_numbers_and_arrays_have_bounds(refusal):
    assert "a number has 256 bytes" in refusal(b"\x80\x02\x8b\0\1\0\0" + b"\1" * 256 + b".")
    assert "a number has 300 characters" in refusal(b"I" + b"1" * 300 + b"\n.")
    for arguments in (b"K\x01\x85C\x01b", HUGE + b"\x85C\x01b", b")C\x01b"):
        assert "NumPy does not write" in refusal(RECONSTRUCT + arguments + b"tR.")
    other = RECONSTRUCT.replace(b"ndarray", b"dtype")
    assert "NumPy does not write" in refusal(other + b"K\x00\x85C\x01btR.")
    for shape in (b"(J\xff\xff\xff\xfft", b"(\x88t", b"(Nt", b"]", b"(" + b"K\0" * 9 + b"t"):
        state = b"(K\1" + shape + FLOAT32 + b"\x89C\0tb."
        assert "shape" in refusal(RECONSTRUCT + b"K\x00\x85C\x01btR" + state)


def test_short_pickle_cannot_copy_a_long_text_again_and_again(refusal):
    encode = b"c_codecs\nencode\nq\0"
    start = b"\x80\x02" + text("x" * 5_000) + b"q\1" + text("latin1") + b"q\2" + encode
    assert "again and again" in refusal(start + b"0h\0h\1h\2\x86R" * 1_000 + b".")
    names = (
        b"\x80\x02(" + b"".join(text(f"{i}") for i in range(500)) + b"lq\1c__builtin__\nset\nq\0"
    )
    assert "again and again" in refusal(names + b"0h\0h\1\x85R" * 1_000 + b".")


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(" + b"\x8f" * 400_000 + b"l",
        b"(" + b"]" * 400_000 + b"l",
        b"(" + b"}" * 400_000 + b"l",
        b"(" * 400_000,
        b"N" + b"\x85" * 400_000,
        b"N" + b"\x94" * 400_000,
        b"ccollections\nOrderedDict\nq\0" + b"h\0)R" * 100_000,
    ],
    ids=["sets", "lists", "dicts", "marks", "tuples", "memo", "calls"],
)
def test_a_file_of_nothing_but_containers_is_refused_early(refusal, opcodes):
    tracemalloc.start()
    assert "too many containers for a file of its size" in refusal(b"\x80\x04" + opcodes + b".")
    num_most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_most < 45 * len(opcodes)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_many_annotations_of_a_single_frame_are_not_too_many_containers(read, protocol):
    annotations = [
        {
            "frame_dir": f"clip{i}",
            "label": np.int64(i),
            "img_shape": (1080, i),
            "original_shape": (1080, i),
            "total_frames": 1,
            "keypoint": np.ones((1, 1, 17, 2), np.float16),
            "keypoint_score": np.ones((1, 1, 17), np.float16),
        }
        for i in range(3_000)
    ]
    assert len(read(pickle.dumps(annotations, protocol))) == 3_000


def test_numbers_of_opcodes_are_bounded(refusal, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPCODES", 1_000)
    assert "more than 1000 opcodes" in refusal(b"\x80\x02" + b"]" * 2_000 + b".")


def test_deep_values_neither_recurse_nor_hang(tmp_path, refusal):
    path = tmp_path / "deep.pkl"
    depth = 200_000
    room = bytes(depth * pickles.BYTES_A_VALUE)  # behind the end, where it is not looked at
    path.write_bytes(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"." + room)
    value = read_pickle(path)
    for _ in range(depth - 1):
        (value,) = value
    assert value == []
    # A tuple of two tuples of two tuples ...: its hash would take 2**60 steps.
    assert "a key is a tuple" in refusal(b"\x80\x02}K\x01" + b"2\x86" * 60 + b"K\x01s.")


def test_arrays_of_objects_and_fields_are_refused(refusal):
    for protocol in PROTOCOLS:
        assert "'O8'" in refusal(pickle.dumps(np.array([{}, None]), protocol))
        fields = np.zeros(2, [("x", "f4"), ("y", "f4")])
        assert "not numbers or text" in refusal(pickle.dumps(fields, protocol))
        assert "not numbers or text" in refusal(pickle.dumps(np.zeros(2, "M8[s]"), protocol))
        assert "not numbers or text" in refusal(pickle.dumps(np.zeros(2, complex), protocol))


def test_array_whose_content_does_not_fit_is_refused_when_read(read):
    data = pickle.dumps(np.zeros((2, 3), np.float32), 2)
    with pytest.raises(ValueError, match="takes 28 bytes, its content has 24"):
        read(data.replace(b"K\x02K\x03\x86", b"K\x01K\x07\x86"))


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("order", "<>")
def test_text_that_holds_no_character_is_refused(read, refusal, num, order):
    good = "\U0010ffff" * num
    for value in (np.array([good], f"{order}U{num}"), np.str_(good)):
        data = pickle.dumps(value, 4)
        byte_order = order if isinstance(value, np.ndarray) else "<"
        was, is_now = (
            np.array([code], f"{byte_order}u4").tobytes() for code in (0x10FFFF, 1 << 30)
        )
        assert read(data) == value
        with pytest.raises(ValueError, match="a text holds 0x40000000, which is no character"):
            read(data.replace(was, is_now))
    assert "no character" in refusal(data.replace(was, is_now))  # a scalar: with the file's name


def test_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_pickle(tmp_path / "none.pkl")


def test_other_files_are_refused(refusal, read):
    for data in (b"", b"\x80", b"PK\x03\x04", b"not a pickle", b"\x93NUMPY", b"\x80\x04", b"."):
        refusal(data)
    good = pickle.dumps({"x": np.zeros(200, np.float32)}, 2)
    assert read(good)["x"].shape == (200,)
    for at in range(0, len(good), 7):
        refusal(good[:at])


def annotation_pickles() -> list[bytes]:
    """Small annotation files in every protocol, for the fuzzing to start from."""
    value = {
        "split": {"train": ["a"], "val": ["b"]},
        "annotations": [
            {
                "frame_dir": name,
                "label": np.int64(label),
                "img_shape": (1080, 1920),
                "keypoint": np.full((1, 2, 17, 2), label, np.float16),
                "keypoint_score": np.ones((1, 2, 17), np.float32),
            }
            for label, name in enumerate("ab")
        ],
    }
    for annotation in value["annotations"]:
        annotation["total_frames"] = 2
    found = [pickle.dumps(value, protocol) for protocol in PROTOCOLS]
    return [*found, b"".join(pickled({"x": np.ones((2, 3), np.float32), "y": ("a", 1)}))]


_STARTS = annotation_pickles()
_PIECES = [
    *pickles._OPCODES,
    *(f"c{module}\n{name}\n".encode() for module, name in pickles._CALLS),
    b"cos\nsystem\n", b"\xff\xff\xff\xff", b"K\x02", b"h\x00", b"q\x00", b"(K\x01t", b"I1\n",
    text("f4"), text("latin1"), b"C\x04abcd", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
]  # fmt: skip
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "cut"]),
        st.integers(0, 1 << 16),
        st.one_of(st.sampled_from(_PIECES), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzzed.pkl"


def check_fuzzed(path: Path) -> None:
    """A value, whose arrays can be read or are told to be damaged, or one of our sentences."""
    try:
        value = read_pickle(path)
    except ValueError as error:
        if not str(error).startswith(f"{path} is refused at byte"):
            raise
    else:
        for array in value if isinstance(value, list) else [value]:
            if isinstance(array, StoredArray):
                with contextlib.suppress(ValueError):
                    array.read()


@settings(max_examples=500, deadline=None)
@given(start=st.sampled_from(_STARTS), edits=_EDITS)
@example(start=b"", edits=[("insert", 0, b"\x80\x02")])
def test_mutated_pickles_give_a_value_or_one_sentence(fuzzed, start, edits):
    data = start
    for kind, at, piece in edits:
        at %= len(data) + 1
        if kind == "cut":
            data = data[:at]
        else:
            end = at if kind == "insert" else at + len(piece)
            data = data[:at] + (b"" if kind == "delete" else piece) + data[end:]
    fuzzed.write_bytes(data)
    check_fuzzed(fuzzed)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=30))
def test_opcodes_in_any_order_give_a_value_or_one_sentence(fuzzed, pieces):
    fuzzed.write_bytes(b"".join(pieces) + b".")
    check_fuzzed(fuzzed)


def test_what_is_written_is_read_by_python_and_by_us(read):
    joints = np.random.default_rng(0).normal(size=(2, 4, 25, 3)).astype(np.float32)
    value = {
        "annotations": [{"frame_dir": "\u00e9", "label": -3, "img_shape": (1080, 1920)}],
        "split": {"train": [], "val": ["a", "b"]},
        "joints": [joints, joints.transpose(1, 0, 2, 3), joints[:0]],
    }
    data = b"".join(
        pickled({key: iter(value[key]) if key == "joints" else value[key] for key in value})
    )
    assert b"numpy.core.multiarray" in data  # the name that NumPy 1 has; NumPy 2 takes it too
    assert b"numpy._core" not in data
    for found in (pickle.loads(data), read(data)):
        for ours, expected in zip(found.pop("joints"), value["joints"], strict=True):
            assert ours.dtype == np.float32
            assert np.array_equal(ours, expected)
        assert found == {key: value[key] for key in ("annotations", "split")}
    assert pickle.loads(data)["joints"][0].flags.writeable


def test_writing_takes_no_more_memory_for_more(tmp_path):
    joints = np.zeros((2, 100, 25, 3), np.float32)

    def most(num: int) -> int:
        tracemalloc.start()
        with (tmp_path / "long.pkl").open("wb") as file:
            file.writelines(pickled({"x": ({"name": f"{i}", "x": joints} for i in range(num))}))
        num_most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return num_most

    assert most(1_000) < most(10) + 50_000


def test_other_arrays_are_not_written():
    with pytest.raises(TypeError, match="float64"):
        b"".join(pickled([np.zeros(3)]))
