"""Making a plan: from probed videos to batches and shards, decided before anything runs.

Legend: N clips, T frames of a clip, P prompts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.config import CaptionConfig
from captioning.engines.interface import Engine, TokenCount
from captioning.frames import FRAME_RULE, RESIZE_RULE, evenly_spaced
from captioning.inputs import Video
from captioning.plan import (
    PLAN_SCHEMA,
    ROWS_PER_CHUNK,
    Clip,
    Plan,
    map_table,
    table_parts,
    unsaved_path,
)
from captioning.probe import Probe
from captioning.prompt_files import Prompt
from datasets_build.manifest import fingerprint
from datasets_build.schema import SCHEMA_VERSION, STATUS_DECODE_ERROR

DEFAULT_MAX_PIXELS = 224 * 224  # our choice: what most video models see; 160 x 288 for NTU's 16:9
MAX_ASPECT_RATIO = 200  # qwen_vl_utils.vision_process.MAX_RATIO
NO_TOKENS = TokenCount(0, ())


@dataclass(frozen=True)
class Shape:
    """What clips of one length, rate and size have in common.

    Attributes:
        frame_indices: T frames to take.
        height: H in pixels after resizing.
        width: W in pixels after resizing.
        tokens: what goes into the model.
        problem: why such clips cannot be captioned; then the rest is empty.
    """

    frame_indices: tuple[int, ...] = ()
    height: int = 0
    width: int = 0
    tokens: TokenCount = NO_TOKENS
    problem: str | None = None


class Planner:
    """Decides frames, size and tokens of single clips; equal shapes are worked out once.

    Raises:
        ValueError: a setting does not fit the model.
    """

    def __init__(self, config: CaptionConfig, engine: Engine, prompts: Sequence[Prompt]) -> None:
        self._facts = engine.facts()
        self._config = config
        self._engine = engine
        self._prompts = prompts
        self._shapes: dict[tuple[float, ...], Shape] = {}
        self.max_pixels = _frame_pixels(config, engine)

    def shape(self, num_frames: int, fps: float, height: int, width: int) -> Shape:
        """The plan for clips of so many frames, frames a second and pixels."""
        key = (num_frames, fps, height, width)
        if key not in self._shapes:
            self._shapes[key] = self._new_shape(num_frames, fps, height, width)
        return self._shapes[key]

    def clip(self, sample_id: str, path: str, probe: Probe) -> Clip:
        """The plan for one probed clip."""
        if probe.problem_status is not None:
            return Clip(sample_id, path, probe.sha256, probe.problem_status, probe.problem)
        assert probe.num_frames is not None
        assert probe.fps is not None
        assert probe.height is not None
        assert probe.width is not None
        shape = self.shape(probe.num_frames, probe.fps, probe.height, probe.width)
        return Clip(
            sample_id,
            path,
            probe.sha256,
            problem_status=STATUS_DECODE_ERROR if shape.problem else None,
            problem=shape.problem,
            num_frames=probe.num_frames,
            fps=probe.fps,
            frame_indices=shape.frame_indices,
            height=shape.height,
            width=shape.width,
            prompt_tokens=shape.tokens.prompt_tokens,
        )

    def cost(self, shape: Shape) -> int:
        """Tokens that a clip of this shape holds in memory at the end: video, prompts, answers.

        Raises:
            ValueError: more than a batch may have.
        """
        tokens = shape.tokens
        cost = tokens.shared + sum(tokens.each) + len(tokens.each) * self._config.max_new_tokens
        if cost > self._config.batch_tokens:
            raise ValueError(
                f"a clip of {shape.width} x {shape.height} pixels and "
                f"{len(shape.frame_indices)} frames alone needs {cost} tokens (video "
                f"{tokens.shared}, prompts {sum(tokens.each)}, and {self._config.max_new_tokens} "
                f"for each answer), but batch_tokens is {self._config.batch_tokens}; "
                "raise batch_tokens, or lower max_pixels or num_frames"
            )
        return cost

    def _new_shape(self, num_frames: int, fps: float, height: int, width: int) -> Shape:
        try:
            height, width = planned_size(
                height, width, max_pixels=self.max_pixels, multiple=self._facts.side_multiple
            )
        except ValueError as error:
            return Shape(problem=str(error))
        indices = evenly_spaced(num_frames, self._config.num_frames)
        tokens = self._engine.count_tokens(
            self._prompts, indices, fps=fps, height=height, width=width
        )
        return Shape(indices, height, width, tokens)


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


def _frame_pixels(config: CaptionConfig, engine: Engine) -> int:
    """The most pixels of one frame: as configured, else what the model recommends, at most 224^2.

    Raises:
        ValueError: not even one visual token fits.
    """
    facts = engine.facts()
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


def make_plan(
    videos: Sequence[Video],
    probes: pa.Table,
    config: CaptionConfig,
    planner: Planner,
    *,
    recipe: dict[str, Any],
    prompts: Sequence[Prompt],
    folder: Path,
) -> Plan:
    """Plan a run from its probes; equal inputs give an equal plan, whatever their order.

    The table goes to the disk chunk by chunk, under a temporary name; `save_plan` keeps it,
    `drop_plan` does not.

    Args:
        videos: N.
        probes: N rows (probe.PROBE_SCHEMA), in the order of `videos`.
        config: the budget of a batch and the size of a shard are taken.
        planner: decides on single clips.
        recipe: see `recipe_of`.
        prompts: P prompts, sorted by id.
        folder: of the run.

    Raises:
        ValueError: a clip alone exceeds the token budget of a batch.
    """
    ids = [video.sample_id for video in videos]
    if any(later < earlier for earlier, later in pairwise(ids)):
        by_id = sorted(range(len(ids)), key=ids.__getitem__)
        videos = [videos[number] for number in by_id]
        probes = probes.take(pa.array(by_id, pa.int64()))
    del ids
    shapes, shape_of = _shapes_of(
        probes, planner
    )  # shape_of (N,): -1 where the probe has a problem
    costs = np.array(
        [-1 if shape.problem else planner.cost(shape) for shape in shapes] + [-1], dtype=np.int64
    )[shape_of]  # (N,)
    good = np.flatnonzero(costs >= 0)
    good = good[np.argsort(costs[good], kind="stable")]  # ties fall by id
    bad = np.flatnonzero(costs < 0)
    rows_per_shard = max(1, config.rows_per_shard // len(prompts))
    sizes = _cut_by_tokens(costs[good], config.batch_tokens)
    sizes += [min(rows_per_shard, len(bad) - i) for i in range(0, len(bad), rows_per_shard)]
    rows = _Rows(
        videos,
        probes,
        shapes,
        shape_of,
        order=np.concatenate([good, bad]),
        batches=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        shards=np.repeat(_cut_into_shards(sizes, rows_per_shard), sizes),
    )
    path = unsaved_path(folder)
    path.unlink(missing_ok=True)  # never written over: another plan may have it in its memory
    _write_table(path, rows.tables())
    table = map_table(path)
    parts = {
        **recipe,
        "prompts": {prompt.prompt_id: prompt.sha256 for prompt in prompts},
        **table_parts(table),
        "rows_per_shard": config.rows_per_shard,
    }
    return Plan(table, parts, fingerprint(parts), fingerprint(recipe))


def recipe_of(config: CaptionConfig, planner: Planner, engine: Engine) -> dict[str, Any]:
    """The parts of a fingerprint that do not depend on the videos and prompts of a run."""
    reader: dict[str, Any] = {"reader": config.reader, "allow_truncated": config.allow_truncated}
    if config.render:
        from captioning.drawing import RENDER_RULE

        reader = {"drawing": RENDER_RULE}
    return {
        "schema_version": SCHEMA_VERSION,
        "frames": {"rule": FRAME_RULE, "num_frames": config.num_frames, **reader},
        "resize": {"rule": RESIZE_RULE, "max_pixels": planner.max_pixels},
        "model": dict(engine.facts().recipe),
    }


def _shapes_of(probes: pa.Table, planner: Planner) -> tuple[list[Shape], NDArray[np.int64]]:
    """The distinct shapes of the clips, and which of them each clip has (-1: none)."""
    is_good = probes["problem_status"].is_null().to_numpy()
    facts = np.stack(
        [
            pc.fill_null(probes[name], -1).to_numpy().astype(np.float64)
            for name in ("num_frames", "fps", "height", "width")
        ],
        axis=1,
    )[is_good]  # (good, 4)
    distinct, inverse = np.unique(facts, axis=0, return_inverse=True)
    shapes = [
        planner.shape(int(frames), float(fps), int(height), int(width))
        for frames, fps, height, width in distinct.tolist()
    ]
    shape_of = np.full(len(is_good), -1, dtype=np.int64)
    shape_of[is_good] = inverse.reshape(-1)
    return shapes, shape_of


def _cut_by_tokens(costs: NDArray[np.int64], budget: int) -> list[int]:
    """Sizes of batches, none over the budget when padded to its longest; costs ascend."""
    sizes: list[int] = []
    size = 0
    for cost in costs.tolist():
        # Costs ascend, so this clip is the longest and all others are padded to it.
        if size and (size + 1) * cost > budget:
            sizes.append(size)
            size = 0
        size += 1
    return [*sizes, size] if size else sizes


def _cut_into_shards(sizes: Sequence[int], rows_per_shard: int) -> NDArray[np.int32]:
    """The shard of each batch; every shard but the last holds at least `rows_per_shard` clips."""
    shards = np.zeros(len(sizes), dtype=np.int32)
    shard = num_clips = 0
    for number, size in enumerate(sizes):
        shards[number] = shard
        num_clips += size
        if num_clips >= rows_per_shard:
            shard, num_clips = shard + 1, 0
    return shards


@dataclass(frozen=True)
class _Rows:
    """The plan's rows in the order of the batches, made chunk by chunk."""

    videos: Sequence[Video]
    probes: pa.Table
    shapes: Sequence[Shape]
    shape_of: NDArray[np.int64]  # (N,)
    order: NDArray[np.int64]  # (N,), numbers of videos
    batches: NDArray[np.int32]  # (N,), in that order
    shards: NDArray[np.int32]

    def tables(self) -> Iterator[pa.Table]:
        """Tables of PLAN_SCHEMA with ROWS_PER_CHUNK rows at most."""
        names = ("frame_indices", "height", "width", "prompt_tokens", "problem")
        # The last entry stands for clips without a shape.
        of_shapes = pa.table(
            {
                "frame_indices": [list(shape.frame_indices) for shape in self.shapes] + [None],
                "height": [shape.height for shape in self.shapes] + [None],
                "width": [shape.width for shape in self.shapes] + [None],
                "prompt_tokens": [list(s.tokens.prompt_tokens) for s in self.shapes] + [None],
                "problem": [shape.problem for shape in self.shapes] + [None],
            },
            schema=pa.schema([PLAN_SCHEMA.field(name) for name in names]),
        )
        for start in range(0, len(self.order), ROWS_PER_CHUNK):
            yield self._table(slice(start, start + ROWS_PER_CHUNK), of_shapes)

    def _table(self, rows: slice, of_shapes: pa.Table) -> pa.Table:
        order = self.order[rows]
        probes = self.probes.take(pa.array(order))
        shape_of = self.shape_of[order]
        of_shape = of_shapes.take(pa.array(np.where(shape_of < 0, len(self.shapes), shape_of)))
        videos = [self.videos[number] for number in order.tolist()]
        status = pc.if_else(
            pc.is_valid(of_shape["problem"]), STATUS_DECODE_ERROR, probes["problem_status"]
        )
        shape_columns = ("frame_indices", "height", "width", "prompt_tokens")
        columns = {
            "sample_id": pa.array([video.sample_id for video in videos], pa.string()),
            "path": pa.array([os.fsencode(video.path) for video in videos], pa.binary()),
            "video_sha256": probes["sha256"],
            "problem_status": status,
            "problem": pc.coalesce(of_shape["problem"], probes["problem"]),
            "num_frames": probes["num_frames"],
            "fps": probes["fps"],
            **{name: of_shape[name] for name in shape_columns},
            "batch": pa.array(self.batches[rows], pa.int32()),
            "shard": pa.array(self.shards[rows], pa.int32()),
        }
        return pa.table(columns).cast(PLAN_SCHEMA)


def _write_table(path: Path, tables: Iterable[pa.Table]) -> None:
    with path.open("wb") as file:
        with pa.ipc.new_file(file, PLAN_SCHEMA) as writer:
            for table in tables:
                writer.write_table(table.combine_chunks())
        file.flush()
        os.fsync(file.fileno())
