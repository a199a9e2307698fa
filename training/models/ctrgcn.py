"""CTR-GCN (Chen et al., ICCV 2021, arXiv 2107.12213), the baseline of HocSLM's ablations.

Shapes: N samples, M bodies, B = N*M, T frames, V joints, C channels, K = 3 graph subsets, R reduced
channels. The frame, its layout in memory and the product with the topology are in frame.py.

Channel-wise topology refinement of every subset k and output channel c:

    A[c, i, j] = A_k[i, j] + alpha (W_k tanh(psi_k(x)_i - phi_k(x)_j) + b_k)[c]
    psi_k(x) = W psi_k mean_T(x),  phi_k(x) = W phi_k mean_T(x)  in R^(R x V)

with A_k learnable (at first the normalised graph), alpha one learnable number a block (at first 0)
and R = C_in / 8 (8 for the raw coordinates).

What is computed differently from how the original program computes it, with the same result
(tests/training/test_ctrgcn.py holds the plain form and the original's own logits):
- The mean over frames comes before psi and phi, which are linear.
- psi, phi, W and Theta of all subsets are one product each. A_k and b_k are further columns of the
  product that makes the topology.
- Biases that the next batch normalisation cancels (those of the temporal and shortcut convolutions)
  do not exist; of the biases of psi and phi, only their difference does (which SGD moves half as
  far as two biases with opposite gradients). `from_original` moves the former into the running
  means, so that its logits are the original's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from datasets_build.joints import Skeleton, skeleton_named
from training.graph import adjacency
from training.models.frame import (
    Block,
    GraphNetwork,
    Shortcut,
    SpatialUnit,
    TemporalBranches,
    by_subset,
    expanded,
    init_map,
)


class ChannelTopology(SpatialUnit):
    """The spatial unit with CTR-GCN's topology.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        graph: (K, V, V) normalised adjacency, what A_k starts as.
    """

    def __init__(self, in_channels: int, out_channels: int, *, graph: Tensor) -> None:
        K = graph.shape[0]
        super().__init__(in_channels, out_channels, num_subsets=K, has_bias=True)
        R = 8 if in_channels <= 9 else in_channels // 8
        self.adjacency = nn.Parameter(graph.clone())  # A_k
        self.psi = init_map(torch.empty(K * R, in_channels), R)
        self.phi = init_map(torch.empty(K * R, in_channels), R)
        self.relation_bias = nn.Parameter(torch.zeros(K * R))  # that of psi less that of phi
        self.expand = init_map(torch.empty(K, out_channels, R), out_channels)  # W_k
        self.expand_bias = nn.Parameter(torch.zeros(K, out_channels))  # b_k
        self.alpha = nn.Parameter(torch.zeros(()))

    def topology(self, pooled: Tensor, dtype: torch.dtype) -> Tensor:
        """See SpatialUnit."""
        B, _, V = pooled.shape
        K, C, _ = self.expand.shape
        psi = torch.matmul(self.psi, pooled) + self.relation_bias[:, None]  # (B, K*R, V)
        phi = torch.matmul(self.phi, pooled)
        relation = torch.tanh(psi[:, :, None] - phi[:, :, :, None])  # (B, K*R, Vj, Vi)
        own = self.adjacency.transpose(1, 2).reshape(1, K, V * V).expand(B, -1, -1)
        parts = torch.cat((relation.flatten(2), own, torch.ones_like(own[:, :1])), dim=1)
        keep = torch.eye(K, dtype=pooled.dtype, device=pooled.device).repeat(C, 1)  # (C*K, K)
        bias = self.alpha * self.expand_bias.t().reshape(-1, 1)
        weight = torch.cat((self.alpha * by_subset(self.expand), keep, bias), dim=1)
        return expanded(weight, parts, dtype)


class CTRGCN(GraphNetwork):
    """The network and its classifier.

    Args:
        num_classes: classes of the head.
        skeleton: the joint layout or its name.
        num_bodies: M; None: the layout's own number.
        in_channels: numbers a joint.
        base_channels: width of the first four blocks, a multiple of 4; 64 in the original.
        dropout: on the features, before the classifier.

    Raises:
        ValueError: an unknown layout, or widths that do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        skeleton: str | Skeleton = "ntu-25",
        *,
        num_bodies: int | None = None,
        in_channels: int = 3,
        base_channels: int = 64,
        dropout: float = 0.0,
    ) -> None:
        graph = adjacency(skeleton_named(skeleton))  # (3, V, V)
        super().__init__(
            num_classes,
            skeleton,
            num_bodies=num_bodies,
            in_channels=in_channels,
            base_channels=base_channels,
            dropout=dropout,
            make_spatial=lambda C_in, C_out: ChannelTopology(C_in, C_out, graph=graph),
            make_temporal=lambda C, stride: TemporalBranches(C, stride=stride),
        )

    @classmethod
    def from_original(
        cls, state_dict: Mapping[str, Tensor], skeleton: str | Skeleton = "ntu-25"
    ) -> CTRGCN:
        """The network of a checkpoint of the original program, in evaluation mode.

        The number of classes, bodies, channels and the widths are read off the tensors. Names may
        have the prefix "module." of a data-parallel run.

        Args:
            state_dict: tensors by the original's names (`l1.gcn1.convs.0.conv1.weight`, ...).
            skeleton: the joint layout that it was trained on.

        On a GPU the logits are the original's to float32 only with
        `torch.backends.cudnn.allow_tf32 = False`, which torch does not have by default.

        Raises:
            ValueError: tensors are missing, unknown or of another shape.
        """
        original = _Original(state_dict, skeleton_named(skeleton))
        try:
            return original.convert(cls)
        except (RuntimeError, IndexError) as error:  # a tensor that does not fit its arithmetic
            raise ValueError(
                f"tensor {original.last!r} of the checkpoint has not the shape that CTR-GCN gives "
                f"it ({error}); the checkpoint belongs to another model"
            ) from None


class _Original:
    """A checkpoint of the original program, read tensor by tensor."""

    def __init__(self, state_dict: Mapping[str, Tensor], layout: Skeleton) -> None:
        self.tensors = {name.removeprefix("module."): t for name, t in state_dict.items()}
        self.layout = layout
        self.read: set[str] = set()
        self.last = ""

    def take(self, name: str) -> Tensor:
        """A tensor by its name."""
        if name not in self.tensors:
            raise ValueError(
                f"the checkpoint has no tensor {name!r}; give the state dict of a CTR-GCN model "
                "as the original program saves it (not a file that wraps it)"
            )
        tensor = self.tensors[name]
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name!r} of the checkpoint is no tensor but {type(tensor).__name__}")
        self.read.add(name)
        self.last = name
        return tensor.detach()

    def convert(self, model_class: type[CTRGCN]) -> CTRGCN:
        """The model with these weights."""
        in_channels = self.take("l1.gcn1.convs.0.conv1.weight").shape[1]
        num_numbers = len(self.take("data_bn.weight"))
        num_bodies, rest = divmod(num_numbers, self.layout.num_joints * in_channels)
        if rest or self.take("l1.gcn1.PA").shape[-1] != self.layout.num_joints:
            raise ValueError(
                f"the checkpoint has {num_numbers} input numbers and graphs of "
                f"{self.take('l1.gcn1.PA').shape[-1]} joints, which does not fit layout "
                f"{self.layout.name} with {self.layout.num_joints} joints; name the layout that it "
                "was trained on"
            )
        model = model_class(
            len(self.take("fc.weight")),
            self.layout,
            num_bodies=num_bodies,
            in_channels=in_channels,
            base_channels=len(self.take("l1.gcn1.convs.0.conv3.weight")),
        )
        with torch.no_grad():
            self._norm("data_bn", model.data_norm)
            for number, block in enumerate(model.blocks, start=1):
                assert isinstance(block, Block)
                self._spatial(f"l{number}.gcn1", block.spatial)
                self._temporal(f"l{number}.tcn1.branches", block.temporal)
                if isinstance(block.shortcut, Shortcut):
                    names = (f"l{number}.residual.conv", f"l{number}.residual.bn")
                    self._shortcut(*names, block.shortcut)
            self._copy(model.head.weight, self.take("fc.weight"))
            self._copy(model.head.bias, self.take("fc.bias"))
        unknown = sorted(
            name
            for name in self.tensors.keys() - self.read
            if not name.endswith("num_batches_tracked")
        )
        if unknown:
            raise ValueError(
                f"the checkpoint has {len(unknown)} tensors that CTR-GCN does not know, for "
                f"example {unknown[0]!r}; it belongs to another model"
            )
        return model.eval()

    def _copy(self, own: Tensor, given: Tensor) -> None:
        if own.shape != given.shape:
            raise ValueError(
                f"tensor {self.last!r} has shape {tuple(given.shape)} where CTR-GCN has "
                f"{tuple(own.shape)}; the checkpoint belongs to another model"
            )
        own.copy_(given)

    def _norm(
        self, name: str, norm: nn.Module, *, part: slice | None = None, bias: str | None = None
    ) -> None:
        """A BN, or a part of ours; the bias of the map before it moves into its mean."""
        part = part or slice(None)
        for key in ("weight", "bias", "running_mean", "running_var"):
            value = self.take(f"{name}.{key}")
            if key == "running_mean" and bias is not None:
                value = value - self.take(bias)
            self._copy(getattr(norm, key)[part], value)

    def _shortcut(self, conv: str, norm: str, own: nn.Module) -> None:
        self._copy(own.weight, self.take(f"{conv}.weight")[:, :, 0, 0])  # type: ignore[arg-type]
        self._norm(norm, own.norm, bias=f"{conv}.bias")  # type: ignore[arg-type]

    def _spatial(self, name: str, own: nn.Module) -> None:
        assert isinstance(own, ChannelTopology)
        convs = [f"{name}.convs.{k}" for k in range(own.num_subsets)]

        def stacked(conv: str, key: str) -> Tensor:
            return torch.stack([self.take(f"{prefix}.{conv}.{key}") for prefix in convs])  # (K, ..)

        self._copy(own.adjacency, self.take(f"{name}.PA"))
        self._copy(own.alpha, self.take(f"{name}.alpha").reshape(()))
        self._copy(own.psi, stacked("conv1", "weight").flatten(0, 1)[:, :, 0, 0])
        self._copy(own.phi, stacked("conv2", "weight").flatten(0, 1)[:, :, 0, 0])
        difference = stacked("conv1", "bias") - stacked("conv2", "bias")
        self._copy(own.relation_bias, difference.flatten())
        self._copy(own.expand, stacked("conv4", "weight")[..., 0, 0])
        self._copy(own.expand_bias, stacked("conv4", "bias"))
        assert own.theta_bias is not None, "made with one"
        theta = stacked("conv3", "weight")[..., 0, 0]  # (K, C_out, C_in)
        self._copy(own.theta, theta.transpose(0, 1).flatten(0, 1))
        self._copy(own.theta_bias, stacked("conv3", "bias").t().flatten())
        self._norm(f"{name}.bn", own.norm)
        if isinstance(own.down, Shortcut):
            self._shortcut(f"{name}.down.0", f"{name}.down.1", own.down)

    def _temporal(self, name: str, own: nn.Module) -> None:
        assert isinstance(own, TemporalBranches)
        b = own.branch_channels
        parts = [slice(i * b, (i + 1) * b) for i in range(4)]
        for i in range(3):
            self._copy(own.inner[parts[i]], self.take(f"{name}.{i}.0.weight")[:, :, 0, 0])
            bias = f"{name}.{i}.0.bias"
            self._norm(f"{name}.{i}.1", own.inner_norm, part=parts[i], bias=bias)
        for i, conv in enumerate((own.conv, own.dilated_conv)):
            weight = self.take(f"{name}.{i}.3.conv.weight")  # (b, b, 5, 1)
            self._copy(conv, weight.transpose(2, 3))
            bias = f"{name}.{i}.3.conv.bias"
            self._norm(f"{name}.{i}.3.bn", own.norm, part=parts[i], bias=bias)
        self._norm(f"{name}.2.4", own.norm, part=parts[2])
        self._copy(own.last, self.take(f"{name}.3.0.weight")[:, :, 0, 0])
        self._norm(f"{name}.3.1", own.norm, part=parts[3], bias=f"{name}.3.0.bias")
