"""What training changes: weights, optimiser, average, gradient scaler and the step reached.

A run saves it as a checkpoint and goes on from one; with the same recipe and data the step alone
tells the place in the epoch, and all that a step draws follows from its number (seeding.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from training.config import LoopConfig, OptimConfig
from training.methods.method import Method, copy_state
from training.optim import AveragedWeights, make_optimizer

logger = logging.getLogger(__name__)

_RAW = "weights/"  # prefix of the weights that are trained, where the average is what is evaluated


class RunState:
    """The trained things of one run.

    Attributes:
        method: on its device; its tensors are changed in place.
        optimizer: not yet wrapped by accelerate.
        average: the averaged weights; None without.
        step: finished optimiser steps.
        epoch: finished epochs, their evaluation included.
        metrics: the last training metrics, as logged.
        evaluation: those of the last evaluation; empty before it.
    """

    def __init__(
        self,
        method: Method,
        *,
        optim: OptimConfig,
        loop: LoopConfig,
        scaler: torch.amp.GradScaler | None,
        num_processes: int = 1,
    ) -> None:
        """The state before the first step.

        Args:
            method: on its device.
            optim: optimiser.
            loop: whether weights are averaged.
            scaler: accelerate's, in fp16.
            num_processes: that share each step.
        """
        self.method = method
        self.scaler = scaler
        self.step = self.epoch = 0
        self.metrics: dict[str, float] = {}
        self.evaluation: dict[str, float] = {}
        self.num_processes = num_processes
        self.optimizer = make_optimizer(method.param_groups(optim), optim)
        self.average = (
            None
            if loop.ema_decay is None
            else AveragedWeights(method.saved_state(), loop.ema_decay)
        )

    def save(self, folder: Path, *, epochs: int, request: Mapping[str, Any]) -> None:
        """Replace the checkpoint of a run folder.

        Args:
            folder: the run folder.
            epochs: finished epochs.
            request: what decides the weights.

        Raises:
            OSError: it could not be written; the old one stays whole.
        """
        self.epoch = epochs
        state, optimizer = pack_optimizer(self.optimizer)
        weights = self.method.saved_state()
        numbers: dict[str, Any] = {
            "optimizer": optimizer,
            "metrics": self.metrics,
            "evaluation": self.evaluation,
            "num_processes": self.num_processes,
        }
        if self.scaler is not None:
            numbers["scaler"] = self.scaler.state_dict()
        if self.average is not None:
            state |= {f"{_RAW}{name}": value for name, value in weights.items()}
            weights = self.average.tensors
            numbers["num_average_updates"] = self.average.num_updates
        save_checkpoint(folder, Checkpoint(epochs, self.step, request, weights, state, numbers))

    def restore(self, folder: Path) -> None:
        """Become the state of a run folder's checkpoint; without one nothing changes.

        Raises:
            ValueError: it is damaged or belongs to another model.
        """
        if not has_checkpoint(folder):
            return
        saved = load_checkpoint(folder)
        weights = saved.weights
        if self.average is not None:
            copy_state(self.average.tensors, weights, what="the checkpoint")
            self.average.num_updates = saved.numbers["num_average_updates"]
            weights = {
                key.removeprefix(_RAW): value
                for key, value in saved.state.items()
                if key.startswith(_RAW)
            }
        self.method.load_saved_state(weights)
        unpack_optimizer(self.optimizer, saved.state, saved.numbers["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved.numbers["scaler"])
        self.step, self.epoch = saved.step, saved.epoch
        self.metrics = saved.numbers.get("metrics", {})
        self.evaluation = saved.numbers.get("evaluation", {})
        before = saved.numbers.get("num_processes", self.num_processes)  # not in earlier versions
        if before != self.num_processes:
            logger.warning(
                "%s was trained by %d process(es) until step %d and goes on with %d: batch norms "
                "see other parts of a batch, so that neither number alone gives these weights",
                folder,
                before,
                self.step,
                self.num_processes,
            )

    @contextmanager
    def averaged(self) -> Iterator[None]:
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
