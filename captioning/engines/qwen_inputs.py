"""Qwen3-VL's inputs, made for a whole batch at once and cut where the prompt begins.

The model's own processor writes one request: text, frames, text. We need two parts of it, because
several prompts share the first: the prefix (chat start and video) and the suffix (the prompt and
the start of the answer). Both parts, and the pixels, equal the processor's; `check` proves it on a
real clip with the installed processor, and a test over sizes, rates and lengths.

Prompt form: the model's chat template as transformers 5 expands it. A vision_start/vision_end pair
stands round the whole video, and one round the visual tokens of each frame pair, after its time:
    <|vision_start|><0.1 seconds><|vision_start|>PAD..<|vision_end|>..<|vision_end|>the prompt
Transformers 4.57 and vLLM leave out the outer pair (vllm-project/vllm#46817).

Legend: B clips, T frames, C colours, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioning.engines.interface import EngineClip, TokenCount
from captioning.engines.qwen_files import read_pixel_settings, read_tokenizer
from captioning.prompt_files import Prompt

_START, _PAD, _END = "<|vision_start|>", "<|video_pad|>", "<|vision_end|>"
VIDEO_SLOT = _START + _PAD + _END
VIDEO = 2  # the mark of visual tokens of a video in the processor's mm_token_type_ids


@dataclass(frozen=True)
class Prefix:
    """The tokens that all prompts about one clip share.

    Attributes:
        ids: (L,) int64.
        positions: (3, L) int64, the rotary positions in time, height and width.
        next_position: where the text after the video goes on.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    next_position: int


class QwenInputs:
    """Writes the tokens and cuts the frames of requests to one checkpoint.

    Args:
        folder: of the checkpoint.
        model_id: what to call it in a message.

    Attributes:
        tokenizer: of the checkpoint.
        chat_template: of the checkpoint.
        pixels: how frames become patches.
        clip_pixels: the largest clip (T * H * W) that the processor would make.
        side: pixels of one visual token.

    Raises:
        ValueError: files are missing, or the chat template does not write one video slot.
    """

    def __init__(self, folder: Path, *, model_id: str) -> None:
        self._folder = folder
        self._model_id = model_id
        self.tokenizer, self.chat_template = read_tokenizer(folder)
        self.pixels, self.clip_pixels = read_pixel_settings(folder)
        self.side = self.pixels.patch_size * self.pixels.merge_size
        self._step = self.pixels.temporal_patch_size
        self._encode = lru_cache(maxsize=65536)(self._tokenize)
        self._suffixes: dict[Prompt, list[int]] = {}
        self._frame = lru_cache(maxsize=1024)(self._write_frame)
        self._before = self.render(Prompt("form", "", "", "PROMPT")).partition(VIDEO_SLOT)[0]
        self.pad_id = int(self._encode(_PAD)[0])

    @cached_property
    def processor(self) -> Any:
        """The checkpoint's own processor, for comparison."""
        from transformers import AutoProcessor

        processor: Any = AutoProcessor.from_pretrained(self._folder)
        # With frames of the final size it has no effect; set, because unset it warns.
        processor.video_processor.cap_pixels_per_frame = False
        return processor

    def render(self, prompt: Prompt) -> str:
        """The chat turn of one prompt, with VIDEO_SLOT where the video goes."""
        content = [{"type": "video"}, {"type": "text", "text": prompt.text}]
        text: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=False,
        )
        if text.count(VIDEO_SLOT) != 1:
            raise ValueError(
                f"the chat template of {self._model_id} does not write {VIDEO_SLOT} once for "
                f"a video; it wrote {text!r}"
            )
        return text

    def count(
        self,
        prompts: Sequence[Prompt],
        frame_indices: Sequence[int],
        *,
        fps: float,
        height: int,
        width: int,
    ) -> TokenCount:
        """Tokens of one clip asked all prompts; a few microseconds a frame pair."""
        times = self._times(frame_indices, fps)
        of_a_frame = (height // self.side) * (width // self.side) + 2  # and its start and end
        shared = len(self._encode(self._before)) + 2 + len(times) * of_a_frame
        return TokenCount(
            shared=shared + sum(len(self._encode(time)) for time in times),
            each=tuple(len(self.suffix(prompt)) for prompt in prompts),
        )

    def suffix(self, prompt: Prompt) -> list[int]:
        """The tokens after the video: the prompt and the start of the answer."""
        if prompt not in self._suffixes:
            before, _, after = self.render(prompt).partition(VIDEO_SLOT)
            assert before == self._before
            self._suffixes[prompt] = self._encode(after).tolist()
        return self._suffixes[prompt]

    def prefix(
        self, frame_indices: Sequence[int], *, fps: float, height: int, width: int
    ) -> Prefix:
        """The tokens up to the end of the video.

        Text between special tokens is tokenised on its own, so the pieces add up to the whole.
        """
        frame, places, advance = self._frame(height // self.side, width // self.side)
        pieces = [self._encode(self._before + _START)]
        positions = [_line(len(pieces[0]))]
        start = len(pieces[0])
        for time in self._times(frame_indices, fps):
            text = self._encode(time)
            pieces += [text, frame]
            positions += [start + _line(len(text)), start + len(text) + places]
            start += len(text) + advance
        pieces.append(self._encode(_END))
        positions.append(start + _line(1))
        return Prefix(np.concatenate(pieces), np.concatenate(positions, axis=1), start + 1)

    def patches(self, frames: Tensor) -> Tensor:
        """Normalise frames and cut them as the vision tower reads them.

        Args:
            frames: uint8 (B, T, C, H, W) on any device; an odd T repeats the last frame.

        Returns:
            float32 (B * T/2 * H/16 * W/16, C * 2 * 16 * 16), the same bits as the processor's.
        """
        size, merge, step = self.pixels.patch_size, self.pixels.merge_size, self._step
        if missing := -frames.shape[1] % step:
            frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        num_clips, num_frames, colours, height, width = frames.shape
        x = frames.reshape(
            num_clips * num_frames // step, step, colours,
            height // size // merge, merge, size, width // size // merge, merge, size,
        )  # fmt: skip
        # (pair, row block, column block, row, column, colour, frame, y, x)
        x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        x = x.reshape(-1, colours, step * size * size)  # still bytes: a quarter of the copying
        mean, std = self._scale(x.device)  # (C, 1) each
        return x.float().sub_(mean).div_(std).flatten(1)

    def processor_inputs(self, clips: Sequence[EngineClip], prompt: Prompt) -> dict[str, Tensor]:
        """The same request as the processor writes it, padded on the left: the yardstick."""
        content = [{"type": "video"}, {"type": "text", "text": prompt.text}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(
            text=[text] * len(clips),
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
        return dict(inputs)

    def check(
        self,
        clip: EngineClip,
        prompts: Sequence[Prompt],
        rope_index: Callable[..., tuple[Tensor, Tensor]],
        *,
        device: torch.device,
    ) -> None:
        """Compare everything that is made here with what transformers makes of the same clip.

        Args:
            clip: any real one.
            prompts: the ones of the run.
            rope_index: the model's get_rope_index.
            device: where frames are normalised.

        Raises:
            RuntimeError: this version of transformers writes another form.
        """
        height, width = clip.frames.shape[-2:]
        prefix = self.prefix(clip.frame_indices, fps=clip.fps, height=height, width=width)
        patches = self.patches(torch.from_numpy(clip.frames[None]).to(device)).cpu()
        for prompt in prompts:
            theirs = self.processor_inputs([clip], prompt)
            ids = np.concatenate([prefix.ids, np.array(self.suffix(prompt))])
            positions, delta = rope_index(
                theirs["input_ids"],
                mm_token_type_ids=theirs["mm_token_type_ids"],
                video_grid_thw=theirs["video_grid_thw"],
                attention_mask=theirs["attention_mask"],
            )  # (3, 1, L), (1, 1)
            checks = {
                "tokens": np.array_equal(ids, theirs["input_ids"][0]),
                "visual tokens": np.array_equal(
                    (ids == self.pad_id) * VIDEO, theirs["mm_token_type_ids"][0]
                ),
                "positions": np.array_equal(prefix.positions, positions[:, 0, : len(prefix.ids)])
                and prefix.next_position == len(prefix.ids) + int(delta),
                "pixels": torch.allclose(
                    patches, theirs["pixel_values_videos"], rtol=0.0, atol=1e-6
                ),
            }
            if wrong := [name for name, is_equal in checks.items() if not is_equal]:
                raise RuntimeError(
                    f"the installed transformers makes other {' and '.join(wrong)} of a video than "
                    "this engine knows; install the version of requirements.lock, and report this"
                )

    def _times(self, frame_indices: Sequence[int], fps: float) -> list[str]:
        """What stands before each group of merged frames; its mean time, as the processor does."""
        last = len(frame_indices) - 1
        groups = range(0, len(frame_indices), self._step)
        ends = [
            (frame_indices[start], frame_indices[min(start + self._step - 1, last)])
            for start in groups
        ]
        return [f"<{(first / fps + end / fps) / 2:.1f} seconds>" for first, end in ends]

    def _tokenize(self, text: str) -> NDArray[np.int64]:
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    def _write_frame(
        self, rows: int, columns: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Ids (L,) and relative positions (3, L) of one frame pair, and the place after it."""
        num_visual = rows * columns
        ids = np.concatenate([self._encode(text) for text in (_START, _PAD * num_visual, _END)])
        places = np.zeros((3, num_visual + 2), dtype=np.int64)
        places[:, 1:-1] = 1
        places[1:, 1:-1] += np.indices((rows, columns)).reshape(2, -1)
        places[:, -1] = 1 + max(rows, columns)
        return ids, places, 2 + max(rows, columns)

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a colour on the scale of bytes, (C, 1) each."""
        factor = 1.0 / self.pixels.rescale_factor
        mean = torch.tensor(self.pixels.image_mean, device=device)[:, None] * factor
        return mean, torch.tensor(self.pixels.image_std, device=device)[:, None] * factor


def _line(length: int) -> NDArray[np.int64]:
    """Positions of consecutive text tokens, (3, length)."""
    return np.broadcast_to(np.arange(length), (3, length))
