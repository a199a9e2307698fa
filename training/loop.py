"""The one training loop: epochs, precision, accumulation, schedule, log, checkpoint, resume.

What is optimised belongs to a method (training/methods). A step never waits for the device: sums
and the first non-finite loss are kept there and read once every `log_every_steps` steps.

Stopping points are ends of epochs. Everything that a step draws comes from (seed, epoch, step) or
(seed, epoch, sample_id), so a run that was killed and started again ends with the same weights as
one that was not, bit for bit where the kernels are deterministic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from datasets_build.manifest import write_json
from datasets_build.progress import Progress
from training.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from training.config import LoopConfig, OptimConfig
from training.methods.method import Method, StepOutput, copy_state
from training.metrics import MetricsLog
from training.optim import AveragedWeights, lr_factor, make_optimizer, set_lr
from training.seeding import derived_seed, seeded
from training.skeleton_data import Picks, SkeletonStore

NONFINITE_FILE = "nonfinite.json"
_NONE_BAD = 2**62  # stands for "no step" where the smallest step is looked for


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or no number; the message names the step and what was saved."""


@dataclass(frozen=True)
class LoopResult:
    """How a run ended.

    Attributes:
        epochs: epochs finished, over all starts.
        steps: optimiser steps, over all starts.
        resumed_from: epoch that this start began after; 0 for a fresh run.
        seconds: wall time of this start.
        samples_per_s: training samples a second of this start, without evaluation and checkpoints.
        last: the last line of training metrics.
    """

    epochs: int
    steps: int
    resumed_from: int
    seconds: float
    samples_per_s: float
    last: dict[str, float]


def make_accelerator(config: LoopConfig, device: torch.device) -> Accelerator:
    """An Accelerator for this run; one process, or the one of several that `torchrun` started.

    Raises:
        ValueError: the batch cannot be parted over the processes.
    """
    # Accelerate remembers the first precision and device of a process; a second run in the same
    # process (a notebook, a test, a sweep) has its own.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulation,
    )
    parts = accelerator.num_processes * config.accumulation
    if config.batch_size % parts:
        raise ValueError(
            f"loop.batch_size {config.batch_size} cannot be parted over "
            f"{accelerator.num_processes} processes x {config.accumulation} accumulated parts; "
            f"give a multiple of {parts}"
        )
    return accelerator


def fit(
    method: Method,
    store: SkeletonStore,
    *,
    optim: OptimConfig,
    loop: LoopConfig,
    accelerator: Accelerator,
    folder: Path,
    request: Mapping[str, Any],
    progress: Progress,
    evaluate: Callable[[Method], dict[str, float]] | None = None,
) -> LoopResult:
    """Train a method on a store until the last epoch, from its checkpoint where there is one.

    Args:
        method: on the accelerator's device.
        store: the training split.
        optim: optimiser and schedule.
        loop: the loop's settings.
        accelerator: from make_accelerator.
        folder: run folder; metrics.jsonl and last/ are written there.
        request: what decides the weights; saved with every checkpoint.
        progress: told of every logged step.
        evaluate: scores a method for the log, every `evaluate_every_epochs`.

    Raises:
        NonFiniteLossError: the loss is infinite or no number.
        OSError: a checkpoint could not be written.
    """
    return _Fit(method, store, optim, loop, accelerator, folder, request, progress, evaluate).run()


class _Fit:
    """The state of one call of `fit`."""

    def __init__(
        self,
        method: Method,
        store: SkeletonStore,
        optim: OptimConfig,
        loop: LoopConfig,
        accelerator: Accelerator,
        folder: Path,
        request: Mapping[str, Any],
        progress: Progress,
        evaluate: Callable[[Method], dict[str, float]] | None,
    ) -> None:
        self.method = method
        self.store = store
        self.optim = optim
        self.loop = loop
        self.accelerator = accelerator
        self.folder = folder
        self.request = request
        self.progress = progress
        self.evaluate = evaluate
        self.steps_per_epoch = store.num_picks // loop.batch_size
        self.part_size = loop.batch_size // (accelerator.num_processes * loop.accumulation)
        self.step = 0
        self.first_epoch = 0
        self.timed_s = 0.0
        self.timed_samples = 0
        self.last: dict[str, float] = {}
        # Plain optimiser: the method is already on the device, and its state is restored there.
        self.optimizer = make_optimizer(method.param_groups(optim), optim)
        self.average = (
            None
            if loop.ema_decay is None
            else AveragedWeights(method.saved_state(), loop.ema_decay)
        )
        self._resume()
        self.call, self.stepper = accelerator.prepare(method, self.optimizer)
        self._resume_scaler()
        if loop.compile:
            self.call = torch.compile(self.call)
        self.log: MetricsLog | None = None

    def run(self) -> LoopResult:
        """All epochs that are left."""
        started = time.perf_counter()
        loop = self.loop
        if self.accelerator.is_main_process:
            self.log = MetricsLog(self.folder, tensorboard=loop.tensorboard)
            self.log.keep_until(self.step)
        left = (loop.epochs - self.first_epoch) * self.steps_per_epoch * loop.batch_size
        self.progress.start("train", left, unit="samples")
        try:
            for epoch in range(self.first_epoch, loop.epochs):
                with seeded(loop.seed, "epoch", epoch, self.accelerator.process_index):
                    self._train_epoch(epoch)
                is_last = epoch + 1 == loop.epochs
                if is_last or (epoch + 1) % loop.checkpoint_every_epochs == 0:
                    self._save(epoch + 1)
                if loop.evaluate_every_epochs and (epoch + 1) % loop.evaluate_every_epochs == 0:
                    self._evaluate(epoch)
        finally:
            if self.log is not None:
                self.log.close()
        self.progress.finish()
        return LoopResult(
            epochs=loop.epochs,
            steps=self.step,
            resumed_from=self.first_epoch,
            seconds=time.perf_counter() - started,
            samples_per_s=self.timed_samples / self.timed_s if self.timed_s else 0.0,
            last=self.last,
        )

    def _train_epoch(self, epoch: int) -> None:
        loop = self.loop
        self.method.train()
        picks = self.store.shuffled(loop.seed, epoch)
        sums = _Sums(self.store.device)
        before = time.perf_counter()
        for within in range(self.steps_per_epoch):
            factor = lr_factor(
                self.optim,
                step=self.step,
                steps_per_epoch=self.steps_per_epoch,
                epochs=loop.epochs,
            )
            set_lr(self.optimizer, factor)
            chosen = picks.part(within * loop.batch_size, (within + 1) * loop.batch_size)
            self._train_step(chosen, epoch, sums)
            self.step += 1
            if self.step % loop.log_every_steps == 0 or within + 1 == self.steps_per_epoch:
                means = self._read(sums, picks, epoch)
                now = time.perf_counter()
                num_samples = sums.num_steps * loop.batch_size
                self.timed_s += now - before
                self.timed_samples += num_samples
                self._report(epoch, means, factor, num_samples / (now - before))
                self.progress.advance(
                    num_samples, note=f"epoch {epoch + 1}/{loop.epochs} {_shown(means)}"
                )
                before = time.perf_counter()
                sums = _Sums(self.store.device)

    def _train_step(self, picks: Picks, epoch: int, sums: _Sums) -> None:
        """One optimiser step over all parts of this process."""
        rank, loop = self.accelerator.process_index, self.loop
        generator = torch.Generator(self.store.device)
        generator.manual_seed(derived_seed(loop.seed, "step", self.step, rank))
        for part in range(loop.accumulation):
            start = (rank * loop.accumulation + part) * self.part_size
            batch = self.store.batch(
                picks.part(start, start + self.part_size),
                seed=loop.seed,
                epoch=epoch,
                training=True,
            )
            is_last = part + 1 == loop.accumulation
            waits = nullcontext() if is_last else self.accelerator.no_sync(self.call)
            with waits:
                output: StepOutput = self.call(batch, generator)
                self.accelerator.backward(output.loss)  # divides by the number of parts
            sums.add(self.step, output)
        if self.optim.clip_norm is not None:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            self.accelerator.clip_grad_norm_(trained, self.optim.clip_norm)
        self.stepper.step()
        self.stepper.zero_grad()
        sums.num_steps += 1
        if self.average is not None:
            self.average.update(self.method.saved_state())

    def _read(self, sums: _Sums, picks: Picks, epoch: int) -> dict[str, float]:
        """Means over the steps since the last reading; stops the run if a loss was not finite."""
        totals = self.accelerator.reduce(sums.values(), reduction="mean")
        # Each process has its own first bad step; the smallest counts.
        bad_step = int(self.accelerator.gather(sums.first_bad.reshape(1)).min())
        if bad_step < _NONE_BAD:
            self._stop(bad_step, picks, epoch)
        return dict(zip(sums.names, totals.tolist(), strict=True))

    def _stop(self, step: int, picks: Picks, epoch: int) -> None:
        size = self.loop.batch_size
        within = step - epoch * self.steps_per_epoch
        index = picks.index[within * size : (within + 1) * size]
        path = self.folder / NONFINITE_FILE
        if self.accelerator.is_main_process:
            record = {
                "epoch": epoch,
                "step": step,
                "seed": self.loop.seed,
                "sample_ids": [self.store.sample_ids[i] for i in index],
            }
            write_json(path, record)
        raise NonFiniteLossError(
            f"the loss is not finite at step {step} (epoch {epoch + 1}); the ids of its "
            f"{len(index)} samples are in {path}, the last checkpoint is whole: lower optim.lr, "
            "set optim.clip_norm, or use loop.mixed_precision = no"
        )

    def _report(self, epoch: int, means: dict[str, float], factor: float, rate: float) -> None:
        self.last = {f"train/{name}": value for name, value in means.items()}
        self.last |= {"lr": self.optim.lr * factor, "samples_per_s": rate}
        if self.log is not None:
            self.log.write({"epoch": epoch, "step": self.step, **self.last})

    def _evaluate(self, epoch: int) -> None:
        """Score the weights that would be saved; only the main process works, the others wait."""
        if self.evaluate is not None and self.accelerator.is_main_process:
            with self._averaged():
                values = self.evaluate(self.method)
            assert self.log is not None, "the main process has the log"
            self.log.write({"epoch": epoch, "step": self.step, **values})
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within it the method has the averaged weights, if there are any."""
        if self.average is None:
            yield
            return
        raw = {name: value.clone() for name, value in self.method.saved_state().items()}
        self.method.load_saved_state(self.average.tensors)
        try:
            yield
        finally:
            self.method.load_saved_state(raw)

    def _save(self, epochs: int) -> None:
        if self.accelerator.is_main_process:
            state, optimizer = pack_optimizer(self.optimizer)
            weights = self.method.saved_state()
            numbers: dict[str, Any] = {"optimizer": optimizer}
            if self.accelerator.scaler is not None:
                numbers["scaler"] = self.accelerator.scaler.state_dict()
            if self.average is not None:
                state |= {f"weights/{name}": value for name, value in weights.items()}
                weights = self.average.tensors
                numbers["num_average_updates"] = self.average.num_updates
            save_checkpoint(
                self.folder,
                Checkpoint(epochs, self.step, self.request, weights, state, numbers),
            )
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        self.saved_scaler: dict[str, Any] | None = None
        if not has_checkpoint(self.folder):
            return
        saved = load_checkpoint(self.folder)
        weights = saved.weights
        if self.average is not None:
            copy_state(self.average.tensors, weights, what="the checkpoint")
            self.average.num_updates = saved.numbers["num_average_updates"]
            weights = {
                key.removeprefix("weights/"): value
                for key, value in saved.state.items()
                if key.startswith("weights/")
            }
        self.method.load_saved_state(weights)
        unpack_optimizer(self.optimizer, saved.state, saved.numbers["optimizer"])
        self.saved_scaler = saved.numbers.get("scaler")
        self.first_epoch, self.step = saved.epoch, saved.step

    def _resume_scaler(self) -> None:
        if self.saved_scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.saved_scaler)


class _Sums:
    """Sums of losses and metrics on the device since the last reading."""

    def __init__(self, device: torch.device) -> None:
        self.names: list[str] = []
        self.num_steps = 0
        self._num_parts = 0
        self._total: Tensor | None = None
        self.first_bad = torch.tensor(_NONE_BAD, device=device)

    def add(self, step: int, output: StepOutput) -> None:
        """Take in one part of one step, without waiting for the device."""
        loss = output.loss.detach()
        self.names = ["loss", *output.metrics]
        values = torch.stack([loss.float(), *(v.float() for v in output.metrics.values())])
        self._total = values if self._total is None else self._total + values
        self._num_parts += 1
        is_new = ~torch.isfinite(loss) & (self.first_bad == _NONE_BAD)
        self.first_bad = torch.where(is_new, step, self.first_bad)

    def values(self) -> Tensor:
        """Means, in the order of `names`, on the device."""
        assert self._total is not None, "read after at least one step"
        return self._total / self._num_parts


def _shown(means: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in means.items())
