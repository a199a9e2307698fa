"""training.models.hglnet: the fast form against its equations, and a model's usual duties.

The reference below follows models.md section 1.2-1.3 equation by equation: V x V matrices for every
channel, one convolution a branch, loops over subsets, heads and channels. It reads the weights of
the modules under test and shares none of their arithmetic.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name torch's users know

from datasets_build.joints import SKELETONS, skeleton_named
from training.graph import adjacency
from training.models import frame, hglnet
from training.models.hglnet import CTS, DHT, HGLNet

SWITCHES = {
    "similarity": "attention",
    "distinctiveness": "absolute",
    "modulation": "residual",
    "topology_residual": "lifted",
    "energy": "pairwise",
}


def spatial_unit(skeleton="ucla-20", in_channels=16, out_channels=12, **changes):
    graph = adjacency(skeleton_named(skeleton))
    if changes.pop("num_subsets", 3) == 1:
        graph = (graph.sum(0, keepdim=True) > 0).float()
    spatial = changes.pop("spatial", "both")
    parts = {"has_global": spatial in ("gsm", "both"), "has_local": spatial in ("lse", "both")}
    arguments = {"num_heads": 5, "reduction": 4} | SWITCHES | parts | changes
    return CTS(in_channels, out_channels, graph=graph, **arguments)


def opened(module, seed=0):
    """Every gate, scale and bias away from its initial value, so that each term is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(noise.to(parameter), alpha=0.3)
    return module


# --- the equations, written out ---


def pointwise(weight, x):
    """A 1x1 map over (B, C, V, T) or (B, C, V)."""
    return torch.einsum("oc,bc...->bo...", weight, x)


def reference_gsm(gsm, pooled, num_heads):
    """A_G of Eq. 5 for each subset: a list of (B, C_out, V, V)."""
    K, _, R = gsm.expand.shape
    V = pooled.shape[2]
    heads = torch.tensor_split(torch.arange(V), num_heads)
    topologies = []
    for k in range(K):
        U = pointwise(gsm.reduce.view(K, R, -1)[k], pooled)  # (B, R, V)
        U = torch.tanh(U) if gsm.is_bounded else U
        columns = []
        for c in range(R):
            # Eq. 1
            X = U[:, c, :, None] * gsm.lift_weight[k] + gsm.lift_bias[k]  # (B, V, V)
            # Eq. 2
            Q, Kmat, Vmat = X @ gsm.query[k], X @ gsm.key[k], X @ gsm.value[k]
            attention = []
            base = []
            for head in heads:
                energy = Q[:, :, head] @ Kmat[:, :, head].transpose(1, 2) / math.sqrt(len(head))
                attention.append(torch.softmax(energy, dim=-1))
                base.append(attention[-1] @ Vmat[:, :, head])
            A = torch.cat(base, dim=-1)
            # Eq. 3
            if gsm.similarity == "attention":
                S = sum(attention) / num_heads
            elif gsm.similarity == "cosine":
                S = F.cosine_similarity(Q[:, :, None], Kmat[:, None], dim=-1)
            else:
                S = torch.tanh(Q @ Kmat.transpose(1, 2) / math.sqrt(V))
            difference = Q[:, :, None, :] - Kmat[:, None, :, :]
            if gsm.distinctiveness == "absolute":
                D = torch.tanh(difference.abs().mean(-1))
            elif gsm.distinctiveness == "signed":
                D = torch.tanh(difference.mean(-1))
            else:
                D = 1 - S
            # Eq. 4
            alpha, beta, gamma = gsm.alpha[k], gsm.beta[k], gsm.gamma[k]
            if gsm.modulation == "residual":
                enhanced = A + alpha * (A * S) + beta * D
            elif gsm.modulation == "additive":
                enhanced = alpha * (A * S) + beta * D
            else:
                enhanced = A + alpha * S * A + beta * D * A
            # Eq. 5
            columns.append(enhanced + gamma * (X if gsm.topology_residual == "lifted" else A))
        stacked = torch.stack(columns, dim=1)  # (B, R, V, V)
        topologies.append(torch.einsum("or,brij->boij", gsm.expand[k], stacked))
    return topologies


def reference_lse(lse, pooled, graph):
    """A_L of Eq. 6 for each subset on the whole V x V square: a list of (B, C_out, V, V)."""
    K, V, _ = graph.shape
    R = lse.expand.shape[2]
    topologies = []
    start = 0
    for k in range(K):
        mask = graph[k] > 0
        num = int(mask.sum())
        A_k = torch.zeros_like(graph[k]).to(pooled)
        A_k[mask] = lse.adjacency[start : start + num]
        psi = pointwise(lse.psi.view(K, R, -1)[k], pooled)  # (B, R, V)
        if lse.energy == "pairwise":
            phi = pointwise(lse.phi.view(K, R, -1)[k], pooled)
            relation = torch.tanh(psi[:, :, :, None] - phi[:, :, None, :])  # (B, R, V, V)
        else:
            relation = psi[..., None] * lse.lift_weight[k] + lse.lift_bias[k]
        energy = torch.einsum("or,brij->boij", lse.expand[k], relation)
        E = torch.relu(A_k + lse.epsilon[k] * energy)
        flattened = (E.mean(1) * mask)[:, mask]
        G = torch.zeros(len(pooled), V, V).to(pooled)
        G[:, mask] = torch.sigmoid(lse.gate[k](flattened))
        topologies.append(mask * G[:, None] * E + lse.residual[k] * (mask * E))
        start += num
    return topologies


def reference_cts(unit, x, graph, num_heads=5):
    """Eqs. 1-7 and the unit's frame."""
    K = graph.shape[0]
    pooled = x.mean(dim=3)
    total = torch.zeros(())
    global_part = reference_gsm(unit.gsm, pooled, num_heads) if unit.gsm is not None else None
    local_part = reference_lse(unit.lse, pooled, graph) if unit.lse is not None else None
    for k in range(K):
        A = torch.zeros(()).to(x)
        if global_part is not None:
            A = A + (1 if unit.lse is None else unit.lambda_global) * global_part[k]
        if local_part is not None:
            A = A + (1 if unit.gsm is None else unit.lambda_local) * local_part[k]
        theta = unit.theta.view(-1, K, x.shape[1])[:, k]
        total = total + torch.einsum("bcij,bcjt->bcit", A, pointwise(theta, x))
    y = unit.norm(total)
    shortcut = x
    if not isinstance(unit.down, nn.Identity):
        shortcut = unit.down.norm(pointwise(unit.down.weight, x))
    return torch.relu(y + shortcut)


def part_of(norm, channels):
    """The BN of some channels of a wider BN."""
    part = nn.BatchNorm2d(len(range(*channels.indices(norm.num_features))), eps=norm.eps)
    part = part.to(norm.weight)
    part.weight, part.bias = (nn.Parameter(p[channels].detach()) for p in (norm.weight, norm.bias))
    del part.weight, part.bias
    part.weight, part.bias = norm.weight[channels], norm.bias[channels]
    part.train(norm.training)
    return part


def reference_ltc(unit, y):
    """Eq. 9: four branches, each with maps and BNs of its own."""
    s, b = unit.stride, unit.branch_channels
    inner = [
        torch.relu(part_of(unit.inner_norm, slice(i * b, (i + 1) * b))(pointwise(rows, y)))
        for i, rows in enumerate(unit.inner.split(b))
    ]
    branches = [
        F.conv2d(inner[0], unit.conv, stride=(1, s), padding=(0, 2)),
        F.conv2d(inner[1], unit.dilated_conv, stride=(1, s), padding=(0, 4), dilation=(1, 2)),
        F.max_pool2d(inner[2], (1, 3), stride=(1, s), padding=(0, 1)),
        F.conv2d(y, unit.last[:, :, None, None], stride=(1, s)),
    ]
    normed = [
        part_of(unit.norm, slice(i * b, (i + 1) * b))(branch) for i, branch in enumerate(branches)
    ]
    return torch.cat(normed, dim=1)


def reference_gta(unit, y):
    """Eq. 8, joint by joint and head by head."""
    B, _, V, T = y.shape
    b = unit.output.shape[1]
    maps = torch.cat([pointwise(rows, y) for rows in unit.project.split(b)], dim=1)
    q, k, v = unit.project_norm(maps).split(b, dim=1)
    d = b // unit.num_heads
    mixed = torch.zeros(B, b, V, T).to(y)
    for joint in range(V):
        for h in range(unit.num_heads):
            c = slice(h * d, (h + 1) * d)
            energy = torch.einsum("bci,bcj->bij", q[:, c, joint], k[:, c, joint]) / d**0.5
            A_T = torch.tanh(energy) if unit.correlation == "tanh" else energy.softmax(-1)
            mixed[:, c, joint] = torch.einsum("bij,bcj->bci", A_T, v[:, c, joint])
    return unit.norm(F.conv2d(mixed, unit.output, stride=(1, unit.stride), padding=(0, 1)))


def reference_dht(unit, y):
    """Eq. 10."""
    if unit.local is None:
        return reference_gta(unit, y)
    if not unit.has_global:
        return reference_ltc(unit.local, y)
    return unit.eta_local * reference_ltc(unit.local, y) + unit.eta_global * reference_gta(unit, y)


def assert_same(fast, slow, x, unit, *, tolerance):
    """Values and every gradient of two computations of one function."""
    results = []
    for function in (fast, slow):
        inputs = x.clone().requires_grad_()
        unit.zero_grad()
        out = function(inputs)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        (out * weight.sin()).sum().backward()
        gradients = {name: p.grad.clone() for name, p in unit.named_parameters()}
        results.append((out.detach(), inputs.grad, gradients))
    (out, x_grad, grads), (want, want_x_grad, want_grads) = results
    torch.testing.assert_close(out, want, rtol=tolerance, atol=tolerance * float(want.abs().max()))
    for name, got, reference in [
        ("x", x_grad, want_x_grad),
        *((n, g, want_grads[n]) for n, g in grads.items()),
    ]:
        scale = max(float(reference.abs().max()), 1.0)
        error = float((got - reference).abs().max())
        assert error <= 10 * tolerance * scale, f"gradient of {name} is off by {error}"


def inputs(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


CTS_VARIANTS = [
    {},
    {"skeleton": "ntu-25", "num_subsets": 1},
    {"skeleton": "coco-17"},
    {"spatial": "gsm"},
    {"spatial": "lse"},
    {"similarity": "cosine", "distinctiveness": "signed"},
    {"similarity": "tanh", "distinctiveness": "complement"},
    {"modulation": "additive", "topology_residual": "base"},
    {"modulation": "multiplicative", "energy": "lifted"},
    {"num_heads": 1, "is_bounded": False},
]


@pytest.mark.parametrize("variant", CTS_VARIANTS, ids=str)
def test_cts_equals_its_equations_with_gradients(variant):
    unit = opened(spatial_unit(**variant)).double()
    skeleton = variant.get("skeleton", "ucla-20")
    graph = adjacency(skeleton_named(skeleton)).double()
    if variant.get("num_subsets") == 1:
        graph = (graph.sum(0, keepdim=True) > 0).double()
    x = inputs(2, 16, graph.shape[1], 4)
    heads = variant.get("num_heads", 5)
    assert_same(unit, lambda z: reference_cts(unit, z, graph, heads), x, unit, tolerance=1e-10)


def test_cts_equals_its_equations_in_float32():
    unit = opened(spatial_unit())
    graph = adjacency(skeleton_named("ucla-20"))
    x = inputs(3, 16, 20, 5, dtype=torch.float32)
    assert_same(unit, lambda z: reference_cts(unit, z, graph), x, unit, tolerance=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("temporal", ["ltc", "gta", "both"])
@pytest.mark.parametrize("variant", [{}, {"correlation": "tanh"}, {"is_bounded": False}], ids=str)
@pytest.mark.parametrize("form", ["cpu", "gpu"])
def test_dht_equals_its_equations_with_gradients(stride, temporal, variant, form, monkeypatch):
    for module in (frame, hglnet):
        monkeypatch.setattr(module, "is_on_cpu", lambda x: form == "cpu")
    unit = DHT(16, stride=stride, temporal=temporal, **variant)
    unit = opened(unit).double()
    x = inputs(2, 16, 3, 9)
    assert_same(unit, lambda z: reference_dht(unit, z), x, unit, tolerance=1e-10)


def test_dht_equals_its_equations_in_float32():
    unit = opened(DHT(32, stride=2, temporal="both", correlation="softmax"))
    x = inputs(3, 32, 4, 12, dtype=torch.float32)
    assert_same(unit, lambda z: reference_dht(unit, z), x, unit, tolerance=1e-5)


def test_folded_scales_leave_the_running_statistics_of_a_plain_batch_norm():
    unit = opened(DHT(16, stride=1, temporal="both", correlation="softmax"))
    x = inputs(2, 16, 3, 9, dtype=torch.float32)
    plain = copy.deepcopy(unit)
    unit(x)
    reference_dht(plain, x)
    # The reference runs GTA's BN whole; LTC's is split there and keeps no statistics.
    torch.testing.assert_close(unit.norm.running_mean, plain.norm.running_mean)
    torch.testing.assert_close(unit.norm.running_var, plain.norm.running_var)
    assert int(unit.local.norm.num_batches_tracked) == 1


# --- the whole model ---

SMALL = {"num_classes": 7, "skeleton": "ucla-20", "base_channels": 8}


def small(**changes):
    torch.manual_seed(0)
    return HGLNet(**(SMALL | changes))


def skeletons(model, num=3, num_frames=16, seed=0):
    shape = (num, model.num_bodies, num_frames, model.num_joints, model.in_channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def calibrated(model, x):
    """In eval mode, with the statistics of one batch: without them random gates overflow."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(x)
    return model.eval()


def test_the_full_model_has_about_the_size_of_the_reconstruction():
    """models.md section 5: 2.11 M with K = 3, 1.36 M with K = 1 (60 classes, NTU)."""
    for num_subsets, expected in ((3, 2.11e6), (1, 1.36e6)):
        model = HGLNet(60, num_subsets=num_subsets)
        num = sum(p.numel() for p in model.parameters())
        assert abs(num - expected) < 0.05 * expected, num
    assert model.num_features == 256


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_shapes_and_finite_output_for_every_layout(name):
    model = small(skeleton=name)
    x = skeletons(model)
    features = model.forward_features(x)
    assert features.shape == (3, 32)
    logits = model(x)
    assert logits.shape == (3, 7)
    assert torch.isfinite(logits).all()


def test_an_absent_second_body_and_a_single_frame_stay_finite():
    model = small(skeleton="ntu-25")
    x = skeletons(model)
    x[:, 1] = 0.0
    assert torch.isfinite(model(x)).all()
    with torch.no_grad():
        assert torch.isfinite(model.eval()(x[:, :, :1])).all()


@pytest.mark.parametrize(
    ("spatial", "temporal"),
    [("both", "both"), ("ctr", "ltc"), ("lse", "ltc"), ("gsm", "gta")],
)
def test_every_parameter_gets_a_gradient_once_the_gates_are_open(spatial, temporal):
    model = opened(small(spatial=spatial, temporal=temporal))
    F.cross_entropy(model(skeletons(model)), torch.tensor([0, 3, 6])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert torch.count_nonzero(parameter.grad) > 0, name


def test_the_gates_of_the_topology_move_from_their_zero_start():
    """With lambda_G = 1 alpha, beta and gamma get gradients although they start at zero."""
    model = small()
    for block in model.blocks:
        nn.init.ones_(block.spatial.norm.weight)
    F.cross_entropy(model(skeletons(model)), torch.tensor([0, 3, 6])).backward()
    gsm = model.blocks[3].spatial.gsm
    for gate in (gsm.alpha, gsm.beta, gsm.gamma, model.blocks[3].temporal.eta_global):
        assert torch.count_nonzero(gate) == 0
        assert torch.count_nonzero(gate.grad) > 0


def test_gta_has_four_heads_where_they_are_wide_enough():
    heads = {
        channels: DHT(channels, stride=1, temporal="gta").num_heads
        for channels in (8, 32, 48, 64, 80, 96, 256)
    }
    assert heads == {8: 1, 32: 2, 48: 2, 64: 4, 80: 4, 96: 4, 256: 4}


def test_a_sample_does_not_depend_on_its_batch_in_eval():
    model = opened(small(skeleton="ntu-25"))
    x = skeletons(model, num=5)
    calibrated(model, x)
    with torch.no_grad():
        together = model(x)
        torch.testing.assert_close(model(x.flip(0)).flip(0), together, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x[2:3]), together[2:3], rtol=1e-4, atol=1e-5)


def test_the_state_dict_goes_round():
    model = opened(small())
    x = skeletons(model)
    calibrated(model, x)
    other = small().eval()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


def test_bf16_autocast_trains_and_stays_near_float32():
    model = opened(small())
    x = skeletons(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    F.cross_entropy(logits.float(), torch.tensor([0, 3, 6])).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    calibrated(model, x)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
    cosine = F.cosine_similarity(exact.flatten(), rough.float().flatten(), dim=0)
    assert float(cosine) > 0.995


def test_eight_samples_are_learnt_by_heart():
    model = small(num_classes=8)
    x = skeletons(model, num=8)
    labels = torch.arange(8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(25):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1


def test_wrong_shapes_and_unknown_choices_are_refused():
    model = small()
    with pytest.raises(ValueError, match=r"2 bodies, 20 joints.*ucla-20"):
        model(torch.zeros(1, 2, 8, 20, 3))
    with pytest.raises(ValueError, match="'gms'; choose one of ctr, lse, gsm, both"):
        small(spatial="gms")
    with pytest.raises(ValueError, match="reduction is 0"):
        small(reduction=0)
    with pytest.raises(ValueError, match="num_subsets is 2"):
        small(num_subsets=2)
    with pytest.raises(ValueError, match="multiple of 4"):
        small(base_channels=10)
    with pytest.raises(ValueError, match="skeleton 'kinect'"):
        small(skeleton="kinect")
