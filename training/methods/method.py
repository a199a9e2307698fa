"""What every method offers the loop: five members, and nothing about epochs, devices or files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.optim import ParamGroup
from training.skeleton_data import SkeletonBatch


@dataclass(frozen=True)
class StepOutput:
    """What one training step gives.

    Attributes:
        loss: scalar, the mean over the batch, with gradient.
        metrics: scalars without gradient, means over the batch; the same keys at every step.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Method(nn.Module, ABC):
    """A model together with what is optimised.

    A call is a training step, so that wrappers which synchronise gradients at a module's call work.
    """

    @abstractmethod
    def training_step(self, batch: SkeletonBatch, generator: torch.Generator) -> StepOutput:
        """The loss of one batch; what it draws comes from the generator."""

    @abstractmethod
    def predict(self, batch: SkeletonBatch) -> Tensor:
        """Class scores (N, num_classes), float32."""

    @abstractmethod
    def param_groups(self, optim: OptimConfig) -> list[ParamGroup]:
        """The trained parameters with their learning rates."""

    def saved_state(self) -> dict[str, Tensor]:
        """Trained weights and their buffers, by name; nothing of a frozen language model."""
        return {name: value.detach() for name, value in self.state_dict().items()}

    def load_saved_state(self, state: dict[str, Tensor]) -> None:
        """Take what saved_state gave.

        Raises:
            ValueError: tensors are missing, unknown, or of another shape.
        """
        copy_state(self.saved_state(), state, what="the checkpoint")

    def forward(self, batch: SkeletonBatch, generator: torch.Generator) -> StepOutput:
        """A training step."""
        return self.training_step(batch, generator)


@torch.no_grad()
def copy_state(
    own: dict[str, Tensor], given: dict[str, Tensor], *, what: str, only: Sequence[str] = ()
) -> None:
    """Copy tensors by name into those of a method.

    Args:
        own: views of the method's tensors, as saved_state gives.
        given: what to copy.
        what: what to call `given` in a message.
        only: prefixes to which both sides are limited; empty: all.

    Raises:
        ValueError: a name is on one side only, or the shapes differ.
    """
    if only:
        own = {name: value for name, value in own.items() if name.startswith(tuple(only))}
        given = {name: value for name, value in given.items() if name.startswith(tuple(only))}
    problems = [f"{name} is missing" for name in sorted(own.keys() - given.keys())]
    problems += [f"{name} is unknown" for name in sorted(given.keys() - own.keys())]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in sorted(own.keys() & given.keys())
        if own[name].shape != given[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(
            f"{what} belongs to another model: " + "; ".join(problems[:5]) + more + "; give the "
            "recipe's [model] section the settings that it was trained with"
        )
    for name, value in own.items():
        value.copy_(given[name])
