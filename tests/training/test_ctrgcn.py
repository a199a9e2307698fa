"""training.models.ctrgcn: the fast form against the textbook form and the original's logits.

The reference is CTR-GCN as its paper's equations and figures give it, one module for every
convolution and normalisation, with the tensor names of the original program's checkpoints.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name torch's users know

from datasets_build.joints import SKELETONS, skeleton_named
from training.graph import adjacency
from training.models import frame
from training.models.ctrgcn import CTRGCN, ChannelTopology
from training.models.frame import by_subset

GOLDEN = Path(__file__).parents[3] / "shared" / "data" / "golden"


# --- the textbook form: (B, C, T, V), one convolution a map ---


class ReferenceCTRGC(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        r = 8 if c_in <= 9 else c_in // 8
        self.conv1, self.conv2 = nn.Conv2d(c_in, r, 1), nn.Conv2d(c_in, r, 1)
        self.conv3, self.conv4 = nn.Conv2d(c_in, c_out, 1), nn.Conv2d(r, c_out, 1)

    def forward(self, x, graph, alpha):
        psi, phi = self.conv1(x).mean(2), self.conv2(x).mean(2)  # (B, R, V)
        refined = self.conv4(torch.tanh(psi[:, :, :, None] - phi[:, :, None, :]))
        return torch.einsum("bcij,bctj->bcti", alpha * refined + graph, self.conv3(x))


class ReferenceSpatial(nn.Module):
    def __init__(self, c_in, c_out, graph):
        super().__init__()
        self.PA = nn.Parameter(graph.clone())
        self.alpha = nn.Parameter(torch.zeros(1))
        self.convs = nn.ModuleList(ReferenceCTRGC(c_in, c_out) for _ in graph)
        self.bn = nn.BatchNorm2d(c_out)
        if c_in != c_out:
            self.down = nn.Sequential(nn.Conv2d(c_in, c_out, 1), nn.BatchNorm2d(c_out))
        else:
            self.down = nn.Identity()

    def forward(self, x):
        parts = [conv(x, self.PA[k], self.alpha) for k, conv in enumerate(self.convs)]
        return torch.relu(self.bn(sum(parts)) + self.down(x))


class ReferenceConv(nn.Module):
    """A temporal convolution with its BN."""

    def __init__(self, c_in, c_out, size, stride, dilation=1):
        super().__init__()
        padding = ((size - 1) * dilation // 2, 0)
        self.conv = nn.Conv2d(c_in, c_out, (size, 1), (stride, 1), padding, (dilation, 1))
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x):
        return self.bn(self.conv(x))


class ReferenceTemporal(nn.Module):
    def __init__(self, c, stride):
        super().__init__()
        b = c // 4
        first = [
            nn.Sequential(
                nn.Conv2d(c, b, 1),
                nn.BatchNorm2d(b),
                nn.ReLU(),
                ReferenceConv(b, b, 5, stride, dilation),
            )
            for dilation in (1, 2)
        ]
        pool = nn.Sequential(
            nn.Conv2d(c, b, 1),
            nn.BatchNorm2d(b),
            nn.ReLU(),
            nn.MaxPool2d((3, 1), (stride, 1), (1, 0)),
            nn.BatchNorm2d(b),
        )
        last = nn.Sequential(nn.Conv2d(c, b, 1, (stride, 1)), nn.BatchNorm2d(b))
        self.branches = nn.ModuleList([*first, pool, last])

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class ReferenceBlock(nn.Module):
    def __init__(self, c_in, c_out, graph, stride, is_first):
        super().__init__()
        self.gcn1 = ReferenceSpatial(c_in, c_out, graph)
        self.tcn1 = ReferenceTemporal(c_out, stride)
        self.is_first = is_first
        if not is_first and (c_in != c_out or stride != 1):
            self.residual = ReferenceConv(c_in, c_out, 1, stride)

    def forward(self, x):
        out = self.tcn1(self.gcn1(x))
        if not self.is_first:
            out = out + (self.residual(x) if hasattr(self, "residual") else x)
        return torch.relu(out)


class ReferenceCTRGCN(nn.Module):
    def __init__(self, num_classes, skeleton, num_bodies, base=64):
        super().__init__()
        graph = adjacency(skeleton_named(skeleton))
        self.data_bn = nn.BatchNorm1d(num_bodies * graph.shape[1] * 3)
        c_in = 3
        for i, width in enumerate((1, 1, 1, 1, 2, 2, 2, 4, 4, 4)):
            stride = 2 if i in (4, 7) else 1
            block = ReferenceBlock(c_in, width * base, graph, stride, i == 0)
            setattr(self, f"l{i + 1}", block)
            c_in = width * base
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, x):
        N, M, T, V, C = x.shape
        z = self.data_bn(x.permute(0, 1, 3, 4, 2).reshape(N, M * V * C, T))
        z = z.view(N * M, V, C, T).permute(0, 2, 3, 1)  # (B, C, T, V)
        for i in range(10):
            z = getattr(self, f"l{i + 1}")(z)
        return self.fc(z.mean((2, 3)).view(N, M, -1).mean(1))


def reference(num_classes=6, skeleton="ucla-20", num_bodies=1, base=8):
    """Every weight, bias and statistic drawn, so that each of them is seen."""
    torch.manual_seed(0)
    model = ReferenceCTRGCN(num_classes, skeleton, num_bodies, base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.8, 1.2)
    return model


def skeletons(skeleton, num_bodies, num=3, num_frames=16):
    V = skeleton_named(skeleton).num_joints
    shape = (num, num_bodies, num_frames, V, 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def relative_error(got, want):
    return float(((got - want).abs().max() / want.abs().max()).detach())


@pytest.mark.parametrize(
    ("skeleton", "num_bodies"), [("ucla-20", 1), ("ntu-25", 2), ("coco-17", 2)]
)
def test_an_original_checkpoint_gives_the_textbook_logits(skeleton, num_bodies):
    original = reference(skeleton=skeleton, num_bodies=num_bodies).eval()
    model = CTRGCN.from_original(original.state_dict(), skeleton=skeleton)
    assert not model.training
    assert (model.num_bodies, model.num_classes, model.num_features) == (num_bodies, 6, 32)
    x = skeletons(skeleton, num_bodies)
    with torch.no_grad():
        assert relative_error(model(x), original(x)) < 1e-5


def test_the_golden_checkpoint_gives_the_originals_own_logits():
    if not GOLDEN.is_dir():
        pytest.skip("the golden arrays of shared/ are not beside this checkout")
    model = CTRGCN.from_original(
        load_file(GOLDEN / "ctrgcn_ucla_weights.safetensors"), skeleton="ucla-20"
    )
    with np.load(GOLDEN / "ctrgcn_ucla_io.npz") as golden:
        x = torch.from_numpy(golden["x"]).permute(0, 4, 2, 3, 1)  # (N, M, T, V, C)
        want = torch.from_numpy(golden["logits"])
    with torch.no_grad():
        assert relative_error(model(x), want) < 1e-5


def mapped_gradients(original, model):
    """(name, ours, the textbook's) of every parameter that both forms have."""
    pairs = [("head", model.head.weight.grad, original.fc.weight.grad)]
    for i, block in enumerate(model.blocks):
        theirs = getattr(original, f"l{i + 1}")
        unit, ours, gcn = f"block {i + 1}", block.spatial, theirs.gcn1
        convs = gcn.convs

        def stacked(conv, convs=convs):
            return torch.stack([getattr(c, conv).weight.grad[..., 0, 0] for c in convs])

        biases = torch.stack([c.conv3.bias.grad for c in convs])
        pairs += [
            (f"{unit} A_k", ours.adjacency.grad, gcn.PA.grad),
            (f"{unit} alpha", ours.alpha.grad, gcn.alpha.grad[0]),
            (f"{unit} psi", ours.psi.grad, stacked("conv1").flatten(0, 1)),
            (f"{unit} phi", ours.phi.grad, stacked("conv2").flatten(0, 1)),
            (f"{unit} expand", ours.expand.grad, stacked("conv4")),
            (f"{unit} theta", ours.theta.grad, stacked("conv3").transpose(0, 1).flatten(0, 1)),
            (f"{unit} theta bias", ours.theta_bias.grad, biases.t().flatten()),
            (f"{unit} norm", ours.norm.weight.grad, gcn.bn.weight.grad),
        ]
        local, branches = block.temporal, theirs.tcn1.branches
        inner = torch.cat([branches[j][0].weight.grad[..., 0, 0] for j in range(3)])
        pairs += [
            (f"{unit} inner", local.inner.grad, inner),
            (f"{unit} conv", local.conv.grad.transpose(2, 3), branches[0][3].conv.weight.grad),
            (
                f"{unit} dilated conv",
                local.dilated_conv.grad.transpose(2, 3),
                branches[1][3].conv.weight.grad,
            ),
            (f"{unit} last", local.last.grad, branches[3][0].weight.grad[..., 0, 0]),
        ]
    return pairs


def test_training_gives_the_textbook_logits_and_gradients():
    # In double precision: ReLUs near zero fall on either side in float32.
    dtype, tolerance = torch.float64, 1e-6
    original = reference().to(dtype)
    model = CTRGCN.from_original(original.state_dict(), skeleton="ucla-20").to(dtype)
    original.train()
    model.train()
    x = skeletons("ucla-20", 1, num=6).to(dtype)
    label = torch.tensor([0, 1, 2, 3, 4, 5])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    logits, wanted = model(ours), original(theirs)
    assert relative_error(logits, wanted) < tolerance
    F.cross_entropy(logits, label).backward()
    F.cross_entropy(wanted, label).backward()
    assert relative_error(ours.grad, theirs.grad) < tolerance
    for name, got, want in mapped_gradients(original, model):
        assert relative_error(got, want) < tolerance, name


@pytest.mark.parametrize(("c_in", "c_out"), [(3, 16), (16, 16)])
def test_a_spatial_unit_in_float32_has_the_textbook_values_and_gradients(c_in, c_out):
    torch.manual_seed(0)
    graph = adjacency(skeleton_named("ucla-20"))
    unit = ChannelTopology(c_in, c_out, graph=graph)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    plain = copy.deepcopy(unit).double()  # other kernels in another order
    x = torch.randn(4, c_in, 20, 6, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(4, c_out, 20, 6, generator=torch.Generator().manual_seed(3))
    results = []
    for network, inputs in ((unit, x), (plain, x.double())):
        inputs = inputs.contiguous(memory_format=torch.channels_last).requires_grad_()
        out = network(inputs)
        (out * weight).sum().backward()
        results.append({"out": out, "x": inputs.grad})
        results[-1] |= {name: p.grad for name, p in network.named_parameters()}
    for name, want in results[1].items():
        assert relative_error(results[0][name], want.float()) < 1e-4, name


def test_after_a_step_of_training_the_running_means_still_stand_for_the_originals():
    original = reference()
    model = CTRGCN.from_original(original.state_dict(), skeleton="ucla-20")
    x = skeletons("ucla-20", 1, num=6)
    for network in (original, model):
        network.train()
        with torch.no_grad():
            network(x)
        network.eval()
    with torch.no_grad():
        assert relative_error(model(x), original(x)) < 1e-4


def test_a_data_parallel_checkpoint_is_read_too():
    state = {f"module.{name}": value for name, value in reference().state_dict().items()}
    assert CTRGCN.from_original(state, skeleton="ucla-20").num_classes == 6


def test_a_checkpoint_of_another_model_is_refused_by_name():
    state = dict(reference().state_dict())
    missing = {name: value for name, value in state.items() if name != "l3.gcn1.alpha"}
    with pytest.raises(ValueError, match=r"no tensor 'l3\.gcn1\.alpha'"):
        CTRGCN.from_original(missing, skeleton="ucla-20")
    with pytest.raises(ValueError, match=r"does not know.*'l11\.extra'"):
        CTRGCN.from_original({**state, "l11.extra": torch.zeros(1)}, skeleton="ucla-20")
    with pytest.raises(ValueError, match="does not fit layout ntu-25 with 25 joints"):
        CTRGCN.from_original(state, skeleton="ntu-25")
    for name, wrong in (
        ("l2.gcn1.bn.weight", torch.ones(9)),
        ("l1.gcn1.bn.weight", torch.ones(9)),
        ("l4.gcn1.alpha", torch.ones(2)),
        ("l4.gcn1.convs.1.conv1.weight", torch.ones(3, 8, 1, 1)),
        ("l6.tcn1.branches.3.0.weight", torch.ones(4, 16)),
        ("l6.tcn1.branches.3.1.running_mean", torch.ones(3)),
    ):
        with pytest.raises(ValueError, match="belongs to another model") as caught:
            CTRGCN.from_original({**state, name: wrong}, skeleton="ucla-20")
        assert name.split(".")[0] in str(caught.value)


# --- a model's usual duties ---


def small(**changes):
    torch.manual_seed(0)
    return CTRGCN(**({"num_classes": 7, "skeleton": "ucla-20", "base_channels": 8} | changes))


def test_the_sizes_are_the_originals_less_the_biases_that_cancel():
    """protocols.md section 10: 1,426,892 / 1,446,672 / 1,462,092."""
    for classes, layout, published in (
        (10, "ucla-20", 1_426_892),
        (60, "ntu-25", 1_446_672),
        (120, "ntu-25", 1_462_092),
    ):
        model = CTRGCN(classes, layout)
        cancelled = sum(
            len(block.temporal.inner)
            + 3 * block.temporal.branch_channels
            + len(block.spatial.relation_bias)
            for block in model.blocks
        )
        cancelled += sum(
            len(module.weight)
            for block in model.blocks
            for module in (block.spatial.down, block.shortcut)
            if hasattr(module, "norm")
        )
        assert sum(p.numel() for p in model.parameters()) + cancelled == published


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_shapes_and_finite_output_for_every_layout(name):
    model = small(skeleton=name)
    x = torch.randn(2, model.num_bodies, 16, model.num_joints, model.in_channels)
    assert model.forward_features(x).shape == (2, 32)
    assert torch.isfinite(model(x)).all()
    with torch.no_grad():
        assert torch.isfinite(model.eval()(x[:, :, :1])).all()


def test_every_parameter_gets_a_gradient_once_the_gates_are_open():
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    F.cross_entropy(model(skeletons("ucla-20", 1)), torch.tensor([0, 3, 6])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert torch.count_nonzero(parameter.grad) > 0, name


def test_a_sample_does_not_depend_on_its_batch_in_eval_and_the_state_dict_goes_round():
    model = small().eval()
    other = small(dropout=0.5).eval()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    x = skeletons("ucla-20", 1, num=5)
    with torch.no_grad():
        together = model(x)
        torch.testing.assert_close(model(x[2:3]), together[2:3], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other(x), together, rtol=0, atol=0)


def test_bf16_autocast_trains_and_stays_near_float32():
    model = small()
    x = skeletons("ucla-20", 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    F.cross_entropy(logits.float(), torch.tensor([0, 3, 6])).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        exact = model(x)
    cosine = F.cosine_similarity(exact.flatten(), logits.detach().float().flatten(), dim=0)
    assert float(cosine) > 0.99


def test_weights_by_subset_leave_subsets_apart():
    weight = torch.arange(12.0).view(3, 2, 2)  # (K, C, R)
    matrix = by_subset(weight)
    assert matrix.shape == (6, 6)
    for c in range(2):
        for k in range(3):
            row = torch.zeros(3, 2)
            row[k] = weight[k, c]
            torch.testing.assert_close(matrix[c * 3 + k], row.flatten())


def test_batches_and_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"25 joints.*ucla-20"):
        small()(torch.zeros(1, 1, 8, 25, 3))
    for shape in ((1, 8, 20, 3), (0, 1, 8, 20, 3)):
        with pytest.raises(ValueError, match=r"give skeletons \(N, M, T, V, C\)"):
            small()(torch.zeros(shape))
    for changes in ({"num_bodies": 0}, {"num_classes": 0}, {"in_channels": -1}):
        with pytest.raises(ValueError, match="choose a whole number from 1"):
            small(**changes)


def test_the_forms_for_other_devices_give_the_same_values_and_gradients(monkeypatch):
    x = skeletons("ucla-20", 1)
    results = []
    for is_cpu_form in (True, False):
        model = small()
        if not is_cpu_form:
            monkeypatch.setattr(frame, "_prefers_convolution", lambda x: False)
            monkeypatch.setattr(frame, "is_on_cpu", lambda x: False)
        logits = model(x)
        F.cross_entropy(logits, torch.tensor([0, 3, 6])).backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters())])
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-5)
