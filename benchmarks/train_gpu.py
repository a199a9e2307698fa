"""Training on one GPU: samples a second with data included, memory, and the share of the limits.

    python benchmarks/train_gpu.py                                  # one H200: under 8 minutes
    python benchmarks/train_gpu.py --device cpu --samples 256 --batches 8 --channels 8  # smoke test

A made-up store of NTU60's size and shape (64 frames, 25 joints, 2 bodies, 60 classes) lies on the
device. First the checks: 50 steps in bf16 must lower the loss, and the logits of the weights so
found must agree on the GPU (bf16, fp32) with those on the CPU in fp32. Then ways to take the same
step, most important first, a line of JSON each as it comes: eager, torch.compile's modes (as
loop.compile has them), and a CUDA graph captured over forward and backward; and training/loop.py
itself. What does not begin within `--budget-s` is left out and named. With $OUT set, the lines, and
tables of the kernels of one eager and one compiled step, are files there.

The limits are those of step_limits.py: matrix products over `--tflops`, bytes over `--tbytes`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from made_up_skeletons import SHAPES, data_config, made_up_store  # beside this program
from step_limits import count, limit_seconds, reached_limits, seconds_of, synchronize
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from train_speed import cpu_name

from datasets_build.manifest import environment
from datasets_build.progress import SilentProgress
from training.build import MODELS, build_model
from training.config import LoopConfig, ModelConfig, OptimConfig
from training.execution import compile_encoder, make_accelerator
from training.loop import fit
from training.methods.classify import ClassifyMethod
from training.optim import make_optimizer
from training.seeding import seeded
from training.skeleton_data import SkeletonBatch, SkeletonStore

SHAPE = SHAPES["ntu"]
OPTIM = OptimConfig(lr=0.02, warmup_epochs=0)
MAX_ERROR = {"fp32": 5e-3, "bf16": 0.1}  # |GPU - CPU| / |CPU| of logits; fp32 convolutions use TF32


@dataclass(frozen=True)
class Way:
    """One way to take a training step: "eager", "graph", or a mode of torch.compile."""

    model: str
    precision: str
    how: str
    batch: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.model}/{self.precision}/{self.how}/{self.batch}"


@dataclass
class Report:
    """Prints lines of JSON as they come and keeps them in $OUT."""

    began: float = field(default_factory=time.perf_counter)
    lines: list[dict[str, Any]] = field(default_factory=list)
    has_failed: bool = False

    @property
    def folder(self) -> Path | None:
        """$OUT, if it is set."""
        return Path(os.environ["OUT"]) if os.environ.get("OUT") else None

    @property
    def spent_s(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.began

    def add(self, line: dict[str, Any]) -> None:
        """One result."""
        self.lines.append({**line, "at s": round(self.spent_s, 1)})
        text = json.dumps(self.lines[-1])
        print(text, flush=True)
        if self.folder is not None:
            with (self.folder / "train_gpu.jsonl").open("a") as file:
                file.write(text + "\n")

    def save(self, name: str, text: str) -> None:
        """A table for $OUT; printed where there is none."""
        if self.folder is None:
            print(text, flush=True)
        else:
            (self.folder / name).write_text(text)


# --- trainers ------------------------------------------------------------------------------------


class Trainer:
    """A method, its optimiser and the made-up store: takes steps."""

    def __init__(self, way: Way, store: SkeletonStore, channels: int) -> None:
        self.way = way
        self.store = store
        self.device = store.device
        with seeded(0, "weights"):
            config = ModelConfig(name=way.model, base_channels=channels)
            encoder = build_model(config, num_classes=SHAPE.num_classes, skeleton=SHAPE.skeleton)
        self.method = ClassifyMethod(encoder).to(self.device).train()
        self.optimizer = make_optimizer(self.method.param_groups(OPTIM), OPTIM)
        self.generator = torch.Generator(self.device)
        self.picks = store.shuffled(0, 0)
        self.at = 0
        self.fixed = self.batch()
        if way.how == "graph":
            self._capture()
        elif way.how != "eager":
            compile_encoder(self.method, way.how)

    def batch(self) -> SkeletonBatch:
        """The next batch, made from the ragged clips."""
        size = self.way.batch
        start = self.at % (len(self.picks) // size) * size
        self.at += 1
        return self.store.batch(self.picks.part(start, start + size), training=True)

    def backward(self, batch: SkeletonBatch) -> Tensor:
        """Forward and backward; the loss."""
        dtype = torch.bfloat16 if self.way.precision == "bf16" else torch.float32
        with torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=dtype == torch.bfloat16,
            cache_enabled=self.way.how != "graph",  # a captured cast must be made at each replay
        ):
            loss: Tensor = self.method(batch, self.generator).loss
        loss.backward()
        return loss.detach()

    def step(self, batch: SkeletonBatch) -> Tensor:
        """A whole training step; the loss."""
        if self.way.how == "graph":
            self.fixed.x.copy_(batch.x)
            self.fixed.label.copy_(batch.label)
            self.graph.replay()
            self.optimizer.step()
            return self.loss
        if self.way.how == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        loss = self.backward(batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _capture(self) -> None:
        """Record forward and backward of the fixed batch; gradients lie in the graph's memory."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.backward(self.fixed)
                self.optimizer.zero_grad()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.backward(self.fixed)


# --- what is run ---------------------------------------------------------------------------------


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError within it once that long has passed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"given up after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1.0))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def check(trainer: Trainer) -> dict[str, Any]:
    """50 steps lower the loss; logits then agree with the CPU's in fp32."""
    losses = [trainer.step(trainer.batch()) for _ in range(50)]
    first, last = (float(torch.stack(part).mean()) for part in (losses[:10], losses[-10:]))
    method = trainer.method.eval()
    batch = trainer.store.batch(trainer.store.picks(trainer.picks.index[:32]), training=False)

    def logits_on(device: torch.device, precision: str) -> Tensor:
        method.to(device)
        moved = SkeletonBatch(batch.x.to(device), batch.label, batch.sample_key)
        enabled = precision == "bf16"
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            return method.predict(moved).float().cpu()

    here = {precision: logits_on(trainer.device, precision) for precision in MAX_ERROR}
    right = logits_on(torch.device("cpu"), "fp32")
    errors = {name: float((x - right).norm() / right.norm()) for name, x in here.items()}
    is_right = last < 0.95 * first and all(errors[name] < MAX_ERROR[name] for name in errors)
    return {
        "check": trainer.way.model,
        "loss of steps 1-10": round(first, 3),
        "loss of steps 41-50": round(last, 3),
        "error of logits": {name: float(f"{error:.2g}") for name, error in errors.items()},
        "same top-1 in bf16": float((here["bf16"].argmax(1) == right.argmax(1)).float().mean()),
        "passed": is_right,
    }


def measure(trainer: Trainer, limits: dict[str, float]) -> dict[str, Any]:
    """The line of one way."""
    device, size = trainer.device, trainer.way.batch
    began = time.perf_counter()
    trainer.step(trainer.batch())
    synchronize(device)
    first_s = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    whole_s = seconds_of(lambda: trainer.step(trainer.batch()), device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    step_s = seconds_of(lambda: trainer.step(trainer.fixed), device)
    line = {
        "way": trainer.way.name,
        "samples/s, data included": round(size / whole_s, 1),
        "samples/s, fixed batch": round(size / step_s, 1),
        "ms a step": round(1e3 * whole_s, 2),
        "first step s": round(first_s, 1),
        "peak GB": round(peak / 1e9, 2),
    }
    line |= {
        f"share of {name}": float(f"{seconds * size / whole_s:.3g}")
        for name, seconds in limits.items()
    }
    return line


def kernels(trainer: Trainer) -> str:
    """The table of what a few steps spend their time on."""
    on_gpu = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    for _ in range(3):
        trainer.step(trainer.batch())
    synchronize(trainer.device)
    with profile(activities=activities) as profiler:
        for _ in range(3):
            trainer.step(trainer.batch())
        synchronize(trainer.device)
    averages = profiler.key_averages()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    busy_ms = sum(getattr(event, key) for event in averages) / 3e3
    table = averages.table(sort_by=key, row_limit=40, max_name_column_width=90)
    return f"{trainer.way.name}: kernels take {busy_ms:.2f} ms a step\n{table}\n"


def run_loop(model: str, compile_mode: str, store: SkeletonStore, options: Any) -> dict[str, Any]:
    """training/loop.py itself: one epoch in bf16; the median rate of its own metrics."""
    loop = LoopConfig(
        epochs=1,
        batch_size=options.batches[0],
        mixed_precision="bf16",
        log_every_steps=20,
        device=store.device.type,  # type: ignore[arg-type]
        compile=compile_mode,  # type: ignore[arg-type]
    )
    trainer = Trainer(Way(model, "bf16", "eager", loop.batch_size), store, options.channels)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            trainer.method,
            store,
            optim=OPTIM,
            loop=loop,
            accelerator=make_accelerator(loop, store.device),
            folder=Path(folder),
            request={},
            progress=SilentProgress(),
        )
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["samples_per_s"] for line in lines]
    return {
        "loop": f"{model}/bf16/{compile_mode}/{loop.batch_size}",
        "samples/s, median of its metrics": round(statistics.median(rates), 1),
        "samples/s, whole epoch with the first step": round(result.samples_per_s, 1),
        "epoch s": round(result.seconds, 2),
        "last": {name: round(value, 3) for name, value in result.last.items()},
    }


def plan(models: list[str], batches: list[int]) -> list[Way | tuple[str, str]]:
    """Ways, and (model, compile mode) of the loop, most important first."""
    small = batches[0]
    ways: list[Way | tuple[str, str]] = []
    for model in models:
        ways += [Way(model, "bf16", how, n) for how in ("eager", "graph") for n in batches]
        ways += [Way(model, "bf16", "default", n) for n in batches]
        ways += [(model, "no"), (model, "default")]
    for model in models:
        ways += [Way(model, "fp32", "eager", small), Way(model, "bf16", "reduce-overhead", small)]
    for n in batches:
        ways += [Way(model, "bf16", "max-autotune-no-cudagraphs", n) for model in models]
    return ways


def run_all(options: argparse.Namespace, report: Report) -> None:
    """Checks, then the plan until the time is spent."""
    device = torch.device(options.device)
    models = [name for name in options.models if name in MODELS]
    store = made_up_store(
        SHAPE, num_samples=options.samples, config=data_config(SHAPE), device=device
    )
    rates = {"TFLOP/s": options.tflops, "TB/s": options.tbytes} | reached_limits(device)
    known = environment()
    report.add(
        {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
            "torch": torch.__version__,
            "commit": options.commit or known["git_commit"],
            "samples": len(store),
            "left out": [name for name in options.models if name not in MODELS],
        }
        | {name: round(value, 3) for name, value in rates.items()}
    )
    counted: dict[str, dict[str, float]] = {}  # of a model's bf16 step at the first batch size
    for model in models:
        trainer = Trainer(Way(model, "bf16", "eager", options.batches[0]), store, options.channels)
        result = check(trainer)
        report.has_failed |= not result["passed"]
        report.add(result)
    for model in models:
        trainer = Trainer(Way(model, "bf16", "eager", options.batches[0]), store, options.channels)
        counted[model] = count(partial(trainer.step, trainer.fixed), trainer.method)
        per_sample = {k: v / options.batches[0] / 1e6 for k, v in counted[model].items()}
        report.add(
            {"counts": model} | {f"{k} a sample, M": round(v, 1) for k, v in per_sample.items()}
        )
    for item in plan(models, options.batches):
        left_s = options.budget_s - report.spent_s
        name = item.name if isinstance(item, Way) else f"loop {'/'.join(item)}"
        if left_s < 5:
            report.add({"left out, no time": name})
            continue
        try:
            with at_most(min(left_s, options.each_s)):
                if isinstance(item, Way):
                    limits = limit_seconds(counted[item.model], options.batches[0], rates)
                    is_profiled = item.model == models[0] and item.batch == options.batches[0]
                    run_way(item, store, options, report, limits=limits, is_profiled=is_profiled)
                else:
                    report.add(run_loop(*item, store, options))
        except Exception as error:
            report.has_failed = True
            report.add({"failed": name, "error": f"{type(error).__name__}: {str(error)[:300]}"})
            traceback.print_exc()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def run_way(
    way: Way,
    store: SkeletonStore,
    options: argparse.Namespace,
    report: Report,
    *,
    limits: dict[str, float],
    is_profiled: bool,
) -> None:
    """One way's line; of the first model's main ways also the kernels."""
    if store.device.type != "cuda" and way.how not in ("eager", "default"):
        return  # the other ways are CUDA's
    trainer = Trainer(way, store, options.channels)
    report.add(measure(trainer, limits if way.precision == "bf16" else {}))
    if is_profiled and way.precision == "bf16" and way.how in ("eager", "default"):
        report.save(f"kernels-{way.model}-{way.how}.txt", kernels(trainer))


def main() -> None:
    """Parse the command line and run; exits 1 where a check or a way failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["hglnet", "ctrgcn"])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--samples", type=int, default=40_091, help="NTU60's training split")
    parser.add_argument("--budget-s", type=float, default=450.0)
    parser.add_argument("--each-s", type=float, default=120.0, help="at most, of one way")
    parser.add_argument("--tflops", type=float, default=990.0, help="H200: dense bf16")
    parser.add_argument("--tbytes", type=float, default=4.8, help="H200: memory, TB/s")
    parser.add_argument("--commit", help="where the program runs without its git history")
    options = parser.parse_args()
    report = Report()
    run_all(options, report)
    sys.exit(int(report.has_failed))


if __name__ == "__main__":
    main()
