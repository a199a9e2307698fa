from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets_build.progress import Progress, SilentProgress
from training.checkpoint import load_checkpoint, load_weights
from training.config import TrainConfig
from training.side_by_side import gpus_of, side_by_side, train_side_by_side
from training.train import run

Recipe = Callable[..., TrainConfig]

# Most of the time goes into starting processes, each of which loads torch: 3 s.
SMALL: dict[str, dict[str, Any]] = {
    "data": {"num_frames": 8},
    "model": {"base_channels": 4, "switches": {"num_subsets": 1}},
}


class Counting(SilentProgress):
    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0

    def start(self, stage: str, total: int | None, *, unit: str = "samples") -> None:
        self.total = total

    def advance(self, num_done: int = 1, **_: Any) -> None:
        self.done += num_done


def test_runs_side_by_side_end_with_the_weights_of_runs_one_by_one(recipe: Recipe) -> None:
    configs = [recipe(f"run{seed}", loop={"epochs": 1, "seed": seed}, **SMALL) for seed in (1, 2)]
    progress = Counting()
    summaries = train_side_by_side(configs, progress)
    assert [summary.folder for summary in summaries] == [config.out for config in configs]
    assert progress.total
    assert progress.done == progress.total
    alone = recipe("alone", loop={"epochs": 1, "seed": 1}, **SMALL)
    run(alone, SilentProgress())
    one, two, other = (
        load_weights(folder) for folder in (configs[0].out, alone.out, configs[1].out)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    (again,) = train_side_by_side(configs[:1], Counting())
    assert again.already_finished


def test_the_error_of_a_run_is_raised_here(recipe: Recipe) -> None:
    wrong = recipe("wrong", data={"protocol": "no-such"})
    with pytest.raises(ValueError, match="no-such"):
        train_side_by_side([recipe("right"), wrong], SilentProgress())


def asking(number: int, progress: Progress) -> None:
    progress.start("zero-shot", 464)
    progress.advance(64)
    progress.advance(64)
    progress.advance(0, note="epoch 1/3")


def test_work_without_notes_tells_how_far_its_stage_is() -> None:
    with closing(side_by_side(asking, [7], jobs=1)) as events:
        notes = [event.note for event in events if event.kind == "advance"]
    assert notes == ["zero-shot 64/464 samples", "zero-shot 128/464 samples", "epoch 1/3"]


class OddError(Exception):
    def __init__(self, *, code: int) -> None:  # pickle would call it without a code
        super().__init__(f"code {code}")


def failing(number: int, progress: Progress) -> None:
    raise OddError(code=number)


def test_an_error_that_cannot_be_pickled_is_told() -> None:
    with closing(side_by_side(failing, [7], jobs=1)) as events:
        (event,) = (event for event in events if event.kind == "failed")
    assert str(event.value) == "OddError: code 7"


def visible(number: int, progress: Progress) -> str | None:
    progress.message("begun")
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_several_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpus_of(slot, jobs=2) for slot in range(2)] == ["0,1,2,3", "4,5,6,7"]
    assert [gpus_of(slot, jobs=3) for slot in range(3)] == ["0,1", "2,3", "4,5"]
    assert [gpus_of(slot, jobs=10) for slot in (0, 7, 8, 9)] == ["0", "7", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # Three items on two GPUs: the third takes that of the item that ended first.
    with closing(side_by_side(visible, range(3), jobs=2)) as events:
        found = [event.value for event in events if event.kind == "done"]
    assert {"5", "7"} == set(found)
    assert len(found) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert gpus_of(1, jobs=2) is None


ENDLESS = """
from pathlib import Path
from datasets_build.progress import SilentProgress
from training.config import TrainConfig
from training.side_by_side import train_side_by_side

if __name__ == "__main__":
    configs = [TrainConfig.model_validate_json(Path(p).read_text()) for p in {paths}]
    train_side_by_side(configs, SilentProgress())
"""


@pytest.mark.parametrize("is_group", [False, True], ids=["parent", "group"])
def test_runs_save_where_a_sigterm_comes_to_their_parent_or_to_all(
    recipe: Recipe, tmp_path: Path, is_group: bool
) -> None:
    """As `kill` and as a batch system send it."""
    loop = {"epochs": 100_000, "checkpoint_every_epochs": 100_000, "log_every_steps": 1}
    configs = [recipe(f"run{seed}", loop={**loop, "seed": seed}, **SMALL) for seed in (1, 2)]
    paths = []
    for config in configs:
        paths.append(str(tmp_path / f"{config.out.name}.json"))
        Path(paths[-1]).write_text(config.model_dump_json())
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS.format(paths=paths))
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True,
    )
    try:
        logs = [config.out / "metrics.jsonl" for config in configs]
        deadline = time.monotonic() + 100
        while not all(log.is_file() and log.stat().st_size for log in logs):
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (os.killpg if is_group else os.kill)(parent.pid, signal.SIGTERM)
        assert parent.wait(60) == 143
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)
    for config in configs:
        num_lines = len((config.out / "metrics.jsonl").read_text().splitlines())
        assert load_checkpoint(config.out).step == num_lines  # a line a step: none is lost
