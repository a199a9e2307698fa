"""Seeds that depend on what they are for, not on what ran before: (run seed, purpose, counters)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for one purpose, equal on every platform.

    Args:
        seed: the run's seed.
        purpose: what is drawn, for example "weights" or "order".
        counters: epoch, step and the like.
    """
    text = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, purpose, *counters)))


@contextmanager
def seeded(seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """Within it torch's global generators have a seed of their own; afterwards all is as before.

    Module constructors and dropout draw from the global generators and take no other.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(seed, purpose, *counters))
        yield


def seed_step(generator: torch.Generator, seed: int, *, step: int, rank: int) -> None:
    """Seed all that one optimiser step of one process draws, here and on torch's devices.

    A run that goes on in the middle of an epoch, or a step that is replayed alone, so draws what an
    undisturbed run does. About 0.1 ms.

    Args:
        generator: what methods draw from.
        seed: the run's seed.
        step: 0-based optimiser step since the start.
        rank: number of the process.
    """
    generator.manual_seed(derived_seed(seed, "step", step, rank))
    torch.manual_seed(derived_seed(seed, "dropout", step, rank))


@contextmanager
def cpu_threads(wanted: int | None) -> Iterator[None]:
    """Within it torch computes with that many CPU threads; None changes nothing."""
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_float32(wanted: bool = True) -> Iterator[None]:
    """Within it, if wanted, GPUs convolve float32 tensors in float32: torch's default is TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and not wanted
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Within it, if wanted, torch takes bit-reproducible kernels only, or raises."""
    if not wanted:
        yield
        return
    # cuBLAS reads this when its handle is made; without it torch refuses its matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
