"""HGLNet, the skeleton encoder of HocSLM (arXiv 2603.27103): CTS and DHT in ten blocks.

Shapes: N samples, M bodies, B = N*M, T frames, V joints, C channels, K graph subsets, R reduced
channels, H heads, L edges of the physical graph (Q, K and V
of attention keep the papers' letters). The frame, its layout in memory and the product
with the topology (Eq. 7) are CTR-GCN's: frame.py. A block is  y = ReLU(BN(CTS(x)) + down(x)),
out = ReLU(DHT(y) + residual(x)).

CTS (Eqs. 1-7, composite topology, spatial), for every subset k:
    Eq. 1  u = tanh(W_1 mean_T(x)) in R^(R x V);  X~_c = u_c w^T + 1 b^T in R^(V x V)
    Eq. 2  Q, K, V = X~ W_q, X~ W_k, X~ W_v;  P^h = softmax(Q^h K^h^T / sqrt(d_h));
           A = concat_h P^h V^h
    Eq. 3  S = mean_h P^h;  D[i, j] = tanh(mean_m |Q[i, m] - K[j, m]|)
    Eq. 4  A^ = A + alpha A * S + beta D
    Eq. 5  A_G = W_O concat_c(A^_c + gamma X~_c)                         GSM, global
    Eq. 6  E = ReLU(A_k + eps W_E tanh(psi_i - phi_j)), G = sigmoid(MLP(mean_c E)),
           A_L = M_k * E * (G + lambda)                                   LSE, local
    Eq. 7  Y_c = sum_k (lambda_G A_G + lambda_L A_L)_kc Theta_k(x)_c
DHT (Eqs. 8-10, temporal):
    Eq. 8  for every joint: softmax(Q K^T / sqrt(d)) V over frames, Conv 3x1, BN   GTA, global
           Q, K, V = BN(W_q x), BN(W_k x), BN(W_v x)
    Eq. 9  four branches: Conv 5x1, Conv 5x1 dilated by 2, max pool 3x1, 1x1       LTC, local
    Eq. 10 F = eta_G F_G + eta_L F_L

What is computed differently from how it is written, with the same result (tests/training/
test_hglnet.py holds the plain form):
- X~ has rank two, so Q, K and V have: Q^h K^h^T needs only two numbers a head beside u, and
  P^h V^h = (P^h u) w_v^T + 1 b_v^T. No V x V x V product is left except the distance of Eq. 3.
- Eq. 6 is computed on the L entries where M_k is not zero (3V - 2 of 3 V^2), never on V x V.
- The three projections of GTA are one product; lambda_G, lambda_L, eta_G and eta_L are folded into
  the weights that they multiply; and see frame.py.

Where we had to choose. The paper's equations survive only as prose; the forms above are our
reconstruction, and other readings of them are switches.
- Blocks (64 x 4, 128 x 3, 256 x 3; stride 2 at blocks 5 and 8; block 1 without residual), data_bn,
  the pooled means, LTC's branch values, GTA's C/4 width and 4 heads, BN weight 1e-6 after CTS: the
  parents' (CTR-GCN, LG-SGNet); the paper gives no layer table.
- R = C_in / 8, at least 2, and 8 for the raw coordinates (the parents' 8 up to C_in = 9).
- H = 5 heads divide 25 and 20 joints. Where H does not divide V (17), the V columns are split into
  H runs whose lengths differ by at most one, and each head is scaled by its own length.
- GTA's heads are at least 4 wide, its width where C = 64: narrower models have 2 heads or 1.
- D of Eq. 3 averages over all V columns of Q and K, whatever the heads.
- Initial values: w = 1, b = 0 (the parent's repeat), alpha = beta = gamma = eps = 0,
  lambda = lambda_G = lambda_L = 1 (lambda_G = 0 would leave alpha, beta, gamma without gradient),
  eta_G = 0, eta_L = 1.
- LSE's MLP is Linear(L_k, L_k), ReLU, Linear(L_k, L_k), L_k the entries of its subset. With K = 1
  there is one subset, all edges and self loops, column-normalised.
- u of Eq. 1 is bounded by tanh, and Q, K, V of Eq. 8 have a BN (is_bounded = False: neither).
  Without, Eqs. 2 and 7 together and the energies of Eq. 8 grow with the square of their input: on
  NW-UCLA with the parents' SGD the gradient of Eq. 8 explodes at the end of the warm-up. The
  parents bound both by tanh.
- No 1x1 map has a bias: before a BN it would be cancelled, in Theta it costs a pass over the
  largest tensor; those of W_1, psi, phi, W_O and W_E, which the parents have, are left out alike.
- spatial = "ctr" is CTR-GCN's channel-wise topology A_k + alpha W tanh(psi_i - phi_j), the baseline
  of the ablations, in the same frame.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's users know
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from datasets_build.joints import Skeleton, skeleton_named
from training.graph import adjacency
from training.models.ctrgcn import ChannelTopology
from training.models.frame import (
    GraphNetwork,
    SpatialUnit,
    TemporalBranches,
    batch_norm,
    by_subset,
    expanded,
    init_map,
    is_on_cpu,
    pointwise,
)

Spatial = Literal["ctr", "lse", "gsm", "both"]
Temporal = Literal["ltc", "gta", "both"]
Similarity = Literal["attention", "cosine", "tanh"]
Distinctiveness = Literal["absolute", "signed", "complement"]
Modulation = Literal["residual", "additive", "multiplicative"]
TopologyResidual = Literal["lifted", "base"]
Energy = Literal["pairwise", "lifted"]
Correlation = Literal["softmax", "tanh"]

_TEMPORAL_HEADS = (4, 2, 1)  # LG-SGNet's J-GTM has 4
_TEMPORAL_HEAD_WIDTH = 4  # the least: its width where C = 64; narrower models have fewer heads


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else scale * x


def _lifted(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """u (B, K, R, V) times weight (K, V) plus bias (K, V), for every pair: (B, K, R, V, V)."""
    return torch.addcmul(bias[:, None, None], u[..., None], weight[:, None, None])


class _LiftedDistance(torch.autograd.Function):
    """sum_m |q[i, m] - k[j, m]| of q and k lifted from u; their gradients go back by products."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, q_w: Tensor, q_b: Tensor, k_w: Tensor, k_b: Tensor) -> Tensor:
        """u (B, K, R, V), weights and biases (K, V) -> (B, K, R, V, V)."""
        distance = torch.cdist(_lifted(u, q_w, q_b), _lifted(u, k_w, k_b), p=1.0)
        ctx.save_for_backward(u, q_w, q_b, k_w, k_b, distance)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """The gradients of all five."""
        u, q_w, q_b, k_w, k_b, distance = ctx.saved_tensors
        B, K, R, V = u.shape
        q, k = _lifted(u, q_w, q_b), _lifted(u, k_w, k_b)
        of_distance = grads[0].contiguous()
        swapped = of_distance.transpose(-1, -2).contiguous()
        distances = distance.transpose(-1, -2).contiguous()
        of_q = torch.ops.aten._cdist_backward(of_distance, q, k, 1.0, distance)
        of_k = torch.ops.aten._cdist_backward(swapped, k, q, 1.0, distances)
        with_one = torch.stack((u, torch.ones_like(u)), dim=2).view(B * K, 2, R * V)
        of_u = torch.zeros_like(u)
        of_maps: list[Tensor] = []
        for of_lifted, weight in ((of_q, q_w), (of_k, k_w)):
            of_lifted = of_lifted.view(B * K, R * V, V)
            rows = weight.repeat(B, 1)[:, None]  # (B*K, 1, V)
            of_u += torch.bmm(rows, of_lifted.transpose(1, 2)).view_as(u)
            of_maps += torch.bmm(with_one, of_lifted).view(B, K, 2, V).sum(dim=0).unbind(1)
        return of_u, *of_maps


class _SelfAttention(torch.autograd.Function):
    """P = softmax_j(g_i u_j), as sum_j P_ij u_j of every head and the mean of P over the heads.

    P is the largest tensor of GSM; by hand its gradient is written once instead of five times.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        """u (n, V), gain (n, H*V): the weighted sums (n, H*V) and the mean attention (n, V, V)."""
        n, V = u.shape
        P = torch.softmax(gain[..., None] * u[:, None], dim=-1)  # (n, H*V, V)
        ctx.save_for_backward(u, gain, P)
        # u P^T and not P u: row by row, as P lies in memory.
        return torch.bmm(u[:, None], P.transpose(1, 2))[:, 0], P.view(n, -1, V, V).mean(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of u and gain."""
        u, gain, P = ctx.saved_tensors
        n, V = u.shape
        of_sums, of_mean = (grad.contiguous() for grad in grads)
        heads = gain.shape[1] // V
        of_P = torch.addcmul(
            (of_mean / heads)[:, None], of_sums.view(n, heads, V, 1), u.view(n, 1, 1, V)
        ).view_as(P)
        of_energy = torch._softmax_backward_data(of_P, P, -1, P.dtype)  # (n, H*V, V)
        of_gain = torch.bmm(u[:, None], of_energy.transpose(1, 2))[:, 0]
        of_u = torch.bmm(gain[:, None], of_energy) + torch.bmm(of_sums[:, None], P)  # (n, 1, V)
        return of_u[:, 0], of_gain


class _FrameAttention(torch.autograd.Function):
    """softmax(q k^T) v for frames, on the CPU, where the fused kernel loses at such narrow heads.

    Products are in the dtype of q, in which the CPU's exponential is slow: softmax is in float32.
    The row sums of the softmax's gradient are a further column of the product before it.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (n, T, d) -> (n, T, d)."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        A = torch.bmm(q, k.transpose(1, 2)).to(dtype).softmax(dim=-1).to(q.dtype)  # (n, T, T)
        mixed = torch.bmm(A, v)
        ctx.save_for_backward(q, k, v, A, mixed)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v."""
        q, k, v, A, mixed = ctx.saved_tensors
        of_mixed = grads[0].contiguous()
        row_sum = (of_mixed * mixed).sum(dim=-1, keepdim=True)  # (n, T, 1)
        centred = torch.bmm(
            torch.cat((of_mixed, row_sum), dim=-1),
            torch.cat((v, v.new_full((), -1.0).expand_as(v[..., :1])), dim=-1).transpose(1, 2),
        )
        of_energy = centred.mul_(A)  # (n, T, T)
        of_v = torch.bmm(A.transpose(1, 2), of_mixed)
        return torch.bmm(of_energy, k), torch.bmm(of_energy.transpose(1, 2), q), of_v


class GSM(nn.Module):
    """Global semantic topology, Eqs. 1-5: a (V, V) matrix for every subset and output channel."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_joints: int,
        num_subsets: int,
        reduced: int,
        num_heads: int,
        similarity: Similarity = "attention",
        distinctiveness: Distinctiveness = "absolute",
        modulation: Modulation = "residual",
        topology_residual: TopologyResidual = "lifted",
        is_bounded: bool = True,
    ) -> None:
        super().__init__()
        K, V, R = num_subsets, num_joints, reduced
        self.is_bounded = is_bounded
        self.similarity = similarity
        self.distinctiveness = distinctiveness
        self.modulation = modulation
        self.topology_residual = topology_residual
        self.reduce = init_map(torch.empty(K * R, in_channels), R)  # W_1
        self.lift_weight = nn.Parameter(torch.ones(K, V))  # w
        self.lift_bias = nn.Parameter(torch.zeros(K, V))  # b
        bound = 1.0 / math.sqrt(V)  # torch's default for a linear map
        for name in ("query", "key", "value"):
            weight = torch.empty(K, V, V).uniform_(-bound, bound)
            self.register_parameter(name, nn.Parameter(weight))  # W_q, W_k, W_v
        for name in ("alpha", "beta", "gamma"):
            self.register_parameter(name, nn.Parameter(torch.zeros(K)))
        self.expand = init_map(torch.empty(K, out_channels, R), out_channels)  # W_O
        runs = torch.tensor_split(torch.arange(V), num_heads)
        in_head = torch.zeros(num_heads, V)
        for head, columns in enumerate(runs):
            in_head[head, columns] = 1.0
        self.register_buffer("in_head", in_head, persistent=False)  # (H, V)

    in_head: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    alpha: Tensor
    beta: Tensor
    gamma: Tensor

    def enhanced(self, pooled: Tensor) -> Tensor:
        """A^ + gamma X~ of Eq. 5 from the time means (B, C_in, V): (B, K, R, V, V)."""
        B, _, V = pooled.shape
        K, _, R = self.expand.shape
        u = torch.matmul(self.reduce, pooled).view(B, K, R, V)  # Eq. 1
        if self.is_bounded:
            u = torch.tanh(u)
        # Rows of X~ are u_i w + b; through a matrix W they become u_i (w W) + b W.
        lift = torch.stack((self.lift_weight, self.lift_bias), dim=1)  # (K, 2, V)
        q_w, q_b = torch.bmm(lift, self.query).unbind(1)  # (K, V)
        k_w, k_b = torch.bmm(lift, self.key).unbind(1)
        v_w, v_b = torch.bmm(lift, self.value).unbind(1)

        # Eq. 2. What does not depend on j cancels in the softmax over j.
        scale = self.in_head.sum(1).rsqrt()  # (H,) 1 / sqrt(d_h)
        slope = (q_w * k_w) @ self.in_head.T * scale  # (K, H)
        shift = (q_b * k_w) @ self.in_head.T * scale
        gain = u[:, :, :, None] * slope[:, None, :, None] + shift[:, None, :, None]
        mean_u, attention = _SelfAttention.apply(u.reshape(-1, V), gain.view(B * K * R, -1))
        mean_u = mean_u.view(B, K, R, -1, V)  # sum_j P_ij u_j, (B, K, R, H, V)
        per_head = v_w[:, None, :] * self.in_head  # (K, H, V)
        A = torch.matmul(mean_u.transpose(-1, -2), per_head[:, None]) + v_b[:, None, None]

        S = self._similarity(attention.view(B, K, R, V, V), u, q_w, q_b, k_w, k_b)  # Eq. 3
        D = self._distinctiveness(S, u, q_w, q_b, k_w, k_b)
        alpha, beta, gamma = (p.view(K, 1, 1, 1) for p in (self.alpha, self.beta, self.gamma))
        if self.modulation == "residual":  # Eq. 4
            enhanced = torch.addcmul(A, alpha * A, S) + beta * D
        elif self.modulation == "additive":
            enhanced = alpha * S * A + beta * D
        else:
            enhanced = A + (alpha * S + beta * D) * A
        if self.topology_residual == "base":  # Eq. 5
            return enhanced + gamma * A
        lifted = u[..., None] * self.lift_weight[:, None, None] + self.lift_bias[:, None, None]
        return enhanced + gamma * lifted

    def _similarity(
        self, mean_P: Tensor, u: Tensor, q_w: Tensor, q_b: Tensor, k_w: Tensor, k_b: Tensor
    ) -> Tensor:
        """S of Eq. 3, (B, K, R, V, V)."""
        if self.similarity == "attention":
            return mean_P

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(-1)[:, None, None, None]  # (K, 1, 1, 1)

        u_i, u_j = u[..., :, None], u[..., None, :]
        product = u_i * u_j * dot(q_w, k_w) + u_i * dot(q_w, k_b) + u_j * dot(q_b, k_w)
        product = product + dot(q_b, k_b)  # q_i . k_j
        if self.similarity == "tanh":
            return torch.tanh(product / math.sqrt(u.shape[-1]))
        norm_q = u_i * u_i * dot(q_w, q_w) + 2 * u_i * dot(q_w, q_b) + dot(q_b, q_b)
        norm_k = u_j * u_j * dot(k_w, k_w) + 2 * u_j * dot(k_w, k_b) + dot(k_b, k_b)
        return product * (norm_q.clamp_min(1e-12) * norm_k.clamp_min(1e-12)).rsqrt()

    def _distinctiveness(
        self, S: Tensor, u: Tensor, q_w: Tensor, q_b: Tensor, k_w: Tensor, k_b: Tensor
    ) -> Tensor:
        """D of Eq. 3, (B, K, R, V, V)."""
        if self.distinctiveness == "complement":
            return 1.0 - S
        if self.distinctiveness == "signed":
            q = u * q_w.mean(-1)[:, None, None] + q_b.mean(-1)[:, None, None]
            k = u * k_w.mean(-1)[:, None, None] + k_b.mean(-1)[:, None, None]
            return torch.tanh(q[..., :, None] - k[..., None, :])
        if torch.compiler.is_compiling():
            q, k = _lifted(u, q_w, q_b), _lifted(u, k_w, k_b)
            distance = (q[..., :, None, :] - k[..., None, :, :]).abs().sum(-1)  # fused, not stored
        else:
            distance = _LiftedDistance.apply(u, q_w, q_b, k_w, k_b)
        return torch.tanh(distance / u.shape[-1])


class LSE(nn.Module):
    """Local structure-enhanced topology, Eq. 6: weights of the physical edges only."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        graph: Tensor,
        reduced: int,
        energy: Energy = "pairwise",
    ) -> None:
        super().__init__()
        K, V, _ = graph.shape
        self.energy = energy
        self.num_edges = [int(count) for count in (graph > 0).sum(dim=(1, 2))]  # L_k
        # Subset k, the joint i that receives and j that sends: (L,) each, subset by subset.
        subset, target, source = (graph > 0).nonzero(as_tuple=True)
        # Place of an edge in the flattened (K, Vj, Vi) topology of CTS.
        self.register_buffer("place", (subset * V + source) * V + target, persistent=False)
        # Edges read from joints and subsets by products with 0 and 1: so do their gradients.
        in_subset = F.one_hot(subset, K).T.float()  # (K, L)
        self.register_buffer("in_subset", in_subset, persistent=False)
        for name, joint in (("at_target", target), ("at_source", source)):
            at_joint = F.one_hot(subset * V + joint, K * V).T.float()  # (K*V, L)
            self.register_buffer(name, at_joint, persistent=False)
        self.adjacency = nn.Parameter(graph[subset, target, source].clone())  # A_k on its mask
        self.psi = init_map(torch.empty(K * reduced, in_channels), reduced)
        if energy == "pairwise":
            self.phi = init_map(torch.empty(K * reduced, in_channels), reduced)
        else:
            self.lift_weight = nn.Parameter(torch.ones(K, V))
            self.lift_bias = nn.Parameter(torch.zeros(K, V))
        self.expand = init_map(torch.empty(K, out_channels, reduced), out_channels)  # W_E
        self.epsilon = nn.Parameter(torch.zeros(K))
        self.gate = nn.ModuleList(
            nn.Sequential(nn.Linear(num, num), nn.ReLU(), nn.Linear(num, num))
            for num in self.num_edges
        )
        self.residual = nn.Parameter(torch.ones(K))  # lambda

    place: Tensor
    in_subset: Tensor
    at_target: Tensor
    at_source: Tensor

    def _per_joint(self, weight: Tensor, pooled: Tensor) -> Tensor:
        """weight (K*R, C_in) times pooled (B, C_in, V), as (B, R, K*V)."""
        B, _, V = pooled.shape
        K, _, R = self.expand.shape
        return torch.matmul(weight, pooled).view(B, K, R, V).transpose(1, 2).reshape(B, R, K * V)

    def forward(self, pooled: Tensor) -> Tensor:
        """A_L on the edges: (B, C_out, L) from the time means (B, C_in, V)."""
        relation = torch.matmul(self._per_joint(self.psi, pooled), self.at_target)  # (B, R, L)
        if self.energy == "pairwise":
            sent = torch.matmul(self._per_joint(self.phi, pooled), self.at_source)
            relation = torch.tanh(relation - sent)
        else:
            slope, shift = self.lift_weight.flatten(), self.lift_bias.flatten()
            relation = relation * (slope @ self.at_source) + shift @ self.at_source
        relation = relation * (self.epsilon @ self.in_subset)
        of_subset = relation.split(self.num_edges, dim=2)
        energies = [torch.matmul(w, part) for w, part in zip(self.expand, of_subset, strict=True)]
        E = torch.relu(self.adjacency + torch.cat(energies, dim=2))  # (B, C_out, L)
        means = E.mean(dim=1).split(self.num_edges, dim=1)  # (B, L_k) each
        G = torch.cat([gate(mean) for gate, mean in zip(self.gate, means, strict=True)], dim=1)
        return E * (torch.sigmoid(G) + self.residual @ self.in_subset)[:, None]


class _CompositeTopology(torch.autograd.Function):
    """Global topology by a product, with the local one added at its edges in place.

    Left to autograd, adding in place would copy the largest gradient twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor | None,
        parts: Tensor | None,
        local: Tensor,
        place: Tensor,
        size: int,
    ) -> Tensor:
        """weight (C*K, K*R), parts (B, K*R, V*V), local (B, C, L), place (L,) -> (B, C, K*V*V)."""
        B, C, _ = local.shape
        ctx.save_for_backward(weight, parts, place)
        if weight is None or parts is None:
            composite = local.new_zeros(B, C, size)
        else:
            composite = torch.bmm(weight.expand(B, -1, -1), parts).view(B, C, size)
        rows = torch.arange(0, composite.numel(), size, device=local.device)
        edges = (rows[:, None] + place).flatten()  # one flat index is much faster than two
        flat = composite.view(-1)
        flat[edges] = flat[edges] + local.reshape(-1)
        return composite

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of weight, parts and local."""
        weight, parts, place = ctx.saved_tensors
        grad = grads[0].contiguous()
        of_local = grad.gather(2, place.expand(*grad.shape[:2], -1))
        if weight is None or parts is None:
            return None, None, of_local, None, None
        grad = grad.view(len(grad), len(weight), -1)  # (B, C*K, V*V)
        of_weight = torch.bmm(grad, parts.transpose(1, 2)).sum(dim=0)
        of_parts = torch.bmm(weight.t().expand(len(grad), -1, -1), grad)
        return of_weight, of_parts, of_local, None, None


class CTS(SpatialUnit):
    """Composite-topology spatial unit, Eqs. 1-7, with its BN, shortcut and ReLU.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        graph: (K, V, V) normalised adjacency.
        has_global: GSM is there.
        has_local: LSE is there.
        reduction: r of Eq. 1.
        num_heads: H of Eq. 2.
        energy: E of Eq. 6.
        choices: the alternatives of Eqs. 3-5, see GSM.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        graph: Tensor,
        has_global: bool,
        has_local: bool,
        reduction: int,
        num_heads: int,
        energy: Energy,
        **choices: Any,
    ) -> None:
        K, V, _ = graph.shape
        super().__init__(in_channels, out_channels, num_subsets=K, has_bias=False)
        reduced = 8 if in_channels <= 9 else max(in_channels // reduction, 2)
        self.gsm: GSM | None = None
        self.lse: LSE | None = None
        if has_global:
            self.gsm = GSM(
                in_channels,
                out_channels,
                num_joints=V,
                num_subsets=K,
                reduced=reduced,
                num_heads=num_heads,
                **choices,
            )
        if has_local:
            self.lse = LSE(in_channels, out_channels, graph=graph, reduced=reduced, energy=energy)
        # Eq. 7's fusion weights; a topology alone needs none, the BN behind it would cancel it.
        self.lambda_global = self.lambda_local = None
        if has_global and has_local:
            self.lambda_global = nn.Parameter(torch.ones(()))
            self.lambda_local = nn.Parameter(torch.ones(()))

    def topology(self, pooled: Tensor, dtype: torch.dtype) -> Tensor:
        """A_comp of Eq. 7, see SpatialUnit."""
        weight, parts = None, None
        if self.gsm is not None:
            weight = by_subset(_scaled(self.gsm.expand, self.lambda_global))  # (C*K, K*R)
            mixed = self.gsm.enhanced(pooled).transpose(-1, -2)  # (B, K, R, Vj, Vi)
            parts = mixed.flatten(3).flatten(1, 2)
            if self.lse is None:
                return expanded(weight, parts, dtype)
            weight, parts = weight.to(dtype), parts.to(dtype)
        assert self.lse is not None, "CTS has one of them"
        local = _scaled(self.lse(pooled), self.lambda_local).to(dtype)  # (B, C, L)
        size = self.num_subsets * pooled.shape[-1] ** 2
        return _CompositeTopology.apply(weight, parts, local, self.lse.place, size)


class DHT(nn.Module):
    """Dual-path hierarchical temporal unit, Eqs. 8-10: GTA beside LTC."""

    def __init__(
        self,
        channels: int,
        *,
        stride: int,
        temporal: Temporal,
        correlation: Correlation = "softmax",
        is_bounded: bool = True,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.correlation = correlation
        self.local: TemporalBranches | None = None
        if temporal in ("ltc", "both"):
            self.local = TemporalBranches(channels, stride=stride)
        self.has_global = temporal in ("gta", "both")
        if self.has_global:
            width = channels // 4
            self.num_heads = next(
                heads
                for heads in _TEMPORAL_HEADS
                if heads == 1 or (width % heads == 0 and width // heads >= _TEMPORAL_HEAD_WIDTH)
            )
            self.project = init_map(torch.empty(3 * width, channels), width)  # Q, K, V
            self.project_norm = nn.BatchNorm2d(3 * width) if is_bounded else nn.Identity()
            self.output = init_map(torch.empty(channels, width, 1, 3), channels * 3)
            self.norm = nn.BatchNorm2d(channels)
        self.eta_global = self.eta_local = None  # Eq. 10, where there are two paths to fuse
        if temporal == "both":
            self.eta_global = nn.Parameter(torch.zeros(()))
            self.eta_local = nn.Parameter(torch.ones(()))

    def _global(self, y: Tensor) -> Tensor:
        """GTA, Eq. 8: (B, C, V, T) -> (B, C, V, T / stride)."""
        B, _, V, T = y.shape
        H = self.num_heads
        z = self.project_norm(pointwise(y, self.project)).permute(0, 2, 3, 1)  # (B, V, T, 3*H*d)
        z = z.reshape(B * V, T, 3, H, -1).permute(2, 0, 3, 1, 4)  # (3, B*V, H, T, d)
        d = z.shape[-1]
        if self.correlation == "softmax" and not is_on_cpu(z):
            q, k, v = z
            mixed = F.scaled_dot_product_attention(q, k, v)  # (B*V, H, T, d)
        else:
            q, k, v = z.reshape(3, B * V * H, T, d)
            q = q * (1.0 / math.sqrt(d))
            with torch.autocast(y.device.type, enabled=False):  # all of it in the dtype of z
                if self.correlation == "softmax":
                    mixed = _FrameAttention.apply(q, k, v)
                else:
                    mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).tanh(), v)
            mixed = mixed.view(B * V, H, T, d)
        mixed = mixed.transpose(1, 2).reshape(B, V, T, H * d).permute(0, 3, 1, 2)
        out = F.conv2d(mixed, self.output, stride=(1, self.stride), padding=(0, 1))
        return batch_norm(out, self.norm, self.eta_global)

    def forward(self, y: Tensor) -> Tensor:
        """(B, C, V, T) -> (B, C, V, ceil(T / stride))."""
        if self.local is None:
            return self._global(y)
        local = self.local(y, self.eta_local)
        return local.add_(self._global(y)) if self.has_global else local  # Eq. 10


class HGLNet(GraphNetwork):
    """The skeleton encoder and its classifier.

    Args:
        num_classes: classes of the head.
        skeleton: the joint layout or its name (datasets_build/joints.py).
        num_bodies: M; None: the layout's own number.
        in_channels: numbers a joint: its coordinates and, where the layout has one, its score.
        base_channels: width of the first four blocks, a multiple of 4; the features are 4 times as
            wide. 64 as the parents.
        spatial: which topologies CTS has: "both", "gsm" or "lse" alone, or CTR-GCN's ("ctr").
        temporal: which paths DHT has.
        num_subsets: K, 3 (self, inward, outward) or 1 (their sum).
        num_heads_gsm: H of Eq. 2.
        reduction: r of Eq. 1.
        dropout: on the features, before the classifier.
        similarity: S of Eq. 3: mean attention, cosine, or tanh(Q K^T / sqrt(V)).
        distinctiveness: D of Eq. 3: tanh(mean |q - k|), tanh(mean(q - k)), or 1 - S.
        modulation: Eq. 4: A + aA*S + bD, aA*S + bD ("additive"), or A + aA*S + bA*D
            ("multiplicative").
        topology_residual: what gamma adds in Eq. 5: X~ ("lifted") or A ("base").
        is_bounded: whether u of Eq. 1 is bounded by tanh, and Q, K, V of Eq. 8 are normalised (BN).
        energy: E of Eq. 6 from pairs of joints, or from X~ ("lifted").
        correlation: A_T of Eq. 8: softmax, or the parent's tanh.

    Raises:
        ValueError: an unknown layout or choice, or widths that do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        skeleton: str | Skeleton = "ntu-25",
        *,
        num_bodies: int | None = None,
        in_channels: int = 3,
        base_channels: int = 64,
        spatial: Spatial = "both",
        temporal: Temporal = "both",
        num_subsets: int = 3,
        num_heads_gsm: int = 5,
        reduction: int = 8,
        dropout: float = 0.0,
        similarity: Similarity = "attention",
        distinctiveness: Distinctiveness = "absolute",
        modulation: Modulation = "residual",
        topology_residual: TopologyResidual = "lifted",
        is_bounded: bool = True,
        energy: Energy = "pairwise",
        correlation: Correlation = "softmax",
    ) -> None:
        for name, value, choices in (
            ("spatial", spatial, Spatial),
            ("temporal", temporal, Temporal),
            ("similarity", similarity, Similarity),
            ("distinctiveness", distinctiveness, Distinctiveness),
            ("modulation", modulation, Modulation),
            ("topology_residual", topology_residual, TopologyResidual),
            ("energy", energy, Energy),
            ("correlation", correlation, Correlation),
        ):
            if value not in get_args(choices):
                raise ValueError(
                    f"{name} is {value!r}; choose one of {', '.join(get_args(choices))}"
                )
        if reduction < 1:
            raise ValueError(f"reduction is {reduction}; choose a whole number from 1")
        if num_subsets not in (1, 3):
            raise ValueError(f"num_subsets is {num_subsets}; choose 3 (self, inward, outward) or 1")
        layout = skeleton_named(skeleton)
        if not 1 <= num_heads_gsm <= layout.num_joints:
            raise ValueError(
                f"num_heads_gsm is {num_heads_gsm}; choose 1 to {layout.num_joints}, "
                f"the joints of {layout.name!r}"
            )
        graph = adjacency(layout)  # (3, V, V)
        if num_subsets == 1:
            graph = (graph.sum(dim=0, keepdim=True) > 0).float()
            graph = graph / graph.sum(dim=1, keepdim=True)

        def make_spatial(C_in: int, C_out: int) -> SpatialUnit:
            if spatial == "ctr":
                return ChannelTopology(C_in, C_out, graph=graph)
            return CTS(
                C_in,
                C_out,
                graph=graph,
                has_global=spatial in ("gsm", "both"),
                has_local=spatial in ("lse", "both"),
                reduction=reduction,
                num_heads=num_heads_gsm,
                energy=energy,
                similarity=similarity,
                distinctiveness=distinctiveness,
                modulation=modulation,
                topology_residual=topology_residual,
                is_bounded=is_bounded,
            )

        super().__init__(
            num_classes,
            layout,
            num_bodies=num_bodies,
            in_channels=in_channels,
            base_channels=base_channels,
            dropout=dropout,
            make_spatial=make_spatial,
            make_temporal=lambda C, stride: DHT(
                C,
                stride=stride,
                temporal=temporal,
                correlation=correlation,
                is_bounded=is_bounded,
            ),
        )
