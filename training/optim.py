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
    if config.name == "sgd":
        return torch.optim.SGD(
            values,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(values, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def lr_factor(config: OptimConfig, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The factor on every base learning rate at one optimiser step.

    "step" moves at whole epochs, warm-up included, as the parent does (protocols.md section 4);
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
    """An exponential moving average of floating-point tensors, in place on their device.

    The first steps count more: the decay is min(decay, (1 + n) / (10 + n)) after n updates, so that
    a short run's average is not its random start (the usual ramp, as in TensorFlow's moving
    averages).
    """

    def __init__(self, tensors: dict[str, torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: dict[str, torch.Tensor]) -> None:
        """Move the average towards the present values; whole numbers (counters) are copied."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        floats = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [self.tensors[name] for name in floats],
            [tensors[name].detach() for name in floats],
            1 - decay,
        )
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                tensor.copy_(tensors[name])
