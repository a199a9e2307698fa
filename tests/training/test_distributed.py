"""Two processes on the CPU (gloo), as torchrun starts them: one step of one batch, shared."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from datasets_build.progress import SilentProgress
from training.checkpoint import load_checkpoint, load_weights
from training.config import LoopConfig, TrainConfig
from training.execution import make_accelerator
from training.train import run

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("two_processes.py")
DROPOUT = {"switches": {"dropout": 0.3}}
CAPTIONS = {"name": "hocslm", "language_model": "tiny", "hidden": 16, "prompt_length": 2}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"loop": {"evaluate_every_epochs": 2}},
    "parts": {"loop": {"accumulation": 2}},
    "synced": {"loop": {"sync_batch_norm": True}, "lr": 1e-5},
    "captions": {"loop": {"sync_batch_norm": True}, "lr": 1e-5, "method": CAPTIONS},
    "whole": {"loop": {}, "model": DROPOUT},
    "cut": {"loop": {"checkpoint_every_minutes": 1e-9}, "model": DROPOUT},
}


@pytest.fixture(scope="module")
def trained(
    dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TrainConfig]:
    """The runs of RECIPES, trained by two processes; "cut" was killed in its second epoch."""
    folder = tmp_path_factory.mktemp("two")
    configs = {
        name: small_config(folder / name, dataset_folder, changes)
        for name, changes in RECIPES.items()
    }
    jobs = [{"config": json.loads(c.model_dump_json()), "die_at": None} for c in configs.values()]
    jobs.insert(-1, {**jobs[-1], "die_at": 5})
    lost = json.loads(
        small_config(folder / "lost", dataset_folder, RECIPES["cut"]).model_dump_json()
    )
    jobs += [{"config": lost, "die_at": 5}, {"config": lost, "die_at": None}]
    # Process 1 names another folder where it need not read a checkpoint: it must not be made.
    elsewhere = json.loads(json.dumps(jobs))
    for job in (*elsewhere[:2], elsewhere[-1]):
        job["config"]["out"] += "-of-process-1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, own in enumerate((jobs, elsewhere)):
        path = folder / f"jobs-{rank}.json"
        path.write_text(json.dumps(own))
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(path)],
                env=os.environ | environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return configs


def small_config(out: Path, dataset: Path, changes: dict[str, Any]) -> TrainConfig:
    loop = {"epochs": 2, "batch_size": 8, "log_every_steps": 1, "device": "cpu", "num_threads": 1}
    loop["deterministic"] = True
    return TrainConfig.model_validate(
        {
            "out": out,
            "data": {"dataset": dataset, "protocol": "ntu60-xsub", "num_frames": 16},
            "model": {"base_channels": 8, **changes.get("model", {})},
            "method": changes.get("method", {}),
            "optim": {"name": "sgd", "lr": changes.get("lr", 0.05), "warmup_epochs": 0},
            "loop": {**loop, **changes["loop"]},
        }
    )


def test_processes_that_find_different_checkpoints_are_refused(
    trained: dict[str, TrainConfig],
) -> None:
    out = trained["plain"].out.with_name("lost")
    for name in (f"{out}.refused.rank-0", f"{out}-of-process-1.refused.rank-1"):
        assert "different checkpoints" in Path(name).read_text()
        assert (
            "of steps 4, 0; give an --out on a disk that all of them see" in Path(name).read_text()
        )
    assert load_checkpoint(out).step == 4


def of_rank(config: TrainConfig, rank: int, when: str = "") -> dict[str, torch.Tensor]:
    return load_file(f"{config.out}{when}.rank-{rank}.safetensors")


@pytest.mark.parametrize("name", RECIPES)
def test_both_processes_have_the_same_weights_and_the_first_saves_them(
    trained: dict[str, TrainConfig], name: str
) -> None:
    config = trained[name]
    saved = load_weights(config.out)
    out = f"{config.out}-of-process-1" if name in ("plain", "parts") else str(config.out)
    other = load_file(f"{out}.rank-1.safetensors")
    for parameter, value in of_rank(config, 0).items():
        assert torch.equal(value, other[parameter]), parameter
        assert torch.equal(value, saved[parameter]), parameter


def test_only_the_first_process_writes(trained: dict[str, TrainConfig]) -> None:
    out = trained["plain"].out
    assert (out / "train.json").is_file()
    assert not Path(f"{out}-of-process-1").exists()
    assert json.loads((out / "environment.json").read_text())["num_processes"] == 2
    assert load_checkpoint(out).numbers["num_processes"] == 2
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]  # the last is the test


@pytest.mark.parametrize(("name", "parts"), [("plain", 2), ("parts", 4)])
def test_processes_make_the_step_of_as_many_accumulated_parts(
    trained: dict[str, TrainConfig], tmp_path: Path, name: str, parts: int
) -> None:
    config = trained[name]
    loop = config.loop.model_copy(update={"accumulation": parts, "evaluate_every_epochs": 0})
    alone = config.model_copy(update={"out": tmp_path / "alone", "loop": loop})
    run(alone, SilentProgress())
    # Rounding differs and grows with the steps: two samples make a batch norm.
    ours, its = (losses(folder)[:3] for folder in (config.out, alone.out))
    assert ours == pytest.approx(its, rel=1e-4)


@pytest.mark.parametrize("name", ["synced", "captions"])
def test_two_processes_with_shared_norms_make_the_step_of_one(
    trained: dict[str, TrainConfig], tmp_path: Path, name: str
) -> None:
    config = trained[name]
    run(config.model_copy(update={"out": tmp_path / "alone"}), SilentProgress())
    # With a rate at which rounding (of sums parted otherwise) grows little.
    ours, its = (losses(folder)[:3] for folder in (config.out, tmp_path / "alone"))
    assert ours == pytest.approx(its, rel=1e-5)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_two_processes_go_on_within_an_epoch_as_if_they_had_not_stopped(
    trained: dict[str, TrainConfig],
) -> None:
    whole, cut = trained["whole"], trained["cut"]
    one, two = load_checkpoint(whole.out), load_checkpoint(cut.out)
    for name, value in one.weights.items():
        assert torch.equal(value, two.weights[name]), name
    for name, value in one.state.items():
        assert torch.equal(value, two.state[name]), name
    # The second process, too, took the checkpoint of the fourth step.
    first, second = (of_rank(cut, rank, ".start") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["encoder.head.weight"], one.weights["encoder.head.weight"])
    assert losses(cut.out) == losses(whole.out)


def test_a_batch_that_cannot_be_parted_over_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    with pytest.raises(ValueError, match="give a multiple of 6"):
        make_accelerator(LoopConfig(batch_size=8, accumulation=2), torch.device("cpu"))
