"""What bounds a training step on an accelerator: operations and bytes, over what the device can do.

Imported by train_gpu.py. Operations are those of matrix products and convolutions, forward and
backward, a multiply and an add being two (torch.utils.flop_counter). Bytes are counted in two ways:
"eager", every operator reads its inputs and writes its outputs once, which fused kernels undercut;
"least", what backward needs again is written once and read once. Both are held against the data
sheet's rates and against those that the device is seen to reach in a large product and copy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

TIMED_S = 0.7  # of one timing
NUM_TIMINGS = 3


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write, each of their tensors once; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        storages = {x.untyped_storage().data_ptr() for x in given}
        is_view = all(x.untyped_storage().data_ptr() in storages for x in made)
        if func._schema.is_mutable or not is_view:
            self.num_bytes += sum(stored_bytes(x) for x in (*given, *made))
        return out


def stored_bytes(x: Tensor) -> int:
    """Bytes of a tensor's elements, an expanded one counted once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def count(step: Callable[[], object], method: nn.Module) -> dict[str, float]:
    """Of one training step of a method: operations, and bytes in both ways of counting."""
    with FlopCounterMode(display=False) as flops:
        step()
    with Traffic() as traffic:
        step()
    own = {p.untyped_storage().data_ptr() for p in method.parameters()}
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        step()
    return {
        "operations": float(flops.get_total_flops()),
        "eager bytes": float(traffic.num_bytes),
        "least bytes": 2.0 * sum(saved.values()),
    }


def reached_limits(device: torch.device) -> dict[str, float]:
    """Operations and bytes a second that a large bf16 product and a large copy reach."""
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(size * size * 8, device=device)
    target = torch.empty_like(source)
    product_s = seconds_of(lambda: torch.mm(a, b), device)
    copy_s = seconds_of(lambda: target.copy_(source), device)
    return {
        "TFLOP/s reached": 2 * size**3 / product_s / 1e12,
        "TB/s reached": 2 * source.nbytes / copy_s / 1e12,
    }


def limit_seconds(
    counted: dict[str, float], size: int, rates: dict[str, float]
) -> dict[str, float]:
    """Seconds a sample that each limit alone would take."""
    return {
        "TFLOP/s": counted["operations"] / size / (rates["TFLOP/s"] * 1e12),
        "TFLOP/s reached": counted["operations"] / size / (rates["TFLOP/s reached"] * 1e12),
        "TB/s, eager": counted["eager bytes"] / size / (rates["TB/s"] * 1e12),
        "TB/s, least": counted["least bytes"] / size / (rates["TB/s"] * 1e12),
        "TB/s reached, least": counted["least bytes"] / size / (rates["TB/s reached"] * 1e12),
    }


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the median over a few timings of many."""

    def timed(times: int) -> float:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(times):
            call()
        synchronize(device)
        return (time.perf_counter() - began) / times

    timed(2)
    times = max(3, min(200, int(TIMED_S / timed(2))))
    return statistics.median(timed(times) for _ in range(NUM_TIMINGS))
