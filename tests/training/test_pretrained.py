"""Models as others load them: saved, pushed, loaded, asked. No network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from datasets_build.dataset import joints_of_table, open_dataset
from datasets_build.joints import COCO_17
from datasets_build.progress import SilentProgress
from training import evaluate, train
from training.build import MODELS
from training.command_config import EvaluateConfig
from training.config import TrainConfig
from training.pretrained import SkeletonModel
from training.scores import read_scores


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(recipe: Callable[..., TrainConfig], shared: Path) -> Path:
    """One evaluated run for this file."""
    config = recipe(data={"stream": "bone"}).model_copy(update={"out": shared / "run"})
    if not (config.out / "metrics.json").is_file():
        train.run(config, SilentProgress())
        evaluate.run(EvaluateConfig(run=config.out, device="cpu"), SilentProgress())
    return config.out


@pytest.fixture
def model(run: Path) -> SkeletonModel:
    return SkeletonModel.from_run(run)


def small_arguments(architecture: str, **changes: Any) -> dict[str, Any]:
    """Arguments of an untrained model of 2-D joints."""
    return {
        "architecture": architecture,
        "base_channels": 4,
        "switches": {},
        "skeleton": COCO_17.as_json(),
        "classes": [{"label": i, "action_id": i + 1, "name": f"class {i}"} for i in range(3)],
        "inputs": {
            "stream": "joint",
            "view": "ntu",
            "num_frames": 8,
            "protocol": "own",
            "family": "generic",
            "second_body": "zeros",
        },
        **changes,
    }


def test_a_model_of_a_run_scores_as_the_evaluation_did(
    model: SkeletonModel, run: Path, dataset_folder: Path
) -> None:
    dataset = open_dataset(dataset_folder)
    clips = {
        name: joints
        for table in dataset.tables()
        for name, joints in zip(
            table["sample_id"].to_pylist(), joints_of_table(table, dataset.skeleton), strict=True
        )
    }
    names, _, scores = read_scores(run / "scores-test.parquet")
    x = torch.stack([model.prepare(clips[name]) for name in names])
    assert tuple(x.shape[1:]) == model.input_shape == (2, 16, 25, 3)
    with torch.no_grad():
        np.testing.assert_allclose(model(x).numpy(), scores, rtol=1e-5, atol=1e-5)
    found = model.predict([clips[name] for name in names], batch_size=5, num_classes=2)
    assert [guesses[0].label for guesses in found] == scores.argmax(1).tolist()
    probabilities = torch.from_numpy(scores).softmax(1).sort(1, descending=True).values[:, :2]
    given = [[guess.probability for guess in guesses] for guesses in found]
    np.testing.assert_allclose(given, probabilities, rtol=1e-4)
    assert {guess.name for guesses in found for guess in guesses} <= set(dataset.class_names)
    assert model.predict([]) == []


def test_a_saved_model_is_the_same_when_it_is_loaded(
    model: SkeletonModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "a")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    loaded = SkeletonModel.from_pretrained(str(tmp_path / "a"))
    x = torch.randn(3, *model.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert not loaded.training
    assert loaded.skeleton == model.skeleton
    loaded.save_pretrained(tmp_path / "b")
    for name in files:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), name
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("architecture", MODELS)
def test_every_architecture_goes_there_and_back(architecture: str, tmp_path: Path) -> None:
    model = SkeletonModel(**small_arguments(architecture)).eval()
    model.save_pretrained(tmp_path)
    loaded = SkeletonModel.from_pretrained(tmp_path)
    clip = np.random.default_rng(0).random((3, 20, 17, 3), np.float32) * 100
    x = model.prepare(clip, image_size=(640, 480))[None]
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_making_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    SkeletonModel(**small_arguments("hglnet"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_config_says_what_the_model_wants_and_names_no_place(
    model: SkeletonModel, run: Path, tmp_path: Path, dataset_folder: Path
) -> None:
    model.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (
        config["inputs"].items()
        >= {
            "stream": "bone",
            "view": "ntu",
            "num_frames": 16,
            "protocol": "ntu60-xsub",
            "family": "ntu",
            "second_body": "zeros",
        }.items()
    )
    assert [entry["name"] for entry in config["classes"]] == [
        "sit down",
        "clapping",
        "hand waving",
    ]
    assert config["skeleton"]["name"] == "ntu-25"
    assert len(config["skeleton"]["parents"]) == 25
    for path in (tmp_path / "m").iterdir():
        for place in (run.parent, dataset_folder.parent, Path.home()):
            assert str(place).encode() not in path.read_bytes()


def test_the_card_tells_the_numbers_and_its_example_runs(
    model: SkeletonModel,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "hocslm"
    assert "ntu-25" in card.data.tags
    assert card.data.license is None
    top1 = json.loads((run / "metrics.json").read_text())["top1"]
    for said in (
        f"| top-1 | {top1:.2%} |",
        "| test | 12 samples of small, ntu60-xsub |",
        "| weights | last epoch (2) |",
        "seed 0",
        "bone stream of 16 frames",
        "academic research only",
    ):
        assert said in card.text, said
    code = card.text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert {line.split("%  ")[1] for line in lines} == set(model.class_names)


def test_numbers_of_other_weights_or_of_another_task_are_not_in_the_card(
    run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for path in run.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(run)).parent.mkdir(exist_ok=True)
            (copy / path.relative_to(run)).write_bytes(path.read_bytes())
    metrics = json.loads((copy / "metrics.json").read_text())
    assert "top-1" in SkeletonModel.from_run(copy).generate_model_card().text
    for change in (
        {"epochs": 1},
        {"weights_sha256": "0" * 64},
        {"protocol": "ntu60-xview"},
        {"dataset_fingerprint": "0" * 64},
    ):
        (copy / "metrics.json").write_text(json.dumps({**metrics, **change}))
        text = SkeletonModel.from_run(copy).generate_model_card().text
        assert "| test | not measured |" in text
        assert "top-1" not in text


def test_a_hocslm_run_gives_its_encoder_alone(
    recipe: Callable[..., TrainConfig], hocslm: dict[str, Any]
) -> None:
    config = recipe(method=hocslm, loop={"epochs": 1})
    train.run(config, SilentProgress())
    evaluate.run(EvaluateConfig(run=config.out, device="cpu"), SilentProgress())
    model = SkeletonModel.from_run(config.out)
    assert all(name.startswith("encoder.") for name in model.state_dict())
    text = model.generate_model_card(repo_id="lab/m").text
    assert "This is the encoder with its classifier alone" in text
    assert hocslm["language_model"] not in text
    assert 'from_pretrained("lab/m")' in text


def test_clips_of_another_kind_get_a_sentence(model: SkeletonModel) -> None:
    good = np.ones((1, 9, 25, 3), np.float32)
    with pytest.raises(ValueError, match=r"takes \(bodies, frames, 25, 3\) of layout ntu-25"):
        model.prepare(good[..., :2])
    with pytest.raises(ValueError, match="at least one body and one frame"):
        model.prepare(good[:, :0])
    with pytest.raises(ValueError, match="joints that are not numbers"):
        model.prepare(good * np.nan)
    with pytest.raises(ValueError, match="2 image sizes were given for 1 clips"):
        model.predict([good], image_sizes=[(1, 1), (1, 1)])
    flat = SkeletonModel(**small_arguments("hglnet"))
    with pytest.raises(ValueError, match="no image size"):
        flat.prepare(np.ones((1, 9, 17, 3), np.float32))


def test_folders_that_hold_no_whole_model_are_refused(tmp_path: Path) -> None:
    model = SkeletonModel(**small_arguments("hglnet"))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "head" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"encoder\.head\.bias is missing"):
        SkeletonModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        SkeletonModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"no config\.json of a SkeletonModel"):
        SkeletonModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'hglnet'"):
        SkeletonModel(**small_arguments("hglne"))
