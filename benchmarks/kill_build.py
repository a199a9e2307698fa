"""Kill -9 a build at many moments; it must always end with an undisturbed build's bytes.

    python benchmarks/kill_build.py --kills 30 --files 4000 --seed 0

Each round starts `hoc build-dataset` with two workers, kills it once, and runs the same command
again at once until it ends: part files, left_out.parquet, README.md and dataset.json (without
"environment") must be those of a build that nobody disturbed, and no other file may be left. A
build that hangs for two minutes is counted as a failure, too. Some of the source files are broken,
so that parts are made anew for them and the list has lines. One round in five kills while the build
is planned (from its first look into the source), one in five between the last part and
dataset.json; the others kill at moments spread over the whole build. In turn the whole process
group is killed, the parent alone, or one worker alone (the parent while there is no worker).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from build_speed import ROOT, hoc, hoc_environment, make_set, processes_of  # beside this program

ROWS_A_PART = 512  # the default
WHO = ("group", "parent", "worker")
MAX_S = 120.0  # for a build to end, and for one that lost a worker to notice


@dataclass(frozen=True)
class Stage:
    """How far a build had come when it was killed."""

    name: str
    num_parts: int

    def __str__(self) -> str:
        return f"{self.name} ({self.num_parts} parts in the journal)"


@dataclass(frozen=True)
class Build:
    """The build that is killed."""

    source: Path
    out: Path
    num_files: int

    @property
    def num_parts(self) -> int:
        """Parts of the finished data set."""
        return -(-self.num_files // ROWS_A_PART)

    def start(self) -> subprocess.Popen[str]:
        """The command in a process group of its own."""
        options = ["--name", "killed", "--workers", "2", "--allow", "unreadable"]
        return subprocess.Popen(
            hoc(self.source, self.out, *options),
            cwd=ROOT,
            env=hoc_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def stage(self) -> Stage:
        """What the folder tells."""
        try:
            journal = (self.out / "build-journal.jsonl").read_bytes()
        except OSError:
            journal = b""
        num_parts = len(set(re.findall(rb'"number": (\d+)', journal)))
        if (self.out / "dataset.json").is_file():
            return Stage("dataset.json written", num_parts)
        if num_parts == self.num_parts:
            return Stage("after the last part", num_parts)
        if (self.out / "left_out.parquet").is_file():  # written once the plan is made
            return Stage("reading skeletons", num_parts)
        return Stage("starting or planning", 0)

    def content(self) -> dict[str, str]:
        """SHA-256 of every file; of dataset.json without "environment"."""
        result = {}
        for path in self.out.rglob("*"):
            if path.is_dir():
                continue
            data = path.read_bytes()
            if path.name == "dataset.json":
                record = json.loads(data)
                del record["environment"]
                data = json.dumps(record).encode()
            result[str(path.relative_to(self.out))] = hashlib.sha256(data).hexdigest()
        return result


def kill(process: subprocess.Popen[str], who: str, rng: random.Random) -> str:
    """Kill it; which of WHO it was."""
    if who == "group":
        os.killpg(process.pid, signal.SIGKILL)
        return who
    workers = [pid for pid in processes_of(process.pid) if is_worker(pid)]
    if who == "worker" and workers:
        os.kill(rng.choice(workers), signal.SIGKILL)
        return who
    process.kill()
    return "parent"


def is_worker(pid: int) -> bool:
    """Whether a process is a worker of the pool: not the command, not multiprocessing's tracker."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def has_open(pid: int, folder: Path) -> bool:
    """Whether a process has a folder open at this moment, to list it."""
    try:
        return any(os.readlink(link) == str(folder) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it closed a file in the meantime, or ended
        return False


def ended(process: subprocess.Popen[str]) -> str | None:
    """Wait for a build: what it says on stderr, None where it hung and had to be killed."""
    try:
        return process.communicate(timeout=MAX_S)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Look every millisecond, as long as the process lives."""
    while process.poll() is None and not condition():
        time.sleep(0.001)


def killed_once(
    build: Build, number: int, *, duration_s: float, rng: random.Random
) -> tuple[str, Stage, bool] | None:
    """Start and kill a build: who was killed, when, and whether the rest of it hung.

    None where it ended before it was killed.
    """
    process = build.start()
    if number % 5 == 0:
        wait_until(lambda: has_open(process.pid, build.source), process)
        time.sleep(rng.uniform(0, 0.1))
    elif number % 5 == 1:
        wait_until(lambda: build.stage().name == "after the last part", process)
        time.sleep(rng.uniform(0, 0.02))
    else:
        time.sleep(rng.uniform(0, 1) * duration_s)
    if process.poll() is not None:
        process.communicate()
        return None
    who = kill(process, WHO[number % len(WHO)], rng)
    stage = build.stage()
    if number % 5 == 0 and stage.name == "starting or planning":
        stage = Stage("planning", 0)
    has_hung = ended(process) is None  # a parent that lost a worker says so and ends
    return (who, stage, has_hung) if process.returncode else None


def finished(build: Build) -> str | None:
    """Run the command until it ends; what went wrong, None if nothing."""
    process = build.start()
    errors = ended(process)
    if errors is None:
        return "hung"
    return f"exit {process.returncode}: {errors[-500:]}" if process.returncode else None


def main() -> None:
    """Make the files, build once undisturbed, then kill and finish again and again."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    problems = []
    stages: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        build = Build(Path(name) / "skeletons", Path(name) / "out", options.files)
        make_set(build.source, options.files, linked=True)
        for path in sorted(build.source.iterdir())[100 :: ROWS_A_PART * 3]:
            data = path.read_bytes()
            path.unlink()  # it is a link
            path.write_bytes(data[: len(data) // 2])
        began = time.monotonic()
        wrong = finished(build)
        duration_s = time.monotonic() - began
        if wrong:
            sys.exit(f"the undisturbed build failed: {wrong}")
        expected = build.content()
        print(f"undisturbed: {duration_s:.1f} s, {len(expected)} files", flush=True)
        num_kills = num_too_late = 0
        while num_kills < options.kills:
            shutil.rmtree(build.out)
            killed = killed_once(build, num_kills, duration_s=duration_s, rng=rng)
            if killed is None:
                num_too_late += 1
                build.out.mkdir(exist_ok=True)
                continue
            num_kills += 1
            who, stage, has_hung = killed
            wrong = finished(build)
            content = build.content()
            names = {
                n for n in content.keys() | expected.keys() if content.get(n) != expected.get(n)
            }
            verdict = wrong or (f"other bytes: {sorted(names)}" if names else "same bytes")
            if has_hung:
                verdict = f"hung after the kill; then {verdict}"
            print(f"{num_kills:3} {who:7} {stage!s:50} {verdict}", flush=True)
            stages[f"{stage.name}, {who}"] += 1
            if verdict != "same bytes":
                problems.append(verdict)
    print(json.dumps({"kills": num_kills, "ended before": num_too_late, **stages}, indent=2))
    print(f"builds that hung, failed or ended with other bytes: {len(problems)}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
