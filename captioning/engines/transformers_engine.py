"""Qwen3-VL in this process, through transformers: static batches, greedy, frames as planned.

All prompts about a clip are answered in one pass. The frames go to the device as bytes; the vision
tower sees them once; the key/value cache of chat start and video is kept once (`decoding`). Inputs
(`qwen_inputs`) and passes (`qwen_model`) are our own where transformers repeats work, and give what
its processor and its `generate` give: the inputs are compared with the processor's on the first
clip of a run, the answers by tests.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoConfig

from captioning.config import CaptionConfig
from captioning.engines.decoding import BranchDecoder
from captioning.engines.interface import (
    EngineClip,
    EngineFacts,
    Generated,
    OutOfMemoryError,
    TokenCount,
)
from captioning.engines.model_folder import find_model, hash_model_files
from captioning.engines.qwen_files import ATTENTIONS, MODEL_TYPES
from captioning.engines.qwen_inputs import QwenInputs
from captioning.prompt_files import Prompt
from datasets_build.manifest import sha256_bytes

# What is part of a recipe although no setting says it; a change here may change captions.
DECODING = "prefix shared by the prompts, answers as branches"


class TransformersEngine:
    """A Qwen3-VL checkpoint in this process.

    Args:
        config: model, revision, device, device_map, dtype, attention, compile and max_new_tokens
            are used.
        plans_only: the device need not be here; `load` will not be called.

    Raises:
        FileNotFoundError: no such model.
        ValueError: it is no Qwen3-VL, the device is not there, or the attention cannot do this.
    """

    def __init__(self, config: CaptionConfig, *, plans_only: bool = False) -> None:
        if config.attention not in ATTENTIONS:
            raise ValueError(
                f"attention {config.attention!r} takes no mask, so it cannot keep several prompts "
                "about one clip apart; use 'sdpa', which runs PyTorch's own flash attention on "
                "video and prefix, where no mask is needed"
            )
        if config.compile and config.device_map is not None:
            raise ValueError(
                f"compile is asked for together with device_map {config.device_map!r}, but a step "
                "that goes over several devices cannot be compiled in one piece; leave one of the "
                "two out"
            )
        self._config = config
        self._found = find_model(config.model, revision=config.revision)
        self._device = _choose_device(config.device, must_be_here=not plans_only)
        # Half the cores: the others decode. Threads that must wait for a core spin in every
        # operation: on 2 cores, one of them busy, 2 threads took 2 to 10 times as long as one
        # (tiny model and one of 0.3 B); on 2 idle cores they take two thirds of the time.
        self._num_threads = max(1, torch.get_num_threads() // 2)
        folder = self._found.folder
        model_config = AutoConfig.from_pretrained(folder)
        if model_config.model_type not in MODEL_TYPES:
            raise ValueError(
                f"{config.model} is a {model_config.model_type!r} model; "
                "this engine captions with Qwen3-VL checkpoints"
            )
        self._dtype = _choose_dtype(config.dtype, model_config.dtype, self._device)
        self._inputs = QwenInputs(folder, model_id=self._found.model_id)
        self._pad_id = self._inputs.tokenizer.pad_token_id
        self._end_ids = self._find_end_ids(model_config)
        self._checked: set[Prompt] = set()
        self._model: Any = None
        self._decoder: BranchDecoder | None = None
        self._facts = self._make_facts()

    def facts(self) -> EngineFacts:
        """See Engine.facts."""
        return self._facts

    def count_tokens(
        self,
        prompts: Sequence[Prompt],
        frame_indices: Sequence[int],
        *,
        fps: float,
        height: int,
        width: int,
    ) -> TokenCount:
        """See Engine.count_tokens."""
        return self._inputs.count(prompts, frame_indices, fps=fps, height=height, width=width)

    def tokenize(self, text: str) -> list[str]:
        """See Engine.tokenize."""
        tokenizer = self._inputs.tokenizer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [tokenizer.decode([token]) for token in ids]

    def load(self) -> None:
        """See Engine.load."""
        # Here, because it imports what a plan does not need: seconds, and 250 MB.
        from captioning.engines.qwen_model import load_model

        for gpu in self._gpus():
            torch.cuda.reset_peak_memory_stats(gpu)
        self._model = load_model(
            self._found.folder,
            dtype=self._dtype,
            attention=self._config.attention,
            device=self._device,
            device_map=self._config.device_map,
        )
        self._decoder = BranchDecoder(
            self._model,
            max_new_tokens=self._config.max_new_tokens,
            end_ids=self._end_ids,
            pad_id=self._pad_id,
            is_compiled=self._config.compile,
        )

    def generate(self, clips: Sequence[EngineClip], prompts: Sequence[Prompt]) -> list[Generated]:
        """See Engine.generate.

        Raises:
            RuntimeError: the installed transformers writes requests in another form than we do.
        """
        # The compiler takes no tensors of the inference mode, which is a little faster.
        no_grad = torch.no_grad() if self._config.compile else torch.inference_mode()
        try:
            with _cpu_threads(self._num_threads), no_grad:
                return self._answer(clips, prompts)
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

    def hardware(self) -> dict[str, Any]:
        """See Engine.hardware."""
        if self._device.type == "cuda":
            gpu = torch.cuda.get_device_properties(self._device)
            return {
                "device": gpu.name,
                "memory_bytes": gpu.total_memory,
                "num_devices": len(self._gpus()),
            }
        return {"device": "cpu", "num_threads": self._num_threads}

    def peak_memory_bytes(self) -> int | None:
        """See Engine.peak_memory_bytes; of a CPU, the most that this process ever had."""
        if self._device.type == "cuda":
            return sum(torch.cuda.max_memory_allocated(gpu) for gpu in self._gpus())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB

    def close(self) -> None:
        """See Engine.close."""
        self._model = self._decoder = None
        if self._config.compile:
            torch.compiler.reset()  # the compiled step holds the weights
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _gpus(self) -> list[torch.device]:
        """The GPUs that the model may lie on."""
        if self._device.type != "cuda":
            return []
        if self._config.device_map is None:
            return [self._device]
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]

    def _answer(self, clips: Sequence[EngineClip], prompts: Sequence[Prompt]) -> list[Generated]:
        assert self._decoder is not None, "load comes before generate"
        from captioning.engines.qwen_model import read_clips

        if new := [prompt for prompt in prompts if prompt not in self._checked]:
            rope_index = self._model.model.get_rope_index
            self._inputs.check(clips[0], new, rope_index, device=self._decoder.device)
            self._checked.update(new)
        prefixes = [
            self._inputs.prefix(
                clip.frame_indices,
                fps=clip.fps,
                height=clip.frames.shape[2],
                width=clip.frames.shape[3],
            )
            for clip in clips
        ]
        suffixes = [self._inputs.suffix(prompt) for prompt in prompts]
        tokens, logprobs = self._decoder.answer(
            read_clips(self._model, self._inputs, clips, prefixes),
            suffixes,
            lengths=[len(prefix.ids) for prefix in prefixes],
            next_positions=[prefix.next_position for prefix in prefixes],
        )  # (B, P, N) each
        return [
            self._answer_of(
                clip.sample_id,
                prompt.prompt_id,
                tokens[row, branch].tolist(),
                logprobs[row, branch],
                num_prompt_tokens=len(prefix.ids) + len(suffixes[branch]),
            )
            for row, (clip, prefix) in enumerate(zip(clips, prefixes, strict=True))
            for branch, prompt in enumerate(prompts)
        ]

    def _answer_of(
        self,
        sample_id: str,
        prompt_id: str,
        ids: list[int],
        logprobs: torch.Tensor,
        *,
        num_prompt_tokens: int,
    ) -> Generated:
        """The answer that a row of tokens (N,) and their log-probabilities (N,) spell."""
        stop = next((place for place, token in enumerate(ids) if token in self._end_ids), None)
        kept = ids[:stop]
        return Generated(
            sample_id=sample_id,
            prompt_id=prompt_id,
            text=self._inputs.tokenizer.decode(
                kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
            ),
            num_prompt_tokens=num_prompt_tokens,
            num_generated_tokens=len(kept),
            finish_reason="length" if stop is None else "stop",
            mean_logprob=float(logprobs[: len(kept) + (stop is not None)].double().mean()),
        )

    def _find_end_ids(self, model_config: Any) -> list[int]:
        """The tokens that end an answer: those of the checkpoint and of its tokenizer, sorted."""
        ends = model_config.text_config.eos_token_id
        saved = self._found.folder / "generation_config.json"
        if saved.is_file():
            ends = json.loads(saved.read_text(encoding="utf-8")).get("eos_token_id") or ends
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        return sorted({*ends, self._inputs.tokenizer.eos_token_id})

    def _make_facts(self) -> EngineFacts:
        config, inputs = self._config, self._inputs
        hashes = hash_model_files(self._found.folder, cache=config.out / "model-files.json")
        recipe = {
            "id": self._found.model_id,
            "revision": self._found.commit,
            **hashes,
            "tokenizer": sha256_bytes(inputs.tokenizer.backend_tokenizer.to_str().encode()),
            "chat_template": sha256_bytes(inputs.chat_template.encode()),
            "rendered_prompt": inputs.render(Prompt("form", "", "", "PROMPT")),
            "pixels": json.loads(json.dumps(asdict(inputs.pixels))),
            "engine": "transformers",
            "decoding": DECODING,
            "compile": config.compile,
            "generation": {
                "do_sample": False,
                "num_beams": 1,
                "max_new_tokens": config.max_new_tokens,
                "eos_token_id": self._end_ids,
                "pad_token_id": self._pad_id,
            },
            "dtype": str(self._dtype).removeprefix("torch."),
            "attention": config.attention,
            "device": self._device.type,
        }
        return EngineFacts(
            model_id=self._found.model_id,
            model_revision=self._found.commit or f"sha256:{hashes['weights'][:16]}",
            side_multiple=inputs.side,
            clip_pixels=inputs.clip_pixels,
            recipe=recipe,
        )


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many CPU threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choose_device(name: str, *, must_be_here: bool) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    num_gpus = torch.cuda.device_count()
    if must_be_here and device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise ValueError(
            f"device {name!r} (--device, or the recipe) was asked for, but PyTorch finds "
            f"{num_gpus} GPUs here; give --device cpu, or plan only with --plan"
        )
    return device


def _choose_dtype(name: str, stored: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The checkpoint's own type on a GPU; float32 on a CPU, where half types are slow."""
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cpu":
        return torch.float32
    assert stored is None or isinstance(stored, torch.dtype)
    return stored or torch.bfloat16
