"""What cannot be trained on, or gone on with, is told in a sentence before the first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets_build import schema
from datasets_build.progress import SilentProgress
from training import checkpoint as checkpoint_module
from training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from training.config import TrainConfig
from training.methods.method import Method
from training.recipe_files import load_recipe
from training.train import run

Recipe = Callable[..., TrainConfig]
Dataset = Callable[..., Path]


def with_label_three(row: dict[str, Any]) -> None:
    if row[schema.SAMPLE_ID] == "S001C001P001R001A008":
        row[schema.LABEL] = 3


def with_a_joint_of_nan(row: dict[str, Any]) -> None:
    if row[schema.SAMPLE_ID] == "S001C001P001R001A008":
        row[schema.JOINTS] = np.where(np.arange(len(row[schema.JOINTS])) == 7, np.nan, 0.0)


def with_kicks_by_the_test_subject_only(row: dict[str, Any]) -> None:
    if row[schema.ACTION_ID] == 23:
        row[schema.SUBJECT_ID] = 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_label_three, "S001C001P001R001A008 has label 3, but the data set has 3 classes"),
        (with_a_joint_of_nan, "S001C001P001R001A008 .* has joints that are not numbers"),
        (with_kicks_by_the_test_subject_only, "1 of 3 classes have no training sample .hand wav"),
    ],
)
def test_bad_samples_are_told_and_nothing_is_written(
    recipe: Recipe,
    make_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any]], None],
    said: str,
) -> None:
    monkeypatch.setattr(Method, "forward", None)  # no step is made
    data = make_dataset(tmp_path / "bad", change=change)
    with pytest.raises(ValueError, match=said):
        run(recipe(data={"dataset": data}), SilentProgress())
    assert not recipe().out.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loop": {"batch_size": 64}}, r"24 training samples, fewer than loop\.batch_size 64"),
        ({"data": {"view": "ucla"}}, 'view "ucla" is for one body'),
        ({"data": {"protocol": "ntu60-xsubb"}}, "is not known; choose one of ntu60-xsub"),
        ({"model": {"name": "hglnett"}}, "did you mean 'hglnet'"),
        ({"model": {"switches": {"num_subset": 1}}}, "did you mean 'num_subsets'"),
        ({"loop": {"mixed_precision": "fp16"}}, "fp16 is for GPUs"),
        ({"method": {"init_from": Path("nowhere")}}, "nowhere holds no checkpoint"),
    ],
)
def test_recipes_that_do_not_fit_are_told_and_nothing_is_written(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(Method, "forward", None)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run(recipe(**changes), SilentProgress())
    assert not recipe().out.exists()


def test_an_unknown_key_of_a_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"loop\.epoch\b.*did you mean.*epochs"):
        load_recipe("demo", ["loop.epoch=3"], {"out": "x", "data": {"dataset": "y"}})


def test_asking_for_a_gpu_that_is_not_there_is_told(recipe: Recipe) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="'cuda' is not available"):
        run(recipe(loop={"device": "cuda"}), SilentProgress())
    assert not recipe().out.exists()


def test_a_checkpoint_without_a_tensor_or_of_another_width_is_refused(recipe: Recipe) -> None:
    config = recipe(loop={"epochs": 1})
    run(config, SilentProgress())
    (config.out / "train.json").unlink()
    saved = load_checkpoint(config.out)
    weights = dict(saved.weights)
    bias = weights.pop("encoder.head.bias")
    save_checkpoint(config.out, replace(saved, weights=weights))
    with pytest.raises(ValueError, match=r"another model: encoder\.head\.bias is missing"):
        run(config, SilentProgress())
    weights["encoder.head.bias"] = torch.cat([bias, bias])
    save_checkpoint(config.out, replace(saved, weights=weights))
    with pytest.raises(ValueError, match=r"has shape \(6,\), the model's is \(3,\)"):
        run(config, SilentProgress())


def test_a_full_disk_stops_the_run_and_the_last_good_checkpoint_goes_on(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file, num_files = checkpoint_module.save_file, 0

    def full_at_the_second_checkpoint(*arguments: Any, **keywords: Any) -> None:
        nonlocal num_files
        num_files += 1
        if num_files == 4:  # two files a checkpoint
            raise OSError(28, "No space left on device")
        save_file(*arguments, **keywords)

    config = recipe()
    with monkeypatch.context() as patches:
        patches.setattr(checkpoint_module, "save_file", full_at_the_second_checkpoint)
        with pytest.raises(OSError, match="checkpoint of step 6 could not be written"):
            run(config, SilentProgress())
    assert load_checkpoint(config.out).epoch == 1
    assert run(config, SilentProgress()).resumed_from == 3


def test_starting_weights_come_from_another_run(recipe: Recipe) -> None:
    first = recipe("first", loop={"epochs": 1})
    run(first, SilentProgress())
    changes = {"loop": {"epochs": 1}, "method": {"init_from": first.out, "freeze": ("encoder",)}}
    run(recipe("second", **changes), SilentProgress())
    one, two = load_weights(first.out), load_weights(recipe("second").out)
    for name, value in one.items():
        assert torch.equal(value, two[name]) == (not name.startswith("encoder.head")), name


def test_starting_weights_of_another_run_that_do_not_fit_are_refused(
    recipe: Recipe, make_dataset: Dataset, tmp_path: Path
) -> None:
    first = recipe("first", loop={"epochs": 1})
    run(first, SilentProgress())
    begin = {"init_from": first.out}
    other = make_dataset(tmp_path / "other", class_order=(2, 1, 0))
    with pytest.raises(ValueError, match="same classes in the same order"):
        run(recipe("second", data={"dataset": other}, method=begin), SilentProgress())
    with pytest.raises(ValueError, match="belongs to another model"):
        run(recipe("third", model={"base_channels": 12}, method=begin), SilentProgress())
    with pytest.raises(ValueError, match=r"with data.stream = 'joint', this run has 'bone'"):
        run(recipe("bone", data={"stream": "bone"}, method=begin), SilentProgress())
    held_out = {"validation_subjects": [1]}
    with pytest.raises(ValueError, match=r"was trained on subjects \[1\], whom"):
        run(recipe("held-out", data=held_out, method=begin), SilentProgress())
    more = {"protocol": "ntu120-xsub"}
    with pytest.raises(ValueError, match="it may have seen test samples"):
        run(recipe("more", data=more, method=begin), SilentProgress())
    (first.out / "train.json").unlink()
    with pytest.raises(ValueError, match="is not trained to its end"):
        run(recipe("fourth", method=begin), SilentProgress())


def test_a_projection_learned_for_another_language_model_is_refused(
    recipe: Recipe,
    hocslm: dict[str, Any],
    language_model_folder: Path,
    heard: Any,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other-model"
    shutil.copytree(language_model_folder, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, other / "model.safetensors")
    short = {"loop": {"epochs": 1}}
    first = recipe("first", method=hocslm, **short)
    run(first, heard)
    from_nothing = "no method.init_from: the encoder starts from random weights"
    assert any(text.startswith(from_nothing) for text in heard.messages)

    begin = {**hocslm, "init_from": first.out}
    with pytest.raises(ValueError, match="learned text with another language model"):
        run(recipe("second", method={**begin, "language_model": str(other)}, **short), heard)
    assert not recipe("second").out.exists()
    heard.messages.clear()
    run(recipe("third", method=begin, **short), heard)
    assert not any(text.startswith(from_nothing) for text in heard.messages)
