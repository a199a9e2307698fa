"""Planning a million probed clips, and resuming a finished run of NTU RGB+D 120's size.

    python benchmarks/caption_scale.py plan --clips 1000000
    python benchmarks/caption_scale.py resume --clips 114480
    python benchmarks/caption_scale.py memory

Files are empty and their probes, frames and captions made up; all else is the real path: listing,
probe cache, planning with the tiny model's processor, journals, shards, index. `plan` is what
`hoc caption --plan` does once the probes are in the cache. `resume` calls a finished run again, in
a new process. `memory` runs 2,000, 8,000 and 32,000 clips and prints the peak of each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import captioning.run
from captioning.config import CaptionConfig
from captioning.decode_pool import DecodePool, Outcome
from captioning.engines.interface import EngineClip, Generated
from captioning.engines.transformers_engine import TransformersEngine
from captioning.probe import Probe
from captioning.prompt_files import Prompt
from datasets_build.progress import SilentProgress


def ntu_like_names(count: int) -> list[str]:
    """Sample names of NTU's form, all different."""
    names = []
    for number in range(count):
        number, action = divmod(number, 120)
        number, camera = divmod(number, 3)
        number, repetition = divmod(number, 2)
        setup, subject = divmod(number, 106)
        names.append(
            f"S{setup + 1:03d}C{camera + 1:03d}P{subject + 1:03d}R{repetition + 1:03d}"
            f"A{action + 1:03d}_rgb.avi"
        )
    return names


def made_up_probe(rng: random.Random) -> Probe:
    """A 1080p clip of NTU's lengths; one in a thousand is broken."""
    sha256 = f"{rng.getrandbits(256):064x}"
    if rng.random() < 0.001:
        return Probe("decode_error", "truncated: header says 90 frames, 45 decode", 10**6, sha256)
    frames = rng.randint(30, 300)
    return Probe(None, None, 10**6, sha256, "h264", True, frames, frames, 30.0, 1080, 1920)


class MadeUpEngine(TransformersEngine):
    """The tiny model's planning, with made-up captions and no weights."""

    def load(self) -> None:
        """Nothing to load."""

    def generate(self, clips: Sequence[EngineClip], prompts: Sequence[Prompt]) -> list[Generated]:
        """A sentence of the usual length for each clip."""
        answers = []
        for clip in clips:
            count = self.count_tokens(
                prompts,
                clip.frame_indices,
                fps=clip.fps,
                height=clip.frames.shape[2],
                width=clip.frames.shape[3],
            )
            answers += [
                Generated(
                    clip.sample_id,
                    prompt.prompt_id,
                    f"A person waves the right hand three times ({clip.sample_id}).",
                    tokens,
                    20,
                    "stop",
                    -0.1,
                )
                for prompt, tokens in zip(prompts, count.prompt_tokens, strict=True)
            ]
        return answers


class MadeUpPool(DecodePool):
    """Probes and frames made on the spot: nothing of the decoding is measured here."""

    def outcomes(self, calls: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Outcome]]:
        """A probe for each call."""
        rng = random.Random(0)
        for name, _ in calls:
            yield name, Outcome(made_up_probe(rng))

    def submit(self, call: object) -> int:
        """Nothing to do."""
        return 0

    def take(self, ticket: int) -> Outcome:
        """The next frames."""
        return Outcome(np.zeros((16, 3, 160, 288), np.uint8))


def config_for(folder: Path) -> CaptionConfig:
    """The default settings on the made-up files; broken ones are not tried again."""
    return CaptionConfig(
        videos=(str(folder / "videos"),),
        out=folder / "out",
        max_pixels=50176,
        num_workers=1,
        max_attempts=1,
    )


def peak_gb() -> float:
    """The most memory that this process had, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def run_once(folder: Path, *, plan_only: bool) -> dict[str, object]:
    """One call of `run`, timed with the imports that it needs."""
    began = time.monotonic()
    config = config_for(folder)
    engine = MadeUpEngine(config)
    ready_s = time.monotonic() - began
    ready_gb = peak_gb()
    captioning.run.DecodePool = MadeUpPool  # type: ignore[attr-defined,misc]
    summary = captioning.run.run(config, SilentProgress(), engine=engine, plan_only=plan_only)
    return {
        "clips": summary.num_videos,
        "was_finished": summary.was_finished,
        "seconds": round(time.monotonic() - began, 2),
        "of that, making the engine": round(ready_s, 2),
        "peak GB": round(peak_gb(), 2),
        "of that, before planning": round(ready_gb, 2),
    }


def in_new_process(folder: Path, *, plan_only: bool) -> dict[str, object]:
    """`run_once` in a fresh process, with the time that the process took as a whole."""
    began = time.monotonic()
    arguments = [sys.executable, __file__, "once", "--folder", str(folder)]
    done = subprocess.run(
        arguments + ["--plan-only"] * plan_only, check=True, capture_output=True, text=True
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result | {"seconds of the process": round(time.monotonic() - began, 2)}


def measure(folder: Path, count: int, *, plan_only: bool) -> list[dict[str, object]]:
    """Make the files, run once, and once more: with the cache alone, or with all that it left."""
    (folder / "videos").mkdir(parents=True)
    for name in ntu_like_names(count):
        (folder / "videos" / name).touch()
    first = in_new_process(folder, plan_only=plan_only)
    if plan_only:
        for path in (folder / "out").glob("plan.*"):
            path.unlink()
    return [first, in_new_process(folder, plan_only=plan_only)]


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["plan", "resume", "memory", "once"])
    parser.add_argument("--clips", type=int, default=114480)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--plan-only", action="store_true")
    options = parser.parse_args()
    if options.what == "once":
        print(json.dumps(run_once(options.folder, plan_only=options.plan_only)))
        return
    counts = [2000, 8000, 32000] if options.what == "memory" else [options.clips]
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            results = measure(Path(name) / "run", count, plan_only=options.what == "plan")
        for label, result in zip(("first call", "second call"), results, strict=True):
            print(json.dumps({label: result}, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
