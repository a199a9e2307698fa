from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datasets_build.progress import SilentProgress
from datasets_build.protocols import protocol_named
from training.build import MODELS
from training.config import TrainConfig
from training.recipe_files import RECIPES_FOLDER, load_recipe, recipe_names
from training.train import run

FLAGS = {"out": "runs/a", "data": {"dataset": "data/a"}}


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_valid_and_names_things_that_exist(name: str) -> None:
    config = load_recipe(name, flags=FLAGS)
    protocol_named(config.data.protocol)
    assert config.model.name in MODELS


@pytest.mark.parametrize("name", recipe_names())
def test_first_comment_of_a_recipe_tells_command_hardware_and_expectation(name: str) -> None:
    lines = (RECIPES_FOLDER / f"{name}.toml").read_text().splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line)
    text = " ".join(comment)
    assert f"hoc train --recipe {name}" in text
    assert "Hardware" in text
    assert "Expected" in text


@pytest.mark.parametrize("protocol", ["ntu60-xsub", "ntu60-xview", "ntu120-xsub", "ntu120-xset"])
def test_every_ntu_protocol_has_the_recipes_of_the_first(protocol: str) -> None:
    for kind in ("hglnet", "hglnet-adamw", "ctrgcn", "hocslm"):
        config = load_recipe(f"{protocol}-{kind}", flags=FLAGS)
        first = load_recipe(f"ntu60-xsub-{kind}", [f"data.protocol={protocol}"], FLAGS)
        assert config == first


def test_nw_ucla_recipes_are_the_published_ones() -> None:
    adamw, ctrgcn = (
        load_recipe(f"nw-ucla-{kind}", flags=FLAGS) for kind in ("hglnet-adamw", "ctrgcn")
    )
    assert (adamw.optim.name, adamw.optim.weight_decay, adamw.loop.batch_size) == (
        "adamw",
        0.01,
        64,
    )
    assert (adamw.loop.epochs, adamw.data.repeat, adamw.data.view) == (85, 5, "ucla")
    # protocols.md section 4
    assert (ctrgcn.model.name, ctrgcn.loop.epochs, ctrgcn.loop.batch_size) == ("ctrgcn", 65, 16)
    assert (ctrgcn.optim.lr, ctrgcn.optim.weight_decay, ctrgcn.optim.steps) == (0.1, 1e-4, (50,))
    assert (ctrgcn.optim.warmup_epochs, ctrgcn.data.repeat, ctrgcn.data.num_frames) == (5, 5, 52)


def test_stage_one_of_nw_ucla_is_short_and_of_ntu_as_long_as_the_papers() -> None:
    ucla, ntu = (load_recipe(f"{key}-hocslm", flags=FLAGS) for key in ("nw-ucla", "ntu60-xsub"))
    assert (ucla.data.repeat, ucla.loop.epochs, ucla.loop.batch_size) == (1, 20, 16)
    assert (ntu.data.repeat, ntu.loop.epochs, ntu.loop.batch_size) == (1, 85, 64)
    assert (ucla.method.language_model, ucla.method.language_model_dtype) == ("smollm2", "bf16")
    assert ntu.method.language_model == "Qwen/Qwen3-4B"
    zero = load_recipe("nw-ucla-hglnet", flags=FLAGS)
    for section, name in (("data", "num_frames"), ("data", "view"), ("model", "base_channels")):
        assert getattr(getattr(ucla, section), name) == getattr(getattr(zero, section), name)


def test_a_recipe_lays_its_values_over_those_it_extends(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "nw-ucla-hglnet"\n[optim]\nlr = 0.3\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n[loop]\nepochs = 3\n')
    changes = ["optim.lr=0.3", "loop.epochs=3"]
    assert load_recipe(tmp_path / "b.toml", flags=FLAGS) == load_recipe(
        "nw-ucla-hglnet", changes, FLAGS
    )


@pytest.mark.parametrize(
    ("extends", "said"),
    [
        ('"nw-ucla-hglne"', "extends = 'nw-ucla-hglne': .* did you mean 'nw-ucla-hglnet'"),
        ('"b.toml"', "leads back to"),
        ('"a.toml"', "leads back to a.toml"),
        ("3", "must be a recipe's name"),
        ('"none.toml"', "none.toml does not exist"),
    ],
)
def test_a_recipe_that_extends_none_or_itself_says_so(
    tmp_path: Path, extends: str, said: str
) -> None:
    (tmp_path / "a.toml").write_text(f"extends = {extends}\n")
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n')
    error = FileNotFoundError if "none" in extends else ValueError
    with pytest.raises(error, match=said):
        load_recipe(tmp_path / "a.toml", flags=FLAGS)


def test_debug_twin_of_the_parent_recipe_runs_and_its_first_loss_is_pinned(
    dataset_folder: Path, tmp_path: Path
) -> None:
    config = load_recipe(
        "ntu60-xsub-hglnet",
        [
            "data.num_frames=16",
            "model.base_channels=8",
            "loop.epochs=1",
            "loop.batch_size=8",
            "loop.mixed_precision=no",
            "loop.deterministic=true",
            "loop.log_every_steps=1",
        ],
        {
            "out": str(tmp_path / "run"),
            "data": {"dataset": str(dataset_folder)},
            "loop": {"device": "cpu", "num_threads": 1},
        },
    )
    summary = run(config, SilentProgress())
    assert summary.steps == 3
    # ln 3 is the loss of three equal logits; the head starts small but not at zero.
    assert 0.5 < summary.metrics["train/loss"] < 3.5


def test_recipes_of_tests_are_like_the_shipped_ones(recipe: Callable[..., TrainConfig]) -> None:
    assert recipe().request().keys() == load_recipe("demo", flags=FLAGS).request().keys()
