"""The one training loop: epochs, precision, accumulation, schedule, log, checkpoint, evaluation.

What is optimised belongs to a method (training/methods); what it changes and how that is saved to
run_state.py. Everything that a step draws comes from (seed, step) or (seed, epoch, sample_id), the
latter with another seed in each stage of a chain of runs, and a checkpoint is saved at the end of
an epoch or at a logged step within one: a run that was killed and started again ends with the
weights and metric lines of one that was not, bit for bit where the kernels are deterministic.

A step never waits for the device (but for a look of transformers' at the positions of packed
captions). Losses stay there and are read once every `log_every_steps`. A
loss that is not finite must not spoil the weights until then, so the decision to skip is made on
the device: the loss is multiplied by a guard, 1 until a loss is not finite and nan from then on, so
that every gradient becomes nan (on all processes, whose gradients are averaged); and the fused
optimisers skip a step whose `found_inf` is 1, the input that gradient scalers use. See replay.py.

Several processes (`torchrun`) share a batch: process r of n takes the r-th of n equal parts, and
accumulation cuts each of these again, so that n processes and n accumulated parts make the same
step. Batch norms see one part: batch statistics are those of the process and part (as in plain
DDP), running statistics and evaluation those of the first process; with `sync_batch_norm` they are
those of the parts of all processes together, so that n processes make the step of one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from datasets_build.progress import Progress
from training.checkpoint import STAGE_KEY, has_checkpoint
from training.config import LoopConfig, OptimConfig
from training.execution import compile_encoder
from training.methods.method import Method, StepOutput
from training.metrics import MetricsLog, metric_label
from training.optim import lr_factor, set_lr
from training.replay import save_bad_step
from training.run_state import RunState
from training.seeding import derived_seed, seed_step, seeded
from training.skeleton_data import Picks, SkeletonBatch, SkeletonStore
from training.termination import EXIT_CODE, noted_sigterm
from training.trackers import open_trackers
from training.window import NONE_BAD, Window


class NonFiniteLossError(FloatingPointError):
    """The loss became infinite or no number; the message names the step and what was saved."""


@dataclass(frozen=True)
class LoopResult:
    """How a run ended.

    Attributes:
        epochs: epochs finished, over all starts.
        steps: optimiser steps, over all starts.
        resumed_from: optimiser steps that were done when this start began; 0 for a fresh run.
        seconds: wall time of this start.
        samples_per_s: training samples a second of this start, without evaluation and checkpoints;
            0 where no step was left.
        last: the last training metrics, and those of the last evaluation.
    """

    epochs: int
    steps: int
    resumed_from: int
    seconds: float
    samples_per_s: float
    last: dict[str, float]


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
    evaluate: Callable[[Method, int], dict[str, float]] | None = None,
) -> LoopResult:
    """Train a method on a store until the last epoch, from its checkpoint where there is one.

    Args:
        method: on the accelerator's device.
        store: the training split.
        optim: optimiser and schedule.
        loop: the loop's settings.
        accelerator: from make_accelerator.
        folder: run folder; metrics.jsonl and last/ are written there, by the first process.
        request: what decides the weights; saved with every checkpoint.
        progress: told of every logged step.
        evaluate: scores a method for the log, every `evaluate_every_epochs` and after the last
            epoch; told of the epochs trained by then. Only the first process calls it.

    Raises:
        SystemExit: SIGTERM came; a checkpoint is saved.
        NonFiniteLossError: the loss or its gradient is infinite or no number.
        ValueError: the checkpoint is of another model, or a tracker is not installed.
        OSError: a checkpoint could not be written.
    """
    return _Fit(method, store, optim, loop, accelerator, folder, request, progress, evaluate).run()


class _Fit:
    """One call of `fit`."""

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
        evaluate: Callable[[Method, int], dict[str, float]] | None,
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
        # What starts from a trained run does not see that run's views and batches again.
        stage = request.get(STAGE_KEY, 0)
        self.seed = derived_seed(loop.seed, STAGE_KEY, stage) if stage else loop.seed
        self.rank = accelerator.process_index
        self.steps_per_epoch = store.num_picks // loop.batch_size
        self.num_parts = accelerator.num_processes * loop.accumulation
        self.timed_s = 0.0
        self.timed_samples = 0
        # The method is already on the device, and its state is restored there.
        self.state = RunState(
            method,
            optim=optim,
            loop=loop,
            scaler=accelerator.scaler,
            num_processes=accelerator.num_processes,
        )
        self.state.restore(folder)
        self._refuse_other_steps()
        self.call, self.stepper = accelerator.prepare(method, self.state.optimizer)
        self.trained = [p for g in self.state.optimizer.param_groups for p in g["params"]]
        if loop.compile != "no":
            compile_encoder(method, loop.compile)
        self.generator = torch.Generator(store.device)
        self.guard = torch.ones((), device=store.device)
        self.log: MetricsLog | None = None
        self.last_save_s = time.monotonic()
        self.is_save_due = False
        self.is_stop_due = False

    def run(self) -> LoopResult:
        """All epochs that are left."""
        started = time.perf_counter()
        loop, state = self.loop, self.state
        first_step = state.step
        if self.accelerator.is_main_process:
            trackers = open_trackers(
                self.folder,
                tensorboard=loop.tensorboard,
                name=loop.tracker,
                step=state.step,
                config=self.request,
            )
            self.log = MetricsLog(self.folder, step=state.step, trackers=trackers)
        total = loop.epochs * self.steps_per_epoch
        left = total - state.step
        if state.step:
            epoch = min(state.step // self.steps_per_epoch + 1, loop.epochs)
            where = f"step {state.step} of {total} (epoch {epoch} of {loop.epochs})"
            self.progress.message(f"{self.folder}: going on from {where}")
        self.progress.start("train", left * loop.batch_size, unit="samples")
        try:
            # Each step has a seed of its own.
            with seeded(loop.seed, "steps"), noted_sigterm() as self.is_stop_asked:
                for epoch in range(state.epoch, loop.epochs):
                    self._train_epoch(epoch)
                    self._end_epoch(epoch)
        finally:
            if self.log is not None:
                self.log.close()
        self.progress.finish()
        return LoopResult(
            epochs=loop.epochs,
            steps=state.step,
            resumed_from=first_step,
            seconds=time.perf_counter() - started,
            samples_per_s=self.timed_samples / self.timed_s if self.timed_s else 0.0,
            last={**state.metrics, **state.evaluation},
        )

    def _refuse_other_steps(self) -> None:
        """Refuse processes that found different checkpoints; all have read when it returns."""
        own = torch.tensor([self.state.step], device=self.store.device)
        steps = self.accelerator.gather(own).tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes found different checkpoints in {self.folder}: of steps "
                f"{', '.join(map(str, steps))}; give an --out on a disk that all of them see"
            )

    def _train_epoch(self, epoch: int) -> None:
        """The steps of an epoch that are left, with a line of metrics every so often."""
        loop, state = self.loop, self.state
        end = (epoch + 1) * self.steps_per_epoch
        self.method.train()
        picks = self.store.shuffled(self.seed, epoch)
        own = range(self.rank * loop.accumulation, (self.rank + 1) * loop.accumulation)
        parts = (self._part(picks, step, part) for step in range(state.step, end) for part in own)
        batches = self.store.batches(parts, seed=self.seed, epoch=epoch, training=True)
        window = Window(state.step)
        while state.step < end:
            factor = lr_factor(
                self.optim,
                step=state.step,
                steps_per_epoch=self.steps_per_epoch,
                epochs=loop.epochs,
            )
            set_lr(state.optimizer, factor)
            self._train_step(batches, window)
            state.step += 1
            if state.step % loop.log_every_steps == 0 or state.step == end:
                self._read(window, picks, epoch)
                self._report(window, epoch)
                # At the end of an epoch: after its evaluation, for which a SIGTERM leaves no time.
                is_urgent = self.is_stop_due and self._is_evaluated(epoch)
                if self.is_save_due and (state.step < end or is_urgent):
                    self._save(epoch)
                    self._leave_if_asked()
                window = Window(state.step)

    def _train_step(self, batches: Iterator[SkeletonBatch], window: Window) -> None:
        """One optimiser step over all parts of this process."""
        loop, accelerator, state = self.loop, self.accelerator, self.state
        seed_step(self.generator, loop.seed, step=state.step, rank=self.rank)
        if loop.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # gradients of all parts belong together
        for part in range(loop.accumulation):
            is_last = part + 1 == loop.accumulation
            with nullcontext() if is_last else accelerator.no_sync(self.call):
                output: StepOutput = self.call(next(batches), self.generator)
                self._watch(output.loss.detach())
                accelerator.backward(output.loss * self.guard)  # divides by the number of parts
            window.add(output)
        if self.optim.clip_norm is not None:
            norm = accelerator.clip_grad_norm_(self.trained, self.optim.clip_norm)
        elif state.scaler is None:
            norm = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        if state.scaler is None:  # a scaler skips infinite gradients itself and lowers its scale
            self._watch(norm)
            state.optimizer.found_inf = torch.isnan(self.guard).float()  # type: ignore[attr-defined]
        window.guards.append(self.guard)
        self.stepper.step()
        self.stepper.zero_grad()
        if state.average is not None:
            state.average.update()

    def _watch(self, value: Tensor) -> None:
        """Make the guard nan from the first value on that is not finite, without waiting."""
        self.guard = torch.where(torch.isfinite(value), self.guard, math.nan)

    def _part(self, picks: Picks, step: int, part: int) -> Picks:
        """One of the equal parts of a step, those of process 0 first."""
        size = self.loop.batch_size // self.num_parts
        start = step % self.steps_per_epoch * self.loop.batch_size + part * size
        return picks.part(start, start + size)

    def _read(self, window: Window, picks: Picks, epoch: int) -> None:
        """Wait for the device: means of the window, whether to fail, to save, to stop."""
        minutes = self.loop.checkpoint_every_minutes
        is_due = bool(minutes) and time.monotonic() - self.last_save_s >= 60 * minutes
        means = self.accelerator.reduce(window.means(), reduction="mean").tolist()
        window.seconds = time.perf_counter() - window.began
        self.state.metrics = {
            f"train/{name}": value for name, value in zip(window.names, means, strict=True)
        }
        # Each process has its own first bad step and clock; the smallest step and the first
        # process's clock count.
        # A SIGTERM counts whichever process it came to.
        bad = window.first_bad()
        own = torch.stack([bad, *bad.new_tensor([is_due, self.is_stop_asked()])])
        rows = self.accelerator.gather(own[None]).tolist()
        self.is_stop_due = any(row[2] for row in rows)
        self.is_save_due = bool(rows[0][1]) or self.is_stop_due
        bad_step = min(row[0] for row in rows)
        if bad_step < NONE_BAD:
            self._stop(bad_step, picks, epoch)

    def _stop(self, step: int, picks: Picks, epoch: int) -> None:
        """Save what a replay of a step needs, and end the run."""
        where = self.folder
        if self.accelerator.is_main_process:
            parts = [self._part(picks, step, part) for part in range(self.num_parts)]
            where = save_bad_step(
                self.folder,
                self.method,
                list(self.store.batches(parts, seed=self.seed, epoch=epoch, training=True)),
                epoch=epoch,
                step=step,
                sample_ids=[[self.store.sample_ids[i] for i in part.index] for part in parts],
                num_processes=self.accelerator.num_processes,
            )
        self.accelerator.wait_for_everyone()
        saved = "The last checkpoint is whole" if has_checkpoint(self.folder) else "None was saved"
        todo = "lower optim.lr, set optim.clip_norm"
        if self.loop.mixed_precision != "no":
            todo += ", or use loop.mixed_precision = no"
        raise NonFiniteLossError(
            f"the loss or its gradient is not finite at step {step} (epoch {epoch + 1}); the "
            f"batch, weights and seed are in {where}: `hoc replay {self.folder}` tells where the "
            f"first such number arises. {saved}: {todo}"
        )

    def _report(self, window: Window, epoch: int) -> None:
        num_samples = len(window.guards) * self.loop.batch_size
        self.timed_s += window.seconds
        self.timed_samples += num_samples
        state = self.state
        for group in state.optimizer.param_groups:
            state.metrics[f"lr/{group['name']}"] = group["lr"]
        if self.log is not None:
            rate = {"samples_per_s": num_samples / window.seconds}
            self.log.write({"epoch": epoch, "step": state.step, **state.metrics, **rate})
        self.progress.advance(num_samples, note=self._note(epoch))

    def _note(self, epoch: int) -> str:
        """What the progress display says beside its bar."""
        values = {**self.state.metrics, **self.state.evaluation}
        shown = [
            f"{metric_label(name)} {value:.3f}"
            for name, value in values.items()
            if name.startswith("train/") or name.endswith("/top1")
        ]
        return " ".join([f"epoch {epoch + 1}/{self.loop.epochs}", *shown]).replace("train/", "")

    def _end_epoch(self, epoch: int) -> None:
        """Evaluate, then save: a checkpoint's metric lines are all written before it."""
        loop, num_done = self.loop, epoch + 1
        is_last = num_done == loop.epochs
        if self._is_evaluated(epoch):
            self._evaluate(epoch)
        if is_last or num_done % loop.checkpoint_every_epochs == 0 or self.is_save_due:
            self._save(num_done)
        if not is_last:
            self._leave_if_asked()

    def _is_evaluated(self, epoch: int) -> bool:
        every, num_done = self.loop.evaluate_every_epochs, epoch + 1
        return bool(every) and (num_done == self.loop.epochs or num_done % every == 0)

    def _evaluate(self, epoch: int) -> None:
        """Score the weights that would be saved; only the main process works, the others wait."""
        if self.evaluate is not None and self.accelerator.is_main_process:
            with self.state.averaged():
                values = self.evaluate(self.method, epoch + 1)
            assert self.log is not None, "the main process has the log"
            self.log.write({"epoch": epoch, "step": self.state.step, **values})
            self.state.evaluation = values
            self.progress.advance(0, note=self._note(epoch))
        self.accelerator.wait_for_everyone()

    def _save(self, epochs: int) -> None:
        if self.log is not None:
            self.log.flush()  # before the checkpoint: no line of an earlier step is written again
        if self.accelerator.is_main_process:
            self.state.save(self.folder, epochs=epochs, request=self.request)
        self.accelerator.wait_for_everyone()
        self.last_save_s = time.monotonic()
        self.is_save_due = False

    def _leave_if_asked(self) -> None:
        """End the process after a SIGTERM, now that all is saved."""
        if self.is_stop_due:
            self.progress.message(
                f"stopped by SIGTERM after step {self.state.step}, which is saved; the same "
                "command goes on from there"
            )
            raise SystemExit(EXIT_CODE)
