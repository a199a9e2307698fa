"""What tests/training/test_distributed.py starts twice: train.run of one process of two.

    RANK=r WORLD_SIZE=2 ... python two_processes.py JOBS.json

JOBS.json is a list of {"config": recipe, "die_at": call of the method that is a Ctrl-C, or null};
the weights that each process ends with go to RECIPE_OUT.rank-R.safetensors, and a sentence that
refuses the recipe to RECIPE_OUT.refused.rank-R.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from datasets_build.progress import SilentProgress
from training import train
from training.config import TrainConfig
from training.methods.method import Method
from training.run_state import RunState


def run_one(job: dict[str, Any], rank: str) -> None:
    """One job of the list, on this process."""
    config = TrainConfig.model_validate(job["config"])
    methods: list[Method] = []
    build, forward, restore = train.build_method, Method.forward, RunState.restore
    num_calls = 0

    def build_method(*arguments: Any, **keywords: Any) -> Method:
        methods.append(build(*arguments, **keywords))
        return methods[-1]

    def counted(self: Method, *arguments: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == job["die_at"]:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    def seen_by(self: RunState, folder: Path) -> None:
        restore(self, folder)
        save_file(weights_of(self.method), f"{config.out}.start.rank-{rank}.safetensors")

    train.build_method, Method.forward = build_method, counted  # type: ignore[method-assign]
    RunState.restore = seen_by  # type: ignore[method-assign]
    try:
        train.run(config, SilentProgress())
    except KeyboardInterrupt:
        torch.distributed.barrier()
    except ValueError as error:
        Path(f"{config.out}.refused.rank-{rank}").write_text(str(error))
    finally:
        train.build_method, Method.forward = build, forward  # type: ignore[method-assign]
        RunState.restore = restore  # type: ignore[method-assign]
    if methods:
        save_file(weights_of(methods[0]), f"{config.out}.rank-{rank}.safetensors")


def weights_of(method: Method) -> dict[str, torch.Tensor]:
    """The parameters, without running statistics."""
    return {name: value.detach().clone() for name, value in method.named_parameters()}


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run_one(job, os.environ["RANK"])
    torch.distributed.destroy_process_group()
