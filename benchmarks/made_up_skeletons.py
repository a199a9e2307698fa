"""Made-up skeletons for the programs that measure training: shapes, clips and a store of them.

Imported by the programs beside it. Clips have the lengths that recordings have, and a class moves
its joints in its own way, so that training on them lowers the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets_build.joints import Skeleton, skeleton_named
from training.config import DataConfig, View
from training.skeleton_data import SkeletonStore


@dataclass(frozen=True)
class Shape:
    """What a batch looks like, and what the original took on 2 threads of a quiet machine.

    The figures were measured for it once: ms a sample at batch 16 of a training step (a middle of
    70-76 for NW-UCLA) and of a forward pass.
    """

    skeleton: Skeleton
    num_frames: int
    num_classes: int
    view: View
    median_length: int
    longest: int
    graph: str  # of the original
    published_train_ms: float
    published_eval_ms: float


SHAPES = {
    "nw-ucla": Shape(
        skeleton_named("ucla-20"), 52, 10, "ucla", 34, 201, "graph.ucla.Graph", 73.0, 26.5
    ),
    "ntu": Shape(
        skeleton_named("ntu-25"), 64, 60, "ntu", 76, 300, "graph.ntu_rgb_d.Graph", 195.0, 45.5
    ),
}


def draw_lengths(
    num_samples: int, *, median: int, longest: int, shortest: int = 20, seed: int = 0
) -> np.ndarray:
    """Frames of clips, spread as recordings are: log-normal, most between half and twice."""
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(np.log(median), 0.45, num_samples)
    return np.clip(drawn, shortest, longest).astype(np.int64)


def made_up_store(
    shape: Shape, *, num_samples: int, config: DataConfig, device: torch.device, seed: int = 0
) -> SkeletonStore:
    """Clips whose classes move their joints each in its own way; a tenth has two bodies (NTU)."""
    skeleton = shape.skeleton
    rng = np.random.default_rng(seed)
    lengths = draw_lengths(
        num_samples, median=shape.median_length, longest=shape.longest, seed=seed
    )
    bodies = np.minimum(1 + (rng.random(num_samples) < 0.1), skeleton.num_bodies)
    labels = np.arange(num_samples) % shape.num_classes
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    rest = 0.4 * normal(skeleton.num_joints, 3)
    moves = 0.3 * normal(shape.num_classes, skeleton.num_joints, 3)
    rows = torch.empty(int((lengths * bodies).sum()), skeleton.num_joints, 3, device=device)
    at = 0
    for first in range(0, num_samples, 1024):
        part = slice(first, first + 1024)
        counts = lengths[part] * bodies[part]
        clip = np.repeat(np.arange(len(counts)), counts)  # (r,)
        frame = (np.arange(counts.sum()) - (counts.cumsum() - counts)[clip]) % lengths[part][clip]
        phase = torch.from_numpy(np.sin(4 * np.pi * frame / lengths[part][clip])).to(device)
        label = torch.from_numpy(labels[part][clip]).to(device)
        stop = at + len(clip)
        moved = phase.float()[:, None, None] * moves[label]  # (r, V, C)
        rows[at:stop] = rest + moved + 0.05 * normal(*moved.shape)
        at = stop
    return SkeletonStore(
        rows,
        sample_ids=[f"made-up-{number:06d}" for number in range(num_samples)],
        labels=labels,
        num_frames=lengths,
        num_bodies=bodies,
        skeleton=skeleton,
        config=config,
        second_body="zeros",
        device=device,
    )


def data_config(shape: Shape) -> DataConfig:
    """The [data] section of that shape; its paths are not read."""
    return DataConfig(
        dataset=Path("made-up"),
        protocol="made-up",
        num_frames=shape.num_frames,
        view=shape.view,
    )
