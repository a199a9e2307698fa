"""training.models.ssf: the projection and the learnable prompt."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the name torch's users know

from training.models.ssf import SSF


def features(num=4, width=16):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(0))


def test_the_prefix_is_eq_12_followed_by_the_prompt():
    ssf = SSF(16, 24, hidden=32, prompt_length=3).double()
    f = features().double()
    first, _, second, norm = ssf.project
    v = torch.relu(f @ first.weight.T + first.bias) @ second.weight.T + second.bias
    v = (v - v.mean(1, keepdim=True)) / (v.var(1, keepdim=True, correction=0) + norm.eps).sqrt()
    v = v * norm.weight + norm.bias
    prefix = ssf(f)
    assert prefix.shape == (4, 4, 24)
    torch.testing.assert_close(prefix[:, 0], v, rtol=0, atol=1e-12)
    for n in range(4):
        torch.testing.assert_close(prefix[n, 1:], ssf.prompt)


def test_every_parameter_and_the_features_get_a_gradient():
    ssf = SSF(16, 24, hidden=32, prompt_length=2)
    f = features().requires_grad_()
    F.mse_loss(ssf(f), torch.randn(4, 3, 24)).backward()
    assert torch.count_nonzero(f.grad) > 0
    for name, parameter in ssf.named_parameters():
        assert torch.count_nonzero(parameter.grad) > 0, name


def test_without_a_prompt_only_the_skeleton_token_is_left():
    assert SSF(16, 24, prompt_length=0)(features()).shape == (4, 1, 24)


def test_the_state_dict_goes_round():
    torch.manual_seed(0)
    ssf, other = SSF(16, 24), SSF(16, 24)
    assert not torch.equal(ssf(features()), other(features()))
    other.load_state_dict(ssf.state_dict())
    assert torch.equal(ssf(features()), other(features()))


def test_under_autocast_the_prompt_has_the_dtype_of_the_token():
    with torch.autocast("cpu", torch.bfloat16):
        ssf = SSF(16, 24)
        assert ssf(features()).dtype == ssf.project(features()).dtype


def test_the_prefix_starts_as_large_as_it_was_told():
    prefix = SSF(16, 2400, prompt_length=4, scale=0.1)(features())
    sizes = prefix.square().mean(dim=-1).sqrt()  # (N, 5)
    assert torch.allclose(sizes, torch.full_like(sizes, 0.1), rtol=0.1)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="prompt_length=-1"):
        SSF(16, 24, prompt_length=-1)
