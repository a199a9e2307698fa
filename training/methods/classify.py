"""Cross-entropy on class labels: stage zero of HocSLM (strategy T0) and every plain baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.config import OptimConfig, Part
from training.methods.method import Method, StepOutput
from training.optim import ParamGroup
from training.skeleton_data import SkeletonBatch


class ClassifyMethod(Method):
    """An encoder with a linear head, trained with cross-entropy.

    Args:
        encoder: a model of training/models with forward_features and forward_head.
        freeze: "encoder" (all but the head) or "head".
    """

    def __init__(self, encoder: nn.Module, *, freeze: Sequence[Part] = ()) -> None:
        super().__init__()
        self.encoder = encoder
        self.freeze = frozenset(freeze)
        head, body = head_and_body(encoder)
        freeze_parameters(body if "encoder" in self.freeze else ())
        freeze_parameters(head if "head" in self.freeze else ())

    def train(self, mode: bool = True) -> ClassifyMethod:
        """Training mode; a frozen encoder keeps its running statistics."""
        super().train(mode)
        if "encoder" in self.freeze:
            self.encoder.eval()
        return self

    def training_step(self, batch: SkeletonBatch, generator: torch.Generator) -> StepOutput:
        """See Method."""
        logits = self.encoder(batch.x)  # (N, num_classes)
        loss = nn.functional.cross_entropy(logits.float(), batch.label)
        return StepOutput(loss, {"accuracy": hit_rate(logits, batch.label)})

    def predict(self, batch: SkeletonBatch) -> Tensor:
        """See Method."""
        logits: Tensor = self.encoder(batch.x)  # (N, num_classes)
        return logits.float()

    def param_groups(self, optim: OptimConfig) -> list[ParamGroup]:
        """See Method."""
        return [ParamGroup("encoder", trained(self.encoder), optim.lr)]


def hit_rate(logits: Tensor, label: Tensor) -> Tensor:
    """Share of the batch whose greatest logit is the label's, without gradient."""
    return (logits.detach().argmax(dim=1) == label).float().mean()


def head_and_body(encoder: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of an encoder's linear head, and all its others."""
    head_module = encoder.get_submodule("head")
    head = list(head_module.parameters())
    own = {id(parameter) for parameter in head}
    return head, [parameter for parameter in encoder.parameters() if id(parameter) not in own]


def freeze_parameters(parameters: Sequence[nn.Parameter]) -> None:
    """Have no gradient computed for them."""
    for parameter in parameters:
        parameter.requires_grad_(False)


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
