"""Kill -9 a caption run at many moments; it must always end with an undisturbed run's bytes.

    python benchmarks/kill_caption.py --kills 50 --seed 0

Half of the kills are at events (a probe or decoded clip that comes back, a batch, a flush, a
rename; tests/captioning/numbered.py names them), half at random times from outside. The engine
reads frame and clip numbers from the pixels, so a caption of another clip or frame would show too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "tests" / "captioning" / "numbered.py"


def load_numbered() -> ModuleType:
    """The engine and the clips of the tests."""
    spec = importlib.util.spec_from_file_location("numbered", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["numbered"] = module
    spec.loader.exec_module(module)
    return module


def start(videos: Path, out: Path, *, kill_at: int) -> subprocess.Popen[str]:
    """The caption run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(videos), str(out), str(kill_at)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def bytes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of what must not depend on kills."""
    files = [*folder.glob("captions-*.arrow"), folder / "index.json", folder / "plan.arrow"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def state_of(folder: Path) -> str:
    """How far a killed run had come."""
    for name, stage in (
        ("index.json", "index written"),
        ("manifest.json", "manifest written"),
        ("captions-*.arrow", "shards being written"),
        ("journal/*.jsonl", "batches being captioned"),
        ("plan.json", "planned"),
        ("probe.jsonl", "probing"),
    ):
        if list(folder.glob(name)):
            return stage
    return "nothing written yet"


def main() -> None:
    """Make the clips, run once undisturbed, then kill and finish again and again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    numbered = load_numbered()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        videos = work / "videos"
        for clip in range(24):
            numbered.write_video(videos / f"clip-{clip}.mp4", 3 + clip * 7 % 50, clip=clip)
        began = time.monotonic()
        whole = start(videos, work / "whole", kill_at=0)
        events = whole.communicate()[0].splitlines()
        seconds = time.monotonic() - began
        assert whole.returncode == 0
        expected = bytes_of(work / "whole")
        killed: Counter[str] = Counter()
        num_wrong = num_kills = num_too_late = 0
        out = work / "out"
        while num_kills < options.kills:
            if num_kills % 2:
                process = start(videos, out, kill_at=0)
                try:
                    process.wait(rng.uniform(0.2, seconds))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                process.communicate()
                where = f"at a random time: {state_of(out)}"
            else:
                kill_at = rng.randrange(1, len(events) + 1)
                process = start(videos, out, kill_at=kill_at)
                process.communicate()
                where = " ".join(events[kill_at - 1].split()[:2])
            if process.returncode == 0:
                num_too_late += 1
                shutil.rmtree(out)
                continue
            num_kills += 1
            killed[where] += 1
            last = start(videos, out, kill_at=0)
            last.communicate()
            num_wrong += last.returncode != 0 or bytes_of(out) != expected
            shutil.rmtree(out)
        print(
            json.dumps(
                {
                    "kills": num_kills,
                    "ended before they were killed": num_too_late,
                    "runs with other bytes": num_wrong,
                    "shards": len(expected) - 2,
                    "where": dict(killed.most_common()),
                },
                indent=2,
            )
        )
        sys.exit(num_wrong > 0)


if __name__ == "__main__":
    main()
