"""Losses and metrics of some steps, gathered on the device without waiting for it."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from training.methods.method import StepOutput

NONE_BAD = 2**62  # stands for "no step" where the smallest step is looked for


class Window:
    """Losses and metrics on the device since the last reading.

    Attributes:
        names: of the metrics.
        guards: the guard of every step, 1 or nan.
        seconds: from the first step until the reading.
    """

    def __init__(self, first_step: int) -> None:
        self.first_step = first_step
        self.began = time.perf_counter()
        self.seconds = 0.0
        self.names: list[str] = []
        self.guards: list[Tensor] = []
        self._parts: list[Tensor] = []

    def add(self, output: StepOutput) -> None:
        """Take in one part of one step, without waiting for the device."""
        self.names = ["loss", *output.metrics]
        values = [output.loss.detach(), *output.metrics.values()]
        self._parts.append(torch.stack([value.float() for value in values]))

    def means(self) -> Tensor:
        """Means over the parts, in the order of `names`, on the device."""
        return torch.stack(self._parts).mean(dim=0)  # (num_names,)

    def first_bad(self) -> Tensor:
        """The first step with a guard of nan, or NONE_BAD; int64 on the device."""
        is_bad = torch.stack(self.guards).isnan()
        return torch.where(is_bad.any(), is_bad.long().argmax() + self.first_step, NONE_BAD)
