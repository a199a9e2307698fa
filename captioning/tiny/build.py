"""The tiny captioner before training: vocabulary, chat template, sizes, and how it is written.

It is an ordinary Qwen3-VL (transformers' own classes, an ordinary model folder), only very small,
so that the whole chain runs offline without a GPU. `from_pretrained` loads the folder like any
other Qwen3-VL. It knows the sentences of datasets_build/synthetic_actions.py and nothing about
real videos.

Sizes follow from two facts: Qwen3-VL's vision attention never leaves one pair of frames, and a CPU
must train it in about an hour: few patches, 16 pixels wide.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

MODEL_FOLDER = Path(__file__).parent / "model"

NUM_FRAMES = 16  # frames that the captioner is trained on, evenly spaced over the clip
FRAME_HEIGHT, FRAME_WIDTH = 64, 96  # pixels; the 16:9 picture is squeezed to multiples of 32
PATCH, MERGE, FRAMES_PER_PATCH = 16, 2, 2  # as every published Qwen3-VL
VISUAL_TOKENS = (FRAME_HEIGHT // 32) * (FRAME_WIDTH // 32)  # a frame pair: 2 x 3 = 6

# Qwen3-VL's special tokens, in its order (tokenizer_config.json of Qwen/Qwen3-VL-8B-Instruct).
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MAX_VOCABULARY = 800  # our choice: 256 bytes, special tokens and room for the captions' words

# The prompt of captioning/prompts/global.txt first, then the other prompts of that folder and other
# wordings, so that the model answers whatever it is asked with a caption.
PROMPTS = (
    "Describe the action of the person in this video in one sentence.",
    "Describe how the head, the arms and hands, and the legs and feet of the person move in this "
    "video, one short sentence for each part that moves.",
    "Describe what the person in this video does first, next and last, in one or two sentences in "
    "order of time.",
    "Describe this video in one sentence.",
    "What does the person do? Answer in one sentence.",
    "Describe the action.",
)

# Written for this project; it renders the same form as Qwen3-VL's own for system, user and
# assistant turns with text, pictures and videos (no tools).
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def build_tokenizer(captions: Iterable[str]) -> Qwen2Tokenizer:
    """Train a byte-level BPE on captions, prompts and timestamps, in Qwen's tokenizer class.

    All 256 bytes are in the vocabulary, so every string can be encoded.

    Args:
        captions: the sentences whose words should become tokens; their order does not matter.
    """
    bpe = Tokenizer(BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=1,
    )
    corpus = [*sorted(captions), *PROMPTS, "<0.1 seconds>", "user\n", "assistant\n", "system\n"]
    bpe.train_from_iterator(corpus, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for token in SPECIAL_TOKENS:
        vocabulary[token] = len(vocabulary)
    make: Any = Qwen2Tokenizer  # its annotations leave out merges as pairs and unk_token=None
    tokenizer: Qwen2Tokenizer = make(
        vocab=vocabulary,
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=4096,
        padding_side="left",
    )
    return tokenizer


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen3VLProcessor:
    """The Qwen3-VL processor with sizes under which 16 frames of a 16:9 video become 64 x 96."""
    shape = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": FRAMES_PER_PATCH}
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # as Qwen3-VL
    # The budget counts the pixels of all frames before both sides are rounded down to 32:
    # a 16:9 picture 64 high is 114 wide.
    clip_pixels = NUM_FRAMES * FRAME_HEIGHT * 114
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": 32 * 32, "longest_edge": FRAME_HEIGHT * 114}, **shape, **colours
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": 4096, "longest_edge": clip_pixels},
            cap_pixels_per_frame=False,
            **shape,
            **colours,
        ),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: Qwen2Tokenizer) -> Qwen3VLConfig:
    """Our sizes; every token id is taken from the tokenizer."""

    def id_of(token: str) -> Any:  # transformers says int | list[int]; of one token it is an int
        return tokenizer.convert_tokens_to_ids(token)

    return Qwen3VLConfig(
        architectures=["Qwen3VLForConditionalGeneration"],
        vision_config={
            "depth": 4,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_heads": 6,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES_PER_PATCH,
            "out_hidden_size": 192,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [1],
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            # 6 + 5 + 5 frequencies for time, height and width: half of head_dim.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "pad_token_id": id_of("<|endoftext|>"),
            "bos_token_id": id_of("<|endoftext|>"),
            "eos_token_id": id_of("<|im_end|>"),
        },
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def write_model_folder(
    model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, folder: Path
) -> None:
    """Write config, bf16 weights, tokenizer and processor so that the Auto classes load the folder.

    Each file is written under another name and renamed, so that no reader meets half of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(folder.name + ".tmp")
    work.mkdir(exist_ok=True)
    state = {k: v.detach().to(torch.bfloat16) for k, v in model.state_dict().items()}
    half: Any = Qwen3VLForConditionalGeneration(model.config)
    half = half.to(torch.bfloat16)
    half.load_state_dict(state)
    half.config.dtype = "bfloat16"
    text: Any = model.config.text_config
    half.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[text.eos_token_id, text.pad_token_id],
        pad_token_id=text.pad_token_id,
        bos_token_id=text.bos_token_id,
    )
    half.save_pretrained(work)
    processor.save_pretrained(work)
    for path in sorted(work.iterdir()):
        path.chmod(0o644)
        os.replace(path, folder / path.name)
    work.rmdir()
