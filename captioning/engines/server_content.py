"""What goes to a server and what comes back: the parts of a message, their tokens, the answer.

- Form "images", for every server: before each frame its time as text, `<0.1 seconds>`, then the
  frame as a PNG picture, so the pixels are exactly the planned ones. This is how Qwen3-VL reads a
  video (time, visual tokens, time, ...), but each frame is a step of time where a video has one a
  frame pair: twice the visual tokens.
- Form "video", for vLLM only: one `data:video/jpeg;base64,frame,frame,...` with the frames' numbers
  and rate beside it, from which vLLM makes the times of the frame pairs. JPEG is not exact.

Legend: T frames, C channels, H height, W width.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captioning.engines.interface import EngineClip, TokenCount
from captioning.prompt_files import Prompt

Form = Literal["images", "video"]
Part = dict[str, Any]

JPEG_QUALITY = 95  # our choice
FRAMES_MERGED = 2  # Qwen3-VL makes one step of time of two frames of a video
TEMPLATE_TOKENS = 12  # our estimate: what a chat template writes round one message
BYTES_PER_TOKEN = 3  # our estimate: of English and of times, a little low

# What of a form decides captions.
FORM_RECIPES: dict[Form, dict[str, str]] = {
    "images": {"frames": "PNG, exact", "times": "<%.1f seconds> before each frame"},
    "video": {
        "frames": f"JPEG quality {JPEG_QUALITY} without chroma subsampling, not exact",
        "times": "by the server, from frame numbers and rate",
    },
}


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        answer_id: as the server names it.
        is_echo: the id is the one that the request carried.
        model: that answered, as the server names it.
        text: what it wrote.
        finish_reason: "stop" or "length".
        prompt_tokens: that went in.
        completion_tokens: that came out, as the server counts them.
        mean_logprob: mean natural log-probability of them; None where the server gives none.
    """

    answer_id: str
    is_echo: bool
    model: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    mean_logprob: float | None


def frame_parts(clip: EngineClip, form: Form) -> list[Part]:
    """The parts of a message that show a clip, in the order of time."""
    if form == "video":
        data = ",".join(_encode(frame, "JPEG") for frame in clip.frames)
        return [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{data}"}}]
    parts: list[Part] = []
    for index, frame in zip(clip.frame_indices, clip.frames, strict=True):
        url = f"data:image/png;base64,{_encode(frame, 'PNG')}"
        parts.append({"type": "text", "text": _time_text(index, clip.fps)})
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def video_facts(clip: EngineClip) -> dict[str, Any]:
    """vLLM's `media_io_kwargs` for the form "video": take all frames, and these are their times."""
    return {
        "num_frames": -1,  # else the first 32
        "fps": clip.fps,
        "frames_indices": list(clip.frame_indices),
        # vLLM refuses fewer than it is sent, and of a short clip frames are sent twice.
        "total_num_frames": max(clip.num_source_frames, len(clip.frame_indices)),
        "do_sample_frames": False,
    }


def visual_tokens(num_frames: int, form: Form, *, height: int, width: int, side: int) -> int:
    """Visual tokens of one clip, exactly; `side` is that of a token in pixels."""
    steps = num_frames // FRAMES_MERGED if form == "video" else num_frames
    return steps * (height // side) * (width // side)


def estimate_tokens(
    prompts: Sequence[Prompt],
    frame_indices: Sequence[int],
    form: Form,
    *,
    fps: float,
    num_visual: int,
) -> TokenCount:
    """Tokens of one clip asked all prompts; the text's are estimated from its length.

    `shared` is 0: what a server computes once for several prompts is not known.
    """
    steps = len(frame_indices) // (FRAMES_MERGED if form == "video" else 1)
    # Two tokens stand round the visual ones of each step.
    times = steps * (_text_tokens(_time_text(frame_indices[-1], fps)) + 2)
    framed = num_visual + times + TEMPLATE_TOKENS
    return TokenCount(0, tuple(framed + _text_tokens(prompt.text) for prompt in prompts))


def read_completion(value: Any, request_id: str) -> Completion:
    """The answer in the JSON value of a server's response.

    Raises:
        ValueError: it is no whole chat completion.
    """
    try:
        choice, usage = value["choices"][0], value["usage"]
        answer = Completion(
            answer_id=str(value["id"]),
            # vLLM puts a prefix before it.
            is_echo=str(value["id"]).removeprefix("chatcmpl-") == request_id,
            model=str(value["model"]),
            text=choice["message"].get("content") or "",
            finish_reason=choice["finish_reason"],
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
            mean_logprob=_mean_logprob(choice.get("logprobs")),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error
    if not isinstance(answer.text, str):
        raise ValueError("the content is no text")
    if answer.finish_reason not in ("stop", "length"):
        raise ValueError(f"finish_reason {answer.finish_reason!r}")
    return answer


def _mean_logprob(logprobs: Any) -> float | None:
    """Mean of the tokens' log-probabilities; None where there are none or not for all."""
    values = [token["logprob"] for token in (logprobs or {}).get("content") or []]
    if not values or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
        return None
    return math.fsum(values) / len(values)


def _encode(frame: NDArray[np.uint8], file_format: Literal["PNG", "JPEG"]) -> str:
    """A frame (C, H, W) as base64 of a picture file."""
    picture = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))  # (H, W, C)
    file = io.BytesIO()
    if file_format == "PNG":
        picture.save(file, format="PNG", compress_level=1)  # nearly three times as quick as 6
    else:
        picture.save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return base64.b64encode(file.getvalue()).decode()


def _time_text(index: int, fps: float) -> str:
    return f"<{index / fps:.1f} seconds>"


def _text_tokens(text: str) -> int:
    return len(text.encode()) // BYTES_PER_TOKEN + 1
