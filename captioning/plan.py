"""The plan of a run: which frames of which clips form which batch and shard, under one fingerprint.

Greedy decoding gives the same bits only for the same batch members, so the batches are part of the
recipe: they are decided here, before anything runs, from the probes alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioning.config import CaptionConfig
from captioning.engines.interface import Engine, EngineFacts
from captioning.frames import FRAME_RULE, RESIZE_RULE, evenly_spaced
from captioning.inputs import Video
from captioning.probe import Probe
from captioning.prompt_files import Prompt
from datasets_build.manifest import (
    canonical_json,
    differing_parts,
    fingerprint,
    read_json,
    sha256_bytes,
    write_bytes_atomic,
    write_json,
)
from datasets_build.schema import SCHEMA_VERSION, STATUS_DECODE_ERROR

DEFAULT_MAX_PIXELS = 224 * 224  # our choice: what most video models see; 160 x 288 for NTU's 16:9
MAX_ASPECT_RATIO = 200  # qwen_vl_utils.vision_process.MAX_RATIO


@dataclass(frozen=True)
class Clip:
    """One planned clip; the fields after `probe` are empty where the probe found a problem.

    Attributes:
        frame_indices: T frames to take.
        height: H of the frames in pixels after resizing.
        width: W of the frames.
        prompt_tokens: tokens that go in, for each prompt of the run.
    """

    sample_id: str
    path: Path
    probe: Probe
    frame_indices: tuple[int, ...] = ()
    height: int = 0
    width: int = 0
    prompt_tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run will do and nothing else.

    Attributes:
        batches: clips that are generated together. Clips with a problem stand in batches of their
            own after all others and are only written down.
        shards: for each shard its batch numbers.
        parts: what decides the captions, by name.
        fingerprint: hash of `parts`.
        recipe_key: hash of the parts that do not depend on which other clips the run has.
    """

    batches: tuple[tuple[Clip, ...], ...]
    shards: tuple[range, ...]
    parts: dict[str, Any]
    fingerprint: str
    recipe_key: str

    @property
    def num_clips(self) -> int:
        """Clips of the run, with and without a problem."""
        return sum(len(batch) for batch in self.batches)


def planned_size(height: int, width: int, *, max_pixels: int, multiple: int) -> tuple[int, int]:
    """Height and width of a resized frame: Qwen's rule (qwen_vl_utils `smart_resize`).

    Both are multiples of `multiple`, their product is at most `max_pixels` (unless one side is a
    single multiple already), the aspect ratio is kept as well as that allows. Nothing is enlarged
    beyond rounding.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"a picture of {width} x {height} pixels is too narrow; "
            f"the longer side may be at most {MAX_ASPECT_RATIO} times the shorter"
        )
    # round() as Qwen uses it: halves go to the even multiple.
    rows = max(1, round(height / multiple))
    columns = max(1, round(width / multiple))
    if rows * columns * multiple**2 > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / scale / multiple))
        columns = max(1, math.floor(width / scale / multiple))
    return rows * multiple, columns * multiple


def frame_pixels(config: CaptionConfig, facts: EngineFacts) -> int:
    """The most pixels of one frame: as configured, else what the model recommends, at most 224^2.

    Raises:
        ValueError: not even one visual token fits.
    """
    max_pixels = config.max_pixels
    if max_pixels is None:
        max_pixels = min(DEFAULT_MAX_PIXELS, facts.clip_pixels // config.num_frames)
    if max_pixels < facts.side_multiple**2:
        raise ValueError(
            f"a frame of {max_pixels} pixels is smaller than one visual token of {facts.model_id} "
            f"({facts.side_multiple} x {facts.side_multiple} = {facts.side_multiple**2} pixels); "
            "raise max_pixels or take fewer frames"
        )
    return max_pixels


def plan_clip(
    video: Video,
    probe: Probe,
    config: CaptionConfig,
    engine: Engine,
    facts: EngineFacts,
    prompts: Sequence[Prompt],
) -> Clip:
    """Frames, size and token counts of one clip."""
    if probe.problem_status is not None:
        return Clip(video.sample_id, video.path, probe)
    assert probe.num_frames is not None
    assert probe.fps is not None
    assert probe.height is not None
    assert probe.width is not None
    try:
        height, width = planned_size(
            probe.height,
            probe.width,
            max_pixels=frame_pixels(config, facts),
            multiple=facts.side_multiple,
        )
    except ValueError as error:
        odd = {**vars(probe), "problem_status": STATUS_DECODE_ERROR, "problem": str(error)}
        return Clip(video.sample_id, video.path, Probe(**odd))
    indices = evenly_spaced(probe.num_frames, config.num_frames)
    tokens = tuple(
        engine.count_prompt_tokens(prompt, indices, fps=probe.fps, height=height, width=width)
        for prompt in prompts
    )
    return Clip(video.sample_id, video.path, probe, indices, height, width, tokens)


def make_plan(
    videos: Sequence[Video],
    probes: Sequence[Probe],
    config: CaptionConfig,
    engine: Engine,
    prompts: Sequence[Prompt],
) -> Plan:
    """Plan a run from its probes; equal inputs give an equal plan, whatever their order.

    Raises:
        ValueError: a clip alone exceeds the token budget of a batch, or a setting does not fit
            the model.
    """
    facts = engine.facts()
    clips = [
        plan_clip(video, probe, config, engine, facts, prompts)
        for video, probe in zip(videos, probes, strict=True)
    ]
    good = [clip for clip in clips if clip.probe.problem_status is None]
    bad = [clip for clip in clips if clip.probe.problem_status is not None]
    batches = [
        *_cut_by_tokens(good, config),
        *_cut_by_count(sorted(bad, key=lambda clip: clip.sample_id), config.rows_per_shard),
    ]
    recipe = {
        "schema_version": SCHEMA_VERSION,
        "frames": {
            "rule": FRAME_RULE,
            "num_frames": config.num_frames,
            "reader": config.reader,
            "allow_truncated": config.allow_truncated,
        },
        "resize": {"rule": RESIZE_RULE, "max_pixels": frame_pixels(config, facts)},
        "model": dict(facts.recipe),
    }
    parts = {
        **recipe,
        "prompts": {prompt.prompt_id: prompt.sha256 for prompt in prompts},
        "videos": _hash_lines(
            [clip.sample_id, clip.probe.sha256, clip.probe.problem_status]
            for clip in sorted(clips, key=lambda clip: clip.sample_id)
        ),
        "batches": _hash_lines(
            [[clip.sample_id, clip.frame_indices, clip.height, clip.width] for clip in batch]
            for batch in batches
        ),
        "rows_per_shard": config.rows_per_shard,
    }
    return Plan(
        batches=tuple(batches),
        shards=_cut_into_shards(batches, rows_per_shard=config.rows_per_shard // len(prompts)),
        parts=parts,
        fingerprint=fingerprint(parts),
        recipe_key=fingerprint(recipe),
    )


def request_key(plan: Plan, clip: Clip, prompt: Prompt) -> str:
    """Hash of everything that one caption was asked with, except the other members of its batch."""
    request = [plan.recipe_key, clip.probe.sha256, clip.frame_indices, clip.height, clip.width]
    return sha256_bytes(canonical_json([*request, prompt.sha256]).encode())


def _cut_by_tokens(clips: Sequence[Clip], config: CaptionConfig) -> Iterator[tuple[Clip, ...]]:
    """Batches of clips with like token counts, none over the budget when padded to its longest."""

    def cost(clip: Clip) -> int:
        return max(clip.prompt_tokens) + config.max_new_tokens

    batch: list[Clip] = []
    for clip in sorted(clips, key=lambda clip: (cost(clip), clip.sample_id)):
        if cost(clip) > config.batch_tokens:
            raise ValueError(
                f"clip {clip.sample_id} alone needs {cost(clip)} tokens ({max(clip.prompt_tokens)} "
                f"in, {config.max_new_tokens} out), but batch_tokens is {config.batch_tokens}; "
                "raise batch_tokens, or lower max_pixels or num_frames"
            )
        # Costs ascend, so this clip is the longest and all others are padded to it.
        if batch and (len(batch) + 1) * cost(clip) > config.batch_tokens:
            yield tuple(batch)
            batch = []
        batch.append(clip)
    if batch:
        yield tuple(batch)


def _cut_by_count(clips: Sequence[Clip], count: int) -> Iterator[tuple[Clip, ...]]:
    for start in range(0, len(clips), count):
        yield tuple(clips[start : start + count])


def _cut_into_shards(
    batches: Sequence[Sequence[Clip]], *, rows_per_shard: int
) -> tuple[range, ...]:
    """Runs of batches; each but the last holds at least `rows_per_shard` clips."""
    shards = []
    start = num_clips = 0
    for number, batch in enumerate(batches):
        num_clips += len(batch)
        if num_clips >= rows_per_shard or number == len(batches) - 1:
            shards.append(range(start, number + 1))
            start, num_clips = number + 1, 0
    return tuple(shards)


def _hash_lines(values: Iterator[list[Any]]) -> str:
    return sha256_bytes("\n".join(canonical_json(value) for value in values).encode())


def save_plan(plan: Plan, folder: Path) -> None:
    """Write plan.jsonl (a line for each clip) and then plan.json, or check that they are ours.

    Raises:
        ValueError: the folder holds a run with another fingerprint; what differs is named.
    """
    path = folder / "plan.json"
    if path.is_file():
        saved = read_json(path, made_by="hoc caption")
        if saved["fingerprint"] != plan.fingerprint:
            names = ", ".join(differing_parts(plan.parts, saved["parts"])) or "the fingerprint"
            raise ValueError(
                f"{folder} holds a caption run with other settings or videos (different: {names}); "
                "give another output folder, or the same settings to go on with that run, "
                "or delete that folder"
            )
        return
    shard_of = {batch: shard for shard, run in enumerate(plan.shards) for batch in run}
    lines = [
        json.dumps({"shard": shard_of[number], "batch": number, **_clip_line(clip)})
        for number, batch in enumerate(plan.batches)
        for clip in batch
    ]
    write_bytes_atomic(folder / "plan.jsonl", "".join(line + "\n" for line in lines).encode())
    write_json(
        path,
        {
            "fingerprint": plan.fingerprint,
            "parts": plan.parts,
            "num_clips": plan.num_clips,
            "num_batches": len(plan.batches),
            "num_shards": len(plan.shards),
        },
    )


def _clip_line(clip: Clip) -> dict[str, Any]:
    line: dict[str, Any] = {
        "sample_id": clip.sample_id,
        "path": str(clip.path),
        "video_sha256": clip.probe.sha256,
    }
    if clip.probe.problem_status is not None:
        return line | {"status": clip.probe.problem_status, "reason": clip.probe.problem}
    return line | {
        "frame_indices": list(clip.frame_indices),
        "height": clip.height,
        "width": clip.width,
        "prompt_tokens": list(clip.prompt_tokens),
    }


def read_planned_videos(folder: Path) -> Iterator[tuple[str, Path, str | None]]:
    """(sample_id, path, sha256) of each clip in a saved plan.

    Raises:
        FileNotFoundError: the folder holds no plan.
    """
    path = folder / "plan.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it is written by `hoc caption`")
    with path.open(encoding="utf-8") as file:
        for line in file:
            value = json.loads(line)
            yield value["sample_id"], Path(value["path"]), value["video_sha256"]
