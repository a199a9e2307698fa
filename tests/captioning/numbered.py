"""Videos whose pixels tell which frame of which clip they are, and an engine that reads them.

Run as a program it captions a folder with that engine and kills itself with signal 9 at a given
event: a probe or a decoded clip that comes back, a batch that is generated, a flush to the disk, a
rename (once before and once after it):
    python numbered.py VIDEOS OUT KILL_AT
KILL_AT 0 kills nothing and prints the events, a line each.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from captioning.config import CaptionConfig
from captioning.decode_pool import DecodePool, Outcome
from captioning.engines.interface import EngineClip, EngineFacts, Failed, Generated, TokenCount
from captioning.probe import Probe
from captioning.prompt_files import Prompt
from captioning.run import run
from datasets_build.progress import SilentProgress

BITS = 8
HEIGHT, WIDTH = 64, 96  # of the test videos


def numbered_frame(frame: int, clip: int, height: int, width: int) -> NDArray[np.uint8]:
    """RGB (H, W, 3): the frame's number as black and white bars above, the clip's below."""
    rows = np.array(
        [[(number >> bit) & 1 for bit in range(BITS)] for number in (frame, clip)], dtype=np.uint8
    )
    y = np.arange(height) * 2 // height
    x = np.arange(width) * BITS // width
    return np.repeat((16 + 224 * rows[y][:, x])[:, :, None], 3, axis=2).astype(np.uint8)


def read_numbers(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """(frame, clip) of a picture (C, H, W), at any size."""
    grey = picture.astype(float).mean(axis=0)  # (H, W)
    height, width = grey.shape
    columns = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    bits = [
        [grey[row, column] > 128 for column in columns] for row in (height // 4, height * 3 // 4)
    ]
    frame, clip = (sum(int(bit) << place for place, bit in enumerate(row)) for row in bits)
    return frame, clip


def write_video(
    path: Path,
    num_frames: int,
    *,
    clip: int = 0,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    height: int = HEIGHT,
    width: int = WIDTH,
    step: int = 1,
) -> Path:
    """Encode numbered frames, one each `step` of 1/25 s; the container follows from the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(25), options=options or {})
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(num_frames):
            picture = numbered_frame(number, clip, height, width)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = step * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


class ReadingEngine:
    """Answers "clip 3 frames 0 5 9 to global" from the pixels alone; needs no model.

    Args:
        on_plan: called once when the first clip is planned, which is after the probe.
        on_batch: called with each batch; may raise, or return answers to give instead.
    """

    def __init__(
        self,
        on_plan: Callable[[], None] | None = None,
        on_batch: Callable[[Sequence[EngineClip]], Sequence[Generated | Failed] | None]
        | None = None,
    ) -> None:
        self.on_plan = on_plan
        self.on_batch = on_batch
        self.num_batches = 0

    def facts(self) -> EngineFacts:
        return EngineFacts("reading", "1", 32, 16 * HEIGHT * WIDTH, {"id": "reading"})

    def count_tokens(
        self,
        prompts: Sequence[Prompt],
        frame_indices: Sequence[int],
        *,
        fps: float,
        height: int,
        width: int,
    ) -> TokenCount:
        if self.on_plan is not None:
            self.on_plan()
            self.on_plan = None
        # Clips of different lengths cost different tokens, so that ids and batches do not align.
        return TokenCount(50 + frame_indices[-1], tuple(len(p.prompt_id) for p in prompts))

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def load(self) -> None:
        pass

    def generate(
        self, clips: Sequence[EngineClip], prompts: Sequence[Prompt]
    ) -> Sequence[Generated | Failed]:
        self.num_batches += 1
        instead = self.on_batch(clips) if self.on_batch is not None else None
        if instead is not None:
            return instead
        # In reverse, because `run` must not rely on the order.
        return [self.answer(clip, prompt) for prompt in prompts for clip in reversed(clips)]

    def answer(self, clip: EngineClip, prompt: Prompt) -> Generated:
        numbers = [read_numbers(frame) for frame in clip.frames]
        (clip_number,) = {number for _, number in numbers}
        frames = " ".join(str(frame) for frame, _ in numbers)
        return Generated(
            sample_id=clip.sample_id,
            prompt_id=prompt.prompt_id,
            text=f" clip {clip_number} frames {frames} to {prompt.prompt_id}\n",
            num_prompt_tokens=50 + clip.frame_indices[-1] + len(prompt.prompt_id),
            num_generated_tokens=9,
            finish_reason="stop",
            mean_logprob=-0.25,
        )

    def hardware(self) -> dict[str, Any]:
        return {"device": "none"}

    def peak_memory_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        pass


def config_for(videos: Path, out: Path, **changes: Any) -> CaptionConfig:
    """Small batches and shards, so that a few clips make several of each."""
    values = {
        "num_frames": 4,
        "max_new_tokens": 10,
        "batch_tokens": 250,
        "rows_per_shard": 5,
        "num_workers": 1,
        "decode_timeout_s": 60.0,
    }
    return CaptionConfig(videos=(str(videos),), out=out, **{**values, **changes})


def main(videos: str, out: str, kill_at: int) -> None:
    events: list[str] = []

    def happens(event: str) -> None:
        events.append(event)
        if len(events) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    flush, rename, take = os.fsync, os.replace, DecodePool.take

    def fsync(descriptor: int) -> None:
        happens(f"flush {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        flush(descriptor)

    def replace(source: Any, target: Any) -> None:
        happens(f"before rename to {os.path.basename(target)}")
        rename(source, target)
        happens(f"after rename to {os.path.basename(target)}")

    def taken(self: DecodePool, ticket: int) -> Outcome:
        outcome = take(self, ticket)
        happens("probed" if isinstance(outcome.value, Probe) else "decoded")
        return outcome

    os.fsync, os.replace = fsync, replace
    Path.replace = lambda path, target: replace(path, target)  # type: ignore[method-assign,assignment]
    DecodePool.take = taken  # type: ignore[method-assign]
    engine = ReadingEngine(on_batch=lambda clips: happens("generate"))
    run(config_for(Path(videos), Path(out)), SilentProgress(), engine=engine)
    if not kill_at:
        print("\n".join(events))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
