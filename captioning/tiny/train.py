"""Train the tiny captioner from nothing on the synthetic stream: `python -m captioning.tiny.train`.

Captions alone teach a Qwen3-VL of this size words, not sight. So it learns in two stages, both on
an endless stream of rendered clips:

1. "look": the vision tower alone, on single frame pairs. From the six merged tokens of a pair an
   auxiliary head places the 25 joints of every body in both frames. This is dense supervision.
2. "tell": the whole model on clips of 16 frames. The loss is the caption's cross-entropy, plus
   heads for action, side, repetitions, speed and direction on the last prompt position, plus the
   pose loss. A share of the rows are captions without a video, so that the decoder is a usable
   language model of captions on its own (SSF freezes it).

The heads are thrown away. Every update draws its clips, prompts and augmentation from (seed, stage,
update), so a restart from the last checkpoint continues with the same batches.

Legend: B clips, T frames, P frame pairs of all clips, V joints, M bodies, L tokens, D width.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen3VLForConditionalGeneration

from captioning.tiny.build import (
    MODEL_FOLDER,
    PROMPTS,
    VISUAL_TOKENS,
    build_config,
    build_processor,
    build_tokenizer,
    write_model_folder,
)
from captioning.tiny.inputs import (
    TokenRows,
    answer_logits,
    decode,
    patchify,
    recolour,
    visual_tokens,
)
from captioning.tiny.stream import ATTRIBUTES, Batch, Pool, grammar_captions

logger = logging.getLogger(__name__)

# The recipe of the weights in captioning/tiny/model. They were trained once, with restarts: updates
# 1-500 of "look" ran under a plan of 1500 updates, 5000 of "tell" and 30,000 clips, updates 1-250
# of "tell" under one of 4500, and the first 5,000 clips had noise drawn anew; a rerun differs by
# that. It took 72 minutes on two cores that other work shared. Measured alone, with few other
# clips to render: 0.24 s an update of "look", 0.65 s of "tell".
SEED = 1
LOOK_UPDATES = 1000
TELL_UPDATES = 3200
LOOK_RATE = 1.0e-3
TELL_RATE = 8.0e-4
WARM_UP = 100  # updates
BATCH = 32  # clips an update in "tell"
LOOK_PAIRS = 4  # frame pairs of each of 2 * BATCH clips in "look"
TEXT_ROWS = 16  # captions without a video, added to each "tell" update
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
POSE_WEIGHT, ATTRIBUTE_WEIGHT, TEXT_WEIGHT = 5.0, 0.5, 0.3
HELD_OUT_CLIPS = 192  # of subjects that training never draws
POOL_CLIPS = 20_000  # clips on disk in the end; each is seen several times, augmented anew
FIRST_CLIPS = 1_000  # clips that must be there before the first update
NUM_BODIES, NUM_JOINTS = 2, 25


class Heads(nn.Module):
    """Auxiliary outputs that exist only in training.

    Args:
        width: D, the language model's width.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        coordinates = 2 * NUM_BODIES * NUM_JOINTS * 2  # two frames, x and y
        self.pose = nn.Sequential(
            nn.LayerNorm(VISUAL_TOKENS * width),
            nn.Linear(VISUAL_TOKENS * width, 512),
            nn.GELU(),
            nn.Linear(512, coordinates + 1),
        )
        self.attributes = nn.ModuleDict(
            {name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def place(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (P, 2, M, V, 2) in 0..1 and the logit (P,) that there is a second body."""
        out = self.pose(tokens.flatten(1)).float()  # (P, 401)
        joints = out[:, :-1].view(-1, 2, NUM_BODIES, NUM_JOINTS, 2)
        return joints + 0.5, out[:, -1]


def pose_loss(heads: Heads, tokens: Tensor, joints: Tensor, has_second: Tensor) -> Tensor:
    """Smooth L1 of the joints that exist, plus the loss of the second body's presence.

    Args:
        heads: the auxiliary heads.
        tokens: (P, 6, D), merged visual tokens.
        joints: (P, 2, M, V, 2) in 0..1 of the picture.
        has_second: (P,) bool.
    """
    placed, second = heads.place(tokens)
    error = functional.smooth_l1_loss(placed, joints, beta=0.02, reduction="none").mean(
        dim=(1, 3, 4)
    )
    weight = torch.stack([torch.ones_like(second), has_second.float()], dim=1)  # (P, M)
    presence = functional.binary_cross_entropy_with_logits(second, has_second.float())
    return (error * weight).sum() / weight.sum() + 0.02 * presence


@dataclass
class Meter:
    """Running means of the log line since it was last written."""

    total: dict[str, float]
    count: int = 0

    def add(self, values: dict[str, float]) -> None:
        """Add one update's numbers."""
        for key, value in values.items():
            self.total[key] = self.total.get(key, 0.0) + value
        self.count += 1

    def flush(self) -> dict[str, float]:
        """The means since the last call."""
        means = {key: round(value / max(self.count, 1), 4) for key, value in self.total.items()}
        self.total, self.count = {}, 0
        return means


class Trainer:
    """The model, its heads, its optimizer and where it is in the two stages."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.tokenizer = build_tokenizer(grammar_captions())
        config: Any = build_config(self.tokenizer)
        self.model: Any = Qwen3VLForConditionalGeneration(config)
        self.heads = Heads(config.text_config.hidden_size)
        self.rows = TokenRows(self.tokenizer)
        self.stage, self.update = "look", 0
        self.optimizer = self._new_optimizer()
        self.checkpoint = Path(args.work) / "checkpoint.pt"
        if self.checkpoint.is_file():
            self._load()

    def _new_optimizer(self) -> torch.optim.AdamW:
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        matrices = [p for p in parameters if p.ndim >= 2]
        vectors = [p for p in parameters if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)

    def save(self) -> None:
        """Write the checkpoint under another name, then rename it."""
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stage": self.stage,
            "update": self.update,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stage, self.update = state["stage"], state["update"]
        logger.info("continuing %s after update %d", self.stage, self.update)

    def step(self, loss: Tensor, rate: float) -> float:
        """One optimizer step; returns the gradient's norm before clipping."""
        loss.backward()
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        norm = nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def look(self, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of the vision tower on a few frame pairs of each clip."""
        num_clips, num_frames = batch.frames.shape[:2]
        chosen = torch.from_numpy(rng.integers(0, num_frames // 2, (num_clips, LOOK_PAIRS)))
        clip = torch.arange(num_clips)[:, None]
        pairs = batch.frames.unflatten(1, (-1, 2))[clip, chosen].flatten(0, 1)  # (P, 2, H, W, 3)
        patches = recolour(patchify(pairs), batch.gain, batch.offset)
        tokens, _ = visual_tokens(self.model.model.visual, patches)
        loss = pose_loss(
            self.heads,
            tokens,
            batch.joints[clip, chosen].flatten(0, 1),
            batch.has_second[:, None].expand(-1, LOOK_PAIRS).flatten(),
        )
        return loss, {"pose": loss.item()}

    def tell(self, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of the whole model on clips, and on captions alone."""
        prompts = [
            self.rows.prompt(self._draw_prompt(rng), indices, fps)
            for indices, fps in zip(batch.frame_indices, batch.fps, strict=True)
        ]
        tokens = self.rows.batch(prompts, batch.captions)
        patches = recolour(patchify(batch.frames), batch.gain, batch.offset)
        visual, deepstack = visual_tokens(self.model.model.visual, patches)
        hidden = decode(self.model, tokens, visual, deepstack)  # (B, L, D)
        logits, target = answer_logits(self.model, hidden, tokens.labels)
        caption = functional.cross_entropy(logits.float(), target)
        last = hidden[torch.arange(len(hidden)), tokens.answer_start - 1]  # (B, D)
        attribute = torch.zeros(())
        seen: dict[str, float] = {}
        for name, head in self.heads.attributes.items():
            answer = head(last).float()
            attribute = attribute + functional.cross_entropy(answer, batch.labels[name])
            seen[name] = float((answer.argmax(1) == batch.labels[name]).float().mean())
        second = batch.has_second[:, None].expand(-1, batch.joints.shape[1])
        pose = pose_loss(self.heads, visual, batch.joints.flatten(0, 1), second.flatten())
        text = self._text_loss(batch.other_captions, rng)
        loss = caption + ATTRIBUTE_WEIGHT * attribute + POSE_WEIGHT * pose + TEXT_WEIGHT * text
        values = {"caption": caption.item(), "pose": pose.item(), "text": text.item(), **seen}
        values["words"] = float((logits.argmax(1) == target).float().mean())
        return loss, values

    def _text_loss(self, captions: list[str], rng: np.random.Generator) -> Tensor:
        """Captions without a video: half after a prompt, half with nothing before them."""
        prompts = [
            self.rows.text_prompt(self._draw_prompt(rng)) if row % 2 else []
            for row in range(len(captions))
        ]
        tokens = self.rows.batch(prompts, captions)
        logits, target = answer_logits(self.model, decode(self.model, tokens), tokens.labels)
        return functional.cross_entropy(logits.float(), target)

    def _draw_prompt(self, rng: np.random.Generator) -> str:
        """The usual prompt half of the time, else another wording."""
        return PROMPTS[0] if rng.random() < 0.5 else PROMPTS[rng.integers(1, len(PROMPTS))]

    @torch.no_grad()
    def evaluate(self, held_out: Pool) -> dict[str, float]:
        """Losses and attribute accuracies on clips of subjects that training never draws."""
        meter = Meter({})
        self.model.eval()
        rng = np.random.default_rng(0)
        for start in range(0, HELD_OUT_CLIPS, BATCH):
            batch = held_out.batch(np.arange(start, start + BATCH), None)
            with torch.autocast("cpu", torch.bfloat16):
                meter.add(self.tell(batch, rng)[1])
        self.model.train()
        return meter.flush()

    def write_model(self) -> None:
        """Write the model folder as the engine loads it."""
        self.model.eval()
        write_model_folder(self.model, build_processor(self.tokenizer), Path(self.args.out))
        self.model.train()


def rate_at(update: int, updates: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if update < WARM_UP:
        return peak * (update + 1) / WARM_UP
    progress = (update - WARM_UP) / max(1, updates - WARM_UP)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def train(args: argparse.Namespace) -> None:
    """Run both stages from wherever the last checkpoint stands and write the model folder."""
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    pool = Pool(work / "pool", POOL_CLIPS, seed=args.seed)
    held_out = Pool(work / "held-out", HELD_OUT_CLIPS, seed=args.seed + 1, held_out=True)
    command = [sys.executable, "-m", "captioning.tiny.stream"]
    flags = {
        "--work": work,
        "--seed": args.seed,
        "--clips": POOL_CLIPS,
        "--held-out-clips": HELD_OUT_CLIPS,
    }
    command += [str(word) for flag in flags.items() for word in flag]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the renderer is ended too
    renderer = subprocess.Popen(command)
    try:
        held_out.wait_for(HELD_OUT_CLIPS, renderer)
        trainer = Trainer(args)
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's flash backward is five times slower here
            run_stages(trainer, pool, held_out, renderer)
        trainer.write_model()
    finally:
        renderer.terminate()


def run_stages(
    trainer: Trainer, pool: Pool, held_out: Pool, renderer: subprocess.Popen[bytes]
) -> None:
    """The two stages, update by update."""
    args = trainer.args
    lengths = {"look": args.look_updates, "tell": args.tell_updates}
    total = sum(lengths.values())
    trainer.model.train()
    for stage in ("look", "tell"):
        if stage != trainer.stage:
            if stage == "look":
                continue
            trainer.stage, trainer.update = stage, 0
            trainer.optimizer = trainer._new_optimizer()
        meter, since = Meter({}), time.monotonic()
        before = 0 if stage == "look" else args.look_updates
        peak = LOOK_RATE if stage == "look" else TELL_RATE
        compute = trainer.look if stage == "look" else trainer.tell
        num_clips = 2 * BATCH if stage == "look" else BATCH
        while trainer.update < lengths[stage]:
            # How many clips may be drawn depends on the update alone, not on the renderer's speed.
            grown = (before + trainer.update) / (0.9 * total)
            limit = int(FIRST_CLIPS + (POOL_CLIPS - FIRST_CLIPS) * min(1.0, grown))
            pool.wait_for(limit, renderer)
            rng = np.random.default_rng([args.seed, before, trainer.update])
            batch = pool.batch(
                rng.choice(limit, num_clips, replace=False), rng, num_other=TEXT_ROWS
            )
            with torch.autocast("cpu", torch.bfloat16):
                loss, values = compute(batch, rng)
            rate = rate_at(trainer.update, lengths[stage], peak)
            values["norm"] = trainer.step(loss, rate)
            trainer.update += 1
            meter.add(values)
            if trainer.update % args.log_every == 0:
                line = {"stage": stage, "update": trainer.update, **meter.flush()}
                line["seconds"] = round((time.monotonic() - since) / args.log_every, 3)
                since = time.monotonic()
                logger.info(json.dumps(line))
            if trainer.update % args.save_every == 0 or trainer.update == lengths[stage]:
                trainer.save()
                if stage == "tell":
                    logger.info("held out %s", json.dumps(trainer.evaluate(held_out)))
                    trainer.write_model()
                since = time.monotonic()


def main() -> None:
    """Read the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", required=True, help="folder for checkpoint, clips and log")
    parser.add_argument("--out", default=str(MODEL_FOLDER), help="model folder to write")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--look-updates", type=int, default=LOOK_UPDATES)
    parser.add_argument("--tell-updates", type=int, default=TELL_UPDATES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50, help="updates")
    parser.add_argument("--save-every", type=int, default=250, help="updates")
    args = parser.parse_args()
    Path(args.work).mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[
            logging.StreamHandler(),
            logging.FileHandler(Path(args.work) / "train.log"),
        ],
    )
    train(args)


if __name__ == "__main__":
    main()
