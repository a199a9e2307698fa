"""That nothing of a training step stays behind on the CPU, for machines without a GPU.

Fake tensors have a device, a shape and a dtype but no values: an operation on a tensor of the GPU
and one of the CPU fails as it does there, without one. Gradients need the GPU's own engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from datasets_build.joints import NTU_25, UCLA_20
from training import transforms
from training.build import METHODS, build_method
from training.config import TrainConfig
from training.methods.hocslm import HocSLMMethod
from training.models import language_model
from training.skeleton_data import SkeletonBatch
from training.streams import STREAMS, apply_stream

NUM_TOKENS = [5, 2, 4]  # of three samples' captions


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(language_model, "_counts", lambda mask: np.array(NUM_TOKENS))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def moved(module: nn.Module) -> None:
    """Parameters and buffers to the GPU, as Module.to would, which fake ones do not allow."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if isinstance(tensor, nn.Parameter):
                    on_gpu = torch.empty_like(tensor, device="cuda")
                    tensors[name] = nn.Parameter(on_gpu, requires_grad=tensor.requires_grad)
                elif tensor is not None:
                    tensors[name] = torch.empty_like(tensor, device="cuda")


@pytest.mark.parametrize("model", ["ctrgcn", "hglnet"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_computes_on_the_gpu_alone(
    recipe: Callable[..., TrainConfig],
    hocslm: dict[str, Any],
    request: pytest.FixtureRequest,
    name: str,
    model: str,
) -> None:
    section = {**(hocslm if name == "hocslm" else {}), "name": name}
    config = recipe(method=section, model={"name": model, "switches": {}})
    method = build_method(config, num_classes=3, skeleton=NTU_25, device=torch.device("cpu"))
    modules = [method]
    if isinstance(method, HocSLMMethod):
        assert method.language_model.shares_rows  # tried with values
        modules += method.language_model.modules_and_head()
    request.getfixturevalue("fake")
    for module in modules:
        moved(module)
    label = torch.zeros(3, dtype=torch.long, device="cuda")
    batch = SkeletonBatch(
        x=torch.empty(3, 2, 16, 25, 3, device="cuda"),
        label=label,
        sample_key=label,
        tokens=torch.zeros(3, 5, dtype=torch.long, device="cuda"),
        token_mask=torch.ones(3, 5, dtype=torch.bool),  # read on the CPU
    )
    torch.set_autocast_enabled("cuda", True)
    try:
        method.train()
        output = method(batch, torch.Generator())
        method.eval()
        logits = method.predict(batch)
    finally:
        torch.set_autocast_enabled("cuda", False)
    for value in (output.loss, logits, *output.metrics.values()):
        assert (value.device.type, value.dtype) == ("cuda", torch.float32)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("fake")
def test_views_and_streams_are_made_on_the_gpu(training: bool) -> None:
    keys = torch.zeros(3, dtype=torch.long, device="cuda")
    lengths = torch.full((3,), 80, device="cuda")
    rows = torch.empty(900, 25, 3, device="cuda")
    draws = transforms.sample_draws(0, 0, keys, transforms.NTU_DRAWS)
    ntu = transforms.ntu_view(
        transforms.StoredClips(rows, keys[:, None].expand(3, 2)),
        lengths,
        num_frames=64,
        training=training,
        draws=draws if training else None,
        joint_dims=NTU_25.joint_dims,
    )  # (N, M, T, V, C)
    draws = transforms.sample_draws(0, 0, keys, transforms.ucla_num_draws(52))
    ucla = transforms.ucla_view(
        torch.empty(3, 1, 90, 20, 3, device="cuda"),
        lengths,
        num_frames=52,
        training=training,
        draws=draws if training else None,
        centre=UCLA_20.centre,
    )
    for view, skeleton in ((ntu, NTU_25), (ucla, UCLA_20)):
        for stream in STREAMS:
            x = apply_stream(view, skeleton, stream, orphan="zero")
            assert (x.device.type, x.shape) == ("cuda", view.shape)
