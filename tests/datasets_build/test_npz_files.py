"""The .npz writer and reader: NumPy's files, whole or not at all, and never all in memory."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy_format

from datasets_build.npz_files import NpzWriter, member_names, open_member


def npy(values: np.ndarray, **changes: object) -> bytes:
    """An .npy file, entries of its header changed."""
    stream = io.BytesIO()
    header = {"descr": values.dtype.str, "fortran_order": False, "shape": values.shape, **changes}
    npy_format.write_array_header_1_0(stream, header)
    return stream.getvalue() + values.tobytes()


def zipped(path: Path, content: bytes, *, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", content)
    return path


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "x": rng.normal(size=(9, 4, 3)).astype(np.float32),
        "label": rng.integers(0, 5, 9),
        "name": np.array([f"clip {i}" for i in range(9)]),
        "empty": np.zeros((0, 6)),
    }


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with NpzWriter(path) as writer:
        for name, values in arrays.items():
            with writer.array(name, values.shape, values.dtype) as member:
                for start in range(0, len(values), 2):
                    member.append(values[start : start + 2])
    return path


def test_numpy_loads_what_was_written(arrays, tmp_path):
    path = write(tmp_path / "a.npz", arrays)
    with np.load(path) as loaded:
        assert loaded.files == list(arrays)
        for name, values in arrays.items():
            assert loaded[name].dtype == values.dtype
            assert np.array_equal(loaded[name], values)
    assert zipfile.ZipFile(path).testzip() is None
    assert [entry.date_time for entry in zipfile.ZipFile(path).infolist()] == [
        (1980, 1, 1, 0, 0, 0)
    ] * 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_equal_arrays_give_equal_bytes(arrays, tmp_path):
    first = write(tmp_path / "a.npz", arrays).read_bytes()
    time.sleep(0.01)
    assert write(tmp_path / "b.npz", arrays).read_bytes() == first


def test_rows_may_be_put_in_any_order_into_several_members(tmp_path):
    with (
        NpzWriter(tmp_path / "a.npz") as writer,
        writer.array("a", (3, 4, 2), np.float32) as a,
        writer.array("b", (2, 4, 2), np.float32) as b,
    ):
        for index in (2, 0):
            a.put(index, np.full((index + 1, 2), index + 1, np.float32))
            b.put(index // 2, np.full((4, 2), 7, np.float32))
        a.put(1, np.empty((0, 2), np.float32))
    with np.load(tmp_path / "a.npz") as loaded:
        assert loaded["a"][:, :, 0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [3, 3, 3, 0]]
        assert (loaded["b"] == 7).all()


def test_an_error_leaves_neither_file_nor_leftovers(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")

    def stop_in_the_middle() -> None:
        with NpzWriter(path) as writer:
            with writer.array("a", (2, 2), np.float32) as a:
                a.append(np.zeros((2, 2), np.float32))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_in_the_middle()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_missing_repeated_and_unfit_rows_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    row = np.zeros((1, 2), np.float32)
    with (
        pytest.raises(ValueError, match=r"1 of 2 rows of a\.npy"),
        NpzWriter(path) as writer,
        writer.array("a", (2, 2), np.float32) as a,
    ):
        a.append(row)
    with NpzWriter(path) as writer:
        with writer.array("a", (2, 2), np.float32) as a:
            with pytest.raises(ValueError, match="do not fit"):
                a.append(np.zeros((3, 2), np.float32))
            with pytest.raises(TypeError, match="safe"):
                a.append(row.astype(np.float64))
            a.put(1, row[0])
            with pytest.raises(ValueError, match="cannot be put at 1"):
                a.put(1, row[0])
            a.put(0, row[0])
        with pytest.raises(ValueError, match="already has"):
            writer.array("a", (1,), np.float32)
        with pytest.raises(ValueError, match="only plain dtypes"):
            writer.array("b", (1,), object)
    with pytest.raises(ValueError, match="was not completed"), NpzWriter(path) as writer:
        writer.array("a", (0,), np.float32)


def test_a_place_that_is_none_is_refused_before_the_block_begins(arrays, tmp_path):
    file = write(tmp_path / "a.npz", arrays)
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder; give the name of a file"):
        NpzWriter(tmp_path)
    for folder in (tmp_path / "none", file):
        with pytest.raises(FileNotFoundError, match=f"no folder {folder}; make that folder first"):
            NpzWriter(folder / "b.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_killed_writer_leaves_no_file_under_the_name(tmp_path):
    path = tmp_path / "a.npz"
    code = (
        "import os, numpy as np; from pathlib import Path\n"
        "from datasets_build.npz_files import NpzWriter\n"
        f"with NpzWriter(Path({str(path)!r})) as writer:\n"
        "    with writer.array('a', (2, 2), np.float32) as a:\n"
        "        a.append(np.ones((2, 2), np.float32)); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not path.exists()
    write(path, {"a": np.ones((2, 2))})  # what was left does not disturb
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_are_read_forwards_and_backwards(arrays, save, tmp_path):
    path = tmp_path / "a.npz"
    save(path, **arrays)
    assert member_names(path) == list(arrays)
    for name, values in arrays.items():
        with open_member(path, name) as member:
            assert (member.shape, member.dtype, len(member)) == (
                values.shape, values.dtype, len(values),
            )  # fmt: skip
            assert member.is_compressed == (save is np.savez_compressed)
            for start, stop in ((0, 2), (2, 5), (7, 20), (1, 3), (0, 9), (4, 4)):
                assert np.array_equal(member.rows(start, stop), values[start:stop])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_is_that_of_the_rows_asked_for(save, tmp_path):
    path = tmp_path / "a.npz"
    save(path, x=np.zeros((4000, 1000), np.float64))  # 32 MB
    tracemalloc.start()
    with open_member(path, "x") as member:
        total = sum(member.rows(at, at + 10).sum() for at in range(0, 4000, 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 0
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros(4), shape=(5,)), "its header says"),
        (npy(np.zeros(4), shape=(10**15,)), "its header says"),
        (npy(np.zeros(4), shape=(-4,)), "its shape is"),
        (npy(np.zeros(4), shape=()), "its shape is"),
        (npy(np.zeros(0), shape=(10**18, 0)), "its shape is"),
        (npy(np.zeros(0), shape=(10**18,), descr="<U0"), "only numbers and texts"),
        (npy(np.zeros(4), descr="|O"), "never pickled objects"),
        (npy(np.zeros((2, 2)), fortran_order=True), "Fortran order"),
        (npy(np.zeros(4), descr=[("a", "<f8")]), "only numbers and texts"),
        (npy(np.zeros(4))[:-1], "its header says"),
        (b"\x93NUMPY\x09\x00" + bytes(80), "version"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(200), "header"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000, "cannot be read"),
        (b"not an array", "magic"),
        (b"", "cannot be read"),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_that_lie_are_refused_before_any_allocation(content, message, method, tmp_path):
    path = zipped(tmp_path / "a.npz", content, method=method)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        open_member(path, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "a.npz is not a usable .npz file" in str(caught.value)
    assert peak < 4_000_000


def test_what_is_no_npz_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_member(tmp_path / "none.npz", "x")
    (tmp_path / "text.npz").write_text("hello")
    for reader in (member_names, lambda path: open_member(path, "x")):
        with pytest.raises(ValueError, match="not a zip file"):
            reader(tmp_path / "text.npz")
    good = zipped(tmp_path / "a.npz", npy(np.zeros(4)))
    with pytest.raises(ValueError, match="there is only x"):
        open_member(good, "y")
    lzma = zipped(tmp_path / "l.npz", npy(np.zeros(4)), method=zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="packed by method 14"):
        open_member(lzma, "x")
    data = bytearray(good.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    encrypted = data.copy()
    encrypted[directory + 8] |= 1
    (tmp_path / "e.npz").write_bytes(encrypted)
    with pytest.raises(ValueError, match="it is encrypted"):
        open_member(tmp_path / "e.npz", "x")
    huge = data.copy()
    huge[directory + 24 : directory + 28] = struct.pack("<I", 2**32 - 2)  # the unpacked size
    (tmp_path / "h.npz").write_bytes(huge)
    with pytest.raises(ValueError, match="it claims 4294967294 bytes"):
        open_member(tmp_path / "h.npz", "x")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_numbers_are_found_by_the_checksum(save, tmp_path):
    path = tmp_path / "a.npz"
    save(path, x=np.random.default_rng(1).normal(size=(5000, 10)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with open_member(path, "x") as member, pytest.raises(ValueError, match="write or download"):
        all(member.rows(start, start + 50) is not None for start in range(0, 5000, 50))


def problem_of_reading(path: Path) -> str | None:
    try:
        with open_member(path, "x") as member:
            assert member.row_bytes * len(member) <= 1100 * path.stat().st_size
            for start in range(0, len(member), 7):
                member.rows(start, start + 7)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mutated_files_never_raise_anything_but_a_sentence(save, tmp_path):
    rng = np.random.default_rng(5)
    path = tmp_path / "a.npz"
    save(path, x=rng.integers(0, 9, (40, 3)))
    whole = path.read_bytes()
    problems = []
    for _ in range(400):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(1, len(data))] if rng.random() < 0.2 else data)
        problems.append(problem_of_reading(path))
    refused = [problem for problem in problems if problem is not None]
    assert len(refused) > 100
    assert all(str(path) in problem for problem in refused)
