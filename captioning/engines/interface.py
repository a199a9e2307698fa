"""What a captioning engine is: it states facts for the plan, loads, and answers planned clips.

Imports no torch, so that planning and tests can use it without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from captioning.prompt_files import Prompt


class OutOfMemoryError(Exception):
    """The device's memory does not hold this batch; a smaller one may fit."""


@dataclass(frozen=True)
class EngineFacts:
    """What planning needs to know of a model, without its weights being loaded.

    Attributes:
        model_id: name that stands in the shards; never a path.
        model_revision: commit of a hub model, else a short hash of the weights.
        side_multiple: height and width of frames are multiples of this, pixels of one visual token.
        clip_pixels: the largest clip (T * H * W) that the model's own processor would make.
        recipe: everything of the model and of generation that decides captions, as JSON values;
            part of the run's fingerprint.
        exact_tokens: `count_tokens` gives exactly the prompt tokens of the answers; False for a
            server, whose counts are known from its answers only.
    """

    model_id: str
    model_revision: str
    side_multiple: int
    clip_pixels: int
    recipe: Mapping[str, Any]
    exact_tokens: bool = True


@dataclass(frozen=True)
class TokenCount:
    """Tokens that go in for one clip, visual ones included.

    Attributes:
        shared: of what all prompts have in common and the engine computes once; 0 where it does
            not.
        each: of the rest, for each prompt.
    """

    shared: int
    each: tuple[int, ...]

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """Tokens of the whole request, for each prompt."""
        return tuple(self.shared + tokens for tokens in self.each)


@dataclass(frozen=True)
class EngineClip:
    """One decoded clip of a batch.

    Attributes:
        sample_id: comes back with every answer.
        frames: uint8 RGB (T, C, H, W).
        frame_indices: their numbers in the source, T of them.
        num_source_frames: frames of the source.
        fps: frames a second of the source.
    """

    sample_id: str
    frames: NDArray[np.uint8]
    frame_indices: tuple[int, ...]
    num_source_frames: int
    fps: float


@dataclass(frozen=True)
class Generated:
    """The answer to one (clip, prompt).

    Attributes:
        sample_id: whose answer it is.
        prompt_id: to which prompt.
        text: as generated, without special tokens.
        num_prompt_tokens: tokens that went in, visual ones included.
        num_generated_tokens: tokens that came out, without the end token.
        finish_reason: "stop" (the model ended it) or "length" (the token limit did).
        mean_logprob: mean natural log-probability of the generated tokens, the end token included;
            None where a server does not say.
    """

    sample_id: str
    prompt_id: str
    text: str
    num_prompt_tokens: int
    num_generated_tokens: int
    finish_reason: str
    mean_logprob: float | None


@dataclass(frozen=True)
class Failed:
    """A (clip, prompt) that the engine could not answer while it answered others.

    Attributes:
        sample_id: of the clip.
        prompt_id: of the prompt.
        reason: one line.
        timed_out: it took too long.
    """

    sample_id: str
    prompt_id: str
    reason: str
    timed_out: bool = False


class Engine(Protocol):
    """A captioning engine; only `generate` needs the weights, and `load` comes before it."""

    def facts(self) -> EngineFacts:
        """What planning needs to know."""

    def count_tokens(
        self,
        prompts: Sequence[Prompt],
        frame_indices: Sequence[int],
        *,
        fps: float,
        height: int,
        width: int,
    ) -> TokenCount:
        """Tokens of one clip asked all prompts, without its frames."""

    def tokenize(self, text: str) -> list[str]:
        """The pieces that the model writes a text in; for telling where two texts part."""

    def load(self) -> None:
        """Bring the weights to the device; called once, before the first `generate`."""

    def generate(
        self, clips: Sequence[EngineClip], prompts: Sequence[Prompt]
    ) -> Sequence[Generated | Failed]:
        """Answer every prompt for every clip of one batch, in any order.

        Raises:
            OutOfMemoryError: the batch does not fit; the engine is still usable.
        """

    def hardware(self) -> dict[str, Any]:
        """The device, for the manifest."""

    def peak_memory_bytes(self) -> int | None:
        """The most memory of the device in use since `load`; None where the engine cannot tell."""

    def close(self) -> None:
        """Let go of the weights or connections; called once, at the end."""
