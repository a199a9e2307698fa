from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training import checkpoint as module
from training.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    load_weights,
    pack_optimizer,
    read_request,
    refuse_other_request,
    save_checkpoint,
    unpack_optimizer,
)


def make(epoch: int) -> Checkpoint:
    return Checkpoint(
        epoch=epoch,
        step=10 * epoch,
        request={"optim": {"lr": 0.1}},
        weights={"a": torch.full((2, 3), float(epoch))},
        state={"optimizer/0/momentum_buffer": torch.ones(3)},
        numbers={"optimizer": []},
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    save_checkpoint(tmp_path, make(1))
    save_checkpoint(tmp_path, make(2))
    found = load_checkpoint(tmp_path)
    assert (found.epoch, found.step) == (2, 20)
    assert torch.equal(found.weights["a"], torch.full((2, 3), 2.0))
    assert read_request(tmp_path) == (2, {"optim": {"lr": 0.1}})
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("moment", range(1, 10))
def test_a_kill_at_any_write_or_rename_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    save_checkpoint(tmp_path, make(1))
    calls = 0

    def dies(original: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise KeyboardInterrupt
            return original(*arguments, **keywords)

        return call

    monkeypatch.setattr(module, "save_file", dies(module.save_file))
    monkeypatch.setattr(Path, "replace", dies(Path.replace))
    monkeypatch.setattr(module, "write_json", dies(module.write_json))
    monkeypatch.setattr(module.shutil, "rmtree", dies(module.shutil.rmtree))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, make(2))
    monkeypatch.undo()
    found = load_checkpoint(tmp_path)
    assert found.epoch in (1, 2)
    assert torch.equal(found.weights["a"], torch.full((2, 3), float(found.epoch)))
    save_checkpoint(tmp_path, make(3))
    assert load_checkpoint(tmp_path).epoch == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_who_reads_between_two_renames_gets_the_old_one_and_moves_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1))
    (tmp_path / "last").rename(tmp_path / "last.old")
    assert has_checkpoint(tmp_path)
    assert read_request(tmp_path)[0] == 1
    assert torch.equal(load_weights(tmp_path)["a"], torch.full((2, 3), 1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["last.old"]


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, make(1))

    def full(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="free some space"):
        save_checkpoint(tmp_path, make(2))
    assert load_checkpoint(tmp_path).epoch == 1


def test_who_reads_while_a_run_saves_gets_one_of_the_two_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, make(1))
    original = module.sha256_file
    epochs = iter((2, 3))

    def swapped_under_the_reader(path: Path) -> str:
        if (epoch := next(epochs, None)) is not None:
            monkeypatch.setattr(module, "sha256_file", original)
            save_checkpoint(tmp_path, make(epoch))
            monkeypatch.setattr(module, "sha256_file", swapped_under_the_reader)
        return original(path)

    monkeypatch.setattr(module, "sha256_file", swapped_under_the_reader)
    found = load_checkpoint(tmp_path)
    assert found.epoch == 3
    assert torch.equal(found.weights["a"], torch.full((2, 3), 3.0))


def test_the_files_of_a_checkpoint_have_the_mode_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        last = save_checkpoint(tmp_path, make(1))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in last.iterdir()} == {0o640}


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(1)) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="sha256 differs"):
        load_weights(tmp_path)


def test_a_folder_without_checkpoint_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_weights(tmp_path)


def test_another_request_is_refused_by_the_names_of_what_differs(tmp_path: Path) -> None:
    saved = {"optim": {"lr": 0.1, "name": "sgd"}, "dataset_fingerprint": "x"}
    asked = {"optim": {"lr": 0.2, "name": "sgd"}, "dataset_fingerprint": "y"}
    refuse_other_request(tmp_path, saved, saved)
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.1 there, 0\.2 now") as caught:
        refuse_other_request(tmp_path, saved, asked)
    assert "dataset_fingerprint" in str(caught.value)
    assert "optim.name" not in str(caught.value)


def test_a_disk_that_is_really_full_is_told_too(tmp_path: Path) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], check=False)
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        save_checkpoint(tmp_path, make(1))
        large = replace(make(2), state={"optimizer/0/momentum_buffer": torch.ones(1 << 20)})
        with pytest.raises(OSError, match="free some space and run the same command again"):
            save_checkpoint(tmp_path, large)
        assert load_checkpoint(tmp_path).epoch == 1
        save_checkpoint(tmp_path, make(3))  # there is room again
        assert load_checkpoint(tmp_path).epoch == 3
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizer_goes_on_bit_for_bit_after_packing(kind: str) -> None:
    def make_one(weights: torch.Tensor) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(weights.clone())
        if kind == "sgd":
            return parameter, torch.optim.SGD([parameter], lr=0.1, momentum=0.9, nesterov=True)
        return parameter, torch.optim.AdamW([parameter], lr=0.1)

    def step(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, seed: int) -> None:
        parameter.grad = torch.randn(5, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    one, first = make_one(torch.zeros(5))
    step(one, first, 1)
    tensors, numbers = pack_optimizer(first)
    tensors = {name: value.clone() for name, value in tensors.items()}
    two, second = make_one(one.detach())
    unpack_optimizer(second, tensors, numbers)
    step(one, first, 2)
    step(two, second, 2)
    assert torch.equal(one, two)
