"""Qwen3-VL in this process, through transformers: static batches, greedy, frames as planned.

The call follows shared/design/captioning.md section 2, where breaking a rule is a silent error: our
own frames and sizes (no resizing or sampling by the processor), source frame numbers and rate for
the timestamps, left padding, mm_token_type_ids handed on to `generate`, uint8 pixels in.

Prompt form: the model's chat template as transformers 5 expands it. A vision_start/vision_end pair
stands round the whole video, and one round the visual tokens of each frame pair, after its time:
    <|vision_start|><0.1 seconds><|vision_start|>PAD..<|vision_end|>..<|vision_end|>the prompt
Transformers 4.57 and vLLM leave out the outer pair (vllm-project/vllm#46817). `run` compares the
token count of every request with the plan, so another form cannot slip in.

Legend: B clips of a batch, T frames, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.utils import logging as hf_logging

from captioning.config import CaptionConfig
from captioning.engines.interface import EngineClip, EngineFacts, Generated, OutOfMemoryError
from captioning.engines.model_folder import find_model, hash_model_files
from captioning.prompt_files import Prompt
from datasets_build.manifest import sha256_bytes

VIDEO_SLOT = "<|vision_start|><|video_pad|><|vision_end|>"
# What of the processor's settings reaches the pixels; its sizes and sampling are not used.
_PIXEL_SETTINGS = (
    "patch_size", "merge_size", "temporal_patch_size", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std", "do_convert_rgb",
)  # fmt: skip


class TransformersEngine:
    """A Qwen3-VL checkpoint in this process.

    Args:
        config: model, revision, device, dtype, attention and max_new_tokens are used.

    Raises:
        FileNotFoundError: no such model.
        ValueError: it is no Qwen3-VL, or the device is not there.
    """

    def __init__(self, config: CaptionConfig) -> None:
        self._found = find_model(config.model, revision=config.revision)
        self._device = _choose_device(config.device)
        self._attention = config.attention
        self._max_new_tokens = config.max_new_tokens
        # Half the cores: the others decode. Threads that must wait for a core spin in every
        # operation; measured on 2 busy cores, 2 threads took ten times as long as one.
        self._num_threads = max(1, torch.get_num_threads() // 2)
        folder = self._found.folder
        model_config = AutoConfig.from_pretrained(folder)
        if model_config.model_type != "qwen3_vl":
            raise ValueError(
                f"{config.model} is a {model_config.model_type!r} model; "
                "this engine captions with Qwen3-VL checkpoints"
            )
        self._dtype = _choose_dtype(config.dtype, model_config.dtype, self._device)
        self._processor: Any = AutoProcessor.from_pretrained(folder)
        # With frames of the final size it has no effect; set, because unset it warns.
        self._processor.video_processor.cap_pixels_per_frame = False
        self._generation = self._greedy(model_config)
        self._model: Any = None
        self._text_tokens: dict[str, int] = {}
        self._framed_tokens: dict[Prompt, int] = {}  # tokens around the frames
        self._facts = self._make_facts(config)

    def facts(self) -> EngineFacts:
        """See Engine.facts."""
        return self._facts

    def hardware(self) -> dict[str, Any]:
        """See Engine.hardware."""
        if self._device.type == "cuda":
            gpu = torch.cuda.get_device_properties(self._device)
            return {"device": gpu.name, "memory_bytes": gpu.total_memory}
        return {"device": "cpu", "num_threads": self._num_threads}

    def count_prompt_tokens(
        self, prompt: Prompt, frame_indices: Sequence[int], *, fps: float, height: int, width: int
    ) -> int:
        """See Engine.count_prompt_tokens."""
        video = self._processor.video_processor
        side, step = video.patch_size * video.merge_size, video.temporal_patch_size
        num_visual = (height // side) * (width // side)  # tokens of a frame pair
        if prompt not in self._framed_tokens:
            # Text between special tokens is tokenised piece by piece, so the counts add up.
            before, after = self.render(prompt).split(VIDEO_SLOT)
            self._framed_tokens[prompt] = self._count(before) + self._count(after) + 2
        total = self._framed_tokens[prompt]
        for start in range(0, len(frame_indices), step):
            ends = frame_indices[start], frame_indices[start + step - 1]
            time_s = (ends[0] / fps + ends[1] / fps) / 2
            total += self._count(f"<{time_s:.1f} seconds>") + num_visual + 2
        return total

    def render(self, prompt: Prompt) -> str:
        """The chat turn of one prompt, with VIDEO_SLOT where the video goes."""
        content = [{"type": "video"}, {"type": "text", "text": prompt.text}]
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        if text.count(VIDEO_SLOT) != 1:
            raise ValueError(
                f"the chat template of {self._found.model_id} does not write {VIDEO_SLOT} once for "
                f"a video; it wrote {text!r}"
            )
        return text

    def load(self) -> None:
        """See Engine.load."""
        shows_bars = hf_logging.is_progress_bar_enabled()
        hf_logging.disable_progress_bar()  # the terminal belongs to the caller
        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self._found.folder, dtype=self._dtype, attn_implementation=self._attention
            )
        finally:
            if shows_bars:
                hf_logging.enable_progress_bar()
        # The checkpoint's own sampling settings would be laid under ours.
        model.generation_config = self._generation
        self._model = model.to(self._device).eval()

    def generate(self, clips: Sequence[EngineClip], prompts: Sequence[Prompt]) -> list[Generated]:
        """See Engine.generate."""
        try:
            with _cpu_threads(self._num_threads):
                return [answer for prompt in prompts for answer in self._answer(clips, prompt)]
        except (torch.OutOfMemoryError, MemoryError) as error:
            message = str(error).split("\n")[0]
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # what PyTorch's CPU allocator says
                raise
            message = str(error).split("\n")[0]
        # Outside the handler, where the traceback no longer holds the tensors of the failed batch.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemoryError(message)

    def model_inputs(self, clips: Sequence[EngineClip], prompt: Prompt) -> dict[str, Tensor]:
        """What `generate` is given for one prompt: input_ids (B, L) and its companions."""
        inputs = self._processor(
            text=[self.render(prompt)] * len(clips),
            videos=[torch.from_numpy(clip.frames) for clip in clips],  # (T, C, H, W) uint8 each
            video_metadata=[
                {
                    "fps": clip.fps,
                    "total_num_frames": clip.num_source_frames,
                    "frames_indices": list(clip.frame_indices),
                }
                for clip in clips
            ],
            do_resize=False,
            do_sample_frames=False,
            padding=True,
            padding_side="left",
            truncation=False,
            return_tensors="pt",
        )
        inputs.pop("video_metadata", None)
        # Cast before the copy: half the bytes go to the GPU.
        inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(self._dtype)
        assert "mm_token_type_ids" in inputs
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    @torch.inference_mode()
    def _answer(self, clips: Sequence[EngineClip], prompt: Prompt) -> list[Generated]:
        inputs = self.model_inputs(clips, prompt)
        recorder = _LogprobRecorder()
        output = self._model.generate(
            **inputs, do_sample=False, logits_processor=LogitsProcessorList([recorder])
        )  # (B, L + new)
        length = inputs["input_ids"].shape[1]
        new = output[:, length:].cpu()
        logprobs = torch.stack(recorder.logprobs, dim=1).cpu()  # (B, new)
        num_prompt = inputs["attention_mask"].sum(dim=1).tolist()
        ends = set(self._generation.eos_token_id)
        answers = []
        for clip, ids, steps, count in zip(clips, new.tolist(), logprobs, num_prompt, strict=True):
            stop = next((place for place, token in enumerate(ids) if token in ends), None)
            kept = ids[:stop]
            num_steps = len(ids) if stop is None else stop + 1
            answers.append(
                Generated(
                    sample_id=clip.sample_id,
                    prompt_id=prompt.prompt_id,
                    text=self._processor.tokenizer.decode(
                        kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
                    ),
                    num_prompt_tokens=count,
                    num_generated_tokens=len(kept),
                    finish_reason="length" if stop is None else "stop",
                    mean_logprob=float(steps[:num_steps].double().mean()),
                )
            )
        return answers

    def _count(self, text: str) -> int:
        if text not in self._text_tokens:
            ids = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._text_tokens[text] = len(ids)
        return self._text_tokens[text]

    def _greedy(self, model_config: Any) -> GenerationConfig:
        """Greedy decoding that ends where the checkpoint says, without its sampling settings."""
        text, tokenizer = model_config.text_config, self._processor.tokenizer
        ends = text.eos_token_id
        if (self._found.folder / "generation_config.json").is_file():
            ends = GenerationConfig.from_pretrained(self._found.folder).eos_token_id or ends
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=sorted({*ends, tokenizer.eos_token_id}),
            pad_token_id=tokenizer.pad_token_id,
        )

    def _make_facts(self, config: CaptionConfig) -> EngineFacts:
        video = self._processor.video_processor
        hashes = hash_model_files(self._found.folder, cache=config.out / "model-files.json")
        probe_prompt = Prompt("form", "", "", "PROMPT")
        tokenizer = self._processor.tokenizer
        recipe = {
            "id": self._found.model_id,
            "revision": self._found.commit,
            **hashes,
            "tokenizer": sha256_bytes(tokenizer.backend_tokenizer.to_str().encode()),
            "chat_template": sha256_bytes(self._processor.chat_template.encode()),
            "rendered_prompt": self.render(probe_prompt),
            "pixels": {name: _json_value(getattr(video, name)) for name in _PIXEL_SETTINGS},
            "engine": "transformers",
            "generation": {
                "do_sample": False,
                "num_beams": 1,
                "max_new_tokens": self._max_new_tokens,
                "eos_token_id": self._generation.eos_token_id,
                "pad_token_id": self._generation.pad_token_id,
            },
            "dtype": str(self._dtype).removeprefix("torch."),
            "attention": self._attention,
            "device": self._device.type,
        }
        return EngineFacts(
            model_id=self._found.model_id,
            model_revision=self._found.commit or f"sha256:{hashes['weights'][:16]}",
            side_multiple=video.patch_size * video.merge_size,
            clip_pixels=video.size["longest_edge"],
            recipe=recipe,
        )


class _LogprobRecorder(LogitsProcessor):
    """Notes the log-probability of the token that greedy decoding takes, (B,) a step."""

    def __init__(self) -> None:
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        values = scores.float()  # (B, vocabulary)
        self.logprobs.append(values.max(dim=-1).values - values.logsumexp(dim=-1))
        return scores


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many CPU threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _json_value(value: Any) -> Any:
    """A setting as it reads back from JSON, where there are no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device 'cuda' was asked for, but PyTorch finds no GPU here; use device 'cpu' or 'auto'"
        )
    return torch.device(name)


def _choose_dtype(name: str, stored: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The checkpoint's own type on a GPU; float32 on a CPU, where half types are slow."""
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cpu":
        return torch.float32
    assert stored is None or isinstance(stored, torch.dtype)
    return stored or torch.bfloat16
