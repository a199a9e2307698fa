"""HocSLM (arXiv 2603.27103): a skeleton encoder taught by captions through a frozen language model.

L = lambda_gen L_gen + lambda_cls L_cls (Eq. 14). L_gen is the language model's loss on the caption
given the skeleton's token and the learnable prompt (Eqs. 11-13), L_cls the cross-entropy of the
encoder's head. Gradient reaches the projection, the prompt and the encoder; no weight of the
language model moves or is saved. Class scores need no language model.

Where the paper is silent: both weights are blank in the text, so they are recipe fields; with
lambda_gen = 0 the projection and prompt are not trained, with lambda_cls = 0 the head is not, so
that the phases of strategies T1 and T2 are plain settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimConfig, Part
from training.methods.classify import freeze_parameters, head_and_body, hit_rate, trained
from training.methods.method import Method, StepOutput
from training.models.language_model import FrozenLanguageModel
from training.models.ssf import SSF
from training.optim import ParamGroup
from training.skeleton_data import SkeletonBatch


class HocSLMMethod(Method):
    """HGLNet + SSF + a frozen language model.

    Args:
        encoder: a model of training/models with forward_features and forward_head.
        ssf: features -> the prefix that the language model reads.
        language_model: frozen, and no module: it is neither moved, trained nor saved; its tokens
            are those of the batches. Or what loads it, called when it is first asked for.
        lambda_gen: weight of the caption loss.
        lambda_cls: weight of the cross-entropy.
        freeze: parts that keep their weights.
    """

    encoder: Any  # torch's types know no forward_features on an nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        ssf: SSF,
        language_model: FrozenLanguageModel | Callable[[], FrozenLanguageModel],
        *,
        lambda_gen: float,
        lambda_cls: float,
        freeze: Sequence[Part] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.ssf = ssf
        self._language_model = language_model
        self.lambda_gen = lambda_gen
        self.lambda_cls = lambda_cls
        self.freeze = set(freeze)
        if lambda_cls == 0:
            self.freeze.add("head")
        if lambda_gen == 0:
            self.freeze.add("ssf")
        head, body = head_and_body(encoder)
        freeze_parameters(body if "encoder" in self.freeze else ())
        freeze_parameters(head if "head" in self.freeze else ())
        freeze_parameters(list(ssf.parameters()) if "ssf" in self.freeze else ())

    @property
    def language_model(self) -> FrozenLanguageModel:
        """The frozen partner; class scores never ask for it."""
        if not isinstance(self._language_model, FrozenLanguageModel):
            self._language_model = self._language_model()
        return self._language_model

    def train(self, mode: bool = True) -> HocSLMMethod:
        """Training mode; frozen parts stay as in evaluation."""
        super().train(mode)
        if "encoder" in self.freeze:
            self.encoder.eval()
        if "ssf" in self.freeze:
            self.ssf.eval()
        return self

    def training_step(self, batch: SkeletonBatch, generator: torch.Generator) -> StepOutput:
        """See Method."""
        features = self.encoder.forward_features(batch.x)  # (N, F)
        logits = self.encoder.forward_head(features)  # (N, num_classes)
        loss_cls = nn.functional.cross_entropy(logits.float(), batch.label)
        metrics = {"loss_cls": loss_cls.detach(), "accuracy": hit_rate(logits, batch.label)}
        if self.lambda_gen == 0:
            return StepOutput(self.lambda_cls * loss_cls, metrics)
        assert batch.tokens is not None, "lambda_gen > 0 reads captions"
        assert batch.token_mask is not None, "tokens come with their mask"
        prefix = self.ssf(features)  # (N, 1 + Lp, D)
        loss_gen = self.language_model.caption_loss(prefix, batch.tokens, batch.token_mask)
        metrics["loss_gen"] = loss_gen.detach()
        loss = self.lambda_gen * loss_gen
        if self.lambda_cls:
            loss = loss + self.lambda_cls * loss_cls
        return StepOutput(loss, metrics)

    def predict(self, batch: SkeletonBatch) -> Tensor:
        """See Method; the language model takes no part."""
        logits: Tensor = self.encoder(batch.x)  # (N, num_classes)
        return logits.float()

    @torch.no_grad()
    def describe(self, batch: SkeletonBatch, *, max_new_tokens: int, num_beams: int) -> list[str]:
        """A text for each skeleton of the batch."""
        prefix = self.ssf(self.encoder.forward_features(batch.x))  # (N, 1 + Lp, D)
        texts: list[str] = self.language_model.generate(prefix, max_new_tokens, num_beams)
        return texts

    def param_groups(self, optim: OptimConfig) -> list[ParamGroup]:
        """See Method; the projection and the prompt may have a learning rate of their own."""
        return [
            ParamGroup("encoder", trained(self.encoder), optim.lr),
            ParamGroup("ssf", trained(self.ssf), optim.ssf_lr or optim.lr),
        ]
