"""What a caption run is told: the settings of `hoc caption`, checked before any video is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from datasets_build.settings import Settings


def _as_tuple(value: Any) -> Any:
    return (str(value),) if isinstance(value, (str, Path)) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class CaptionConfig(Settings):
    """Settings of one caption run.

    Attributes:
        videos: folders, globs or single files.
        out: the run's folder; it is created, and a run that was stopped there goes on.
        model: "tiny" (bundled), a local model folder, or a hub id (Qwen/Qwen3-VL-8B-Instruct).
        revision: branch, tag or commit of a hub model.
        prompts: ids of files in captioning/prompts, or paths of prompt files; a clip is asked all.
        num_frames: frames taken of each clip, evenly spaced; even, because the model merges pairs.
        reader: "pyav" or "decord"; both decode in order, which is exact.
        max_pixels: pixels of one frame after resizing; None takes min(224 * 224, the clip budget
            of the model's own processor / num_frames).
        max_new_tokens: the longest caption in tokens.
        batch_tokens: the most (prompt + new) tokens of one batch, padding included. It is part of
            the recipe: other batches may give other captions.
        dtype: "auto" is float32 on the CPU and the checkpoint's own type on a GPU.
        device: "auto" takes the GPU where there is one.
        attention: the attention implementation that transformers is asked for.
        num_workers: decoding processes.
        decode_timeout_s: seconds that one clip may take to probe or decode before it is given up.
        rows_per_shard: a shard is closed by the first batch that reaches so many rows.
        max_attempts: a rerun tries failed rows again until they have been tried so often.
        allow_truncated: caption a file that ends early from the frames that it has.
        limit: only the first so many videos, in the order of their ids.
    """

    videos: Texts = Field(min_length=1)
    out: Path
    model: str = Field("tiny", min_length=1)
    revision: str | None = None
    prompts: Texts = Field(("global",), min_length=1)
    num_frames: int = Field(16, ge=2, le=768)
    reader: Literal["pyav", "decord"] = "pyav"
    max_pixels: int | None = Field(None, ge=1024)
    max_new_tokens: int = Field(64, ge=1, le=4096)
    # our choice: about 30 NTU clips at the default size, under 3 GB of keys and values at 8B
    batch_tokens: int = Field(16384, ge=64)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    num_workers: int = Field(2, ge=1, le=256)
    decode_timeout_s: float = Field(120.0, gt=0)
    rows_per_shard: int = Field(4096, ge=1)
    max_attempts: int = Field(3, ge=1)
    allow_truncated: bool = False
    limit: int | None = Field(None, ge=1)

    @field_validator("num_frames")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(
                f"num_frames is {value}, but the model merges frames in pairs; "
                f"give an even number, {value - 1} or {value + 1}"
            )
        return value

    @field_validator("prompts")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"prompts names one prompt twice: {', '.join(value)}")
        return value
