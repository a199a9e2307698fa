"""Encoders as ONNX: the same answers, the metadata, and what happens when they are not the same.

Tracing takes most of a minute for a whole model. The tests that always run trace one of HGLNet's
ten blocks, once; whole models, CTR-GCN too, are marked slow.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datasets_build.joints import COCO_17, UCLA_20, Skeleton
from datasets_build.progress import SilentProgress
from training import onnx_export, train
from training.build import MODELS
from training.config import TrainConfig
from training.onnx_export import OnnxSummary, example_clips, export_onnx, write_onnx
from training.pretrained import SkeletonModel

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def small_model(skeleton: Skeleton = UCLA_20) -> Any:
    """An untrained HGLNet of few channels and one block: it changes width and halves the frames."""
    model: Any = SkeletonModel(
        "hglnet",
        base_channels=8,
        switches={},
        skeleton=skeleton.as_json(),
        classes=[{"label": i, "action_id": i + 1, "name": f"cl{i} \u00e9"} for i in range(3)],
        inputs={
            "stream": "bone",
            "orphan": "keep",
            "view": "ntu",
            "num_frames": 16,
            "protocol": "own",
            "family": "generic",
            "second_body": "zeros",
        },
    )
    to_its_width = nn.Conv2d(skeleton.num_channels, 8, 1)
    model.encoder.blocks = nn.ModuleList([to_its_width, model.encoder.blocks[4]])
    model.encoder.head = nn.Linear(16, 3)
    # Untrained, the spatial branches are scaled to almost nothing, and what they do does not show.
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def answers(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"skeleton": x.numpy()})
    return logits


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, OnnxSummary, Path]:
    model = small_model()
    folder = tmp_path_factory.mktemp("onnx")
    return model, write_onnx(model, folder / "m.onnx", progress=SilentProgress()), folder


def test_onnxruntime_gives_the_models_logits_for_any_batch(
    written: tuple[Any, OnnxSummary, Path],
) -> None:
    model, summary, folder = written
    assert [path.name for path in folder.iterdir()] == ["m.onnx"]
    assert summary.num_bytes == (folder / "m.onnx").stat().st_size
    assert 0 <= summary.max_difference < 1e-5
    assert summary.batches[:2] == (1, 3)
    for num in (1, 3, 5):
        x = example_clips(model, num)
        assert x.shape == (num, *model.input_shape)
        with torch.no_grad():
            expected = model(x).numpy()
        given = answers(folder / "m.onnx", x)
        assert np.abs(given - expected).max() < 1e-5 * np.abs(expected).max()
        assert np.ptp(expected) > 1e-3


def test_the_file_says_what_it_wants(written: tuple[Any, OnnxSummary, Path]) -> None:
    model, summary, folder = written
    file = onnx.load(folder / "m.onnx")
    onnx.checker.check_model(file)
    found = {entry.key: entry.value for entry in file.metadata_props}
    assert json.loads(found["classes"]) == model.class_names
    assert (found["stream"], found["orphan"]) == ("bone", "keep")
    assert found["num_frames"] == "16"
    assert (found["view"], found["protocol"]) == ("ntu", "own")
    assert json.loads(found["skeleton"]) == model.skeleton.as_json()
    (given,) = file.graph.input
    sizes = [size.dim_value or size.dim_param for size in given.type.tensor_type.shape.dim]
    assert (given.name, sizes) == ("skeleton", ["N", 1, 16, 20, 3])
    assert summary.input_shape == tuple(sizes)
    assert [output.name for output in file.graph.output] == ["logits"]


def test_answers_that_differ_leave_no_file(
    written: tuple[Any, OnnxSummary, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, folder = written
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.encoder.head.bias += 0.01

    class Program:
        model = SimpleNamespace(metadata_props={})

        def save(self, path: Path, **_: Any) -> None:
            path.write_bytes((folder / "m.onnx").read_bytes())

    monkeypatch.setattr(onnx_export, "_program", lambda _: Program())
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an earlier one")
    with pytest.raises(ValueError, match=r"differ from the model's by .* was not written"):
        write_onnx(changed, path, progress=SilentProgress())
    assert path.read_bytes() == b"an earlier one"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_an_operator_without_a_counterpart_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x[:, 0, :20, :, 0].transpose(1, 2) @ x[:, 0, :20, :, 0])

    model = small_model()
    model.encoder = Odd()
    with pytest.raises(ValueError, match=r"cannot be written as ONNX: .*eig"):
        write_onnx(model, tmp_path / "m.onnx", progress=SilentProgress())
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_fixes_the_number_of_samples_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3].reshape(len(x), 3)

    model = small_model()
    model.encoder = Fixed()
    with pytest.raises(ValueError, match=r"cannot be written as ONNX: .* a constant \(2\)"):
        write_onnx(model, tmp_path / "m.onnx", progress=SilentProgress())
    assert list(tmp_path.iterdir()) == []


def test_packages_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_PACKAGES", ("onnx", "no_such_runtime"))
    with pytest.raises(ValueError, match=r"needs no_such_runtime, not .*'hocslm\[onnx\]'"):
        export_onnx(tmp_path, tmp_path / "m.onnx", progress=SilentProgress())


def test_clips_in_pixels_get_an_image_and_a_score() -> None:
    model = small_model(COCO_17)
    x = example_clips(model, 2)
    assert x.shape == (2, 2, 16, 17, 3)
    assert x[..., 2].max() <= 1.0
    assert 0.1 < x[..., :2].std() < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MODELS)
def test_a_whole_run_is_exported(
    architecture: str, recipe: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = recipe(model={"name": architecture}, loop={"epochs": 4})
    train.run(config, SilentProgress())
    summary = export_onnx(config.out, tmp_path / "m.onnx", progress=SilentProgress())
    assert summary.max_difference < 1e-5
    x = example_clips(SkeletonModel.from_run(config.out), 4)
    assert answers(tmp_path / "m.onnx", x).shape == (4, 3)
