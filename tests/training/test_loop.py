from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets_build.joints import Skeleton
from datasets_build.progress import SilentProgress
from training import loop as loop_module
from training import run_state
from training.build import MODELS, read_run
from training.checkpoint import load_weights
from training.config import LoopConfig, OptimConfig, TrainConfig
from training.optim import AveragedWeights, lr_factor
from training.train import run

Recipe = Callable[..., TrainConfig]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_equal(left: Path, right: Path) -> bool:
    one, two = load_weights(left), load_weights(right)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_same_seed_twice_gives_equal_weights_and_another_seed_does_not(recipe: Recipe) -> None:
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(recipe(out, loop={"seed": seed}), SilentProgress())
    a, b, c = (recipe(out).out for out in "abc")
    assert weights_equal(a, b)
    assert not weights_equal(a, c)


def test_a_finished_run_is_not_trained_again(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(recipe(), SilentProgress())
    monkeypatch.setattr(run_state, "make_optimizer", None)
    again = run(recipe(), SilentProgress())
    assert again.already_finished
    assert replace(again, already_finished=False) == first


def test_accumulated_parts_make_the_step_of_the_whole_batch(recipe: Recipe) -> None:
    # Without batch statistics: they are those of the part.
    base = run(recipe("base", loop={"epochs": 1}), SilentProgress())
    frozen = {"freeze": ("encoder",), "init_from": base.folder}
    run(recipe("one", method=frozen), SilentProgress())
    run(recipe("two", method=frozen, loop={"accumulation": 2}), SilentProgress())
    one, two = load_weights(recipe("one").out), load_weights(recipe("two").out)
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5)


def test_metrics_have_stable_keys_and_evaluation_lines_of_their_own(recipe: Recipe) -> None:
    config = recipe(loop={"log_every_steps": 2, "evaluate_every_epochs": 1})
    run(config, SilentProgress())
    found = lines(config.out)
    train = [line for line in found if "train/loss" in line]
    assert all(
        line.keys()
        == {
            "epoch",
            "step",
            "train/loss",
            "train/accuracy",
            "lr/encoder",
            "samples_per_s",
        }
        for line in train
    )
    assert [line["step"] for line in train] == [2, 3, 4, 6]
    tests = [line for line in found if "test/top1" in line]
    assert [line["epoch"] for line in tests] == [0, 1]


def test_run_folder_says_what_made_it(recipe: Recipe) -> None:
    config = recipe()
    run(config, SilentProgress())
    record = read_run(config.out)
    assert record.config == config
    assert record.class_names == ["sit down", "clapping", "hand waving"]
    environment = json.loads((config.out / "environment.json").read_text())
    assert environment["device"] == "cpu"
    assert "torch" in environment["packages"]


def test_training_learns_the_small_classes(recipe: Recipe) -> None:
    config = recipe(loop={"epochs": 12, "batch_size": 6}, optim={"lr": 1e-2})
    summary = run(config, SilentProgress())
    assert summary.metrics["train/accuracy"] > 0.7  # chance is 0.33


def test_bf16_and_clipping_train_too(recipe: Recipe) -> None:
    config = recipe(
        loop={"epochs": 1, "mixed_precision": "bf16", "tensorboard": False},
        optim={"clip_norm": 0.1},
    )
    summary = run(config, SilentProgress())
    assert summary.metrics["train/loss"] < 10
    assert all(value.dtype != torch.bfloat16 for value in load_weights(config.out).values())


def test_step_schedule_warms_up_and_falls_by_whole_epochs() -> None:
    config = OptimConfig(warmup_epochs=5, steps=(35, 55), gamma=0.1)
    at = {
        epoch: lr_factor(config, step=epoch * 10 + 3, steps_per_epoch=10, epochs=65)
        for epoch in (0, 4, 5, 34, 35, 55)
    }
    assert at == pytest.approx({0: 0.2, 4: 1.0, 5: 1.0, 34: 1.0, 35: 0.1, 55: 0.01})


def test_cosine_schedule_rises_by_steps_and_ends_near_zero() -> None:
    config = OptimConfig(schedule="cosine", warmup_epochs=1)
    values = [lr_factor(config, step=s, steps_per_epoch=4, epochs=10) for s in range(40)]
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert values[4] == 1.0
    assert values[22] == pytest.approx(0.5)
    assert 0 < values[-1] < 0.01


def test_averaged_weights_follow_the_formula() -> None:
    weights = {"w": torch.ones(2), "n": torch.tensor(0)}
    average = AveragedWeights(weights, 0.9)
    weights["w"].zero_()
    weights["n"].fill_(5)
    average.update()
    decay = 2 / 11  # (1 + n) / (10 + n) at n = 1
    torch.testing.assert_close(average.tensors["w"], torch.full((2,), decay))
    assert average.tensors["n"] == 5


def test_a_batch_that_cannot_be_parted_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of accumulation"):
        LoopConfig(batch_size=10, accumulation=4)


def test_the_rate_leaves_out_checkpoints_and_evaluations(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = run_state.RunState.save

    def slow_save(*arguments: Any, **keywords: Any) -> None:
        time.sleep(1.0)
        save(*arguments, **keywords)

    monkeypatch.setattr(run_state.RunState, "save", slow_save)
    config = recipe(loop={"log_every_steps": 1, "checkpoint_every_minutes": 1e-9})
    summary = run(config, SilentProgress())
    rates = [line["samples_per_s"] for line in lines(config.out)]
    training_s = sum(8 / rate for rate in rates)
    assert summary.seconds > 6 + 0.9 * training_s  # six saves
    assert summary.samples_per_s == pytest.approx(48 / training_s, rel=1e-3)


class SmallEncoder(torch.nn.Module):
    """The least that a method needs of a model; HGLNet takes minutes to compile."""

    def __init__(
        self, *, num_classes: int, skeleton: Skeleton, in_channels: int, base_channels: int
    ) -> None:
        super().__init__()
        self.num_features = base_channels
        self.norm = torch.nn.BatchNorm1d(in_channels * skeleton.num_joints)
        self.linear = torch.nn.Linear(in_channels * skeleton.num_joints, base_channels)
        self.head = torch.nn.Linear(base_channels, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        n, m, t, v, c = x.shape
        x = self.norm(x.reshape(n * m * t, v * c))
        return self.linear(x).relu().view(n, m * t, -1).mean(dim=1)  # (N, base_channels)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
def test_a_compiled_run_has_the_losses_of_a_plain_one(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setitem(MODELS, "small", SmallEncoder)
    # 12 test samples are no multiple of 5: the last batch of an evaluation is smaller.
    loop = {"log_every_steps": 1, "evaluate_every_epochs": 1, "batch_size": 5}
    changes = {"model": {"name": "small"}, "optim": {"lr": 1e-2}}
    found = {}
    for out, compiled in (("plain", "no"), ("compiled", mode)):
        config = recipe(out, loop={**loop, "compile": compiled, "deterministic": False}, **changes)
        torch._dynamo.utils.counters.clear()
        run(config, SilentProgress())
        found[out] = [x["train/loss"] for x in lines(config.out) if "train/loss" in x]
        num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert num_graphs == (compiled != "no")  # one, whatever the evaluations were given
    assert found["compiled"] == pytest.approx(found["plain"], rel=1e-4)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_run_has_the_losses_of_a_plain_one_on_a_gpu(recipe: Recipe, mode: str) -> None:
    found = {}
    loop = {"log_every_steps": 1, "deterministic": False, "device": "cuda", "accumulation": 2}
    for out, compiled in (("plain", "no"), ("compiled", mode)):
        config = recipe(out, loop={**loop, "compile": compiled})
        run(config, SilentProgress())
        found[out] = [line["train/loss"] for line in lines(config.out)]
    assert found["compiled"] == pytest.approx(found["plain"], rel=1e-3)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_no_step_waits_for_the_gpu(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    step = loop_module._Fit._train_step

    def without_waiting(self: Any, *arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if self.state.step else "default")
        try:
            step(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop_module._Fit, "_train_step", without_waiting)
    loop = {"device": "cuda", "deterministic": False, "ema_decay": 0.9}
    run(
        recipe(loop={**loop, "mixed_precision": precision}, optim={"clip_norm": 1.0}),
        SilentProgress(),
    )
