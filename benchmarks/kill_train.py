"""Kill -9 a training run at many moments; it must always end with an undisturbed run's weights.

    python benchmarks/kill_train.py --kills 20 --seed 0

The run is small, but has all that could be forgotten by a resume: dropout, captions drawn anew each
epoch, averaged weights, accumulated parts, checkpoints within epochs, evaluations. It is killed one
to three times (at random moments, or while a checkpoint is being written, which is looked for every
millisecond) and the same command is given again until it ends. Then last/model.safetensors and
last/state.safetensors must have the undisturbed run's bytes, and metrics.jsonl and train.json its
numbers (without times).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("seconds", "samples_per_s", "resumed_from")  # of train.json, and of metric lines
MAX_S = 300.0  # for a run to end
RECIPE = """
[data]
protocol = "ntu60-xsub"
num_frames = 16
[model]
base_channels = 8
switches = { dropout = 0.2 }
[method]
name = "hocslm"
language_model = "LANGUAGE_MODEL"
hidden = 32
prompt_length = 2
max_caption_tokens = 12
[optim]
name = "sgd"
lr = 0.02
warmup_epochs = 1
[loop]
epochs = 6
batch_size = 8
accumulation = 2
ema_decay = 0.9
log_every_steps = 2
checkpoint_every_minutes = 0.001
checkpoint_every_epochs = 3
evaluate_every_epochs = 2
device = "cpu"
num_threads = 1
deterministic = true
"""


def load_made_up_data() -> ModuleType:
    """The data set and the language model of the tests."""
    path = ROOT / "tests" / "training" / "conftest.py"
    spec = importlib.util.spec_from_file_location("training_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(work: Path, out: Path) -> subprocess.Popen[str]:
    """The training command."""
    command = ["train", "--data", "data", "--recipe", "recipe.toml", "--out", str(out), "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *command],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_of(out: Path) -> dict[str, Any]:
    """All that must not depend on kills."""
    weights = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (out / "last").glob("*.safetensors")
    }
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((out / "train.json").read_text())
    for values in (*lines, summary):
        for name in TIMES:
            values.pop(name, None)
    names = sorted(path.name for path in out.iterdir())
    return {**weights, "metrics.jsonl": lines, "train.json": summary, "files": names}


def state_of(out: Path) -> str:
    """How far a killed run had come."""
    last = out / "last"
    if (out / "train.json").exists():
        return "train.json written"
    if (out / "last.tmp").exists():
        return "while a checkpoint was written"
    if (out / "last.old").exists():
        return "while checkpoints changed places" if last.exists() else "between two renames"
    if last.exists():
        return "after the first checkpoint"
    return "in the first steps" if (out / "config.json").exists() else "before the first step"


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Look every millisecond, as long as the process lives."""
    while process.poll() is None and not condition():
        time.sleep(0.001)


def num_lines(out: Path) -> int:
    """Metric lines written so far."""
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def kill_once(
    work: Path, out: Path, *, kind: int, all_lines: int, rng: random.Random
) -> str | None:
    """Start and kill the run: how far it was; None where it ended before."""
    process = start(work, out)
    line = rng.randrange(all_lines + 1)
    if kind < 2:
        wait_until(lambda: num_lines(out) >= line, process)
    if kind == 0:
        wait_until((out / "last.tmp").exists, process)
        delay_s = rng.uniform(0, 0.01)
    else:
        delay_s = rng.uniform(0, 1 if kind == 1 else 20)  # from the start: imports, data, model
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    return state_of(out) if process.returncode else None


def main() -> None:
    """Make the data, train once undisturbed, then kill and finish again and again."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    made_up = load_made_up_data()
    where: Counter[str] = Counter()
    problems = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        made_up.build_dataset(work / "data", repetitions=6)
        model = made_up.build_language_model(work / "language-model")
        (work / "recipe.toml").write_text(RECIPE.replace("LANGUAGE_MODEL", str(model)))
        whole = start(work, work / "whole")
        said = whole.communicate(timeout=MAX_S)[1]
        if whole.returncode:
            sys.exit(f"the undisturbed run failed: {said}")
        expected = end_of(work / "whole")
        all_lines = len(expected["metrics.jsonl"])
        print(f"undisturbed: {all_lines} metric lines", flush=True)
        num_kills = num_rounds = num_too_late = 0
        out = work / "out"
        while num_kills < options.kills:
            places = []
            for _ in range(rng.randrange(1, 4)):
                place = kill_once(work, out, kind=num_kills % 3, all_lines=all_lines, rng=rng)
                if place is None:
                    num_too_late += 1
                    break
                places.append(place)
                num_kills += 1
            where.update(places)
            last = start(work, out)
            said = last.communicate(timeout=MAX_S)[1]
            found = end_of(out) if not last.returncode else {}
            wrong = [key for key in expected if found.get(key) != expected[key]]
            verdict = "the same end" if not wrong else f"another end: {wrong} {said[-500:]}"
            if places:
                num_rounds += 1
                print(f"{num_kills:3} {'; '.join(places)}: {verdict}", flush=True)
            problems += wrong
            shutil.rmtree(out)
    print(json.dumps({"kills": num_kills, "runs": num_rounds, "ended before": num_too_late}))
    print(json.dumps(where, indent=2))
    print(f"runs that failed or ended otherwise: {len(problems)}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
