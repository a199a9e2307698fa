"""Small real inputs: seeded skeletons as `.skeleton` text, JSON clips, caption runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datasets_build import schema
from datasets_build.manifest import write_json
from datasets_build.shards import index_entries, write_shard

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of shared real data; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real data is not there: {SHARED}")
    return SHARED


def _body(rng: np.random.Generator, num_frames: int, motion_m: float) -> np.ndarray:
    """(T, 25, 3): an upright cloud of joints that walks `motion_m` far in all."""
    pose = rng.uniform((-0.2, -0.8, 2.8), (0.2, 0.8, 3.2), (25, 3))
    path = np.linspace(0, motion_m, num_frames)[:, None, None] * np.array([1.0, 0.0, 0.2])
    return pose + path + rng.normal(0, 0.005, (num_frames, 25, 3))


@pytest.fixture
def body() -> Callable[..., np.ndarray]:
    """Makes (T, 25, 3) joints from a generator, a length and a way in metres."""
    return _body


def _text(num_frames: int, bodies: Mapping[str, tuple[Sequence[int], np.ndarray]]) -> bytes:
    """A `.skeleton` file: for each body id the frames that show it and its joints there."""
    lines = [str(num_frames)]
    for frame in range(num_frames):
        seen = [
            (i, list(frames).index(frame), j)
            for i, (frames, j) in bodies.items()
            if frame in frames
        ]
        lines.append(str(len(seen)))
        for body_id, row, joints in seen:
            lines += [f"{body_id} 0 1 1 1 1 0 0.02 0.05 2", "25"]
            lines += [
                f"{x:.7g} {y:.7g} {z:.7g} 277.4 191.8 1036.2 519.1 -0.2 0.05 0.97 -0.12 2"
                for x, y, z in joints[row]
            ]
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture
def skeleton_text() -> Callable[..., bytes]:
    """Writes the text of a `.skeleton` file."""
    return _text


@pytest.fixture
def ntu_folder(tmp_path: Path) -> Callable[..., Path]:
    """Fills a folder with one-body clips of the given sample_ids, (frames) long."""

    def make(names: Sequence[str], *, num_frames: int = 6, folder: str = "skeletons") -> Path:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        for number, name in enumerate(names):
            joints = _body(np.random.default_rng(number), num_frames, 1.0)
            text = _text(num_frames, {"7205": (range(num_frames), joints)})
            (path / f"{name}.skeleton").write_bytes(text)
        return path

    return make


@pytest.fixture
def caption_run(tmp_path: Path) -> Callable[..., Path]:
    """A finished caption run: rows of (sample_id, status, caption, prompt_id, num_frames)."""

    def make(
        rows: Sequence[tuple[str, str, str | None, str, int | None]], name: str = "run"
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        table = pa.Table.from_pylist(
            [
                {
                    schema.SAMPLE_ID: sample_id,
                    schema.STATUS: status,
                    schema.CAPTION: caption,
                    schema.PROMPT_ID: prompt_id,
                    schema.NUM_FRAMES: num_frames,
                    schema.SOURCE: schema.SOURCE_VIDEO,
                    schema.REQUEST_KEY: f"{name}-{sample_id}-{prompt_id}",
                }
                for sample_id, status, caption, prompt_id, num_frames in rows
            ],
            schema=schema.CAPTION_SCHEMA,
        )
        shard = write_shard(folder / "captions-00000.arrow", table)
        write_json(folder / "index.json", {"shards": index_entries([shard])})
        return folder

    return make


@pytest.fixture
def nwucla_json() -> Callable[..., bytes]:
    """Writes the text of a NW-UCLA clip from (T, 20, 3) joints."""

    def make(joints: np.ndarray, name: str = "a01_s01_e00_v01") -> bytes:
        frames = [[[float(f"{x:.6g}") for x in joint] for joint in frame] for frame in joints]
        return json.dumps({"file_name": name, "skeletons": frames, "label": 1}).encode()

    return make
