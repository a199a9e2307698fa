"""Milliseconds a sample of training and of evaluation on the CPU, beside the original CTR-GCN.

    python benchmarks/train_speed.py --original ../CTR-GCN --threads 2
    python benchmarks/train_speed.py --shape ntu --with-data --rounds 5
    python benchmarks/train_speed.py --profile ctrgcn/fp32

`--original` names a checkout of github.com/Uason-Chen/CTR-GCN; nothing is copied from it. A program
is NAME/PRECISION or NAME/PRECISION/compile, with NAME one of "original", "ctrgcn" and "hglnet".

Each is a process of its own, as its users have it: ours keep freed memory, as `hoc train` does on
the CPU; the original has glibc's own settings, or with `--same-memory` ours. They take turns, A B C
A B C: a time is the median over the rounds, a ratio the median of the ratios of each round. Where
other programs disturb, the least of the rounds and its ratio tell more (on one thread the CPU time,
too). A training step is forward, backward and the optimiser's step as the loop has them (method,
fused SGD with Nesterov momentum), for the original as its main.py has them. `--with-data` adds to
our steps the making of the batch from ragged clips (crop, resize, rotation); of the original no
such cost is counted, as its loader runs in other processes. Without `--original` ratios are to
figures measured for it once (`Shape`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from made_up_skeletons import SHAPES, Shape, data_config, made_up_store  # beside this program
from torch import nn
from torch.profiler import ProfilerActivity, profile

from datasets_build.manifest import environment
from training.build import MODELS, build_model
from training.config import ModelConfig, OptimConfig
from training.execution import compile_encoder, keep_freed_memory
from training.methods.classify import ClassifyMethod
from training.optim import make_optimizer
from training.seeding import seeded

PROGRAMS = ("original/fp32", "ctrgcn/fp32", "ctrgcn/bf16", "hglnet/fp32", "hglnet/bf16")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
OPTIM = OptimConfig(lr=1e-3)  # small: random clips teach nothing, and the time is the same
NUM_SAMPLES = 512  # of the made-up store
NUM_WARM = 2  # steps before the first round


@dataclass(frozen=True)
class Program:
    """One way to train: what a round calls."""

    name: str
    train_step: Callable[[], None]
    eval_step: Callable[[], None]


# --- programs ------------------------------------------------------------------------------------


def autocast(precision: str) -> torch.autocast:
    """Mixed precision of the CPU, or none."""
    return torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "fp32")


def original_model(checkout: Path, shape: Shape) -> nn.Module:
    """The original's model, imported from its checkout."""
    if not (checkout / "model" / "ctrgcn.py").is_file():
        sys.exit(f"{checkout} has no model/ctrgcn.py; give a checkout of Uason-Chen/CTR-GCN")
    sys.path.insert(0, str(checkout))
    try:
        importlib.import_module(shape.graph.rpartition(".")[0])
        module = importlib.import_module("model.ctrgcn")
        model: nn.Module = module.Model(
            num_class=shape.num_classes,
            num_point=shape.skeleton.num_joints,
            num_person=shape.skeleton.num_bodies,
            graph=shape.graph,
        )
    except (ImportError, AttributeError) as error:
        sys.exit(f"the original in {checkout} cannot be imported here: {error!r}")
    return model


def original_program(name: str, checkout: Path, shape: Shape, batch: int) -> Program:
    """The original's training step on a batch of its own layout, (N, C, T, V, M)."""
    precision = name.split("/")[1]
    model = original_model(checkout, shape)
    skeleton = shape.skeleton
    x = torch.randn(batch, 3, shape.num_frames, skeleton.num_joints, skeleton.num_bodies)
    label = torch.arange(batch) % shape.num_classes
    optimizer = torch.optim.SGD(
        model.parameters(), lr=OPTIM.lr, momentum=0.9, nesterov=True, weight_decay=4e-4
    )

    def train_step() -> None:
        model.train()
        with autocast(precision):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def eval_step() -> None:
        model.eval()
        with torch.no_grad(), autocast(precision):
            model(x)

    return Program(name, train_step, eval_step)


def our_program(name: str, shape: Shape, batch: int, *, with_data: bool) -> Program:
    """Our training step, as training/loop.py has it in one process."""
    model_name, precision, *rest = name.split("/")
    store = made_up_store(
        shape, num_samples=NUM_SAMPLES, config=data_config(shape), device=torch.device("cpu")
    )
    with seeded(0, "weights"):
        encoder = build_model(
            ModelConfig(name=model_name), num_classes=shape.num_classes, skeleton=shape.skeleton
        )
    method = ClassifyMethod(encoder)
    optimizer = make_optimizer(method.param_groups(OPTIM), OPTIM)
    if rest == ["compile"]:
        compile_encoder(method, "default")  # of the training pass alone, as in the loop
    generator = torch.Generator()
    picks = store.shuffled(0, 0)
    fixed = store.batch(picks.part(0, batch), training=True)
    at = 0

    def train_step() -> None:
        nonlocal at
        method.train()
        chosen = fixed
        if with_data:
            start = at % (len(picks) // batch) * batch
            chosen = store.batch(picks.part(start, start + batch), training=True)
            at += 1
        with autocast(precision):
            loss = method(chosen, generator).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def eval_step() -> None:
        method.eval()
        chosen = store.batch(picks.part(0, batch), training=False) if with_data else fixed
        with torch.no_grad(), autocast(precision):
            method.predict(chosen)

    return Program(name, train_step, eval_step)


def make_program(name: str, options: argparse.Namespace) -> Program:
    """A program, for the process that runs it."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape = SHAPES[options.shape]
    is_original = name.startswith("original")
    if options.same_memory or not is_original:
        keep_freed_memory()
    if is_original:
        return original_program(name, options.original, shape, options.batch)
    return our_program(name, shape, options.batch, with_data=options.with_data)


def known_programs(names: Sequence[str], *, has_original: bool) -> list[str]:
    """The programs that can be had, in the order asked for; says what it leaves out."""
    known = []
    for name in names:
        model_name = name.split("/")[0]
        if model_name == "original" and not has_original:
            print(f"{name} left out: no --original; ratios are to the published figures")
        elif model_name not in ("original", *MODELS):
            print(f"{name} left out: models are {', '.join(MODELS)}")
        else:
            known.append(name)
    if not known:
        sys.exit("no program is left to time")
    return known


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Milliseconds a sample, by the clock and by the CPU time of all threads."""

    clock: float
    cpu: float


def timed(call: Callable[[], None], times: int, batch: int) -> Spent:
    """The mean of a few calls."""
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(times):
        call()
    scale = 1000.0 / times / batch
    return Spent((time.perf_counter() - began) * scale, (time.process_time() - cpu_began) * scale)


def serve(name: str, options: argparse.Namespace, pipe: Connection) -> None:
    """Run a program in this process: warm it, then a turn of "train" or "eval" when asked."""
    program = make_program(name, options)
    for _ in range(NUM_WARM):
        program.train_step()
        program.eval_step()
    pipe.send(None)
    while what := pipe.recv():
        call = program.train_step if what == "train" else program.eval_step
        pipe.send(timed(call, options.steps, options.batch))


def measure(names: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, list[Spent]]]:
    """For "train" and "eval": what each program spent in each round."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(name, options, theirs), daemon=True).start()
        theirs.close()
        try:
            pipes[name].recv()
        except EOFError:
            sys.exit(f"{name} ended before its first turn")
    spent: dict[str, dict[str, list[Spent]]] = {"train": {}, "eval": {}}
    for _ in range(options.rounds):
        for name, pipe in pipes.items():
            for what, by_name in spent.items():
                pipe.send(what)
                by_name.setdefault(name, []).append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(None)
    return spent


def summary(spent: Sequence[Spent], base: Sequence[Spent]) -> dict[str, float]:
    """The numbers of one program beside those of the base in the same rounds."""
    clock, other = [x.clock for x in spent], [x.clock for x in base]
    values = {
        "ms/sample": statistics.median(clock),
        "least ms/sample": min(clock),
        "CPU ms/sample": statistics.median(x.cpu for x in spent),
        "times as fast": statistics.median(b / a for a, b in zip(clock, other, strict=True)),
        "times as fast, least": min(other) / min(clock),
    }
    return {name: round(value, 2) for name, value in values.items()}


def print_profile(program: Program) -> None:
    """The operators that take most of one training step."""
    for _ in range(NUM_WARM):
        program.train_step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        program.train_step()
    table = profiler.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=48
    )
    print(f"one training step of {program.name}\n{table}", flush=True)


def cpu_name() -> str:
    """The processor as /proc/cpuinfo names it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def main() -> None:
    """Parse the command line, measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--original", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="nw-ucla")
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="a program and round")
    parser.add_argument("--with-data", action="store_true")
    parser.add_argument("--profile", nargs="+", default=[], metavar="PROGRAM")
    parser.add_argument("--same-memory", action="store_true", help="the original keeps it, too")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    names = known_programs(
        options.profile or options.programs, has_original=options.original is not None
    )
    if options.profile:
        for name in names:
            print_profile(make_program(name, options))
        return
    spent = measure(names, options)
    base_name = next((name for name in names if name.startswith("original")), None)
    published = {"train": shape.published_train_ms, "eval": shape.published_eval_ms}
    result: dict[str, dict[str, dict[str, float]]] = {}
    print("ms/sample, median (least; times as fast as the original by median, by least)")
    print(f"{'':20}{'training':>34}{'evaluation':>34}")
    if base_name is None:
        print(f"{'original, published':20}{published['train']:34.1f}{published['eval']:34.1f}")
    for name in names:
        result[name] = {}
        shown = []
        for what, by_name in spent.items():
            ours = by_name[name]
            base = by_name[base_name] if base_name else [Spent(published[what], 0.0)] * len(ours)
            row = result[name][what] = summary(ours, base)
            shown.append(
                f"{row['ms/sample']:.1f} ({row['least ms/sample']:.1f}; "
                f"{row['times as fast']:.2f}x, {row['times as fast, least']:.2f}x)"
            )
        print(f"{name:20}{shown[0]:>34}{shown[1]:>34}")
    known = environment()
    record = {
        "commit": known["git_commit"],
        "cpu": cpu_name(),
        "cpus": known["num_cpus"],
        "torch": torch.__version__,
        "threads": options.threads,
        "shape": options.shape,
        "batch": options.batch,
        "rounds": options.rounds,
        "with_data": options.with_data,
        "same_memory": options.same_memory,
        "compared_with": base_name or "published figures",
        "programs": result,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
