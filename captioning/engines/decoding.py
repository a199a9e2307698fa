"""Greedy answers to several prompts about each clip; what they share is computed once.

The prefixes of all clips go in first, then all suffixes one after the other, then at each step the
last token of every branch: one pass a step for all prompts. See `branches` for the layout.

Legend: B clips, P prompts, Q tokens that go in at once, S columns of the cache, G query heads of
one key/value head, N new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from captioning.engines.branches import BranchCache, Branches, PrefixChunk

# Fast attention on a GPU wants rows of a mask to begin at multiples of this; else it copies them.
ALIGNMENT = 8  # PyTorch's memory-efficient kernel
# A compiled step serves batches of one shape, so shapes are rounded up to few.
STATIC_ROWS, STATIC_COLUMNS = 8, 64  # our choice
MAX_COMPILED_STEPS = 64  # our choice: shapes of batches of one run; PyTorch would give up after 8


class BranchDecoder:
    """Answers batches with one model.

    Args:
        model: of `load_model`.
        max_new_tokens: the most tokens of an answer, its end token included.
        end_ids: tokens that end an answer.
        pad_id: what goes in for a branch that has ended.
        is_compiled: compile the step; each new shape of a batch then takes its time once.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_new_tokens: int,
        end_ids: Sequence[int],
        pad_id: int,
        is_compiled: bool = False,
    ) -> None:
        self._head = model.lm_head
        self._text = model.model.language_model
        weight = self._text.embed_tokens.weight
        self.device, self._dtype = weight.device, weight.dtype
        self._max_new_tokens = max_new_tokens
        self._end_ids = torch.tensor(end_ids, device=self.device)
        self._pad_id = pad_id
        config = self._text.config
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._compiled: Any = None
        self._kept_cache: BranchCache | None = None
        if is_compiled:
            torch._dynamo.config.recompile_limit = MAX_COMPILED_STEPS
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self._compiled = torch.compile(self._pass, fullgraph=True, dynamic=False, mode=mode)

    @torch.no_grad()
    def answer(
        self,
        chunks: Iterable[PrefixChunk],
        suffixes: Sequence[Sequence[int]],
        *,
        lengths: Sequence[int],
        next_positions: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Answer all prompts for all clips.

        Args:
            chunks: the prefixes of the B clips; drawn one after the other.
            suffixes: the tokens of each of the P prompts.
            lengths: tokens of each prefix, without padding.
            next_positions: the rotary position after each prefix.

        Returns:
            Tokens (B, P, N) int64 and their natural log-probabilities, float32, on the CPU. What
            stands after an end token means nothing.
        """
        num_clips, num_spare = len(lengths), 0
        num_columns = max(lengths) + sum(len(suffix) for suffix in suffixes)
        num_columns += len(suffixes) * (self._max_new_tokens - 1)
        num_columns += -num_columns % ALIGNMENT
        if self._compiled is not None:
            num_spare = -num_clips % STATIC_ROWS
            num_columns += -num_columns % STATIC_COLUMNS
        branches = Branches(
            [*lengths, *[1] * num_spare],
            [*next_positions, *[0] * num_spare],
            suffixes,
            num_columns=num_columns,
            device=self.device,
        )
        cache = self._make_cache(num_clips + num_spare, num_columns)
        for chunk in chunks:
            self._read_prefix(chunk, cache)
        cache.rows, cache.length = slice(0, num_clips + num_spare), max(lengths)
        steps = list(self._generate(branches, cache, num_clips))
        tokens = torch.stack([tokens for tokens, _ in steps], dim=-1)[:num_clips]
        logprobs = torch.stack([logprobs for _, logprobs in steps], dim=-1)[:num_clips]
        return tokens.cpu(), logprobs.cpu()

    def _make_cache(self, num_rows: int, num_columns: int) -> BranchCache:
        """An empty cache; a compiled step gets the last one again if it fits, for its addresses."""
        cache = self._kept_cache
        self._kept_cache = None
        if cache is not None and cache.shape == (num_rows, num_columns):
            cache.clear()
        else:
            cache = BranchCache(num_rows, num_columns)
        if self._compiled is not None:
            self._kept_cache = cache
        return cache

    def _read_prefix(self, chunk: PrefixChunk, cache: BranchCache) -> None:
        embedded = self._text.embed_tokens(chunk.ids)  # (rows, L, width)
        cache.rows = chunk.rows
        self._text(
            inputs_embeds=embedded.masked_scatter(
                chunk.is_visual[..., None], chunk.visual.to(embedded)
            ),
            position_ids=chunk.positions,
            past_key_values=cache,
            visual_pos_masks=chunk.is_visual,
            deepstack_visual_embeds=list(chunk.deepstack),
        )

    def _generate(
        self, branches: Branches, cache: BranchCache, num_clips: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tokens and their log-probabilities of every step, (B, P) each."""
        tokens, logprobs = self._pass(
            branches.ids.expand(cache.shape[0], -1),
            branches.suffix_positions(),
            self._mask(branches.suffix_sight()),
            cache,
            branches.ends,
        )
        cache.length = branches.first_column
        yield tokens, logprobs
        is_done = torch.isin(tokens, self._end_ids)  # (B, P)
        is_done[num_clips:] = True
        sight = self._mask(branches.step_sight())  # (B, 1, G*P, S)
        step = self._static_step(cache, sight) if self._compiled is not None else self._pass
        poll = _Poll()
        for number in range(1, self._max_new_tokens):
            if poll.is_true(is_done.all()):
                break
            tokens, logprobs = step(
                tokens.masked_fill(is_done, self._pad_id),
                branches.step_positions(number),
                sight[..., : cache.length + tokens.shape[1]],
                cache,
            )
            cache.length += tokens.shape[1]
            yield tokens, logprobs
            is_done |= torch.isin(tokens, self._end_ids)

    def _pass(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: BranchCache,
        picked: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Put Q tokens a row in; the likeliest token after each, and its log-probability.

        Args:
            ids: (B, Q).
            positions: (3, B, Q).
            mask: (B, 1, G*Q, columns).
            cache: grows by Q columns.
            picked: the places, among the Q, after which a token is wanted; None takes all.
        """
        hidden = self._text(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache
        ).last_hidden_state  # (B, Q, width)
        if picked is not None:
            hidden = hidden[:, picked]
        logits = self._head(hidden).float()  # (B, Q, vocabulary)
        values, tokens = logits.max(dim=-1)
        logprobs = values - logits.logsumexp(dim=-1)
        return tokens.to(self.device), logprobs.to(self.device)

    def _static_step(self, cache: BranchCache, sight: Tensor) -> Callable[..., Any]:
        """`_pass` compiled: it always sees all S columns, those not yet filled are hidden."""
        cache.keep_addresses()
        seen = sight.clone()
        seen[..., cache.length :] = -torch.inf

        def step(
            ids: Tensor, positions: Tensor, mask: Tensor, cache: BranchCache
        ) -> tuple[Tensor, Tensor]:
            new = slice(cache.length, mask.shape[-1])
            seen[..., new] = mask[..., new]
            cache.places = torch.arange(new.start, new.stop, device=ids.device)
            torch.compiler.cudagraph_mark_step_begin()
            tokens, logprobs = self._compiled(ids, positions, seen, cache)
            return tokens.clone(), logprobs.clone()  # the next step writes over them

        return step

    def _mask(self, sight: Tensor) -> Tensor:
        """What attention adds, (B, 1, G*Q, columns), of what may be seen, (B, Q, columns)."""
        num_clips, num_queries, num_columns = sight.shape
        shape = (num_clips, num_queries, num_columns + -num_columns % ALIGNMENT)
        mask = torch.zeros(shape, dtype=self._dtype, device=sight.device)
        mask[..., :num_columns].masked_fill_(~sight, -torch.inf)
        return mask.repeat(1, self._group, 1)[:, None, :, :num_columns]


class _Poll:
    """Reads a flag of the device; on a GPU one call late, so that the GPU never waits for us."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, torch.cuda.Event] | None = None

    def is_true(self, flag: Tensor) -> bool:
        if flag.device.type != "cuda":
            return bool(flag)
        last = self._last
        copy = torch.empty((), dtype=torch.bool, pin_memory=True)
        copy.copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(flag.device))
        self._last = copy, event
        if last is None:
            return False
        last[1].synchronize()
        return bool(last[0])
