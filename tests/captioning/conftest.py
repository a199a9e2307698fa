"""Fixtures of the captioning tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


def load_beside(name: str) -> ModuleType:
    """A module of this folder (tests are no package, so it is loaded by its path)."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def numbered() -> ModuleType:
    """tests/captioning/numbered.py"""
    return load_beside("numbered")


@pytest.fixture(scope="session")
def bad_files() -> ModuleType:
    """tests/captioning/bad_files.py"""
    return load_beside("bad_files")


@pytest.fixture(scope="session")
def clips(numbered: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nine whole clips of 3 to 43 frames; clip number i is in file `clip-i.mp4`."""
    folder = tmp_path_factory.mktemp("clips")
    for clip in range(9):
        # Lengths in another order than names.
        numbered.write_video(folder / f"clip-{clip}.mp4", 3 + (clip * 4 % 9) * 5, clip=clip)
    return folder


@pytest.fixture(scope="session")
def ntu_clip() -> Path:
    """The real NTU RGB clip: 103 frames, H.264 with B-frames and one keyframe, AVI."""
    path = SHARED / "data/ntu/videos/S001C001P001R001A001_rgb.avi"
    if not path.is_file():
        pytest.skip(f"{path} is not here; it belongs to NTU RGB+D and is not in the repository")
    return path
