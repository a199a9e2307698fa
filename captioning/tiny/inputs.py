"""Training inputs of the tiny captioner, built for a whole batch at once.

Everything here equals what transformers' Qwen3VLProcessor and model compute for the same clips (a
test holds this); it only skips their per-clip and per-frame-pair loops, which cost more than the
model itself at this size.

Legend: B clips, T frames, P frame pairs (T / 2), K patches of a pair (4 x 6), L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from captioning.tiny.build import FRAMES_PER_PATCH, MERGE, PATCH, VISUAL_TOKENS

IGNORE = -100  # the label that the loss skips


def patchify(frames: Tensor) -> Tensor:
    """Cut clips into the processor's patch order, normalised to -1..1.

    Args:
        frames: uint8 (B, T, H, W, 3); T even, H and W multiples of 32.

    Returns:
        float32 (B * P, K, 3 * 2 * 16 * 16), colours outermost in the last axis.
    """
    num_clips, num_frames, height, width, _ = frames.shape
    x = frames.view(
        num_clips * num_frames // FRAMES_PER_PATCH,
        FRAMES_PER_PATCH,
        height // PATCH // MERGE,
        MERGE,
        PATCH,
        width // PATCH // MERGE,
        MERGE,
        PATCH,
        3,
    )
    # (pair, frame, row block, row, y, column block, column, x, colour)
    x = x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    x = x.reshape(x.shape[0], -1, 3 * FRAMES_PER_PATCH * PATCH * PATCH)  # (B*P, K, 1536)
    return x.float() / 127.5 - 1.0


def recolour(patches: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Multiply and shift the colours of each clip.

    Args:
        patches: (B * P, K, 1536) of `patchify`.
        gain, offset: (B, 3).
    """
    x = patches.view(len(gain), -1, 3, patches.shape[-1] // 3)  # (B, P*K, 3, 512)
    x = x * gain[:, None, :, None] + offset[:, None, :, None]
    return x.view_as(patches)


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded rows of text and placeholders, all (B, L) except where noted.

    Attributes:
        input_ids: token ids; padding is the pad token.
        position_ids: (3, B, L), Qwen3-VL's time, height and width positions.
        labels: the caption and its end token, IGNORE elsewhere; labels[:, i] is the token AT i.
        is_visual: True at <|video_pad|> positions.
        answer_start: (B,), index of the first caption token.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    is_visual: Tensor
    answer_start: Tensor


class TokenRows:
    """Writes prompt + caption rows; each distinct piece of text is tokenized once."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        def id_of(token: str) -> Any:  # transformers says int | list[int]; of one token an int
            return tokenizer.convert_tokens_to_ids(token)

        self.pad = id_of("<|endoftext|>")
        self.video_pad = id_of("<|video_pad|>")
        self.end = id_of("<|im_end|>")
        self._pair = [
            id_of("<|vision_start|>"),
            *[self.video_pad] * VISUAL_TOKENS,
            id_of("<|vision_end|>"),
        ]
        self.encode = lru_cache(maxsize=65536)(
            lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])
        )

    def prompt(self, prompt: str, frame_indices: Sequence[int], fps: float) -> list[int]:
        """The ids of a user turn with one video, up to and including `<|im_start|>assistant\\n`."""
        ids = list(self.encode("<|im_start|>user\n<|vision_start|>"))
        for first, second in zip(frame_indices[::2], frame_indices[1::2], strict=True):
            ids += self.encode(f"<{(first / fps + second / fps) / 2:.1f} seconds>") + self._pair
        return ids + self.encode(f"<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n")

    def text_prompt(self, prompt: str) -> list[int]:
        """The ids of a user turn without a video."""
        return list(self.encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"))

    def batch(self, prompts: Sequence[list[int]], captions: Sequence[str]) -> TokenBatch:
        """Join each prompt (may be empty) with its caption and pad on the right."""
        answers = [[*self.encode(caption), self.end] for caption in captions]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = np.full((len(answers), length), self.pad, dtype=np.int64)  # (B, L)
        labels = np.full((len(answers), length), IGNORE, dtype=np.int64)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, : len(prompt) + len(answer)] = [*prompt, *answer]
            labels[row, len(prompt) : len(prompt) + len(answer)] = answer
        return TokenBatch(
            input_ids=torch.from_numpy(ids),
            position_ids=torch.from_numpy(positions(ids == self.video_pad)),
            labels=torch.from_numpy(labels),
            is_visual=torch.from_numpy(ids == self.video_pad),
            answer_start=torch.tensor([len(p) for p in prompts]),
        )


def positions(is_visual: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Qwen3-VL's rotary positions of rows whose visual tokens come in groups of 2 x 3.

    A text token advances the position by one. A group starts at position s: its tokens have time s,
    height s + row, width s + column, and the text after it goes on at s + max(2, 3).

    Args:
        is_visual: (B, L), True at visual placeholders.

    Returns:
        (3, B, L).
    """
    columns = 3
    rows = VISUAL_TOKENS // columns
    seen = np.cumsum(is_visual, axis=1)  # (B, L)
    order = np.where(is_visual, (seen - 1) % VISUAL_TOKENS, 0)  # place within the group
    advance = np.where(is_visual, np.where(order == VISUAL_TOKENS - 1, max(rows, columns), 0), 1)
    start = np.cumsum(advance, axis=1) - advance
    return np.stack(
        [
            start,
            start + np.where(is_visual, order // columns, 0),
            start + np.where(is_visual, order % columns, 0),
        ]
    ).astype(np.int64)


def visual_tokens(visual: Qwen3VLVisionModel, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The vision tower's forward for frame pairs of one size, all pairs in one attention call.

    Args:
        visual: the tower.
        patches: (B * P, K, 1536) of `patchify`, K = 24.

    Returns:
        The merged tokens (B * P, 6, D) and, for each deepstack level, a tensor of the same shape.
    """
    num_pairs, num_patches, _ = patches.shape
    grid = torch.tensor([[1, 4, 6]])
    index, weight = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=MERGE,
        kwargs={},
    )
    place = get_vision_position_ids(grid, MERGE, kwargs={})
    embed = visual.patch_embed.proj
    x = functional.linear(patches, embed.weight.flatten(1), embed.bias)  # (B*P, K, D)
    x = x + (visual.pos_embed(index) * weight[:, :, None]).sum(1)
    cos, sin = visual.rotary_pos_emb(x, place)  # (K, head_dim) each
    deepstack = []
    block: Any  # nn.ModuleList does not know what its modules are
    for level, block in enumerate(visual.blocks):
        attention = block.attn
        qkv = attention.qkv(block.norm1(x))
        qkv = qkv.view(num_pairs, num_patches, 3, attention.num_heads, attention.head_dim)
        q, k, v = qkv.unbind(2)  # (B*P, K, heads, head_dim)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        mixed = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )
        x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        if level in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(level)]
            deepstack.append(merger(x).view(num_pairs, VISUAL_TOKENS, -1))
    return visual.merger(x).view(num_pairs, VISUAL_TOKENS, -1), deepstack


def decode(
    model: Qwen3VLForConditionalGeneration,
    tokens: TokenBatch,
    visual: Tensor | None = None,
    deepstack: Sequence[Tensor] = (),
) -> Tensor:
    """The decoder's last hidden states (B, L, D) for a batch of rows, with or without pictures.

    Args:
        model: the captioner.
        tokens: rows in which every clip has all its placeholders.
        visual: merged tokens (B * P, 6, D) in the order of the placeholders, or None.
        deepstack: further levels of the same shape.
    """
    embedded = model.model.language_model.embed_tokens(tokens.input_ids)  # (B, L, D)
    levels = None
    if visual is not None:
        flat = visual.reshape(-1, visual.shape[-1]).to(embedded.dtype)
        embedded = embedded.masked_scatter(tokens.is_visual[..., None], flat)
        levels = [level.reshape(-1, level.shape[-1]) for level in deepstack]
    out = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=tokens.position_ids,
        visual_pos_masks=tokens.is_visual if levels else None,
        deepstack_visual_embeds=levels,
        use_cache=False,
    )
    return out.last_hidden_state


def answer_logits(
    model: Qwen3VLForConditionalGeneration, hidden: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits (A, vocabulary) at the A positions that predict a caption token, and those tokens."""
    target = labels[:, 1:]
    wanted = target != IGNORE
    logits = model.lm_head(hidden[:, :-1][wanted])
    return logits, target[wanted]
