"""What three prompts about a clip cost in one pass, beside one prompt and beside transformers.

    python benchmarks/prompts_in_one_pass.py

It performs clips as the demo set does, decodes them, and times, in turns:
    one prompt          the engine, one question a clip
    three in one pass   the engine, all bundled prompts
    transformers        its own processor and generate(), one question a clip
Frames are decoded once and timed apart, as they cost the same whatever is asked. Exit code 1 if
three prompts cost more than the bar, without the decoding (which would hide the difference).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.utils import logging as hf_logging

from captioning.config import CaptionConfig
from captioning.engines.interface import EngineClip
from captioning.engines.model_folder import find_model
from captioning.engines.transformers_engine import TransformersEngine
from captioning.frames import evenly_spaced, read_frames
from captioning.planning import DEFAULT_MAX_PIXELS, planned_size
from captioning.prompt_files import Prompt, bundled_prompt_ids, read_prompts
from captioning.tiny.stream import draw_performance
from datasets_build.synthetic_motion import FPS
from datasets_build.synthetic_render import render, write_video

SEED = 3_000_017
WIDTH, HEIGHT = 480, 270  # as the demo set


def decode_clips(
    folder: Path, engine: TransformersEngine, *, num_clips: int, num_frames: int
) -> tuple[list[EngineClip], float]:
    """Write demo clips as videos and decode them; the clips and the seconds that decoding took."""
    facts = engine.facts()
    max_pixels = min(DEFAULT_MAX_PIXELS, facts.clip_pixels // num_frames)
    height, width = planned_size(HEIGHT, WIDTH, max_pixels=max_pixels, multiple=facts.side_multiple)
    clips, decode_s = [], 0.0
    for index in range(num_clips):
        performance = draw_performance(SEED, index, held_out=True)
        frames = render(performance, range(performance.num_frames), width=WIDTH, height=HEIGHT)
        path = folder / f"{index}.avi"
        write_video(path, frames, fps=FPS)
        indices = evenly_spaced(performance.num_frames, num_frames)
        started = time.perf_counter()
        pixels = read_frames(str(path), indices, height=height, width=width, reader="pyav")
        decode_s += time.perf_counter() - started
        clips.append(EngineClip(str(index), pixels, indices, performance.num_frames, float(FPS)))
    return clips, decode_s


def transformers_path(
    engine: TransformersEngine, config: CaptionConfig, clips: list[EngineClip], prompt: Prompt
) -> Callable[[], Any]:
    """The same question through the model's own processor and generate()."""
    recipe = engine.facts().recipe
    model: Any = AutoModelForImageTextToText.from_pretrained(
        find_model(config.model).folder, dtype=getattr(torch, recipe["dtype"])
    )
    model = model.to(recipe["device"]).eval()
    model.generation_config = GenerationConfig(**recipe["generation"])

    @torch.inference_mode()
    def run() -> None:
        inputs = engine._inputs.processor_inputs(clips, prompt)
        out = model.generate(**{name: x.to(model.device) for name, x in inputs.items()})
        engine._inputs.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :])

    return run


def main() -> int:
    """Measure, print a table and compare with the bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=32, help="clips of the batch (default 32)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--model", default="tiny", help="any model that `hoc caption` takes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--most", type=float, default=1.6, help="the bar, times one prompt")
    args = parser.parse_args()
    hf_logging.disable_progress_bar()
    prompts = read_prompts(bundled_prompt_ids())
    one = tuple(prompt for prompt in prompts if prompt.prompt_id == "global")
    with tempfile.TemporaryDirectory() as temporary:
        config = CaptionConfig(
            videos=(temporary,), out=Path(temporary), model=args.model, device=args.device
        )
        engine = TransformersEngine(config)
        engine.load()
        clips, decode_s = decode_clips(
            Path(temporary), engine, num_clips=args.clips, num_frames=args.frames
        )
        ways: dict[str, Callable[[], Any]] = {
            "one prompt": lambda: engine.generate(clips, one),
            f"{len(prompts)} in one pass": lambda: engine.generate(clips, prompts),
            "transformers": transformers_path(engine, config, clips, one[0]),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(args.repeats + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if repeat:  # the first warms up
                    times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["one prompt"]
    ratio = medians[f"{len(prompts)} in one pass"] / base
    print(f"{args.clips} clips of {args.frames} frames, medians of {args.repeats}")
    print(", ".join(f"{key} {value}" for key, value in engine.hardware().items()))
    for name, median in medians.items():
        print(
            f"{name:18} {median:8.3f} s {1000 * median / len(clips):8.1f} ms a clip "
            f"{median / base:6.2f} times one prompt"
        )
    print(
        f"{'decoding, 1 core':18} {decode_s:8.3f} s {1000 * decode_s / len(clips):8.1f} ms a clip"
    )
    is_held = ratio <= args.most
    print(
        f"{len(prompts)} prompts cost {ratio:.2f} times one; the bar of {args.most:g} is "
        f"{'held' if is_held else 'NOT held'}"
    )
    return 0 if is_held else 1


if __name__ == "__main__":
    sys.exit(main())
