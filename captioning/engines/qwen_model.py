"""Loading a Qwen3-VL model so that several prompts can share the pass over one clip.

The weights and the forward pass are those of transformers. What is put in its place:
- Attention of the text. Without a mask it is causal (the prefix: no padding is ever visible to a
  real token, because padding is on the right). With a mask, the heads that share a key/value head
  are laid side by side as further queries, so that keys and values are never repeated.
- Attention of the vision tower: all frame pairs of one size in one call instead of a call a pair.
- The patch embedding, a convolution whose kernel is its stride, is a matrix product: PyTorch's
  convolution takes three times as long on a CPU, and far longer on some GPUs
  (huggingface/transformers#45750).
- Large float32 matrix products on a CPU go to oneDNN: PyTorch's default, MKL, leaves half of the
  speed of AMD processors unused.

Legend: B clips, H attention heads, K key/value heads, G = H / K, Q queries, S keys, D head width,
P frame pairs, N patches of a pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForImageTextToText
from transformers.utils import logging as hf_logging

from captioning.engines.branches import PrefixChunk
from captioning.engines.interface import EngineClip
from captioning.engines.qwen_files import ATTENTIONS
from captioning.engines.qwen_inputs import Prefix, QwenInputs

# On a CPU so many pixels go through vision tower and prefix at a time, that what lies between two
# operations stays in its cache: a tenth faster than 32 clips of the tiny model at once.
CPU_CHUNK_PIXELS = 8 * 16 * 64 * 96
# Fewer rows than this go faster through MKL: oneDNN reorders the weights at each call.
MIN_ONEDNN_ROWS = 64  # measured on an AMD EPYC with matrices of 192 x 512


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
    device_map: str | None = None,
) -> Any:
    """The Qwen3-VL of a folder, on its device, in evaluation mode.

    Args:
        folder: as `save_pretrained` writes it.
        dtype: of the weights and the arithmetic.
        attention: one of ATTENTIONS.
        device: where it goes.
        device_map: accelerate spreads it over devices instead ("auto", "balanced").
    """
    if device.type == "cuda":
        # cuDNN's attention plans anew for every length, so at each step (modelscope/FunASR#3704).
        torch.backends.cuda.enable_cudnn_sdp(False)
    for name in ATTENTIONS:
        AttentionInterface.register(f"branches_{name}", partial(_text_attention, name))
        AttentionInterface.register(f"frames_{name}", partial(_frame_attention, name))
    shows_bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # the terminal belongs to the caller
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            device_map=device_map or {"": device},
            attn_implementation={
                "text_config": f"branches_{attention}",
                "vision_config": f"frames_{attention}",
            },
        )
    finally:
        if shows_bars:
            hf_logging.enable_progress_bar()
    if device_map is None:
        _speed_up(model, dtype=dtype, device=device)
    elif any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"device_map {device_map!r} leaves a part of the model on the CPU or the disk, because "
            "the GPUs here do not hold it; use more of them, larger ones, or a smaller model"
        )
    return model.requires_grad_(False).eval()


def read_clips(
    model: Any, inputs: QwenInputs, clips: Sequence[EngineClip], prefixes: Sequence[Prefix]
) -> Iterator[PrefixChunk]:
    """Cut a batch into runs of clips of one size, on a CPU into small ones; let each be seen.

    Args:
        model: of `load_model`.
        inputs: of the same checkpoint.
        clips: the batch.
        prefixes: the tokens of each clip.
    """
    start = 0
    while start < len(clips):
        shape, end, most = clips[start].frames.shape, start + 1, len(clips)
        if model.device.type == "cpu":
            num_frames, _, height, width = shape
            most = CPU_CHUNK_PIXELS // (num_frames * height * width)
        while end < len(clips) and end - start < most and clips[end].frames.shape == shape:
            end += 1
        yield _read_chunk(model, inputs, clips[start:end], prefixes[start:end], first_row=start)
        start = end


def _read_chunk(
    model: Any,
    inputs: QwenInputs,
    clips: Sequence[EngineClip],
    prefixes: Sequence[Prefix],
    *,
    first_row: int,
) -> PrefixChunk:
    ids = np.zeros((len(clips), max(len(prefix.ids) for prefix in prefixes)), dtype=np.int64)
    positions = np.zeros((3, *ids.shape), dtype=np.int64)
    for row, prefix in enumerate(prefixes):
        ids[row, : len(prefix.ids)] = prefix.ids
        positions[:, row, : len(prefix.ids)] = prefix.positions
    device = model.get_input_embeddings().weight.device
    # Bytes travel to the device, and become numbers and patches there.
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips])).to(model.device)
    patch = model.config.vision_config.patch_size
    visual, deepstack = _see_frames(
        model,
        inputs.patches(frames),
        rows=frames.shape[3] // patch,
        columns=frames.shape[4] // patch,
    )
    return PrefixChunk(
        rows=slice(first_row, first_row + len(clips)),
        ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        is_visual=torch.from_numpy(ids == inputs.pad_id).to(device),
        visual=visual,
        deepstack=deepstack,
    )


@torch.no_grad()
def _see_frames(
    model: Any, patches: Tensor, *, rows: int, columns: int
) -> tuple[Tensor, list[Tensor]]:
    """The vision tower on frame pairs of one size.

    Args:
        model: of `load_model`.
        patches: float32 (P * N, C * 2 * 16 * 16).
        rows, columns: patches of a frame, N = rows * columns.

    Returns:
        The visual tokens (P * N / 4, width), and for each deepstack level a tensor of that shape.
    """
    # A pair knows nothing of its neighbours, so all of them can be one video; and one sequence, as
    # `_frame_attention` cuts it into pairs again.
    num_pairs = len(patches) // (rows * columns)
    out = model.model.visual(
        patches.to(model.dtype),
        grid_thw=torch.tensor([[num_pairs, rows, columns]], device=patches.device),
        cu_seqlens=torch.tensor([0, len(patches)], dtype=torch.int32),  # on the CPU: no waiting
        num_patches=rows * columns,
    )
    return out.pooler_output, out.deepstack_features


def _text_attention(
    kind: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Causal without a mask, else as the mask says.

    Args:
        kind: one of ATTENTIONS.
        module: the model's attention module.
        query: (B, H, Q, D).
        key, value: (B, K, S, D).
        attention_mask: what is added, (B, 1, G * Q, S), the Q rows once for each of the G heads.
        scaling: of the products.

    Returns:
        (B, Q, H, D), and None for the weights.
    """
    if attention_mask is None and kind == "sdpa":
        out = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None
    num_clips, num_heads, num_queries, width = query.shape
    if attention_mask is None:
        attention_mask = query.new_full((num_queries, num_queries), -torch.inf).triu(1)
        attention_mask = attention_mask.repeat(num_heads // key.shape[1], 1)  # (G*Q, Q)
    grouped = query.reshape(num_clips, key.shape[1], -1, width)  # (B, K, G*Q, D)
    out = _attend(kind, grouped, key, value, attention_mask, scaling=scaling)
    out = out.reshape(num_clips, num_heads, num_queries, width)
    return out.transpose(1, 2).contiguous(), None


def _frame_attention(
    kind: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    num_patches: int,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Every patch looks at the patches of its own frame pair; (1, H, P * N, D) each."""
    _, num_heads, length, width = query.shape
    query, key, value = (
        x[0].unflatten(1, (length // num_patches, num_patches)).transpose(0, 1)  # (P, H, N, D)
        for x in (query, key, value)
    )
    out = _attend(kind, query, key, value, None, scaling=scaling)  # (P, H, N, D)
    return out.transpose(1, 2).reshape(1, length, num_heads, width), None


def _attend(
    kind: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float
) -> Tensor:
    if kind == "sdpa":
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling
        )
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value


def _speed_up(model: Any, *, dtype: torch.dtype, device: torch.device) -> None:
    """Replace the forward of some modules; not where accelerate has put its own hooks on them."""
    is_onednn = (
        device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()
    )
    multiply = _multiply if is_onednn else functional.linear
    linears: list[Any] = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for linear in linears if is_onednn else []:
        linear.forward = partial(multiply, weight=linear.weight, bias=linear.bias)
    embed = model.model.visual.patch_embed
    weight, bias = embed.proj.weight.flatten(1), embed.proj.bias  # (width, C * 2 * 16 * 16)
    embed.forward = partial(multiply, weight=weight, bias=bias)


def _multiply(x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias through oneDNN where that is the faster way."""
    if x.numel() // x.shape[-1] < MIN_ONEDNN_ROWS:
        return functional.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
