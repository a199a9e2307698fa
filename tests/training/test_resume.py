"""Runs that are stopped at some moment and started again end like one that was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets_build.progress import SilentProgress
from training import train as train_module
from training.checkpoint import load_checkpoint, read_request
from training.config import TrainConfig
from training.execution import make_accelerator
from training.methods.method import Method
from training.train import run

Recipe = Callable[..., TrainConfig]
# Saved at every step, for the clock has always run out.
OFTEN = {"log_every_steps": 1, "checkpoint_every_minutes": 1e-9}
DROPOUT = {"switches": {"dropout": 0.3}}


def end_of(folder: Path) -> dict[str, Any]:
    """All that must not depend on stops: tensors, numbers, metric lines, summary."""
    saved = load_checkpoint(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("samples_per_s", None)
    summary = json.loads((folder / "train.json").read_text())
    for name in ("seconds", "samples_per_s", "resumed_from"):
        del summary[name]
    return {
        "tensors": {**saved.weights, **saved.state},
        "numbers": (saved.epoch, saved.step, saved.numbers),
        "lines": lines,
        "summary": summary,
    }


def assert_same_end(left: Path, right: Path) -> None:
    one, two = end_of(left), end_of(right)
    tensors, others = one.pop("tensors"), two.pop("tensors")
    assert one == two
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name


def stops_at_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, number: int) -> None:
    """From now on the `number`-th call of a function (1-based) is a Ctrl-C instead."""
    original = getattr(owner, name)
    num_calls = 0

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == number:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": {"name": "sgd", "lr": 0.05}, "loop": {"ema_decay": 0.9}},
        {"loop": {"accumulation": 2, "mixed_precision": "bf16"}, "optim": {"clip_norm": 0.5}},
    ],
    ids=["sgd with averaging", "adamw in parts in bf16"],
)
def test_a_run_stopped_within_an_epoch_goes_on_from_its_last_step(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    changes = {**changes, "model": DROPOUT, "loop": {**OFTEN, **changes["loop"]}}
    whole, cut = recipe("whole", **changes), recipe("cut", **changes)
    run(whole, SilentProgress())
    parts = changes["loop"].get("accumulation", 1)
    stops_at_call(monkeypatch, Method, "forward", number=4 * parts + 1)
    with pytest.raises(KeyboardInterrupt):
        run(cut, SilentProgress())
    assert read_request(cut.out)[0] == 1
    assert load_checkpoint(cut.out).step == 4  # of three an epoch
    assert run(cut, SilentProgress()).resumed_from == 4
    assert_same_end(whole.out, cut.out)


def test_captions_are_drawn_as_if_the_run_had_not_stopped(
    recipe: Recipe, hocslm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"method": hocslm, "model": DROPOUT, "loop": OFTEN}
    whole, cut = recipe("whole", **changes), recipe("cut", **changes)
    run(whole, SilentProgress())
    stops_at_call(monkeypatch, Method, "forward", number=3)
    with pytest.raises(KeyboardInterrupt):
        run(cut, SilentProgress())
    assert run(cut, SilentProgress()).resumed_from == 2
    assert_same_end(whole.out, cut.out)


def test_without_a_time_a_run_goes_on_from_the_end_of_an_epoch(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = {**OFTEN, "checkpoint_every_minutes": 0}
    stops_at_call(monkeypatch, Method, "forward", number=6)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(loop=loop), SilentProgress())
    assert run(recipe(loop=loop), SilentProgress()).resumed_from == 3


def test_the_scale_of_fp16_gradients_is_restored(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_scaler(*arguments: Any) -> Any:
        accelerator = make_accelerator(*arguments)
        # The first steps overflow and are skipped; then the scale grows at every other step.
        accelerator.scaler = torch.amp.GradScaler(
            "cpu", init_scale=2.0**128 - 2.0**104, backoff_factor=2.0**-30, growth_interval=2
        )
        return accelerator

    monkeypatch.setattr(train_module, "make_accelerator", with_a_scaler)
    changes = {"optim": {"name": "sgd", "lr": 0.05}, "loop": OFTEN}
    whole, cut = recipe("whole", **changes), recipe("cut", **changes)
    run(whole, SilentProgress())
    stops_at_call(monkeypatch, Method, "forward", number=5)
    with pytest.raises(KeyboardInterrupt):
        run(cut, SilentProgress())
    run(cut, SilentProgress())
    assert_same_end(whole.out, cut.out)
    scaler = load_checkpoint(whole.out).numbers["scaler"]
    assert scaler["scale"] < 2.0**128 - 2.0**104
    weights = load_checkpoint(whole.out).weights
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (train_module, "score_store", 2),  # in the evaluation after the second epoch
        (train_module, "write_json", 2),  # all is saved but train.json
    ],
)
def test_a_stop_at_the_end_of_an_epoch_loses_no_line(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int
) -> None:
    loop = {"evaluate_every_epochs": 1}
    whole, cut = recipe("whole", loop=loop), recipe("cut", loop=loop)
    run(whole, SilentProgress())
    with monkeypatch.context() as patches:
        stops_at_call(patches, owner, name, number=number)
        with pytest.raises(KeyboardInterrupt):
            run(cut, SilentProgress())
    assert not run(cut, SilentProgress()).already_finished
    assert_same_end(whole.out, cut.out)


def test_a_summary_whose_checkpoint_is_gone_does_not_finish_the_next_run(recipe: Recipe) -> None:
    config = recipe(loop={"epochs": 1})
    run(config, SilentProgress())
    for path in (config.out / "last").iterdir():
        path.unlink()
    assert not run(config, SilentProgress()).already_finished


def test_a_resume_with_other_settings_names_them(recipe: Recipe) -> None:
    run(recipe(loop={"epochs": 1}), SilentProgress())
    with pytest.raises(ValueError, match=r"loop\.epochs: 1 there, 2 now") as caught:
        run(recipe(loop={"epochs": 2}, optim={"lr": 0.5}), SilentProgress())
    assert "optim.lr" in str(caught.value)


def test_a_resume_with_other_data_is_refused(
    recipe: Recipe, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    run(recipe(loop={"epochs": 1}), SilentProgress())
    other = make_dataset(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="dataset_fingerprint"):
        run(recipe(loop={"epochs": 1}, data={"dataset": other}), SilentProgress())


def test_moving_the_data_set_does_not_hinder_a_resume(
    recipe: Recipe, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("here", "there"):
        make_dataset(tmp_path / name)
    changes = {"loop": {"epochs": 1}}
    run(recipe(data={"dataset": tmp_path / "here"}, **changes), SilentProgress())
    again = run(recipe(data={"dataset": tmp_path / "there"}, **changes), SilentProgress())
    assert again.already_finished
