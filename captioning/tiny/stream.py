"""The training stream of the tiny captioner: clips rendered to disk, augmented anew at each draw.

Clip number i of a seed is always the same clip, whoever renders it and when. One process renders
(`python -m captioning.tiny.stream`), another trains; between them lies a `Pool`, a folder of flat
arrays that is filled from the front. A clip costs more to render than to learn from, so each is
drawn several times, every time mirrored and recoloured differently.

The picture takes the product's path in short: rendered at 16:9 and squeezed to 64 x 96 with the
same bicubic filter, without the video file in between; a slightly shifted and zoomed cut, noise
and blur stand in for the codec and for cameras that training does not draw.

Legend: N clips, B clips of a batch, T frames, P frame pairs, M bodies, V joints.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from captioning.tiny.build import FRAME_HEIGHT, FRAME_WIDTH, NUM_FRAMES
from datasets_build.joints import NTU_25
from datasets_build.synthetic import Performance, perform
from datasets_build.synthetic_actions import ACTIONS, describe
from datasets_build.synthetic_motion import FPS
from datasets_build.synthetic_render import render
from datasets_build.synthetic_view import colour_pixels

# `perform` itself draws subjects and setups (room, clothes, lens) from 1,000 to 999,999; the demo
# set has smaller numbers. Held-out clips have numbers that neither ever draws.
HELD_OUT_IDS = (5_000_000, 6_000_000)
RENDER_SIZE = (214, 120)  # width, height; 16:9 like the demo set's 480 x 270, as detailed, cheaper
# The questions of the auxiliary heads and their answers: attributes of a Performance.
ATTRIBUTES: dict[str, tuple[int | str | None, ...]] = {
    "action_id": tuple(sorted(ACTIONS)),
    "side": (None, "left", "right"),
    "repetitions": (1, 2, 3, 4, 5),
    "speed": (None, "slowly", "quickly"),
    "direction": (None, "forward", "sideways", "up", "to the left", "to the right"),
}
OPPOSITE = {"left": "right", "right": "left"}

FACTS = np.dtype(
    [
        ("num_frames", "i4"),
        ("has_second", "?"),
        ("labels", "i2", (len(ATTRIBUTES),)),
        ("caption", "S256"),
    ]
)
CHUNK = 8  # clips rendered between two updates of the count


def frame_indices(num_frames: int) -> list[int]:
    """The frames that the caption engine takes: NUM_FRAMES evenly spaced ones, first and last."""
    return [int(i) for i in np.linspace(0, num_frames - 1, NUM_FRAMES).round()]


def draw_performance(seed: int, index: int, *, held_out: bool = False) -> Performance:
    """Performance number `index` of a seed."""
    rng = np.random.default_rng([seed, index])
    if not held_out:
        return perform(rng)
    subject_id, setup_id = (int(i) for i in rng.integers(*HELD_OUT_IDS, size=2))
    return perform(rng, subject_id=subject_id, setup_id=setup_id)


def render_small(performance: Performance, indices: Sequence[int]) -> NDArray[np.uint8]:
    """The clip as the product gives it to the model, less the codec: uint8 (T, 64, 96, 3)."""
    large = render(performance, indices, width=RENDER_SIZE[0], height=RENDER_SIZE[1])
    return np.stack([_resize(frame, (0.0, 0.0, 1.0, 1.0)) for frame in large])


def _resize(frame: NDArray[np.uint8], box: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """Cut the box (left, top, right, bottom in 0..1) out of a picture and make it 96 x 64."""
    height, width = frame.shape[:2]
    pixels = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    image = Image.fromarray(frame)
    small = image.resize((FRAME_WIDTH, FRAME_HEIGHT), Image.Resampling.BICUBIC, box=pixels)
    return np.asarray(small)


def swap_sides(caption: str) -> str:
    """The caption of the mirrored clip: left becomes right and right becomes left."""
    return re.sub("left|right", lambda side: OPPOSITE[side[0]], caption)


def grammar_captions(num_performances: int = 4000) -> list[str]:
    """Every distinct caption, sides swapped too, of the first performances of seed 0."""
    captions = {describe(draw_performance(0, i)) for i in range(num_performances)}
    return sorted(captions | {swap_sides(caption) for caption in captions})


def _mirrored_labels(attribute: str) -> NDArray[np.int64]:
    """For each value of an attribute the index of its value in the mirrored clip."""
    values = ATTRIBUTES[attribute]
    mirrored = [swap_sides(value) if isinstance(value, str) else value for value in values]
    return np.array([values.index(value) for value in mirrored])


@dataclass(frozen=True)
class Batch:
    """Clips ready for training.

    Attributes:
        frames: uint8 (B, T, H, W, 3).
        gain, offset: (B, 3), what to do to each clip's red, green and blue in -1..1.
        joints: float32 (B, P, 2, M, V, 2), x and y in 0..1; bodies from left to right.
        has_second: bool (B,); where False the second body of `joints` is zero.
        labels: for each attribute the index of its value in ATTRIBUTES, (B,).
        captions: B sentences.
        frame_indices: for each clip the frames that were taken.
        fps: frames a second of each clip.
        other_captions: sentences of other clips, to be learned without a picture.
    """

    frames: Tensor
    gain: Tensor
    offset: Tensor
    joints: Tensor
    has_second: Tensor
    labels: dict[str, Tensor]
    captions: list[str]
    frame_indices: list[list[int]]
    fps: list[float]
    other_captions: list[str]


class Pool:
    """Rendered clips 0 .. N-1 of one seed in flat files, filled from the front.

    Args:
        folder: where the arrays lie; created when absent.
        num_clips: N, how many clips it is going to hold.
        seed: clip i is a function of (seed, i).
        held_out: draw subjects and setups that training never sees.
    """

    def __init__(self, folder: Path, num_clips: int, *, seed: int, held_out: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.num_clips, self.seed = num_clips, seed
        self.held_out = held_out
        picture = (num_clips, NUM_FRAMES, FRAME_HEIGHT, FRAME_WIDTH, 3)
        skeleton = (num_clips, NUM_FRAMES, 2, NTU_25.num_joints, 2)
        self.frames = _open(folder / "frames.u1", np.dtype("u1"), picture)
        self.joints = _open(folder / "joints.f4", np.dtype("f4"), skeleton)
        self.facts = _open(folder / "facts.bin", FACTS, (num_clips,))
        self._count = folder / "count"

    def __len__(self) -> int:
        """How many clips are finished."""
        return int(self._count.read_text()) if self._count.is_file() else 0

    def wait_for(self, num_clips: int, renderer: subprocess.Popen[bytes]) -> None:
        """Return when that many clips are finished.

        Raises:
            RuntimeError: the rendering process ended before.
        """
        while len(self) < num_clips:
            if renderer.poll() is not None and len(self) < num_clips:
                raise RuntimeError(
                    f"the rendering process ended with code {renderer.returncode} after "
                    f"{len(self)} of {num_clips} clips; its own message stands above"
                )
            time.sleep(0.2)

    def fill(self) -> None:
        """Render every clip that is still missing."""
        for first in range(len(self), self.num_clips, CHUNK):
            last = min(first + CHUNK, self.num_clips)
            for index in range(first, last):
                self._render(index)
            temporary = self._count.with_suffix(".tmp")
            temporary.write_text(str(last))
            os.replace(temporary, self._count)

    def _render(self, index: int) -> None:
        """Render clip `index` into the arrays: moved and zoomed a little, blurred, with noise."""
        performance = draw_performance(self.seed, index, held_out=self.held_out)
        rng = np.random.default_rng([self.seed, index, 1])
        num_bodies, num_frames = performance.bodies.shape[:2]
        indices = frame_indices(num_frames)
        large = render(performance, indices, width=RENDER_SIZE[0], height=RENDER_SIZE[1])
        size, corner = 1 - rng.uniform(0, 0.06, 2), rng.uniform(0, 1, 2)
        left, top = corner * (1 - size)
        box = (float(left), float(top), float(left + size[0]), float(top + size[1]))
        clip = np.stack([_resize(frame, box) for frame in large])
        self.frames[index] = _spoil(clip, rng)
        joints = colour_pixels(performance.bodies[:, indices], width=1, height=1)  # (M, T, V, 2)
        joints = (joints - [left, top]) / size
        self.joints[index, :, :num_bodies] = joints.transpose(1, 0, 2, 3)
        labels = [values.index(getattr(performance, name)) for name, values in ATTRIBUTES.items()]
        caption = describe(performance).encode()
        self.facts[index] = (num_frames, num_bodies == 2, labels, caption)

    def batch(
        self, clips: NDArray[np.int64], rng: np.random.Generator | None, *, num_other: int = 8
    ) -> Batch:
        """Read clips and, given a generator, augment them.

        Args:
            clips: their numbers, all finished.
            rng: draws mirroring and colours; None leaves the clips as they are.
            num_other: captions of further clips for `other_captions`.
        """
        facts = self.facts[clips]
        frames = torch.from_numpy(self.frames[clips])  # (B, T, H, W, 3)
        joints = torch.from_numpy(self.joints[clips])  # (B, T, M, V, 2)
        captions = [text.decode() for text in facts["caption"]]
        labels = facts["labels"].astype(np.int64)  # (B, attributes)
        others = np.resize(clips, num_other)
        gain, offset = np.ones((len(clips), 3)), np.zeros((len(clips), 3))
        if rng is not None:
            others = rng.integers(0, clips.max() + 1, num_other)
            mirrored = np.flatnonzero(rng.random(len(clips)) < 0.5)
            frames[mirrored] = frames[mirrored].flip(3)
            joints[mirrored] = _mirror(joints[mirrored])
            for row in mirrored:
                captions[row] = swap_sides(captions[row])
            for column, name in enumerate(ATTRIBUTES):
                labels[mirrored, column] = _mirrored_labels(name)[labels[mirrored, column]]
            gain = rng.uniform(0.85, 1.15, (len(clips), 1)) * rng.uniform(0.94, 1.06, gain.shape)
            offset = rng.uniform(-0.15, 0.15, (len(clips), 1)) + rng.uniform(
                -0.05, 0.05, gain.shape
            )
        return Batch(
            frames=frames,
            gain=torch.from_numpy(gain).float(),
            offset=torch.from_numpy(offset).float(),
            joints=_order_bodies(joints, facts["has_second"]),
            has_second=torch.from_numpy(facts["has_second"]),
            labels={name: torch.from_numpy(labels[:, i]) for i, name in enumerate(ATTRIBUTES)},
            captions=captions,
            frame_indices=[frame_indices(int(n)) for n in facts["num_frames"]],
            fps=[float(FPS)] * len(clips),
            other_captions=[text.decode() for text in self.facts["caption"][others]],
        )


def _open(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Open a flat file, or create it full of zeros."""
    if path.is_file():
        return np.memmap(path, dtype=dtype, mode="r+", shape=shape)
    return np.memmap(path, dtype=dtype, mode="w+", shape=shape)


def _mirror(joints: Tensor) -> Tensor:
    """Joints (B, T, M, V, 2) of the mirrored picture: left and right joints change their names."""
    joints = joints[:, :, :, list(NTU_25.mirror)].clone()
    joints[..., 0] = 1 - joints[..., 0]
    return joints


def _order_bodies(joints: Tensor, has_second: NDArray[np.bool_]) -> Tensor:
    """(B, T, M, V, 2) -> (B, P, 2, M, V, 2) with two bodies in the order of their place in x."""
    pairs = joints.unflatten(1, (-1, 2))  # (B, P, 2, M, V, 2)
    middle = pairs[..., 0].mean(dim=(2, 4))  # (B, P, M)
    swapped = (middle[..., 1] < middle[..., 0]) & torch.from_numpy(has_second)[:, None]
    return torch.where(swapped[:, :, None, None, None, None], pairs.flip(3), pairs)


@cache
def _noise() -> NDArray[np.float32]:
    """Four million standard normal numbers."""
    return np.random.default_rng(0).standard_normal(2**22, dtype=np.float32)


def _spoil(clip: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a codec and another camera do, roughly: blur 40 % of the clips, add noise to all."""
    x = clip.astype(np.float32)
    if rng.random() < 0.4:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        across = (padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]) / 3
        both = (across[:, :-2] + across[:, 1:-1] + across[:, 2:]) / 3
        x += np.float32(rng.uniform(0.1, 0.7)) * (both - x)
    # A slice of one long noise at a random place: drawing anew costs as much as rendering.
    start = int(rng.integers(0, _noise().size - x.size))
    noise = _noise()[start : start + x.size].reshape(x.shape)
    x += np.float32(rng.uniform(0, 4)) * noise
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def main() -> None:
    """Render the clips of a training run, the held-out ones first."""
    parser = argparse.ArgumentParser(description="Render the training clips of the tiny captioner")
    parser.add_argument("--work", required=True, help="the training run's working folder")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--held-out-clips", type=int, required=True)
    args = parser.parse_args()
    work = Path(args.work)
    os.nice(8)  # training has the right of way
    Pool(work / "held-out", args.held_out_clips, seed=args.seed + 1, held_out=True).fill()
    Pool(work / "pool", args.clips, seed=args.seed).fill()


if __name__ == "__main__":
    main()
