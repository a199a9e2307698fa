"""How many `.skeleton` files a second become rows, and how much memory a whole build takes.

    python benchmarks/build_speed.py files --files 5000 --rounds 5
    python benchmarks/build_speed.py memory --sizes 7110 28440 56880

Needs the real files of ../shared; the sets are made of them under new NTU names, as copies
(`files`: nothing stays in the processor's caches) or as hard links (`memory`).
`files` times, in turn: (1) file to row in one process held on one CPU: read, parse, choose bodies,
make the table; (2) a plain parser, line by line with readline, split and float, as the
original's, on the same CPU; (3) `hoc build-dataset` with one and two workers, from the
start of the process to its end. Each is given by the clock and by the CPU time it took, which
other programs disturb less. `memory` runs `hoc build-dataset` with the default settings and
follows the peak of every process (VmHWM) and the highest sum over them at one time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from datasets_build.bodies import BodySettings
from datasets_build.formats import FORMATS
from datasets_build.join import PlannedSample
from datasets_build.parts import rows_table
from datasets_build.protocols import NTU, ids_of_name, listed_missing
from datasets_build.sources import ClipFile, list_clips, read_clip

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
ROWS = 512  # as a part of a build


def real_files() -> list[bytes]:
    """The content of every real `.skeleton` file that is there, each once."""
    found = {path.stem: path.read_bytes() for path in (SHARED / "ntu/skeletons").glob("*.skeleton")}
    tar_path = SHARED / "golden" / "ntu_skeletons.tar.xz"
    if tar_path.is_file():
        with tarfile.open(tar_path) as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is not None:
                    found.setdefault(Path(member.name).stem, stream.read())
    if not found:
        sys.exit(f"no real .skeleton files in {SHARED}; this program measures with real ones only")
    return [found[name] for name in sorted(found)]


def ntu_names() -> Iterator[str]:
    """Names of NTU RGB+D 60's form that are not on the list of missing ones, sorted."""
    missing = listed_missing(NTU)
    for setup in range(1, 18):
        for camera in (1, 2, 3):
            for subject in range(1, 41):
                for repetition in (1, 2):
                    for action in range(1, 61):
                        name = (
                            f"S{setup:03d}C{camera:03d}P{subject:03d}R{repetition:03d}A{action:03d}"
                        )
                        if name not in missing:
                            yield name


def make_set(folder: Path, count: int, *, linked: bool) -> None:
    """`count` files under new names; their contents take turns, so that every part is alike."""
    folder.mkdir(parents=True)
    originals = []
    for number, data in enumerate(real_files()):
        path = folder.parent / f"original-{number}"
        path.write_bytes(data)
        originals.append(path)
    for number, name in zip(range(count), ntu_names(), strict=False):
        source, target = originals[number % len(originals)], folder / f"{name}.skeleton"
        if linked:
            os.link(source, target)
        else:
            shutil.copyfile(source, target)


def read_plainly(file: BinaryIO) -> dict[bytes, np.ndarray]:
    """Joints (T_b, 25, 3) by body id, as a plain parser gets them: line by line, word by word."""
    bodies: dict[bytes, list[list[list[float]]]] = {}
    for _ in range(int(file.readline())):
        for _ in range(int(file.readline())):
            body_id = file.readline().split()[0]
            joints = []
            for _ in range(int(file.readline())):
                words = file.readline().split()
                joints.append([float(words[0]), float(words[1]), float(words[2])])
            bodies.setdefault(body_id, []).append(joints)
    return {body_id: np.array(frames, np.float32) for body_id, frames in bodies.items()}


def files_to_rows(files: Sequence[ClipFile]) -> int:
    """What a worker does between the file system and the shard; the number of rows."""
    settings = BodySettings()
    num_rows = 0
    for first in range(0, len(files), ROWS):
        rows = []
        for file in files[first : first + ROWS]:
            ids = ids_of_name(file.stem)
            assert ids is not None
            clip = FORMATS[NTU].read(read_clip(file), settings)
            rows.append((PlannedSample(file.stem, file, ids, ids.action_id - 1, (), ()), clip))
        num_rows += rows_table(rows, NTU).num_rows
    return num_rows


def parse_plainly(files: Sequence[ClipFile]) -> int:
    """The plain parser over files."""
    for file in files:
        with (file.container / file.member).open("rb") as stream:
            read_plainly(stream)
    return len(files)


def hoc(source: Path, out: Path, *options: str) -> list[str]:
    """The command line of a build."""
    return [
        sys.executable, "-m", "cli.main", "build-dataset",
        "--skeletons", str(source), "--out", str(out), *options,
    ]  # fmt: skip


def hoc_environment() -> dict[str, str]:
    """The environment of a build: this checkout, no thread pools."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def build(source: Path, out: Path, workers: int) -> None:
    """A whole build in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    command = hoc(source, out, "--workers", str(workers))
    done = subprocess.run(command, cwd=ROOT, env=hoc_environment(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def measure_files(work: Path, count: int, rounds: int) -> dict[str, object]:
    """Files a second, each way in turn, `rounds` times."""
    source = work / "skeletons"
    make_set(source, count, linked=False)
    files = list_clips(source)
    plain = files[:: max(1, count // 500)]
    all_cpus = os.sched_getaffinity(0)
    pa.set_cpu_count(1)
    rates: dict[str, list[float]] = {}
    cpu_rates: dict[str, list[float]] = {}

    def timed(name: str, num_files: int, work: Callable[[], object]) -> None:
        began, cpu_began = time.perf_counter(), cpu_seconds()
        work()
        rates.setdefault(name, []).append(num_files / (time.perf_counter() - began))
        cpu_rates.setdefault(name, []).append(num_files / (cpu_seconds() - cpu_began))

    for _ in range(rounds):
        os.sched_setaffinity(0, {min(all_cpus)})
        timed("file to row, one core", count, lambda: files_to_rows(files))
        timed("plain parser, one core", len(plain), lambda: parse_plainly(plain))
        os.sched_setaffinity(0, all_cpus)
        timed("whole build, one worker", count, lambda: build(source, work / "out", 1))
        timed("whole build, two workers", count, lambda: build(source, work / "out", 2))
    return {
        "files": count,
        "mean kB": round(sum(file.num_bytes for file in files) / count / 1000, 1),
        "CPUs": len(all_cpus),
        "files/s, median": {name: round(statistics.median(r), 1) for name, r in rates.items()},
        "files per CPU second, median": {
            name: round(statistics.median(r), 1) for name, r in cpu_rates.items()
        },
        "files/s, all rounds": {name: [round(x, 1) for x in r] for name, r in rates.items()},
    }


def cpu_seconds() -> float:
    """CPU time of this process and of its children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def processes_of(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it ended in the meantime
                continue
            if int(fields[2]) == group:
                found.append(int(path.name))
    return found


def memory_of(pid: int) -> tuple[int, int]:
    """(highest, present) resident size of a process, kB; zeros when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Vm")}
    return sizes.get("VmHWM", 0), sizes.get("VmRSS", 0)


def measure_memory(work: Path, count: int) -> dict[str, object]:
    """The peaks of one build with the default settings."""
    source, out = work / f"skeletons-{count}", work / f"out-{count}"
    make_set(source, count, linked=True)
    began = time.perf_counter()
    command = hoc(source, out, "--json")
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=hoc_environment(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    peaks: dict[int, int] = {}
    highest_sum = 0
    try:
        while process.poll() is None:
            now = {pid: memory_of(pid) for pid in processes_of(process.pid)}
            peaks |= {pid: max(peaks.get(pid, 0), peak) for pid, (peak, _) in now.items()}
            highest_sum = max(highest_sum, sum(present for _, present in now.values()))
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    seconds = time.perf_counter() - began
    assert process.stdout is not None
    summary = json.loads(process.stdout.read())
    size = sum(path.stat().st_size for path in out.glob("part-*.arrow"))
    shutil.rmtree(source)
    shutil.rmtree(out)
    parent = peaks.pop(process.pid)
    return {
        "files": count,
        "rows": summary["num_rows"],
        "seconds": round(seconds, 1),
        "files/s": round(count / seconds, 1),
        "parts GB": round(size / 1e9, 2),
        "parent MB": round(parent / 1e3),
        "others MB": sorted((round(peak / 1e3) for peak in peaks.values()), reverse=True),
        "sum of the peaks MB": round((parent + sum(peaks.values())) / 1e3),
        "highest sum at one time MB": round(highest_sum / 1e3),
    }


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["files", "memory"])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[7110, 28440, 56880])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.what == "files":
            print(json.dumps(measure_files(Path(name), options.files, options.rounds), indent=2))
            return
        for count in options.sizes:
            print(json.dumps(measure_memory(Path(name) / str(count), count), indent=2), flush=True)


if __name__ == "__main__":
    main()
