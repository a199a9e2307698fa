"""How a run begins, goes on and is ended: its lock, its notes, SIGTERM, and what it says of it."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from datasets_build.progress import SilentProgress
from training.checkpoint import load_checkpoint, load_weights
from training.config import LoopConfig, OptimConfig, TrainConfig
from training.loop import NonFiniteLossError
from training.methods.classify import ClassifyMethod
from training.methods.method import Method, StepOutput
from training.plan import plan
from training.run_folder import note_start, sole_trainer
from training.run_state import RunState
from training.train import run

Recipe = Callable[..., TrainConfig]


def test_a_folder_takes_one_training_process_at_a_time(recipe: Recipe) -> None:
    config = recipe()
    with (
        sole_trainer(config.out),
        pytest.raises(ValueError, match="another process is training in"),
    ):
        run(config, SilentProgress())
    with sole_trainer(config.out):  # it is free again
        assert not (config.out / "last").exists()


# Of three steps an epoch, the second and third scored: before the next logged step within the third
# epoch, and in the last step of the second, whose scoring is left to the next start.
@pytest.mark.parametrize(("call", "step"), [(7, 8), (6, 6)])
def test_a_run_ended_by_sigterm_saves_and_goes_on_to_the_same_weights(
    recipe: Recipe, heard: Any, monkeypatch: pytest.MonkeyPatch, call: int, step: int
) -> None:
    loop = {"epochs": 3, "log_every_steps": 2, "evaluate_every_epochs": 2}
    whole, cut = recipe("whole", loop=loop), recipe("cut", loop=loop)
    assert plan(cut).state == "fresh"
    summary = run(whole, heard)
    lines = [json.loads(line) for line in (whole.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "test/top1" in line] == [1, 2]  # and the last
    assert summary.metrics["test/top1"] == pytest.approx(lines[-1]["test/top1"], rel=1e-5)
    assert f"test/top1 (watched) {lines[-1]['test/top1']:.3f}" in heard.notes[-1]

    forward, num_calls = Method.forward, 0

    def counted(self: Method, *arguments: Any) -> StepOutput:
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *arguments)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Method, "forward", counted)
    with pytest.raises(SystemExit) as ended:
        run(cut, heard)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert load_checkpoint(cut.out).step == step
    assert f"stopped by SIGTERM after step {step}" in heard.messages[-1]
    found = plan(cut)
    assert (found.state, found.steps_done, found.steps) == ("goes on", step, 9)

    assert run(cut, heard).metrics == summary.metrics
    assert f"{cut.out}: going on from step {step} of 9 (epoch 3 of 3)" in heard.messages
    again = [json.loads(line) for line in (cut.out / "metrics.jsonl").read_text().splitlines()]
    for line in (*lines, *again):
        line.pop("samples_per_s", None)
    assert again == lines
    one, two = load_weights(whole.out), load_weights(cut.out)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    starts = json.loads((cut.out / "environment.json").read_text())["starts"]
    assert [start["from_step"] for start in starts] == [0, step]
    assert plan(cut).state == "finished"


def test_the_first_start_stays_on_top_and_the_newest_comes_last(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    note_start(tmp_path, {"git_commit": "a"}, from_step=0)
    note_start(tmp_path, {"git_commit": "b"}, from_step=7)
    found = json.loads(path.read_text())
    assert found["git_commit"] == "a"
    assert [(x["git_commit"], x["from_step"]) for x in found["starts"]] == [("a", 0), ("b", 7)]
    path.write_text('{"git_commit": "old"}')  # of an earlier version
    note_start(tmp_path, {"git_commit": "c"}, from_step=9)
    starts = json.loads(path.read_text())["starts"]
    assert [(x["git_commit"], x["from_step"]) for x in starts] == [("old", None), ("c", 9)]
    note_start(tmp_path, {"git_commit": "d"}, from_step=0)
    assert len(json.loads(path.read_text())["starts"]) == 1


def test_a_bad_first_step_promises_no_checkpoint_and_a_new_start_forgets_it(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(loop={"epochs": 1})
    step = ClassifyMethod.training_step

    def bad(self: ClassifyMethod, *arguments: Any) -> StepOutput:
        output = step(self, *arguments)
        return StepOutput(output.loss * float("nan"), output.metrics)

    with monkeypatch.context() as patches:
        patches.setattr(ClassifyMethod, "training_step", bad)
        with pytest.raises(NonFiniteLossError, match="None was saved") as caught:
            run(config, SilentProgress())
    assert "whole" not in str(caught.value)
    assert "mixed_precision" not in str(caught.value)
    assert (config.out / "nonfinite.json").is_file()
    run(config, SilentProgress())
    assert not list(config.out.glob("nonfinite*"))


def test_going_on_with_another_number_of_processes_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def state(num_processes: int) -> RunState:
        encoder = torch.nn.Module()
        encoder.head = torch.nn.Linear(2, 2)
        method = ClassifyMethod(encoder)
        return RunState(
            method,
            optim=OptimConfig(),
            loop=LoopConfig(),
            scaler=None,
            num_processes=num_processes,
        )

    state(2).save(tmp_path, epochs=1, request={})
    with caplog.at_level(logging.WARNING):
        state(2).restore(tmp_path)
        assert not caplog.records
        state(1).restore(tmp_path)
    assert "was trained by 2 process(es)" in caplog.text


def test_a_frozen_encoder_needs_weights_to_keep(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"there is no method\.init_from"):
        run(recipe(method={"freeze": ("encoder",)}), SilentProgress())


def test_a_dry_run_opens_all_and_writes_nothing(dataset_folder: Path, tmp_path: Path) -> None:
    asked = ["train", "--recipe", "demo", "--device", "cpu", "--out", str(tmp_path / "run")]
    more = ["--dry-run", "--set", "model.base_channels=8", "--set", "loop.batch_size=8"]
    command = [*asked, *more, "--data", str(dataset_folder), "--protocol", "ntu60-xsub"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "training samples" in done.output
    answer = CliRunner().invoke(app, [*command, "--json"])
    found = json.loads(answer.stdout)
    assert found["model"]["base_channels"] == 8
    assert (found["plan"]["num_train"], found["plan"]["num_test"]) == (24, 12)
    assert found["plan"]["state"] == "fresh"
    assert not (tmp_path / "run").exists()
    for changes in (["--set", "model.switches.nonsense=1"], ["--protocol", "nw-ucla"]):
        assert CliRunner().invoke(app, [*command, *changes]).exit_code == 2
