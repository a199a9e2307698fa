"""Files to damage and ways to damage them, for fuzz_readers.py: skeletons, JSON clips, zips."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import warnings
import zipfile

from datasets_build import ntu, nwucla
from datasets_build.sources import MAX_CLIP_BYTES

STORED = zipfile.ZIP_STORED
_NUMBERS = b"""nan NaN -nan inf -inf Infinity 1e308 -1e308 1e39 1e400 1e-400 1001 999.9999 -0 0 1 2
24 25 26 12 13 -1 1. .5 +1 1_0 0x10 0x1p3 1e 1,5 1d3 00025 25.0 true null [] {} "" "1" 30000 30001
3001 4294967296 9223372036854775808 99999999999999999999"""
TOKENS = [
    *_NUMBERS.split(),
    *(digit.encode() for digit in ("\u0663", "\u00b2", "\uff12\uff15")),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b""),
    *(b"9" * 5000, b"0." + b"3" * 3000, b"[" * 2000, b'{"a":' * 2000),
]
PIECES = (b" ", b"\n", b"\r", b"\t", b"\x0b", b",", b"]", b"[")
TEXT_WEIGHTS = (6, 1, 1, 1, 8, 2, 4, 4, 1)  # of the cases of mutated_text
ZIP_WEIGHTS = (12, 4, 1, 1)  # of the cases of mutated_zip
TOKEN = re.compile(rb"[^\s,\[\]{}:]+")


# ---------------------------------------------------------------- clips, made up and crafted


def skeleton_clip(rng: random.Random, num_frames: int, num_bodies: int, end: str = "\n") -> bytes:
    """A `.skeleton` file; bodies come and go."""
    lines = [str(num_frames)]
    for _ in range(num_frames):
        seen = [body for body in range(num_bodies) if body == 0 or rng.random() < 0.7]
        lines.append(str(len(seen)))
        for body in seen:
            lines += [f"7205759403793{body:04d} 0 1 1 1 1 0 0.0276 0.0575 2", "25"]
            lines += [
                f"{rng.gauss(body, 0.3):.7g} {rng.gauss(0, 0.5):.7g} {rng.gauss(3, 0.2):.7g} "
                "277.419 191.8218 1036.233 519.1677 -0.2059 0.0535 0.9692 -0.1239 2"
                for _ in range(25)
            ]
    return (end.join(lines) + end).encode()


def many_bodies(num_ids: int, frames_each: int) -> bytes:
    """A file in which a new body id comes every `frames_each` frames."""
    joint = "0 0 0 0 0 0 0 0 0 0 0 2\n" * 25
    frames = [f"1\nid{i // frames_each} 0\n25\n{joint}" for i in range(num_ids * frames_each)]
    return f"{len(frames)}\n{''.join(frames)}".encode()


def crafted_skeletons(rng: random.Random) -> list[bytes]:
    """Files that name huge things, or hold them."""
    good = skeleton_clip(rng, 3, 2)
    lines = good.split(b"\n")
    huge = [b"30000", b"30001", b"999999999", b"9999999999", b"9" * 5000, b"-3", b"1e9", b"3.0"]
    return [
        *(b"\n".join([count, *lines[1:]]) for count in huge),
        *(b"\n".join([lines[0], count, *lines[2:]]) for count in huge),
        *(b"\n".join([*lines[:3], count, *lines[4:]]) for count in huge),
        b"30000\n" + b"0\n" * 30000,
        b"30000\n" + good.split(b"\n", 1)[1][:-1] + b"\n0" * 29997,
        b"\n" * (ntu.MAX_LINES + 1),
        b"2\n" + b"12\n" * 500_000,
        many_bodies(199, 20),
        many_bodies(300, 1),
        many_bodies(5000, 1),
        skeleton_clip(rng, 40, 12),
        good.replace(b" ", b"\t"),
        good.replace(b" ", b" " * 400),
        good.replace(b"277.419", b"-inf"),
        good.replace(b"277.419", b"\xff"),
        good.replace(b"\n", b"\r"),
        good[:200] + b" " * 2_000_000 + good[200:],
        good[:200] + b"7" * 2_000_000 + good[200:],
        good.replace(b"7205759403793", b"7" * 100_000, 1),
        good.decode().replace("3", "\u0663").encode(),
        b"\xef\xbb\xbf" + good,
        good.decode().encode("utf-16"),
        b"RIFF\x12\x34 AVI LIST",
        b"",
    ]


def nwucla_clip(rng: random.Random, num_frames: int) -> bytes:
    """A JSON clip."""
    frames = [
        [[float(f"{rng.gauss(0, 1):.6g}") for _ in range(3)] for _ in range(20)]
        for _ in range(num_frames)
    ]
    return json.dumps({"file_name": "a01_s01_e00_v01", "skeletons": frames, "label": 1}).encode()


def crafted_nwucla(rng: random.Random) -> list[bytes]:
    """JSON that is deep, wide, or says a thing twice."""
    good = nwucla_clip(rng, 2)
    inner = good[good.index(b"[[[") : good.index(b"]]]") + 3]
    frame = inner[1 : inner.index(b"]]") + 2]
    most = nwucla.MAX_JSON_BYTES
    return [
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b'{"skeletons": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"skeletons": [' + b"[]," * (most // 3 - 20) + b"[]]}",
        b'{"skeletons": [' + b"{}," * (most // 3 - 20) + b"{}]}",
        b'{"skeletons": ' + b"1" * 2_000_000 + b"}",
        b'{"skeletons": [' + b"[1,2,3]," * 10 + b"1" * 4000 + b"]}",
        b'{"skeletons": [' + (b"[" + b"[1,2,3]," * 19 + b"[1,2,3]],") * 3000 + b"[]]}",
        b'{"skeletons": [' + b",".join([frame] * 300) + b"]}",
        good[:-1] + b', "skeletons": ' + inner + b"}",
        good.replace(b"]]]", b", 1]]]", 1),
        good.replace(inner, inner.replace(b"[", b'["', 1)),
        *(re.sub(rb"-?\d\.\d+", token, good, count=1) for token in (b"true", b"null", b'"1"')),
        *(
            re.sub(rb"-?\d\.\d+", token, good, count=1)
            for token in (b"NaN", b"-Infinity", b"1e999")
        ),
        re.sub(rb"-?\d\.\d+", b"9" * 4000, good, count=1),
        re.sub(rb"-?\d\.\d+", b"9" * 5000, good, count=1),
        good.decode().encode("utf-16"),
        b"\xef\xbb\xbf" + good,
        b" " * most + good,
        b"",
    ]


# ---------------------------------------------------------------- zips


def zip_of(
    entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED, before: bytes = b""
) -> bytes:
    """A zip of named contents; names may repeat."""
    buffer = io.BytesIO()
    buffer.write(before)
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(buffer, "a" if before else "w", method) as archive,
    ):
        warnings.simplefilter("ignore")  # of names that repeat
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return buffer.getvalue()


def patched(data: bytes, changes: dict[int, tuple[str, int]], *, local: bool = False) -> bytes:
    """A zip whose first central (or local) header has other values: offset to (format, value)."""
    result = bytearray(data)
    start = data.index(b"PK\3\4" if local else b"PK\1\2")
    for offset, (form, value) in changes.items():
        struct.pack_into("<" + form, result, start + offset, value)
    return bytes(result)


def end_patched(data: bytes, offset: int, form: str, value: int) -> bytes:
    """A zip whose end record has another value."""
    result = bytearray(data)
    struct.pack_into("<" + form, result, data.rindex(b"PK\5\6") + offset, value)
    return bytes(result)


def overlapping(clip: bytes, num_entries: int, *, same_name: bool) -> bytes:
    """Many entries in the directory, one content."""
    data = zip_of([("0000.skeleton", clip)])
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    entry = data[start:end]
    names = [b"0000" if same_name else b"%04d" % i for i in range(num_entries)]
    directory = b"".join(entry.replace(b"0000.s", name + b".s") for name in names)
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, num_entries & 0xFFFF, num_entries & 0xFFFF,
                       len(directory), start, 0)  # fmt: skip
    return data[:start] + directory + tail


def with_extra(data: bytes, extra: bytes) -> bytes:
    """A zip whose first directory entry claims 0xFFFFFFFF sizes and has this extra field."""
    most = 0xFFFFFFFF
    data = patched(data, {20: ("L", most), 24: ("L", most), 30: ("H", len(extra)), 42: ("L", most)})
    start = data.index(b"PK\1\2")
    at = start + 46 + struct.unpack_from("<H", data, start + 28)[0]
    old_end = struct.unpack_from("<L", data, data.rindex(b"PK\5\6") + 12)[0]
    return end_patched(data[:at] + extra + data[at:], 12, "L", old_end + len(extra))


def crafted_zips(rng: random.Random) -> list[bytes]:
    """Zips that leave their folder, lie about sizes, overlap, are encrypted, damaged, endless."""
    clip = skeleton_clip(rng, 2, 1)
    name = "S001C001P001R001A001.skeleton"
    good = zip_of([(name, clip), ("b/" + name, clip), ("readme.txt", b"x")])
    zeros = bytes(2 * MAX_CLIP_BYTES)
    deflated = zip_of([(name, zeros)])
    end = b"PK\5\6"
    leaving = [
        "../" + name,
        "/" + name,
        "C:\\" + name,
        "..\\" + name,
        "a/../../" + name,
        "C:" + name,
    ]
    odd = [
        ".",
        "./",
        "..",
        "/",
        "\\",
        " ",
        "a\nb",
        "x" * 60_000,
        ".hidden",
        "__MACOSX/" + name,
        ":",
    ]
    utf8 = {8: ("H", 0x800), 46: ("H", 0xFFFE)}
    return [
        zip_of([(other, clip) for other in leaving + odd]),
        zip_of([(name, clip)] * 3),
        zip_of([(name, clip), (name, clip + b"\n")]),
        deflated,
        patched(deflated, {24: ("L", 1000)}),
        patched(deflated, {24: ("L", MAX_CLIP_BYTES)}),
        patched(deflated, {24: ("L", 0)}),
        *(patched(zip_of([(name, zeros)], method), {24: ("L", 1000)}) for method in (12, 14)),
        zip_of([(name, clip)], zipfile.ZIP_BZIP2),
        zip_of([(name, clip)], zipfile.ZIP_STORED),
        patched(zip_of([(name, clip)], zipfile.ZIP_STORED), {24: ("L", MAX_CLIP_BYTES)}),
        overlapping(clip, 2, same_name=False),
        overlapping(clip, 2, same_name=True),
        overlapping(zeros[: MAX_CLIP_BYTES - 1], 1000, same_name=False),
        overlapping(b"", 50_000, same_name=True),
        *(patched(good, {8: ("H", flag)}) for flag in (1, 0x20, 0x40, 0x41, 0x800)),
        patched(good, utf8),
        patched(good, {6: ("H", 0x800), 30: ("H", 0xFFFE)}, local=True),
        *(patched(good, {10: ("H", method)}) for method in (1, 6, 9, 12, 14, 93, 97, 99)),
        patched(good, {16: ("L", 1)}),
        *(patched(good, {offset: ("L", 0xFFFFFFFF)}) for offset in (20, 24, 42)),
        *(patched(good, {offset: ("H", 0xFFFF)}) for offset in (6, 28, 30, 32)),
        patched(good, {28: ("H", 0)}),
        *(with_extra(good, struct.pack("<HHQQQ", 1, 24, *sizes)) for sizes in (
            (2**63, 2**63, 2**63), (2**64 - 1, 5, 0), (100, 100, 2**62), (len(clip), 50, 0))),
        with_extra(good, struct.pack("<HHQ", 1, 8, 5)),
        with_extra(good, struct.pack("<HH", 1, 60_000)),
        *(end_patched(good, offset, "L", value) for offset in (12, 16)
          for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF)),
        *(end_patched(good, offset, "H", 0xFFFF) for offset in (4, 6, 8, 10, 20)),
        zip_of([(name, clip)], before=b"MZ" * 5000),
        good + bytes(1000),
        good[:-30],
        good[100:],
        good.replace(name.encode(), b"\0" * len(name)),
        good.replace(end, b"PK\6\6" + struct.pack("<Q", 2**63) + b"PK\6\7" + bytes(16) + end),
        good.replace(end, b"PK\6\7" + struct.pack("<LQL", 0, 0, 2) + end),
        good[:-2] + b"\x16\0" + good[-22:],
        zip_of([]),
        b"PK\5\6" + b"\xff" * 18,
        b"PK",
    ]  # fmt: skip


# ---------------------------------------------------------------- mutation


def mutated_text(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of bytes, tokens, lines or pieces."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        before, after = data[:at], data[at:]
        match rng.choices(range(9), TEXT_WEIGHTS)[0]:
            case 0:
                data = before + changed_byte(after[:1], rng) + after[1:]
            case 1:
                data = before
            case 2:
                data = before + after[rng.randint(1, 300) :]
            case 3:
                data = before + after[: rng.randint(1, 3000)] + after
            case 4:
                token = TOKEN.search(data, at)
                if token:
                    data = data[: token.start()] + rng.choice(TOKENS) + data[token.end() :]
            case 5:
                data = before + rng.choice(PIECES) + after
            case 6:
                data = with_lines_moved(data, rng)
            case 7:
                data = with_tokens_swapped(data, at, rng)
            case _:  # a count or an early token
                lines = data.split(b"\n", 4)
                lines[rng.randrange(len(lines))] = rng.choice(TOKENS)
                data = b"\n".join(lines)
    if rng.random() < 0.002:
        at = rng.randrange(len(data) + 1)
        piece = rng.choice((b" ", b"1", b"0 ", b"\n", b"[", b"\xff"))
        data = data[:at] + piece * 500_000 + data[at:]
    return data


def changed_byte(byte: bytes, rng: random.Random) -> bytes:
    """Another byte, or the same with one bit flipped."""
    if not byte or rng.random() < 0.5:
        return bytes([rng.randrange(256)])
    return bytes([byte[0] ^ 1 << rng.randrange(8)])


def with_lines_moved(data: bytes, rng: random.Random) -> bytes:
    """A line deleted, doubled, or two exchanged."""
    lines = data.split(b"\n")
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(3):
        case 0:
            del lines[first]
        case 1:
            lines.insert(second, lines[first])
        case _:
            lines[first], lines[second] = lines[second], lines[first]
    return b"\n".join(lines)


def with_tokens_swapped(data: bytes, at: int, rng: random.Random) -> bytes:
    """Two tokens exchanged."""
    left = TOKEN.search(data, at)
    right = TOKEN.search(data, rng.randrange(left.end(), len(data) + 1)) if left else None
    if left is None or right is None:
        return data
    between = data[left.end() : right.start()]
    return data[: left.start()] + right[0] + between + left[0] + data[right.end() :]


def mutated_zip(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, mostly in the headers, where a change is not just a wrong checksum."""
    result = bytearray(data)
    headers = [match.start() for match in re.finditer(rb"PK[\1\3\5\6][\2\4\6\7]", data)]
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(len(result) + 1)
        if headers and rng.random() < 0.8:
            at = rng.choice(headers) + rng.randrange(80)
        match rng.choices(range(4), ZIP_WEIGHTS)[0]:
            case 0:
                result[at : at + 1] = changed_byte(bytes(result[at : at + 1]), rng)
            case 1:
                size = rng.choice((2, 4, 8))
                result[at : at + size] = bytes([rng.choice((0, 1, 0x7F, 0xFF, 0x80))]) * size
            case 2:
                del result[at : at + rng.choice((1, 4, 50, 1000))]
            case _:
                result[at:at] = result[at : at + rng.choice((1, 4, 50, 1000))]
    return bytes(result)
