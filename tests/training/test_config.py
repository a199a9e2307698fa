from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from training.command_config import DescribeConfig, EnsembleConfig
from training.config import MethodConfig, Stream, TrainConfig
from training.recipe_files import load_recipe, recipe_names
from training.streams import STREAMS

FLAGS = {"out": "runs/a", "data": {"dataset": "data/a"}}


def test_config_imports_without_torch() -> None:
    program = """import sys, training.command_config, training.recipe_files
print(sorted({'torch', 'numpy'} & sys.modules.keys()))"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_streams_of_the_config_are_those_of_the_transform() -> None:
    assert get_args(Stream) == STREAMS


def test_flags_win_over_assignments_and_these_over_the_recipe() -> None:
    config = load_recipe(
        "demo",
        ["loop.seed=3", "loop.epochs=7", "optim.lr=0.5"],
        {**FLAGS, "loop": {"seed": 4, "device": None}},
    )
    assert (config.loop.seed, config.loop.epochs, config.optim.lr) == (4, 7, 0.5)
    assert config.loop.device == load_recipe("demo", flags=FLAGS).loop.device


def test_unknown_recipe_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'nw-ucla-hglnet'"):
        load_recipe("nwucla-hglnet")


def test_a_name_of_another_kind_is_answered_with_the_command_that_takes_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="a sweep, not a recipe: `hoc sweep table-4-nw-ucla`"):
        load_recipe("table-4-nw-ucla")
    with pytest.raises(ValueError, match="`hoc caption --recipe captions-ntu60-8b`"):
        load_recipe("captions-ntu60-8b")
    own = tmp_path / "own.toml"
    own.write_text('title = "a"\nrecipe = "demo"\n[[rows]]\nname = "a"\n')
    with pytest.raises(ValueError, match=r"own\.toml is a sweep, not a recipe: `hoc sweep "):
        load_recipe(own)


def test_a_mistake_about_a_whole_section_does_not_print_the_section() -> None:
    with pytest.raises(ValueError, match="method: ") as caught:
        load_recipe("nw-ucla-hglnet", ["method.language_model=tiny"], FLAGS)
    assert "given" not in str(caught.value)
    with pytest.raises(ValueError, match=r"optim\.lr: .* \(given: 'fast'\)"):
        load_recipe("demo", ["optim.lr=fast"], FLAGS)


def test_training_imports_no_transformers_for_runs_without_a_language_model() -> None:
    program = "import sys, training.train, training.sweep; print('transformers' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_missing_recipe_file_is_a_file_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"mine\.toml does not exist"):
        load_recipe("mine.toml")


def test_all_mistakes_are_listed_together_with_the_nearest_key() -> None:
    with pytest.raises(ValueError, match=r"wrong or missing \(recipe demo\)") as caught:
        load_recipe("demo", ["loop.epoch=3", "optim.lr=fast", "data.stream=bones"], FLAGS)
    text = str(caught.value)
    assert "did you mean 'epochs'" in text
    assert "optim.lr" in text
    assert "data.stream" in text


def test_a_recipe_without_a_dataset_says_so() -> None:
    with pytest.raises(ValueError, match=r"data\.dataset"):
        load_recipe("demo", flags={"out": "runs/a"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "hocslm"}, "needs language_model"),
        ({"name": "classify", "language_model": "tiny"}, "reads no language_model"),
        ({"name": "classify", "freeze": ("encoder", "head")}, "leaves nothing to train"),
        (
            {"name": "hocslm", "language_model": "tiny", "lambda_gen": 0, "lambda_cls": 0},
            "both 0",
        ),
        (
            {
                "name": "hocslm",
                "language_model": "tiny",
                "lambda_gen": 0,
                "freeze": ("encoder", "head"),
            },
            "leaves nothing to train",
        ),
    ],
)
def test_impossible_methods_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MethodConfig.model_validate(values)


def test_request_holds_what_decides_the_weights_and_no_path() -> None:
    config = load_recipe("demo", flags=FLAGS)
    moved = config.model_copy(update={"out": Path("elsewhere")})
    assert config.request() == moved.request()
    assert "dataset" not in config.request()["data"]
    assert config.request()["loop"]["seed"] == 0
    other = load_recipe("demo", ["optim.lr=0.7"], FLAGS)
    assert other.request() != config.request()


def test_a_config_comes_back_from_json() -> None:
    config = load_recipe("demo", flags=FLAGS)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


def test_recipe_names_are_sorted_and_hold_the_shipped_ones() -> None:
    names = recipe_names()
    assert names == sorted(names)
    assert {"demo", "ntu60-xsub-hglnet", "nw-ucla-hglnet", "nw-ucla-hocslm"} <= set(names)


def test_weights_and_runs_of_an_ensemble_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 weights for 1 runs"):
        EnsembleConfig(runs=(Path("a"),), weights=(1, 2), out=Path("o"))
    with pytest.raises(ValueError, match="named twice"):
        EnsembleConfig(runs=(Path("a"), Path("./a")), out=Path("o"))


def test_a_description_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to describe"):
        DescribeConfig(run=Path("a"))
