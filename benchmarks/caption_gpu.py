"""Captions a second on a GPU, with a real Qwen3-VL's shape and random weights.

    python benchmarks/caption_gpu.py --shape ../shared/data/qwen/Qwen3-VL-8B-Instruct \
        --processor ../shared/data/qwen/qwen3-vl-processor --clips 512

Random weights never end a sentence, so every caption has all its new tokens. The clips are 1920 x
1080 H.264 with B-frames in AVI, 103 frames as NTU's, few different ones under many names. Printed:
clips/s of the whole run after loading, the share of the time that the model waited for frames, peak
memory, and the arithmetic of the run as a share of `--tflops` (the device's dense bf16 peak).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from captioning.config import CaptionConfig
from captioning.run import make_engine, run
from datasets_build.progress import SilentProgress
from datasets_build.synthetic_render import write_video

NUM_FRAMES = 103  # of the NTU clip in ../shared


def write_model(folder: Path, shape: Path, processor: Path, device: str) -> int:
    """A checkpoint of that shape with random bf16 weights; its number of parameters."""
    config = AutoConfig.from_pretrained(shape)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for path in processor.iterdir():
        if path.suffix in (".json", ".jinja", ".txt") and not (folder / path.name).exists():
            shutil.copy(path, folder)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    return num_parameters


def write_clips(folder: Path, num_clips: int, num_different: int = 16) -> None:
    """Moving noise and shapes at 1080p, linked under NTU's names."""
    rng = np.random.default_rng(0)
    for number in range(num_different):
        tile = rng.integers(0, 256, (68, 120, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        frames = np.stack([np.roll(tile[:1080], 6 * t, axis=1) for t in range(NUM_FRAMES)])
        write_video(folder / f"source{number}.avi", frames, fps=30)
    (folder / "clips").mkdir()
    for number in range(num_clips):
        action, subject = number % 60 + 1, number // 60 + 1
        name = f"S001C001P{subject:03d}R001A{action:03d}_rgb.avi"
        (folder / "clips" / name).hardlink_to(folder / f"source{number % num_different}.avi")


def main() -> None:
    """Make the model and the clips, caption them, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=Path, required=True)
    parser.add_argument("--processor", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--prompts", nargs="+", default=["global"])
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tflops", type=float, default=989.0, help="H200: 989 dense bf16")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        num_parameters = write_model(work / "model", options.shape, options.processor, device)
        write_clips(work, options.clips)
        config = CaptionConfig(
            videos=(str(work / "clips"),),
            out=work / "out",
            model=str(work / "model"),
            dtype="bfloat16",
            device=device,
            max_pixels=224 * 224,
            prompts=tuple(options.prompts),
            batch_tokens=options.batch_tokens,
            attention=options.attention,
            compile=options.compile,
        )
        engine = make_engine(config)
        summary = run(config, SilentProgress(), engine=engine)
        manifest = json.loads(summary.manifest.read_text())
        tokens = manifest["tokens"]
        # Two operations a weight and token; prompts share the video, so this counts too much there.
        operations = 2.0 * num_parameters * (tokens["prompt"] + tokens["generated"])
        seconds = manifest["rates"]["generate_s"] + manifest["rates"]["wait_for_frames_s"]
        print(
            json.dumps(
                {
                    "hardware": engine.hardware(),
                    "parameters": num_parameters,
                    "counts": summary.counts,
                    "clips/s": summary.clips_per_s,
                    "waited for frames": summary.waited_share,
                    "peak memory GB": (engine.peak_memory_bytes() or 0) / 1e9,
                    "tokens": tokens,
                    "TFLOP/s": operations / seconds / 1e12,
                    "share of the limit": operations / seconds / 1e12 / options.tflops,
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
