"""Memory of training on 63,026 made-up samples, and step time against the number of samples.

    python benchmarks/train_memory.py memory --steps 200
    python benchmarks/train_memory.py steps --sizes 1000 10000 63026 --rounds 60

The data set has the size of NTU120's cross-subject training split: 120 classes, 20 to 300 frames,
85 on average, a tenth with two bodies; parts of 512 rows as a build makes them. `--data` keeps it
in a folder and takes it from there the next time. `memory` runs `hoc train` with a narrow HGLNet
(`--channels`) in a process of its own until it has logged `--steps` steps, once with the joints
resident and once memory-mapped, and follows the highest resident size (VmHWM) and its parts:
anonymous memory is what the process needs; pages of a file count as resident, too, but the kernel
takes them back when memory is short. The same run on 1,000 samples tells what the anonymous memory
is for: the program (before its first step), the steps (activations, which grow with the batch and
which a GPU would hold, gradients and the optimiser), and the data (what the whole set adds).
`steps` loads subsets of the set in this process and times their steps in turn, A B C A B C: making
the batch alone, and the whole step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from build_speed import ROOT, processes_of  # beside this program
from made_up_skeletons import draw_lengths
from train_speed import OPTIM, cpu_name

from datasets_build import schema
from datasets_build.dataset import DATASET_FILE, SkeletonDataset, open_dataset
from datasets_build.joints import NTU_25
from datasets_build.manifest import environment, fingerprint, write_json
from datasets_build.protocols import NTU, PROTOCOLS
from datasets_build.shards import index_entries, write_shard
from training.build import build_model
from training.config import DataConfig, ModelConfig
from training.loading import load_split
from training.methods.classify import ClassifyMethod
from training.optim import make_optimizer
from training.seeding import seeded
from training.skeleton_data import SkeletonStore

PROTOCOL = "ntu120-xsub"
NUM_CLASSES = 120
ROWS_PER_PART = 512  # as a build
MODES = {"resident": 8.0, "mapped": 0.0}  # data.resident_gib
NUM_FEW = 1_000  # samples of the run that has next to no data
FEW_STEPS = 5  # by then its memory has stopped growing
LIGHT = {"spatial": "lse", "temporal": "ltc"}  # the cheapest switches: the data is what is measured


# --- the data set --------------------------------------------------------------------------------


def training_names() -> Iterator[tuple[str, tuple[int, int, int, int, int]]]:
    """Names of training samples, sorted, with (setup, camera, subject, repetition, action)."""
    subjects = sorted(PROTOCOLS[PROTOCOL].train_values)
    every = product(range(1, 33), (1, 2, 3), subjects, (1, 2), range(1, NUM_CLASSES + 1))
    for ids in islice(every, 0, None, 19):  # 64,269 spread over setups, subjects and classes
        setup, camera, subject, repetition, action = map(int, ids)
        name = f"S{setup:03d}C{camera:03d}P{subject:03d}R{repetition:03d}A{action:03d}"
        yield name, (setup, camera, subject, repetition, action)


def part_table(
    names: Sequence[tuple[str, tuple[int, int, int, int, int]]],
    lengths: np.ndarray,
    bodies: np.ndarray,
    rng: np.random.Generator,
) -> pa.Table:
    """Rows of DATASET_SCHEMA; a class moves the joints in its own rhythm."""
    width = NTU_25.num_joints * NTU_25.num_channels
    counts = lengths * bodies
    row = np.repeat(np.arange(len(names)), counts)
    frame = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    setup, camera, subject, repetition, action = np.array([ids for _, ids in names], np.int32).T
    swing = np.sin(frame * action[row] / 40.0).astype(np.float32)
    joints = 0.05 * rng.standard_normal((len(row), width), np.float32)
    joints += swing[:, None] * np.cos(np.arange(width, dtype=np.float32) + 1.0)
    offsets = np.concatenate([[0], np.cumsum(counts * width)]).astype(np.int32)
    values: dict[str, Any] = {
        schema.SAMPLE_ID: [name for name, _ in names],
        schema.DATASET: [NTU] * len(names),
        schema.LABEL: action - 1,
        schema.ACTION_ID: action,
        schema.SETUP_ID: setup,
        schema.CAMERA_ID: camera,
        schema.SUBJECT_ID: subject,
        schema.REPETITION_ID: repetition,
        schema.NUM_FRAMES: lengths,
        schema.NUM_BODIES: bodies,
        schema.IMAGE_WIDTH: [None] * len(names),
        schema.IMAGE_HEIGHT: [None] * len(names),
        schema.JOINTS: pa.ListArray.from_arrays(offsets, pa.array(joints.ravel())),
        schema.CAPTIONS: [[]] * len(names),
    }
    columns_of = [pa.array(values[f.name], type=f.type) for f in schema.DATASET_SCHEMA]
    return pa.Table.from_arrays(columns_of, schema=schema.DATASET_SCHEMA)


def write_dataset(folder: Path, num_samples: int) -> None:
    """The whole set, part by part."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = list(islice(training_names(), num_samples))
    if len(names) < num_samples:
        sys.exit(f"there are {len(names)} names; ask for at most as many samples")
    lengths = draw_lengths(num_samples, median=76, longest=300).astype(np.int32)
    bodies = (1 + (rng.random(num_samples) < 0.1)).astype(np.int32)
    shards = []
    for number, first in enumerate(range(0, num_samples, ROWS_PER_PART)):
        part = slice(first, first + ROWS_PER_PART)
        table = part_table(names[part], lengths[part], bodies[part], rng)
        shards.append(write_shard(folder / f"part-{number:05d}.arrow", table))
    classes = [
        {"label": label, "action_id": label + 1, "name": f"made-up action {label + 1}"}
        for label in range(NUM_CLASSES)
    ]
    record = {
        "schema_version": schema.DATASET_SCHEMA_VERSION,
        "name": "made-up",
        "format": NTU,
        "family": NTU,
        "skeleton": NTU_25.as_json(),
        "classes": classes,
        "options": {"bodies": {"second_body": "original"}},
        "counts": {"num_rows": num_samples, "num_captions": 0},
        "fingerprint": fingerprint({"shards": [shard.sha256 for shard in shards]}),
        "shards": index_entries(shards),
        "files": {},
    }
    write_json(folder / DATASET_FILE, record)


def have_dataset(folder: Path, num_samples: int) -> dict[str, float]:
    """Make the set unless it is there; its size, and the seconds that making it took."""
    began = time.perf_counter()
    if not (folder / DATASET_FILE).is_file():
        write_dataset(folder, num_samples)
    num_rows = open_dataset(folder).num_rows
    if num_rows != num_samples:
        sys.exit(f"{folder} holds {num_rows} samples, {num_samples} were asked for")
    size = sum(path.stat().st_size for path in folder.glob("part-*.arrow"))
    return {
        "samples": num_samples,
        "parts GB": round(size / 1e9, 2),
        "made in s": round(time.perf_counter() - began, 1),
    }


# --- memory --------------------------------------------------------------------------------------


def sizes_of(pid: int) -> dict[str, int]:
    """VmHWM, VmRSS, RssAnon, RssFile, RssShmem of a process, kB; empty when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split(":") for line in lines if line.startswith(("Vm", "Rss")))
    return {name: int(value.split()[0]) for name, value in fields}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file so far."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def train_for(
    data: Path, out: Path, *, resident_gib: float, channels: int, batch_size: int, steps: int
) -> dict[str, Any]:
    """`hoc train` until it has logged that many steps; its memory and its times."""
    settings = {
        "model.base_channels": channels,
        "loop.batch_size": batch_size,
        "loop.log_every_steps": 1,
        "loop.evaluate_every_epochs": 0,
        "loop.checkpoint_every_epochs": 85,
        "loop.mixed_precision": "no",
        "loop.num_threads": 1,
        "data.resident_gib": resident_gib,
        **{f"model.switches.{name}": value for name, value in LIGHT.items()},
    }
    command = [
        *(sys.executable, "-m", "cli.main", "train", "--recipe", "ntu60-xsub-hglnet"),
        *("--protocol", PROTOCOL, "--data", str(data), "--out", str(out), "--device", "cpu"),
        *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
    ]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began, wall_began = time.perf_counter(), time.time()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, start_new_session=True
    )
    peaks: dict[str, int] = {}
    first_step_s = program = None
    lines: list[dict[str, Any]] = []
    try:
        while process.poll() is None and len(lines) < steps:
            found = [sizes_of(pid) for pid in processes_of(process.pid)]
            for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem"):
                total = sum(sizes.get(name, 0) for sizes in found)
                peaks[name] = max(peaks.get(name, 0), total)
            if program is None and (out / "config.json").is_file():  # loaded, no step yet
                program = peaks["RssAnon"]
            lines = lines_of(out / "metrics.jsonl")
            if lines and first_step_s is None:
                first_step_s = time.perf_counter() - began
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    if len(lines) < steps:
        sys.exit(f"hoc train ended after {len(lines)} steps; run it by hand: {' '.join(command)}")
    loaded_s = (out / "config.json").stat().st_mtime - wall_began  # written before the first step
    return {
        "peak resident MB": round(peaks["VmHWM"] / 1e3),
        "of it, highest anonymous MB": round(peaks["RssAnon"] / 1e3),
        "anonymous MB before the first step": round((program or 0) / 1e3),
        "highest of files MB": round((peaks["RssFile"] + peaks["RssShmem"]) / 1e3),
        "s until loaded": round(loaded_s, 1),
        "s until the first step was logged": round(first_step_s or 0.0, 1),
        "ms a step, median": round(
            1e3 * batch_size / statistics.median(line["samples_per_s"] for line in lines), 1
        ),
    }


def measure_memory(
    data: Path, few: Path, work: Path, *, mode: str, channels: int, batch_size: int, steps: int
) -> dict[str, Any]:
    """`train_for` on the whole set, and by the run on a few samples what its memory is for."""
    train = partial(train_for, resident_gib=MODES[mode], channels=channels, batch_size=batch_size)
    least = train(few, work / f"{mode}-few", steps=min(steps, FEW_STEPS))
    whole = train(data, work / mode, steps=steps)
    anonymous = "of it, highest anonymous MB"
    program = least["anonymous MB before the first step"]
    parts = {
        "for the program": program,
        "for the steps": least[anonymous] - program,
        "for the data": whole[anonymous] - least[anonymous],
    }
    return {"mode": mode, "batch": batch_size, "steps": steps, **whole, "anonymous MB": parts}


# --- steps ---------------------------------------------------------------------------------------


def load(dataset: SkeletonDataset, names: Sequence[str], resident_gib: float) -> SkeletonStore:
    """A store of some of the samples."""
    config = DataConfig(dataset=dataset.folder, protocol=PROTOCOL, resident_gib=resident_gib)
    return load_split(
        dataset,
        dataset.protocol(PROTOCOL),
        "train",
        config,
        device=torch.device("cpu"),
        sample_ids=names,
    )


def measure_steps(
    data: Path,
    *,
    sizes: Sequence[int],
    modes: Sequence[str],
    channels: int,
    batch_size: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Milliseconds of a batch and of a step for every size and mode, in turn."""
    dataset = open_dataset(data)
    every = [name for t in dataset.tables([schema.SAMPLE_ID]) for name in t[0].to_pylist()]
    stores: dict[tuple[str, int], SkeletonStore] = {}
    seconds = {}
    for mode, size in product(modes, sizes):
        began = time.perf_counter()
        # spread over the whole set, so that lengths and classes are alike
        names = [every[int(i)] for i in np.linspace(0, len(every) - 1, size)]
        stores[mode, size] = load(dataset, names, MODES[mode])
        seconds[mode, size] = time.perf_counter() - began
    with seeded(0, "weights"):
        model = ModelConfig(base_channels=channels, switches=LIGHT)
        encoder = build_model(model, num_classes=NUM_CLASSES, skeleton=dataset.skeleton)
    method = ClassifyMethod(encoder).train()
    optimizer = make_optimizer(method.param_groups(OPTIM), OPTIM)
    generator = torch.Generator()
    picks = {key: store.shuffled(0, 0) for key, store in stores.items()}
    times: dict[tuple[str, int], list[tuple[float, float]]] = {
        key: [] for key in stores
    }  # batch, step
    for number in range(rounds + 2):  # the first two warm up
        for key, store in stores.items():
            start = number * batch_size % (len(store) // batch_size * batch_size)
            began = time.perf_counter()
            batch = store.batch(picks[key].part(start, start + batch_size), training=True)
            batched = time.perf_counter()
            method(batch, generator).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if number >= 2:
                times[key].append((batched - began, time.perf_counter() - began))
    rows = []
    for (mode, size), spent in times.items():
        batch_ms, step_ms = 1e3 * np.median(spent, axis=0)
        rows.append(
            {
                "mode": mode,
                "samples": size,
                "load s": round(seconds[mode, size], 1),
                "batch ms, median": round(float(batch_ms), 2),
                "step ms, median": round(float(step_ms), 1),
                "step ms, least": round(1e3 * min(step for _, step in spent), 1),
            }
        )
    return rows


def main() -> None:
    """Parse the command line, measure, print a line of JSON a result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["memory", "steps"])
    parser.add_argument("--data", type=Path, help="folder of the set, made there if absent")
    parser.add_argument("--samples", type=int, default=63_026)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 63_026])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = environment()
    about = {"commit": known["git_commit"], "cpu": cpu_name(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as name:
        data = options.data or Path(name) / "data"
        print(json.dumps(about | have_dataset(data, options.samples)), flush=True)
        if options.what == "steps":
            rows = measure_steps(
                data,
                sizes=options.sizes,
                modes=options.modes,
                channels=options.channels,
                batch_size=options.batch,
                rounds=options.rounds,
            )
            for row in rows:
                print(json.dumps(row), flush=True)
            return
        few = Path(name) / "few"
        write_dataset(few, NUM_FEW)
        for mode in options.modes:
            result = measure_memory(
                data,
                few,
                Path(name),
                mode=mode,
                channels=options.channels,
                batch_size=options.batch,
                steps=options.steps,
            )
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
