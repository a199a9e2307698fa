"""The frozen language model of SSF: reads a prefix of vectors, scores and writes captions.

Shapes: N samples, P prefix positions, L caption tokens, D embedding width, S scored tokens of a
batch, W words of the vocabulary.

Any causal language model that transformers loads will do (the paper's is Qwen3-4B), and so will the
text decoder of a vision-language model such as Qwen3-VL, whose vision tower is not used.
The model is frozen in every strategy of the paper: its weights take no gradient, it stays in
evaluation mode, and FrozenLanguageModel is deliberately no nn.Module, so that it cannot slip into a
checkpoint or an optimiser. It computes in its own precision, whatever autocast says outside.

Cost: sequences share rows (packing.py), only states before caption tokens become logits, and those
a chunk at a time (caption_loss.py). Sharing rows needs a model that keeps sequences apart by their
positions, as the attention of transformers does; each model is tried once, and where it does not,
every sequence has its own row.
"""

from __future__ import annotations

import inspect
import logging
import math
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.models.caption_loss import caption_loss, log_likelihoods, loss_dtype
from training.models.decoding import Writer
from training.models.language_model_files import LoadedModel, load_model, weights_sha256
from training.models.packing import pack

logger = logging.getLogger(__name__)

_SAME = 0.05  # our choice: relative; bf16 differs by less, other sequences in the row by about 1


class FrozenLanguageModel:
    """A language model that learns nothing; make one with `load`.

    Attributes:
        width: D, width of its token embeddings.
        eos_id: token that ends a caption.
        pad_id: token that fills rows, never scored; the end token where the tokenizer has none.
        identity: what it is: id, revision and sha256 of its weight files.
        shares_rows: whether several sequences are computed in one row.
    """

    def __init__(self, loaded: LoadedModel, *, gradient_checkpointing: bool = False) -> None:
        """Freeze a model.

        Args:
            loaded: from load_model.
            gradient_checkpointing: compute each layer again for its gradient instead of keeping
                what it made: less memory, a third more time.
        """
        tokenizer, model = loaded.tokenizer, loaded.model
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of language model {loaded.name!r} has no end-of-text token, so "
                "captions would never end; set eos_token in its tokenizer_config.json"
            )
        self._decoder: Any = model.get_decoder()
        self._embedding: nn.Module = model.get_input_embeddings()
        self._head: nn.Linear = model.get_output_embeddings()
        for module in self.modules_and_head():
            module.requires_grad_(False)
            module.eval()
            for part in module.modules():
                # In evaluation mode bitsandbytes computes these on the CPU without a gradient.
                part.training = type(part).__name__ == "Linear4bit"
        if gradient_checkpointing:
            _checkpoint_layers(self._decoder)
        _choose_attention(self._decoder)
        self._files = replace(loaded, model=None, tokenizer=None)  # a vision tower is let go
        self._tokenizer = tokenizer
        self.width: int = self._embedding.embedding_dim  # type: ignore[assignment]
        self.eos_id: int = tokenizer.eos_token_id
        has_pad = tokenizer.pad_token_id is not None
        self.pad_id: int = tokenizer.pad_token_id if has_pad else self.eos_id

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype | Literal["auto", "8bit", "4bit"] = "auto",
        device: torch.device | str = "cpu",
        device_map: Literal["auto"] | None = None,
        gradient_checkpointing: bool = False,
    ) -> FrozenLanguageModel:
        """Load a model and freeze it; arguments and errors as of load_model and the constructor."""
        loaded = load_model(
            name, revision=revision, dtype=dtype, device=device, device_map=device_map
        )
        return cls(loaded, gradient_checkpointing=gradient_checkpointing)

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """The id asked for, the revision, one sha256 of the weight files; made on first use."""
        loaded = self._files
        sha256 = weights_sha256(loaded.folder, loaded.gguf)
        return {"id": loaded.name, "revision": loaded.revision, "sha256": sha256}

    @cached_property
    def embedding_scale(self) -> float:
        """Root mean square of the token embeddings as the decoder gets them."""
        weight = next(self._embedding.parameters())
        dtype = loss_dtype(weight)
        norm = torch.linalg.vector_norm(weight, dtype=dtype)
        some = torch.arange(min(256, len(weight)), device=weight.device)
        # 1 but for models that scale what they look up (Gemma)
        factor = self._embedding(some).to(dtype).norm() / weight[some].to(dtype).norm()
        return float(norm) * float(factor) / math.sqrt(weight.numel())

    @property
    def device(self) -> torch.device:
        """Where tokens and prefixes go."""
        return next(self._embedding.parameters()).device

    def modules_and_head(self) -> tuple[nn.Module, nn.Module, nn.Linear]:
        """Decoder, token embedding and output head, for looking at; all frozen."""
        return self._decoder, self._embedding, self._head

    # --- text ------------------------------------------------------------------------------------

    def tokenize(self, texts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Captions as padded tokens with their mask, the end token included.

        Args:
            texts: captions; an empty one becomes the end token alone.
            max_tokens: longer captions are cut, counted and logged; the end token stays.

        Returns:
            tokens (n, L) int64 and mask (n, L) bool, on the CPU, L the longest caption's length.

        Raises:
            ValueError: max_tokens leaves no room for a word.
        """
        if max_tokens < 2:
            raise ValueError(
                f"max_tokens is {max_tokens}; a caption needs a word and its end: >= 2"
            )
        if not texts:
            return torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1, dtype=torch.bool)
        rows: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        num_cut = sum(len(row) > max_tokens - 1 for row in rows)
        if num_cut:
            logger.warning(
                "%d of %d captions have more than %d tokens and were cut "
                "(method.max_caption_tokens)",
                num_cut,
                len(rows),
                max_tokens - 1,
            )
        rows = [[*row[: max_tokens - 1], self.eos_id] for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        tokens = torch.full(mask.shape, self.pad_id, dtype=torch.long)
        tokens[mask] = torch.tensor([token for row in rows for token in row])
        return tokens, mask

    def detokenize(self, tokens: Tensor) -> list[str]:
        """Texts of token rows (N, L), each up to its end token, special tokens left out."""
        texts = []
        for row in tokens.tolist():
            ids = row[: row.index(self.eos_id)] if self.eos_id in row else row
            texts.append(str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip())
        return texts

    # --- scoring ---------------------------------------------------------------------------------

    def caption_loss(self, prefix: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """L_gen of Eq. 14: the mean negative log-likelihood a token of each caption, and of these.

        Each sample counts alike, so that a batch in parts, on one process or several, has the mean
        of the parts' losses (our choice; the paper sums over tokens and tells no more).

        Args:
            prefix: (N, P, D), P >= 1; the gradient flows into it and into nothing else.
            tokens: (N, L) int64 captions with their end token, padded on the right.
            mask: (N, L) bool, True at real tokens, best on the CPU: its counts are read there; the
                prefix is never scored.

        Returns:
            A scalar of at least float32; 0 where no token is real.
        """
        num_tokens = _counts(mask)
        share = 1.0 / (len(num_tokens) * np.maximum(num_tokens, 1))  # of each token of a caption
        weight = self._moved(np.repeat(share, num_tokens).astype(np.float32))  # (S,)
        with _own_precision(prefix):
            hidden, target, _ = self._predictions(prefix, tokens, num_tokens)
            loss = caption_loss(hidden, self._head, target, weight.to(hidden.device))
        return loss.to(prefix.device)

    @torch.no_grad()
    def score(self, prefix: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Log-likelihood of each caption given its prefix, summed over its tokens: (N,).

        Arguments as of caption_loss.
        """
        with _own_precision(prefix):
            hidden, target, sequence = self._predictions(prefix, tokens, _counts(mask))
            found = log_likelihoods(hidden, self._head, target)  # (S,)
        sample = torch.from_numpy(sequence).to(found.device)
        return found.new_zeros(len(prefix)).index_add_(0, sample, found).to(prefix.device)

    @cached_property
    def shares_rows(self) -> bool:
        """Whether the decoder keeps sequences of one row apart; tried on first use."""
        if "position_ids" not in inspect.signature(self._decoder.forward).parameters:
            return False  # no attention: a recurrent model, for example
        with torch.no_grad(), _own_precision(self._head.weight):
            words = torch.arange(6, device=self.device)[None] % self._head.out_features
            embedded = self._embedding(words)  # (1, 6, D)
            position = torch.tensor([[0, 1, 2, 0, 1, 2]], device=self.device)
            both = self._read(embedded, position)[:, 3:]
            alone = self._read(embedded[:, 3:], position[:, 3:])
            difference = (both - alone).abs().max() / alone.abs().max()
        if float(difference) < _SAME:
            return True
        logger.warning(
            "language model %s mixes sequences of one row; each gets a row", self._files.name
        )
        return False

    def _read(self, embedded: Tensor, position: Tensor | None) -> Tensor:
        """Hidden states (A, B, D) of embeddings (A, B, D) at positions (A, B), or one after one."""
        where = {} if position is None else {"position_ids": position}
        output = self._decoder(inputs_embeds=embedded, use_cache=False, **where)
        hidden: Tensor = output.last_hidden_state
        return hidden.to(self._head.weight.device)

    def _predictions(
        self, prefix: Tensor, tokens: Tensor, num_tokens: np.ndarray
    ) -> tuple[Tensor, Tensor, np.ndarray]:
        """Hidden states (S, D) before the real tokens, these tokens (S,), their samples (S,)."""
        plan = pack(num_tokens, prefix.shape[1], shares_rows=self.shares_rows)
        # All that goes to the device goes before its work is queued: nothing waits for it then.
        place = self._moved(plan.sequence * tokens.shape[1] + plan.token)
        source, predicting = self._moved(plan.source), self._moved(plan.predicting)
        position = self._moved(plan.position) if self.shares_rows else None
        words = tokens.to(self.device, non_blocking=True).flatten()[place]  # (S,)
        spoken = self._embedding(words)  # (S, D)
        parts = torch.cat((prefix.to(spoken).flatten(0, 1), spoken))  # (N*P + S, D)
        hidden = self._read(parts[source], position).flatten(0, 1)  # (A*B, D)
        return hidden[predicting.to(hidden.device)], words.to(hidden.device), plan.sequence

    def _moved(self, values: np.ndarray) -> Tensor:
        """On the device, without waiting for it."""
        host = torch.from_numpy(values)
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)

    # --- writing ---------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, prefix: Tensor, max_new_tokens: int, num_beams: int = 1) -> list[str]:
        """The text that follows each prefix (N, P, D), greedy or by beam search, a batch at once.

        Raises:
            ValueError: a number below 1.
        """
        if max_new_tokens < 1 or num_beams < 1:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens} and num_beams {num_beams}; both must be >= 1"
            )
        if len(prefix) == 0:
            return []
        writer = Writer(self._decoder, self._embedding, self._head, self.eos_id, self.pad_id)
        with _own_precision(prefix):
            prefix = prefix.to(
                self._embedding(torch.zeros(1, dtype=torch.long, device=self.device))
            )
            if num_beams == 1:
                return self.detokenize(writer.greedy(prefix, max_new_tokens))
            return self.detokenize(writer.beam_search(prefix, max_new_tokens, num_beams))


def _counts(mask: Tensor) -> np.ndarray:
    """Real tokens of each caption, (N,)."""
    counts: np.ndarray = mask.sum(dim=1).cpu().numpy()
    return counts


def _own_precision(x: Tensor) -> torch.autocast:
    """Autocast off: the frozen weights were loaded in the precision they compute in."""
    return torch.autocast(x.device.type, enabled=False)


def _choose_attention(decoder: Any) -> None:
    """Attention as matrix products on the CPU below float32.

    There the fused one of PyTorch takes several times as long for its gradient, which also lies
    further from float32's (docs/results.md, "Skeleton-language training").
    """
    weight = next(decoder.parameters())
    is_fused = getattr(decoder.config, "_attn_implementation", None) == "sdpa"
    if is_fused and weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16):
        decoder.set_attn_implementation("eager")


def _checkpoint_layers(decoder: nn.Module) -> None:
    """Have each layer of a decoder computed again for its gradient.

    Raises:
        ValueError: the decoder has no list of layers.
    """
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{type(decoder).__name__} has no list of layers to checkpoint; set "
            "method.gradient_checkpointing = false"
        )
    for layer in layers:
        # transformers' own switch works in training mode alone, which a frozen model never enters
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
