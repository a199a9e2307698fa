"""`hoc train --dry-run`: open all that a run would open, and tell what it would be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from training.checkpoint import read_progress
from training.config import TrainConfig
from training.loading import read_index
from training.seeding import cpu_threads
from training.trackers import check_trackers
from training.train import find_finished, open_asked, prepare


@dataclass(frozen=True)
class TrainPlan:
    """What a training run would be.

    Attributes:
        state: of the run folder: nothing trained, a checkpoint to go on from, or the end.
        num_train: training samples, repeats not counted.
        num_test: test samples of the protocol.
        steps_per_epoch: optimiser steps of an epoch.
        steps: optimiser steps in all.
        steps_done: optimiser steps that are saved.
        num_parameters: trained numbers.
        device: where it would run.
        num_threads: CPU threads.
    """

    state: Literal["fresh", "goes on", "finished"]
    num_train: int
    num_test: int
    steps_per_epoch: int
    steps: int
    steps_done: int
    num_parameters: int
    device: str
    num_threads: int


def plan(config: TrainConfig) -> TrainPlan:
    """Do all that comes before the first step, and write nothing.

    Raises:
        ValueError, FileNotFoundError: as training.train.run.
    """
    asked = open_asked(config)
    check_trackers(tensorboard=config.loop.tensorboard, name=config.loop.tracker)
    finished = find_finished(config.out, asked.request)
    _, steps_done = read_progress(config.out)
    with cpu_threads(config.loop.num_threads):
        ready = prepare(config, asked)
        num_threads = torch.get_num_threads()
    test = read_index(asked.dataset, asked.protocol, "test", view=config.data.view)
    steps_per_epoch = ready.store.num_picks // config.loop.batch_size
    return TrainPlan(
        state="finished" if finished is not None else "goes on" if steps_done else "fresh",
        num_train=len(ready.store),
        num_test=len(test),
        steps_per_epoch=steps_per_epoch,
        steps=config.loop.epochs * steps_per_epoch,
        steps_done=steps_done,
        num_parameters=ready.num_parameters,
        device=str(ready.accelerator.device),
        num_threads=num_threads,
    )
