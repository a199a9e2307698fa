"""Folders and zips in place: what is listed, what is read, and what a hostile zip cannot do."""

from __future__ import annotations

import contextlib
import gc
import io
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_build import sources
from datasets_build.build import run
from datasets_build.config import BuildConfig
from datasets_build.sources import (
    MAX_CLIP_BYTES,
    ClipError,
    ClipFile,
    leaves_its_folder,
    list_clips,
    read_clip,
)

# Offsets in a header of a zip's directory (APPNOTE 4.3.12).
FLAGS, METHOD, CRC, COMPRESSED_SIZE, SIZE, OFFSET, NAME = 8, 10, 16, 20, 24, 42, 46


def zip_bytes(entries: Sequence[tuple[str, bytes]], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def patched(data: bytes, at: int, form: str, value: int, *, marker: bytes = b"PK\1\2") -> bytes:
    """The first header of a kind with another value."""
    result = bytearray(data)
    struct.pack_into("<" + form, result, data.index(marker) + at, value)
    return bytes(result)


@pytest.fixture
def listed(tmp_path):
    """Writes bytes as a zip and lists its clips."""
    numbers = iter(range(10_000))

    def make(data: bytes) -> list[ClipFile]:
        path = tmp_path / f"{next(numbers)}.zip"
        path.write_bytes(data)
        return list_clips(path)

    return make


def refusal(file: ClipFile) -> ClipError:
    with pytest.raises(ClipError) as caught:
        read_clip(file)
    return caught.value


def peak_of_refusal(file: ClipFile) -> tuple[str, int]:
    """The reason, and the most bytes that were held to find it."""
    tracemalloc.start()
    try:
        reason = refusal(file).reason
        return reason, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_folder_and_a_zip_list_and_read_the_same(tmp_path, listed):
    contents = {"b/2.skeleton": b"two", "b/1.skeleton": b"one", "0.skeleton": b"zero"}
    hidden = {"__MACOSX/b/._1.skeleton": b"x", ".0.skeleton": b"x"}
    folder = tmp_path / "clips"
    (folder / "b").mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / ".0.skeleton").write_bytes(b"x")
    in_folder = list_clips(folder)
    in_zip = listed(zip_bytes([("b/", b""), *contents.items(), *hidden.items()]))
    for files in (in_folder, in_zip):
        assert {file.member: read_clip(file) for file in files} == contents
        assert [file.member for file in files] == sorted(contents)
        assert [file.stem for file in files] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/a", "\\a", "..\\a", "C:\\a", "C:a", "a/..", "\\\\host\\a"]
)
def test_names_that_point_outside_are_known(name):
    assert leaves_its_folder(name)


@pytest.mark.parametrize("name", ["a", "a/b", "a..b/c", "./a", "", ".", "a/b:c"])
def test_names_that_stay_inside_are_known(name):
    assert not leaves_its_folder(name)


def test_a_bomb_is_refused_without_being_inflated(listed):
    bomb = zip_bytes([("a.skeleton", bytes(3 * MAX_CLIP_BYTES))])
    assert len(bomb) < 200_000
    reason, peak = peak_of_refusal(listed(bomb)[0])
    assert reason == "too_large"
    assert peak < 2**20
    for stated in (0, 1000):
        reason, peak = peak_of_refusal(listed(patched(bomb, SIZE, "L", stated))[0])
        assert reason == "cannot_read", "a bomb that lies about its size"
        assert peak < 2**20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_whose_output_has_no_bound_are_not_inflated(listed, method):
    bomb = zip_bytes([("a.skeleton", bytes(2 * MAX_CLIP_BYTES))], method=method)
    (file,) = listed(patched(bomb, SIZE, "L", 1000))
    reason, peak = peak_of_refusal(file)
    assert reason == "cannot_read"
    assert peak < 2**20
    assert f"method {method}" in refusal(file).detail


def test_entries_that_share_their_bytes_are_refused(listed):
    data = zip_bytes([("0.skeleton", bytes(1_000_000))])
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    directory = b"".join(data[start:end].replace(b"0.s", b"%d.s" % i) for i in range(10))
    counts = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 10, 10, len(directory), start, 0)
    with pytest.raises(ValueError, match="overlap"):
        listed(data[:start] + directory + counts)


def test_an_endless_directory_is_not_read(listed, monkeypatch):
    many = zip_bytes([(f"{i}.skeleton", b"") for i in range(50)])
    assert len(listed(many)) == 50
    monkeypatch.setattr(sources, "MAX_ZIP_DIRECTORY_BYTES", 1000)
    with pytest.raises(ValueError, match="its directory states"):
        listed(many)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_do_not_stand_for_each_other(listed):
    first, second = listed(zip_bytes([("a.skeleton", b"one"), ("a.skeleton", b"two")]))
    assert "two entries" in refusal(first).detail
    assert read_clip(second) == b"two"


def test_damaged_entries_have_a_reason(listed):
    good = zip_bytes([("a.skeleton", b"3\n" * 500), ("b.skeleton", b"x")])
    stored = zip_bytes([("a.skeleton", b"3\n" * 500)], method=zipfile.ZIP_STORED)
    assert read_clip(listed(good)[0]) == b"3\n" * 500
    damaged = {
        "encrypted": patched(good, FLAGS, "H", 1),
        "strong encryption": patched(good, FLAGS, "H", 0x40),
        "CRC": patched(good, CRC, "L", 1),
        "method 99": patched(good, METHOD, "H", 99),
        "the zip states 5000": patched(stored, SIZE, "L", 5000),
        "header": patched(good, OFFSET, "L", 5),
        "differ": patched(good, 30, "B", ord("c"), marker=b"PK\3\4"),
        "utf-8": patched(patched(good, 6, "H", 0x800, marker=b"PK\3\4"), 30, "B", 0xFF,
                         marker=b"PK\3\4"),
    }  # fmt: skip
    for words, data in damaged.items():
        error = refusal(listed(data)[0])
        assert error.reason == "cannot_read", words
        assert words in error.detail


def test_a_zip_that_cannot_be_listed_is_named(listed, tmp_path):
    good = zip_bytes([("a.skeleton", b"x")])
    end = b"PK\5\6"
    broken = [
        patched(patched(good, FLAGS, "H", 0x800), NAME, "B", 0xFF),  # a name that is no UTF-8
        patched(good, 6, "H", 99),  # written for a later version
        patched(good, COMPRESSED_SIZE, "L", 2**31),  # more than the zip holds
        patched(good, 12, "L", 2**31, marker=end),  # size of the directory
        good.replace(end, b"PK\6\7" + struct.pack("<LQL", 0, 0, 2) + end),  # one of two disks
    ]
    for data in broken:
        with pytest.raises(ValueError, match="not a readable zip file") as caught:
            listed(data)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        listed(b"PK")


def test_zips_that_leave_the_cache_are_closed(listed):
    for _ in range(3):
        listed(zip_bytes([("a", b"x")]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sources._opened_zip_of.cache_clear()
        gc.collect()
    assert not caught  # a file that was not closed is a ResourceWarning


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 9), st.binary(max_size=9)), max_size=4
    )
)
def test_a_changed_zip_is_refused_or_read_exactly(listed, changes):
    data = zip_bytes([("a.skeleton", b"3\n" * 50), ("b.skeleton", b"x")])
    for at, num_cut, piece in changes:
        at %= len(data)
        data = data[:at] + piece + data[at + num_cut :]
    with contextlib.suppress(ClipError):
        try:
            files = listed(data)
        except ValueError:
            files = []
        for file in files:
            content = read_clip(file)
            assert (len(content), zlib.crc32(content)) == (file.num_bytes, file.crc32)


def test_a_build_leaves_out_what_a_zip_hides(ntu_folder, tmp_path):
    names = [f"S001C001P{subject:03d}R001A001" for subject in range(1, 8)]
    clip = (ntu_folder(names[:1]) / f"{names[0]}.skeleton").read_bytes()
    path = tmp_path / "clips.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{names[0]}.skeleton", clip)
        archive.writestr(f"/etc/{names[1]}.skeleton", clip)
        archive.writestr(f"{names[2]}.skeleton", bytes(2 * MAX_CLIP_BYTES))
        archive.writestr(f"{names[3]}.skeleton", clip, compress_type=zipfile.ZIP_BZIP2)
        archive.writestr(f"{names[4]}.skeleton", clip.replace(b"3", b"nan", 40))
        archive.writestr(f"{names[5]}.skeleton", b"30000\n" + clip.split(b"\n", 1)[1])
        archive.writestr(f"{names[6]}.skeleton", b"")
    config = BuildConfig(
        skeletons=(path,), out=tmp_path / "out", allow=("bad-name", "unreadable"), workers=1
    )
    assert run(config).num_rows == 1
    rows = pq.read_table(Path(tmp_path) / "out" / "left_out.parquet").to_pylist()
    assert [(row["sample_id"], row["reason"]) for row in rows] == [
        (names[1], "bad-name"),
        *((name, "unreadable") for name in names[2:]),
    ]
    reasons = [row["detail"].split(":")[0] for row in rows[1:]]
    assert reasons[:2] == ["too_large", "cannot_read"]
    assert reasons[3:] == ["truncated", "empty"]
