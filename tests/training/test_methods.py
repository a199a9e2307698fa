from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets_build.joints import NTU_25
from training.build import METHODS, build_method
from training.config import OptimConfig, TrainConfig
from training.methods.hocslm import HocSLMMethod
from training.methods.method import Method
from training.optim import make_optimizer
from training.skeleton_data import SkeletonBatch

CPU = torch.device("cpu")
Make = Callable[..., Method]


@pytest.fixture
def make(recipe: Callable[..., TrainConfig], hocslm: dict[str, Any]) -> Make:
    def build(name: str, *, seed: int = 0, **changes: Any) -> Method:
        section = {**(hocslm if name == "hocslm" else {}), "name": name, **changes}
        torch.manual_seed(seed)
        return build_method(recipe(method=section), num_classes=3, skeleton=NTU_25, device=CPU)

    return build


def batch(num: int = 4) -> SkeletonBatch:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(num, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return SkeletonBatch(
        x=torch.randn(num, 2, 16, 25, 3, generator=generator),
        label=torch.arange(num) % 3,
        sample_key=torch.arange(num),
        tokens=torch.randint(3, 8, (num, 5), generator=generator),
        token_mask=mask,
    )


def step(method: Method) -> torch.Tensor:
    output = method(batch(), torch.Generator())
    output.loss.backward()
    assert not any(value.requires_grad for value in output.metrics.values())
    return output.loss.detach()


@pytest.mark.parametrize("name", METHODS)
def test_every_trained_parameter_gets_a_gradient(make: Make, name: str) -> None:
    method = make(name)
    # Coefficients that start at (almost) 0 hold back the gradient of what they multiply.
    for parameter in method.parameters():
        if parameter.abs().max() < 1e-3:
            torch.nn.init.constant_(parameter.data, 0.3)
    method.train()
    assert torch.isfinite(step(method))
    for parameter_name, parameter in method.named_parameters():
        assert parameter.requires_grad, parameter_name
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", METHODS)
def test_groups_hold_every_trained_parameter_once(make: Make, name: str) -> None:
    method = make(name)
    groups = method.param_groups(OptimConfig(lr=0.1, ssf_lr=0.3))
    found = [id(p) for group in groups for p in group.parameters]
    assert sorted(found) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    assert {group.name: group.lr for group in groups}["encoder"] == 0.1


@pytest.mark.parametrize("name", METHODS)
def test_saved_state_comes_back_and_predictions_with_it(make: Make, name: str) -> None:
    one, two = make(name, seed=1).eval(), make(name, seed=2).eval()
    left, other = one.predict(batch()), two.predict(batch())
    assert left is not None
    assert other is not None
    assert not torch.equal(left, other)
    two.load_saved_state({key: value.clone() for key, value in one.saved_state().items()})
    right = two.predict(batch())
    assert right is not None
    assert torch.equal(left, right)
    assert left.shape == (4, 3)


def test_a_state_of_another_model_is_refused_by_name(make: Make) -> None:
    method = make("classify")
    state = dict(method.saved_state())
    state["encoder.head.weight"] = torch.zeros(5, 32)
    del state["encoder.head.bias"]
    with pytest.raises(ValueError, match=r"encoder\.head\.bias is missing") as caught:
        method.load_saved_state(state)
    assert "(5, 32)" in str(caught.value)


def test_not_one_weight_of_the_language_model_moves_or_is_saved(make: Make) -> None:
    method = make("hocslm")
    assert isinstance(method, HocSLMMethod)
    modules = method.language_model.modules_and_head()
    before = [p.clone() for module in modules for p in module.parameters()]
    optimizer = make_optimizer(method.param_groups(OptimConfig(lr=0.1)), OptimConfig(lr=0.1))
    method.train()
    step(method)
    optimizer.step()
    after = [p for module in modules for p in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
    assert {key.split(".")[0] for key in method.saved_state()} == {"encoder", "ssf"}


def test_joint_loss_is_the_weighted_sum(make: Make) -> None:
    losses = {}
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.25, 2.0)):
        method = make("hocslm", lambda_gen=weights[0], lambda_cls=weights[1])
        losses[weights] = method.eval()(batch(), torch.Generator()).loss.item()
    expected = 0.25 * losses[1.0, 0.0] + 2.0 * losses[0.0, 1.0]
    assert losses[0.25, 2.0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"freeze": ("encoder",)}, {"head", "ssf"}),  # T1, first phase, with the head
        ({"freeze": ("encoder",), "lambda_cls": 0.0}, {"ssf"}),  # T1, first phase
        ({"lambda_cls": 0.0}, {"body", "ssf"}),  # T2, first phase
        ({"freeze": ("ssf",), "lambda_gen": 0.0}, {"body", "head"}),  # T2, second phase
        ({}, {"body", "head", "ssf"}),  # T3
    ],
)
def test_strategies_of_table_6_train_what_they_should(
    make: Make, changes: dict[str, Any], moved: set[str]
) -> None:
    method = make("hocslm", **changes)
    before = {key: value.clone() for key, value in method.saved_state().items()}
    config = OptimConfig(lr=0.1)
    optimizer = make_optimizer(method.param_groups(config), config)
    method.train()
    step(method)
    optimizer.step()
    found = set()
    for key, value in method.saved_state().items():
        if not torch.equal(value, before[key]):
            head = key.startswith("encoder.head.")
            found.add("ssf" if key.startswith("ssf.") else "head" if head else "body")
    assert found == moved


def test_description_is_one_text_a_sample(make: Make) -> None:
    method = make("hocslm").eval()
    assert isinstance(method, HocSLMMethod)
    texts = method.describe(batch(3), max_new_tokens=4, num_beams=1)
    assert len(texts) == 3
    assert all(isinstance(text, str) for text in texts)


def test_prediction_does_not_depend_on_the_rest_of_the_batch(make: Make, tmp_path: Path) -> None:
    method = make("classify").eval()
    whole = batch(4)
    scores = method.predict(whole)
    alone = method.predict(
        SkeletonBatch(x=whole.x[2:3], label=whole.label[2:3], sample_key=whole.sample_key[2:3])
    )
    assert scores is not None
    assert alone is not None
    torch.testing.assert_close(scores[2:3], alone)
