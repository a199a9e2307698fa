"""The engine against the naive loop of the Qwen3-VL README, in one run, interleaved.

    python benchmarks/caption_speed.py --clips 96 --rounds 3

Naive: one clip at a time; qwen-vl-utils reads and resizes the video (decord), the processor makes
the inputs, `generate` writes the caption. Ours: `captioning.run.run` on the same files, from
listing to the index, hashing and full decoding in the probe included. Both get the same number of
frames, the same frame size and the same limit of new tokens; the time to import packages is in
neither. "captioning" is the part of ours after the plan: decoding, model, journal, shards, index.
Clips are of the made-up set (480 x 270, H.264 AVI) and described by the tiny model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from captioning.config import CaptionConfig
from captioning.engines.model_folder import find_model
from captioning.plan import load_plan
from captioning.prompt_files import read_prompt
from captioning.run import run
from datasets_build.progress import SilentProgress
from datasets_build.synthetic import write_demo_set

MAX_NEW_TOKENS = 64
NUM_FRAMES = 16


class Naive:
    """The loop of the README, with the model in memory."""

    def __init__(self, model: str, height: int, width: int, *, dtype: Any) -> None:
        folder = find_model(model).folder
        self._size = {"resized_height": height, "resized_width": width}
        self._processor: Any = AutoProcessor.from_pretrained(folder)
        self._model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        self._prompt = read_prompt("global").text

    def caption(self, path: Path) -> str:
        """Decode, then generate."""
        from qwen_vl_utils import process_vision_info

        video = {"type": "video", "video": str(path), "nframes": NUM_FRAMES, **self._size}
        content = [video, {"type": "text", "text": self._prompt}]
        messages = [{"role": "user", "content": content}]
        text = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        images, videos, options = process_vision_info(
            messages,
            image_patch_size=16,
            return_video_kwargs=True,
            return_video_metadata=True,
        )
        frames, metadata = zip(*videos, strict=True)
        inputs = self._processor(
            text=[text],
            images=images,
            videos=list(frames),
            video_metadata=list(metadata),
            do_resize=False,
            return_tensors="pt",
            **options,
        )
        output = self._model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new = output[:, inputs["input_ids"].shape[1] :]
        caption: str = self._processor.batch_decode(new, skip_special_tokens=True)[0]
        return caption


class Clock(SilentProgress):
    """Notes when the captioning begins."""

    captioning_began = 0.0

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        """See Progress.start."""
        if stage == "caption":
            self.captioning_began = time.monotonic()


def main() -> None:
    """Make the clips, measure in turns, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_demo_set(work / "set", num_subjects=8, seed=7)
        videos = sorted((work / "set" / "videos").glob("*.avi"))
        videos = videos[:: max(1, len(videos) // options.clips)][: options.clips]
        (work / "clips").mkdir()
        for video in videos:
            shutil.copy(video, work / "clips")
        config = CaptionConfig(
            videos=(str(work / "clips"),),
            out=work / "warm",
            limit=2,
            batch_tokens=options.batch_tokens,
        )
        run(config, SilentProgress())
        planned = load_plan(work / "warm").batch(0)[0]  # all clips have one size
        naive = Naive("tiny", planned.height, planned.width, dtype=torch.float32)
        naive.caption(videos[0])
        times: dict[str, list[float]] = {"naive": [], "ours": [], "ours, captioning": []}
        for round_number in range(options.rounds):
            began = time.monotonic()
            theirs = {path.stem.removesuffix("_rgb"): naive.caption(path) for path in videos}
            times["naive"].append(time.monotonic() - began)
            out = work / f"out{round_number}"
            began = time.monotonic()
            clock = Clock()
            summary = run(config.model_copy(update={"out": out, "limit": None}), clock)
            ended = time.monotonic()
            times["ours"].append(ended - began)
            times["ours, captioning"].append(ended - clock.captioning_began)
        ours = captions_of(out)
        same = sum(theirs[name].strip() == ours[name] for name in theirs)
        medians = {key: statistics.median(value) for key, value in times.items()}
        print(
            json.dumps(
                {
                    "clips": len(videos),
                    "frame size": [planned.height, planned.width],
                    "seconds": {k: [round(t, 1) for t in v] for k, v in times.items()},
                    "clips/s": {k: round(len(videos) / v, 2) for k, v in medians.items()},
                    "naive takes so many times as long": {
                        key: round(medians["naive"] / value, 2) for key, value in medians.items()
                    },
                    "waited for frames": summary.waited_share,
                    "captions equal to the naive loop's": f"{same}/{len(theirs)}",
                },
                indent=2,
            )
        )


def captions_of(folder: Path) -> dict[str, str]:
    """The captions of a run by sample_id."""
    from datasets_build.shards import iterate_shards, read_index

    shards = read_index(folder / "index.json", made_by="hoc caption")
    rows = [row for table in iterate_shards(folder, shards) for row in table.to_pylist()]
    return {row["sample_id"]: row["caption"] or "" for row in rows}


if __name__ == "__main__":
    main()
