"""A folder of over a hundred files that a caption run must survive, and what is to become of each.

As a program it makes the folder:
    python bad_files.py FOLDER
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import wave
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

CLIP = 9  # number of the clip that all good files show
LONG = 10_000  # frames of the longest; numbers of frames repeat after 256
CODECS = {
    "avi": ("libx264", {"x264-params": "bframes=3:mbtree=0"}),
    "mp4": ("libx264", {"x264-params": "bframes=3:mbtree=0"}),
    "mkv": ("libx264", {"x264-params": "bframes=3:mbtree=0"}),
    "webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "mov": ("mjpeg", {}),
}
NAMES = (
    *("a b", " a", "a ", "it's", 'say "a"', "`a`$HOME", "new\nline", "tab\t", "back\\slash"),
    *("-rf", "%05d", "[a]", "{a}", "*?", "a;b|c&d", "#a", "co:lon", "a=b", "a..b", "~"),
    *("\u017c\u00f3\u0142\u0107", "\u89c6\u9891", "\U0001f3ac", "e\u0301", "\u202egnp"),
    *("x" * 240, "\udcff\udcfe"),  # the last are bytes that are no UTF-8
)


class Expected(NamedTuple):
    """What the probe must say: a regular expression for the problem, or the number of frames."""

    problem: str | None
    num_frames: int | None = None
    status: str | None = "decode_error"


def good(num_frames: int) -> Expected:
    """A file that is captioned like any other."""
    return Expected(None, num_frames, None)


def make_bad_files(folder: Path, numbered: ModuleType) -> dict[str, Expected]:
    """Make the files below a folder; every name ends like a video's.

    Args:
        folder: made if it is not there.
        numbered: tests/captioning/numbered.py.

    Returns:
        For each name in the folder what is to be expected; the names differ in more than their
        extensions. One of them, "hangs.avi", takes longer than any deadline; "folder.avi" is a
        folder, and so is not found in a search.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        extension: numbered.write_video(
            folder / f"good-{extension}.{extension}", 40, clip=CLIP, codec=codec, options=options
        ).read_bytes()
        for extension, (codec, options) in CODECS.items()
    }
    return (
        {f"good-{extension}.{extension}": good(40) for extension in CODECS}
        | _nothing_of_a_video(folder)
        | _cut_short(folder, whole)
        | _under_another_extension(folder, whole)
        | _very_short_and_very_long(folder, numbered)
        | _no_files(folder)
        | _under_odd_names(folder, whole["mp4"])
    )


def _nothing_of_a_video(folder: Path) -> dict[str, Expected]:
    rng = np.random.default_rng(0)
    made = {}
    for extension in CODECS:
        (folder / f"empty-{extension}.{extension}").touch()
        made[f"empty-{extension}.{extension}"] = Expected("^the file is empty$")
        for size in (1, 100, 5_000, 100_000):
            name = f"random-{size}-{extension}.{extension}"
            (folder / name).write_bytes(rng.bytes(size))
            made[name] = Expected("^not a readable video: ")
    for name in ("sound-1.mp4", "sound-2.mkv", "sound-3.mov"):
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate = 16000
            container.mux([*stream.encode(frame), *stream.encode()])
        made[name] = Expected("^the file holds no video stream$")
    return made


def _cut_short(folder: Path, whole: dict[str, bytes]) -> dict[str, Expected]:
    problem = (
        "^(truncated: |damaged: |not a readable video: |no frame decodes$"
        "|the file holds no video stream$|the file's video codec is unknown$)"
    )
    made = {}
    for extension, data in whole.items():
        start, end = 0, len(data)
        if extension == "avi":  # the frames lie between these two; before are mostly zeros
            start, end = data.index(b"movi"), data.index(b"idx1")
        for percent in (1, 5, 10, 20, 30, 40, 50, 60, 70, 75, 80, 90):
            name = f"cut-{percent:02}-{extension}.{extension}"
            (folder / name).write_bytes(data[: start + (end - start) * percent // 100])
            made[name] = Expected(problem)
    return made


def _under_another_extension(folder: Path, whole: dict[str, bytes]) -> dict[str, Expected]:
    (folder / "mp4-as.avi").write_bytes(whole["mp4"])
    (folder / "avi-as.mkv").write_bytes(whole["avi"])
    (folder / "text-as.mp4").write_text("no video at all\n" * 100)
    (folder / "page-as.webm").write_text("<!doctype html><title>404</title><p>Not found\n" * 9)
    with zipfile.ZipFile(folder / "zip-as.mkv", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.avi", whole["avi"])
    with wave.open(str(folder / "wave-as.avi"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1000))
    picture = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    picture.save(folder / "picture-as.mp4", "png")
    return {
        "mp4-as.avi": good(40),
        "avi-as.mkv": good(40),
        "text-as.mp4": Expected("^not a readable video: "),
        "page-as.webm": Expected("^not a readable video: "),
        "zip-as.mkv": Expected("^not a readable video: "),
        "wave-as.avi": Expected("^the file holds no video stream$"),
        "picture-as.mp4": Expected("", status="any"),  # some FFmpegs take it for a video
    }


def _very_short_and_very_long(folder: Path, numbered: ModuleType) -> dict[str, Expected]:
    made = {}
    for extension, (codec, options) in CODECS.items():
        for num_frames in (1, 2):
            name = f"frames-{num_frames}-{extension}.{extension}"
            numbered.write_video(folder / name, num_frames, clip=CLIP, codec=codec, options=options)
            made[name] = good(num_frames)
    with av.open(str(folder / "long.avi"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        frames = [
            av.VideoFrame.from_ndarray(numbered.numbered_frame(i, CLIP, 32, 64), format="rgb24")
            for i in range(256)
        ]
        for number in range(LONG):
            frame = frames[number % 256]
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return made | {"long.avi": good(LONG)}


def _no_files(folder: Path) -> dict[str, Expected]:
    """What can be named like a video without being a file that one may read."""
    (folder / "folder.avi").mkdir()
    os.mkfifo(folder / "pipe.avi")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.avi"))
    (folder / "device.avi").symlink_to("/dev/zero")
    (folder / "dangling.avi").symlink_to("nowhere.avi")
    (folder / "loop.avi").symlink_to("loop.avi")
    (folder / "inside-a-file.avi").symlink_to("good-avi.avi/a.avi")
    (folder / "forbidden.avi").write_bytes((folder / "good-avi.avi").read_bytes())
    (folder / "forbidden.avi").chmod(0)
    with (folder / "hangs.avi").open("wb") as file:
        file.truncate(1 << 40)  # 1 TiB without a block on the disk: minutes only to hash it
    return {
        "folder.avi": Expected("^not a regular file but a folder$"),
        "pipe.avi": Expected("^not a regular file but a pipe$"),
        "socket.avi": Expected("^not a regular file but a socket$"),
        "device.avi": Expected("^not a regular file but a device$"),
        "dangling.avi": Expected("^the file cannot be read: FileNotFoundError: "),
        "loop.avi": Expected("^the file cannot be read: OSError: "),
        "inside-a-file.avi": Expected("^the file cannot be read: NotADirectoryError: "),
        "forbidden.avi": (
            good(40)  # root may read everything
            if os.access(folder / "forbidden.avi", os.R_OK)
            else Expected("^the file cannot be read: PermissionError: ")
        ),
        "hangs.avi": Expected(
            "^decoding took longer than [0-9.]+ s and was stopped$", None, "timeout"
        ),
    }


def _under_odd_names(folder: Path, data: bytes) -> dict[str, Expected]:
    for name in NAMES:
        (folder / f"{name}.mp4").write_bytes(data)
    return {f"{name}.mp4": good(40) for name in NAMES}


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    expected = make_bad_files(Path(sys.argv[1]), _load("numbered"))
    num_good = sum(one.problem is None for one in expected.values())
    print(f"{len(expected) - num_good} bad and {num_good} good files in {sys.argv[1]}")
