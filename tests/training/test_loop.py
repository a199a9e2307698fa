from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets_build.progress import SilentProgress
from training import loop as loop_module
from training.build import read_run
from training.checkpoint import load_checkpoint, load_weights
from training.config import LoopConfig, OptimConfig, TrainConfig
from training.loop import NonFiniteLossError
from training.methods.classify import ClassifyMethod
from training.optim import AveragedWeights, lr_factor
from training.train import run

Recipe = Callable[..., TrainConfig]


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


@pytest.mark.parametrize("optim", [{"name": "sgd", "lr": 0.05, "momentum": 0.9}, {"name": "adamw"}])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    optim: dict[str, Any],
    ema: float | None,
) -> None:
    changes: dict[str, Any] = {
        "optim": optim,
        "loop": {"epochs": 3, "ema_decay": ema, "log_every_steps": 2},
    }
    whole = recipe("whole", **changes)
    run(whole, SilentProgress())
    cut = recipe("cut", **changes)
    step = ClassifyMethod.training_step
    num_steps = 0

    def dies_in_the_second_epoch(self: ClassifyMethod, *arguments: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(ClassifyMethod, "training_step", dies_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        run(cut, SilentProgress())
    summary = run(cut, SilentProgress())
    assert summary.resumed_from == 1
    assert weights_equal(whole.out, cut.out)
    left, right = load_checkpoint(whole.out), load_checkpoint(cut.out)
    assert left.numbers == right.numbers
    assert all(torch.equal(left.state[name], right.state[name]) for name in left.state)
    unrepeated = [(line["epoch"], line["step"], line["train/loss"]) for line in lines(cut.out)]
    assert unrepeated == [(x["epoch"], x["step"], x["train/loss"]) for x in lines(whole.out)]


def test_a_finished_run_is_not_trained_again(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(recipe(), SilentProgress())
    monkeypatch.setattr(loop_module, "make_optimizer", None)
    again = run(recipe(), SilentProgress())
    assert again.already_finished
    assert replace(again, already_finished=False) == first


def test_a_resume_with_other_settings_names_them(recipe: Recipe) -> None:
    run(recipe(loop={"epochs": 1}), SilentProgress())
    with pytest.raises(ValueError, match=r"loop\.epochs: 1 there, 2 now") as caught:
        run(recipe(loop={"epochs": 2}, optim={"lr": 0.5}), SilentProgress())
    assert "optim.lr" in str(caught.value)


def test_a_resume_with_other_data_is_refused(
    recipe: Recipe, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    run(recipe(), SilentProgress())
    other = make_dataset(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="dataset_fingerprint"):
        run(recipe(data={"dataset": other}), SilentProgress())


def test_moving_the_data_set_does_not_hinder_a_resume(
    recipe: Recipe, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("here", "there"):
        make_dataset(tmp_path / name)
    run(recipe(data={"dataset": tmp_path / "here"}), SilentProgress())
    again = run(recipe(data={"dataset": tmp_path / "there"}), SilentProgress())
    assert again.already_finished


def test_accumulated_parts_make_the_step_of_the_whole_batch(recipe: Recipe) -> None:
    # Without batch statistics: they are those of the part.
    frozen = {"freeze": ("encoder",)}
    run(recipe("one", method=frozen), SilentProgress())
    run(recipe("two", method=frozen, loop={"accumulation": 2}), SilentProgress())
    one, two = load_weights(recipe("one").out), load_weights(recipe("two").out)
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_ids(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ClassifyMethod.training_step
    num_steps = 0

    def poisons_step_four(self: ClassifyMethod, *arguments: Any) -> Any:
        nonlocal num_steps
        output = step(self, *arguments)
        num_steps += 1
        return replace(output, loss=output.loss * float("nan")) if num_steps == 5 else output

    monkeypatch.setattr(ClassifyMethod, "training_step", poisons_step_four)
    config = recipe(loop={"epochs": 3})
    with pytest.raises(NonFiniteLossError, match="not finite at step 4"):
        run(config, SilentProgress())
    record = json.loads((config.out / "nonfinite.json").read_text())
    assert record["step"] == 4
    assert len(record["sample_ids"]) == 8
    saved = load_checkpoint(config.out)
    assert saved.epoch == 1
    assert all(torch.isfinite(value).all() for value in saved.weights.values())


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
            "train/loss_cls",
            "train/accuracy",
            "lr",
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
    config = recipe(loop={"epochs": 30, "batch_size": 6}, optim={"lr": 1e-2})
    summary = run(config, SilentProgress())
    assert summary.metrics["train/accuracy"] > 0.9  # chance is 0.33


def test_too_large_a_batch_and_empty_classes_are_told_before_the_first_step(
    recipe: Recipe, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"fewer than loop\.batch_size 64"):
        run(recipe(loop={"batch_size": 64}), SilentProgress())
    with pytest.raises(ValueError, match='view "ucla" is for one body'):
        run(recipe(data={"view": "ucla"}), SilentProgress())
    assert not recipe().out.exists()


def test_unknown_model_and_switch_are_answered_with_the_nearest(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="did you mean 'hglnet'"):
        run(recipe(model={"name": "hglnett"}), SilentProgress())
    with pytest.raises(ValueError, match="did you mean 'num_subsets'"):
        run(recipe(model={"switches": {"num_subset": 1}}), SilentProgress())


def test_asking_for_a_gpu_that_is_not_there_is_told(recipe: Recipe) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="'cuda' is not available"):
        run(recipe(loop={"device": "cuda"}), SilentProgress())


def test_bf16_and_clipping_train_too(recipe: Recipe) -> None:
    config = recipe(
        loop={"epochs": 1, "mixed_precision": "bf16", "tensorboard": False},
        optim={"clip_norm": 0.1},
    )
    summary = run(config, SilentProgress())
    assert summary.metrics["train/loss"] < 10
    assert all(value.dtype != torch.bfloat16 for value in load_weights(config.out).values())


def test_starting_weights_come_from_another_run(recipe: Recipe) -> None:
    first = recipe("first")
    run(first, SilentProgress())
    second = recipe(
        "second",
        method={"init_from": first.out, "freeze": ("encoder",)},
        loop={"epochs": 1},
    )
    run(second, SilentProgress())
    one, two = load_weights(first.out), load_weights(second.out)
    for name, value in one.items():
        assert torch.equal(value, two[name]) == (not name.startswith("encoder.head")), name


def test_starting_weights_of_another_class_set_are_refused(
    recipe: Recipe, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    first = recipe("first")
    run(first, SilentProgress())
    other = make_dataset(tmp_path / "other", class_order=(2, 1, 0))
    with pytest.raises(ValueError, match="same classes in the same order"):
        run(
            recipe("second", data={"dataset": other}, method={"init_from": first.out}),
            SilentProgress(),
        )


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
    average.update({"w": torch.zeros(2), "n": torch.tensor(5)})
    decay = 2 / 11  # (1 + n) / (10 + n) at n = 1
    torch.testing.assert_close(average.tensors["w"], torch.full((2,), decay))
    assert average.tensors["n"] == 5


def test_a_batch_that_cannot_be_parted_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of accumulation"):
        LoopConfig(batch_size=10, accumulation=4)
