from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from cli.main import app
from datasets_build.progress import SilentProgress
from training import train as train_module
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.execution import make_accelerator
from training.loop import NonFiniteLossError
from training.methods.classify import ClassifyMethod
from training.methods.method import StepOutput
from training.replay import NONFINITE_FILE, NONFINITE_TENSORS, replay
from training.train import run

Recipe = Callable[..., TrainConfig]
Change = Callable[[ClassifyMethod, StepOutput], torch.Tensor]


def spoil(monkeypatch: pytest.MonkeyPatch, change: Change, *, from_call: int) -> list[Any]:
    """Change the loss of every call from one on (1-based); keeps that call's weights and batch."""
    original = ClassifyMethod.training_step
    seen: list[Any] = []
    num_calls = 0

    def training_step(self: ClassifyMethod, batch: Any, generator: Any) -> StepOutput:
        nonlocal num_calls
        num_calls += 1
        if num_calls == from_call:
            weights = {name: p.detach().clone() for name, p in self.named_parameters()}
            seen.extend([weights, batch])
        output = original(self, batch, generator)
        return replace(output, loss=change(self, output)) if num_calls >= from_call else output

    monkeypatch.setattr(ClassifyMethod, "training_step", training_step)
    return seen


def infinite(method: ClassifyMethod, output: StepOutput) -> torch.Tensor:
    return output.loss * float("inf")


def finite_with_a_gradient_of_nan(method: ClassifyMethod, output: StepOutput) -> torch.Tensor:
    bias = method.encoder.get_submodule("head").bias
    return output.loss + torch.sqrt((bias * 0).sum())  # type: ignore[operator]


@pytest.mark.parametrize("change", [infinite, finite_with_a_gradient_of_nan])
@pytest.mark.parametrize("optim", [{"name": "sgd", "lr": 0.05}, {"clip_norm": 1.0}])
def test_the_bad_step_is_saved_as_it_was_although_it_is_noticed_later(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, change: Change, optim: dict[str, Any]
) -> None:
    seen = spoil(monkeypatch, change, from_call=5)
    config = recipe(loop={"epochs": 3}, optim=optim)
    with pytest.raises(NonFiniteLossError, match="not finite at step 4 ") as caught:
        run(config, SilentProgress())  # lines are written at ends of epochs, steps 3 and 6
    assert f"hoc replay {config.out}" in str(caught.value)
    record = json.loads((config.out / "nonfinite.json").read_text())
    assert (record["epoch"], record["step"]) == (1, 4)
    assert len(record["sample_ids"]) == 1
    assert len(set(record["sample_ids"][0])) == 8
    tensors = load_file(config.out / "nonfinite.safetensors")
    weights, batch = seen
    assert all(torch.equal(tensors[f"weights/{name}"], value) for name, value in weights.items())
    assert torch.equal(tensors["0/x"], batch.x)
    assert torch.equal(tensors["0/label"], batch.label)
    saved = load_checkpoint(config.out)
    assert saved.epoch == 1
    assert all(torch.isfinite(value).all() for value in saved.weights.values())


def test_a_single_infinite_loss_stops_fp16_too_although_its_gradient_is_finite(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_scaler(*arguments: Any) -> Any:
        accelerator = make_accelerator(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        return accelerator

    num_calls = 0

    def once(method: ClassifyMethod, output: StepOutput) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        return output.loss + (float("inf") if num_calls == 1 else 0.0)

    monkeypatch.setattr(train_module, "make_accelerator", with_a_scaler)
    seen = spoil(monkeypatch, once, from_call=2)
    with pytest.raises(NonFiniteLossError, match="at step 1 "):
        run(recipe(), SilentProgress())
    tensors = load_file(recipe().out / "nonfinite.safetensors")
    assert all(torch.equal(tensors[f"weights/{name}"], value) for name, value in seen[0].items())


def test_norms_over_several_processes_are_not_replayed(recipe: Recipe) -> None:
    sgd = {"name": "sgd", "lr": 1e30, "momentum": 0.0, "nesterov": False}
    config = recipe(optim=sgd, loop={"sync_batch_norm": True})
    with pytest.raises(NonFiniteLossError):
        run(config, SilentProgress())
    assert replay(config.out, device="cpu").findings  # one process: as without
    path = config.out / "nonfinite.json"
    path.write_text(path.read_text().replace('"num_processes": 1', '"num_processes": 2'))
    with pytest.raises(ValueError, match="batch norms over 2 processes"):
        replay(config.out, device="cpu")


def test_a_replay_names_the_module_where_numbers_overflow(recipe: Recipe) -> None:
    config = recipe(optim={"name": "sgd", "lr": 1e30, "momentum": 0.0, "nesterov": False})
    with pytest.raises(NonFiniteLossError):
        run(config, SilentProgress())
    found = replay(config.out, device="cpu")
    assert [finding.place for finding in found.findings] == ["forward", "loss"]
    assert found.findings[0].name.startswith("encoder.")
    assert found.findings[0].precision == "fp32"
    assert not torch.isfinite(torch.tensor(found.losses["fp32"])).any()
    shown = CliRunner().invoke(app, ["replay", str(config.out)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert found.findings[0].name in shown.output
    assert found.sample_ids[0] in shown.output


def test_a_replay_names_the_operation_whose_gradient_is_no_number(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, finite_with_a_gradient_of_nan, from_call=1)
    config = recipe(loop={"mixed_precision": "bf16"})
    with pytest.raises(NonFiniteLossError, match="at step 0 "):
        run(config, SilentProgress())
    found = replay(config.out, device="cpu")
    assert {finding.place for finding in found.findings} == {"backward"}
    assert list(found.losses) == ["bf16", "fp32"]
    names = [f"{finding.name} {finding.detail}" for finding in found.findings]
    assert any("MulBackward0" in name for name in names)  # 0 x infinity
    assert any("encoder.head.bias" in name for name in names)


def test_a_step_of_several_parts_is_replayed_part_by_part(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(
        loop={"accumulation": 2, "log_every_steps": 1}, model={"switches": {"dropout": 0.3}}
    )
    losses: list[float] = []

    def kept_then_infinite(method: ClassifyMethod, output: StepOutput) -> torch.Tensor:
        losses.append(float(output.loss.detach()))
        return output.loss * (float("inf") if len(losses) == 2 else 1.0)

    with monkeypatch.context() as patches:
        spoil(patches, kept_then_infinite, from_call=3)
        with pytest.raises(NonFiniteLossError, match="at step 1 "):
            run(config, SilentProgress())
    found = replay(config.out, device="cpu")  # without the change all is finite
    assert found.findings == []
    assert found.losses == {"fp32": losses}


def test_a_run_that_went_well_has_nothing_to_replay(recipe: Recipe) -> None:
    config = recipe(loop={"epochs": 1})
    with pytest.raises(FileNotFoundError, match="hoc train"):
        replay(config.out)
    run(config, SilentProgress())
    with pytest.raises(FileNotFoundError, match=r"nothing to replay: .* met no loss that is not"):
        replay(config.out)


def test_a_bad_step_of_another_run_is_not_replayed(recipe: Recipe) -> None:
    config = recipe(optim={"name": "sgd", "lr": 1e30, "momentum": 0.0, "nesterov": False})
    with pytest.raises(NonFiniteLossError):
        run(config, SilentProgress())
    left = {name: (config.out / name).read_bytes() for name in (NONFINITE_FILE, NONFINITE_TENSORS)}
    good = recipe(out="good", loop={"epochs": 1})
    run(good, SilentProgress())
    for name, content in left.items():
        (good.out / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"nonfinite\.json was saved by a run with other settings"):
        replay(good.out)
