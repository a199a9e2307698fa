"""Optimisers, averaged weights, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from training.config import OptimConfig


@dataclass(frozen=True)
class ParamGroup:
    """Trained parameters that share a learning rate.

    Attributes:
        name: shown in the metrics, as lr/<name>.
        parameters: the tensors.
        lr: base learning rate.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    lr: float


def make_optimizer(groups: Sequence[ParamGroup], config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the groups, in their order.

    Raises:
        ValueError: there is nothing to train.
    """
    values = [
        {"params": list(group.parameters), "lr": group.lr, "base_lr": group.lr, "name": group.name}
        for group in groups
        if group.parameters
    ]
    if not values:
        raise ValueError("every parameter is frozen; take a part out of method.freeze")
    # One kernel for all parameters: on a CPU the loop over hundreds of small tensors costs more.
    if config.name == "adamw":
        return torch.optim.AdamW(values, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        values,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.momentum:
        # torch makes these at the first step and leaves them unset where a gradient scaler skips
        # that step; from zeros the first step is the same.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def lr_factor(config: OptimConfig, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The factor on every base learning rate at one optimiser step.

    "step" moves at whole epochs, warm-up included, as CTR-GCN does;
    "cosine" moves at every step and reaches zero after the last.

    Args:
        config: the schedule.
        step: 0-based optimiser step since the start.
        steps_per_epoch: optimiser steps in one epoch.
        epochs: epochs of the whole run.
    """
    epoch = step // steps_per_epoch
    if config.schedule == "step":
        if epoch < config.warmup_epochs:
            return (epoch + 1) / config.warmup_epochs
        return config.gamma ** sum(epoch >= boundary for boundary in config.steps)
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    total = epochs * steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its base learning rate times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class AveragedWeights:
    """An exponential moving average of floating-point tensors, on their device.

    The first steps count more: the decay is min(decay, (1 + n) / (10 + n)) after n updates, so that
    a short run's average is not its random start (the usual ramp, as in TensorFlow's moving
    averages).
    """

    def __init__(self, watched: dict[str, torch.Tensor], decay: float) -> None:
        """Start at the present values.

        Args:
            watched: views of what is averaged, which is changed in place from now on.
            decay: weight of the average against a new value.
        """
        self.decay = decay
        self.num_updates = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in watched.items()}
        floats = [name for name, tensor in watched.items() if tensor.is_floating_point()]
        others = [name for name in watched if name not in floats]
        self._floats = [self.tensors[n] for n in floats], [watched[n].detach() for n in floats]
        self._counters = [self.tensors[n] for n in others], [watched[n].detach() for n in others]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present values; whole numbers (counters) are copied."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self._floats[0], self._floats[1], 1 - decay)
        if self._counters[0]:
            torch._foreach_copy_(self._counters[0], self._counters[1])
