"""The frozen language model of SSF: reads a prefix of vectors, scores and writes captions.

Shapes: N samples, P prefix positions, L caption tokens, D embedding width, S scored tokens of a
batch, W words of the vocabulary.

Any causal language model that transformers loads will do (the paper's is Qwen3-4B), and so will the
text decoder of a vision-language model such as Qwen3-VL, whose vision tower is dropped on loading.
The model is frozen in every strategy of the paper: its weights take no gradient, it stays in
evaluation mode, and FrozenLanguageModel is deliberately no nn.Module, so that it cannot slip into a
checkpoint or an optimiser. It computes in its own precision, whatever autocast says outside.

Cost: hidden states are turned into logits only where a caption token is predicted, in chunks; since
the head is frozen too, each chunk's gradient is formed at once from its logits, and no (N, L, W)
tensor ever exists.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's users know
from torch import Tensor, nn

# transformers is imported where it is used: it takes seconds, and most runs have no language model

logger = logging.getLogger(__name__)

# The bundled model lies with the stage that trains it; only its files are read from here.
TINY_FOLDER = Path(__file__).resolve().parents[2] / "captioning" / "tiny" / "model"

_CHUNK_LOGITS = 2**25  # our choice: 128 MiB of float32 logits at a time
_ODD_HEADS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class _CaptionLoss(torch.autograd.Function):
    """Summed cross-entropy of a frozen linear head, without ever holding all logits.

    The gradient with respect to the hidden states is formed chunk by chunk in the forward pass,
    while the logits are there.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk: int
    ) -> Tensor:
        """hidden (S, D), weight (W, D), target (S,) -> scalar float32 (float64 for float64)."""
        total = torch.zeros((), device=hidden.device, dtype=_loss_dtype(hidden))
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else hidden.new_empty(0)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            probabilities = F.linear(hidden[rows], weight, bias).to(total.dtype)  # logits (c, W)
            norm = probabilities.logsumexp(dim=1, keepdim=True)
            picked = probabilities.gather(1, target[rows, None])
            total += (norm - picked).sum()
            if not needs_gradient:
                continue
            probabilities = probabilities.sub_(norm).exp_()
            probabilities.scatter_add_(1, target[rows, None], torch.full_like(picked, -1.0))
            gradient[rows] = probabilities.to(hidden.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The stored gradient, scaled."""
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None, None


class _Reader:
    """The decoder reading on: it remembers what it has read."""

    def __init__(self, decoder: nn.Module, head: nn.Linear) -> None:
        from transformers import DynamicCache

        self._decoder = decoder
        self._head = head
        self._cache = DynamicCache(config=decoder.config)  # type: ignore[arg-type]

    def read(self, embedded: Tensor) -> Tensor:
        """Float32 logits (n, W) after the last of the next embeddings (n, l, D)."""
        with _own_precision(embedded):
            output = self._decoder(
                inputs_embeds=embedded, past_key_values=self._cache, use_cache=True
            )
            logits: Tensor = self._head(output.last_hidden_state[:, -1])
        return logits.float()

    def pick(self, rows: Tensor) -> None:
        """Go on with these of the rows read so far, in this order."""
        self._cache.reorder_cache(rows)  # type: ignore[arg-type]


class FrozenLanguageModel:
    """A language model that learns nothing; make one with `load`.

    Attributes:
        width: D, width of its token embeddings.
        eos_id: token that ends a caption.
        pad_id: token that fills rows, always masked; the end token where the tokenizer has none.
        identity: what it is: id, revision and sha256 of its weight files.
    """

    def __init__(
        self,
        decoder: nn.Module,
        embedding: nn.Module,
        head: nn.Linear,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None,
        folder: Path,
    ) -> None:
        for module in (decoder, embedding, head):
            module.requires_grad_(False)
            module.eval()
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of language model {name!r} has no end-of-text token, so captions "
                "would never end; set eos_token in its tokenizer_config.json"
            )
        self._decoder = decoder
        self._embedding = embedding
        self._head = head
        self._tokenizer = tokenizer
        self._name = name
        self._revision = revision
        self._folder = folder
        self.width: int = embedding.embedding_dim  # type: ignore[assignment]
        self.eos_id: int = tokenizer.eos_token_id
        has_pad = tokenizer.pad_token_id is not None
        self.pad_id: int = tokenizer.pad_token_id if has_pad else self.eos_id

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype | Literal["auto"] = "auto",
        device: torch.device | str = "cpu",
    ) -> FrozenLanguageModel:
        """Load a model and freeze it.

        Args:
            name: "tiny" (the bundled model), a local folder, or a hub id such as "Qwen/Qwen3-4B".
            revision: commit or tag of a hub model.
            dtype: precision to hold and compute in; "auto": the one it was saved in.
            device: where it lies.

        Raises:
            FileNotFoundError: no such folder, or a hub model that cannot be reached.
            ValueError: it is no causal language model that we can read.
        """
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoTokenizer,
        )
        from transformers.utils import cached_file

        source = _source_of(name)
        with _explained(name):
            config = AutoConfig.from_pretrained(source, revision=revision)
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            has_vision = hasattr(config, "text_config") and hasattr(config, "vision_config")
            auto = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
            with _without_bars():
                model = auto.from_pretrained(source, revision=revision, dtype=dtype)
            folder = Path(str(cached_file(source, "config.json", revision=revision))).parent
        text_config = config.get_text_config()
        for key in _ODD_HEADS:
            if getattr(text_config, key, None) not in (None, 1, 1.0):
                raise ValueError(
                    f"language model {name!r} rescales its logits ({key}), which the chunked "
                    "caption loss does not do; choose a model without it, for example a Qwen3"
                )
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"language model {name!r} ({type(model).__name__}) has no linear output head; "
                "choose a causal language model or a vision-language model with a text decoder"
            )
        return cls(
            model.get_decoder().to(device),
            model.get_input_embeddings().to(device),
            head.to(device),
            tokenizer,
            name=name,
            revision=revision or getattr(config, "_commit_hash", None),
            folder=folder,
        )

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """The id asked for, the revision, one sha256 of the weight files; made on first use."""
        return {
            "id": self._name,
            "revision": self._revision,
            "sha256": _weights_sha256(self._folder),
        }

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self._head.weight.device

    def modules_and_head(self) -> tuple[nn.Module, nn.Module, nn.Linear]:
        """Decoder, token embedding and output head, for looking at; all frozen."""
        return self._decoder, self._embedding, self._head

    def eval(self) -> FrozenLanguageModel:
        """Does nothing: it never leaves evaluation mode. Here so that callers need not care."""
        return self

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
                "%d of %d captions have more than %d tokens and were cut",
                num_cut,
                len(rows),
                max_tokens - 1,
            )
        rows = [[*row[: max_tokens - 1], self.eos_id] for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.full((len(rows), int(lengths.max())), self.pad_id, dtype=torch.long)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]

    def detokenize(self, tokens: Tensor) -> list[str]:
        """Texts of token rows (N, L), each up to its end token, special tokens left out."""
        texts = []
        for row in tokens.tolist():
            ids = row[: row.index(self.eos_id)] if self.eos_id in row else row
            texts.append(str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip())
        return texts

    # --- scoring ---------------------------------------------------------------------------------

    def caption_loss(self, prefix: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """L_gen of Eq. 14: the mean negative log-likelihood of all caption tokens of the batch.

        Args:
            prefix: (N, P, D), P >= 1; the gradient flows into it and into nothing else.
            tokens: (N, L) int64 captions with their end token, padded on the right.
            mask: (N, L) bool, True at real tokens; the prefix is never scored.

        Returns:
            A scalar of at least float32; 0 where no token is real.
        """
        hidden, target, _ = self._predictions(prefix, tokens, mask)
        chunk = max(1, _CHUNK_LOGITS // self._head.out_features)
        with _own_precision(prefix):
            total = _CaptionLoss.apply(hidden, self._head.weight, self._head.bias, target, chunk)
        return total / max(len(target), 1)

    @torch.no_grad()
    def score(self, prefix: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Log-likelihood of each caption given its prefix, summed over its tokens: (N,)."""
        hidden, target, sample = self._predictions(prefix, tokens, mask)
        scores = torch.zeros(len(prefix), device=hidden.device, dtype=_loss_dtype(hidden))
        chunk = max(1, _CHUNK_LOGITS // self._head.out_features)
        for start in range(0, len(target), chunk):
            rows = slice(start, start + chunk)
            with _own_precision(hidden):
                logits = self._head(hidden[rows]).to(scores.dtype)  # (c, W)
            picked = -F.cross_entropy(logits, target[rows], reduction="none")
            scores.index_add_(0, sample[rows], picked)
        return scores

    def _predictions(
        self, prefix: Tensor, tokens: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (S, D) before the real tokens, these tokens (S,), their samples (S,)."""
        num_prefix = prefix.shape[1]
        with _own_precision(prefix):
            embedded = self._embedding(tokens[:, :-1])  # (N, L-1, D); the last is only predicted
            sequence = torch.cat((prefix.to(embedded.dtype), embedded), dim=1)  # (N, P+L-1, D)
            # Padding lies to the right of all that is scored: a causal model needs no mask for it.
            output = self._decoder(inputs_embeds=sequence, use_cache=False)
        hidden = output.last_hidden_state[:, num_prefix - 1 :]  # (N, L, D) position t predicts t
        sample, position = mask.nonzero(as_tuple=True)
        return hidden[sample, position], tokens[sample, position], sample

    # --- writing ---------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, prefix: Tensor, max_new_tokens: int, num_beams: int = 1) -> list[str]:
        """The text that follows each prefix (N, P, D), greedy or by beam search, a batch at once.

        Beams are compared by their mean log-likelihood a token (the end token included) in the end
        and by their sum on the way.

        Raises:
            ValueError: a number below 1.
        """
        if max_new_tokens < 1 or num_beams < 1:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens} and num_beams {num_beams}; both must be >= 1"
            )
        if len(prefix) == 0:
            return []
        if num_beams == 1:
            return self.detokenize(self._greedy(prefix, max_new_tokens))
        return self.detokenize(self._beam_search(prefix, max_new_tokens, num_beams))

    def _greedy(self, prefix: Tensor, max_new_tokens: int) -> Tensor:
        """(N, <= max_new_tokens) tokens; rows that ended go on with padding."""
        reader = _Reader(self._decoder, self._head)
        logits = reader.read(prefix.to(self._head.weight.dtype))
        is_open = torch.ones(len(prefix), dtype=torch.bool, device=prefix.device)
        written: list[Tensor] = []
        while True:
            token = torch.where(is_open, logits.argmax(dim=-1), self.pad_id)
            written.append(token)
            is_open &= token != self.eos_id
            if len(written) == max_new_tokens or not bool(is_open.any()):
                return torch.stack(written, dim=1)
            logits = reader.read(self._embedding(token)[:, None])

    def _beam_search(self, prefix: Tensor, max_new_tokens: int, num_beams: int) -> Tensor:
        """(N, <= max_new_tokens) tokens of the best beam of each sample."""
        N, B, W = len(prefix), num_beams, self._head.out_features
        device = prefix.device
        reader = _Reader(self._decoder, self._head)
        logits = reader.read(
            prefix.to(self._head.weight.dtype).repeat_interleave(B, dim=0)
        )  # (N*B, W)
        scores = torch.full((N, B), -torch.inf, device=device)
        scores[:, 0] = 0.0  # all beams start equal: let one of them speak
        written = torch.empty(N, B, 0, dtype=torch.long, device=device)
        lengths = torch.zeros(N, B, device=device)
        is_open = torch.ones(N, B, dtype=torch.bool, device=device)
        only_pad = torch.full((W,), -torch.inf, device=device)
        only_pad[self.pad_id] = 0.0  # a beam that ended keeps its score
        first = torch.arange(N, device=device)[:, None] * B
        for _ in range(max_new_tokens):
            steps = logits.log_softmax(dim=-1).view(N, B, W)
            steps = torch.where(is_open[..., None], steps, only_pad)
            scores, place = (scores[..., None] + steps).flatten(1).topk(B, dim=1)  # (N, B)
            beam, token = place // W, place % W
            is_open = is_open.gather(1, beam)
            lengths = lengths.gather(1, beam) + is_open
            written = written.gather(1, beam[..., None].expand(-1, -1, written.shape[2]))
            written = torch.cat((written, token[..., None]), dim=2)
            is_open = is_open & (token != self.eos_id)
            if not bool(is_open.any()):
                break
            reader.pick((first + beam).flatten())
            logits = reader.read(self._embedding(token.flatten())[:, None])
        best = (scores / lengths.clamp(min=1)).argmax(dim=1)
        return written[torch.arange(N, device=device), best]


def _loss_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _own_precision(x: Tensor) -> torch.autocast:
    """Autocast off: the frozen weights were loaded in the precision they compute in."""
    return torch.autocast(x.device.type, enabled=False)


def _source_of(name: str) -> str:
    """What transformers is to load: a folder that exists, or a hub id.

    Raises:
        FileNotFoundError: the bundled model is missing, or a path that is not there.
    """
    if name == "tiny":
        if not (TINY_FOLDER / "config.json").is_file():
            raise FileNotFoundError(
                f"the bundled model is not in {TINY_FOLDER}; restore that folder from the "
                "repository, or train it again with `python -m captioning.tiny.train`"
            )
        return str(TINY_FOLDER)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{path} holds no config.json; give the folder of a model as transformers saves it"
            )
        return str(path)
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise FileNotFoundError(
            f"language model {name!r} is neither a folder nor a hub id; give 'tiny', the path of a "
            "model folder, or an id such as Qwen/Qwen3-4B"
        )
    return name


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """transformers' loading errors in a sentence of ours.

    Raises:
        FileNotFoundError: the model or one of its files cannot be reached.
        ValueError: it can, but it is not of a kind that we can use.
    """
    try:
        yield
    except OSError as error:
        from huggingface_hub.constants import HF_HUB_CACHE

        raise FileNotFoundError(
            f"language model {name!r} could not be loaded: {_first_line(error)}. A hub model is "
            f"looked for in {HF_HUB_CACHE} and then on the hub; fetch it beforehand with "
            f"`hf download {name}`"
        ) from error
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"language model {name!r} cannot be used: {_first_line(error)}; choose a causal "
            "language model or a vision-language model with a text decoder"
        ) from error


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """transformers' own bars off: the terminal belongs to the caller."""
    from transformers.utils import logging as hf_logging

    shows_bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows_bars:
            hf_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _weights_sha256(folder: Path) -> str:
    """One hash over the names and bytes of the weight files, in name order.

    Raises:
        FileNotFoundError: there are none.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weight file (.safetensors or .bin)")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
