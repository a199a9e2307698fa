"""How steps are executed: processes, precision, memory, and whether the encoder is compiled."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from training.config import LoopConfig
from training.methods.method import Method


def make_accelerator(config: LoopConfig, device: torch.device) -> Accelerator:
    """An Accelerator for this run; one process, or the one of several that `torchrun` started.

    Raises:
        ValueError: the batch cannot be parted over the processes, or the device has no fp16.
    """
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError("loop.mixed_precision fp16 is for GPUs; use bf16 or no on device cpu")
    # Accelerate remembers the first precision and device of a process; a second run in the same
    # process (a notebook, a test, a sweep) has its own.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulation,
    )
    parts = accelerator.num_processes * config.accumulation
    if config.batch_size % parts:
        raise ValueError(
            f"loop.batch_size {config.batch_size} cannot be parted over "
            f"{accelerator.num_processes} processes x {config.accumulation} accumulated parts; "
            f"give a multiple of {parts}"
        )
    return accelerator


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h
_GLIBC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Have this process keep, for the next tensors, the memory that tensors gave back.

    Our choice, for training on the CPU: glibc hands every large block back to the kernel and each
    step gets its pages anew, 30,000 page faults a step of HGLNet at batch 16 (docs/results.md). The
    peak stays what it is; what was in use at the peak is kept until the process ends. Numbers do
    not change. Nothing is done where the environment has settings of its own.

    Returns:
        Whether it was done: only glibc can.
    """
    has_own = "GLIBC_TUNABLES" in os.environ or any(x in os.environ for x in _GLIBC_SETTINGS)
    if has_own or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def release_memory() -> None:
    """Give the memory of models that were dropped back to the device.

    Wrappers of autocast keep a model in a cycle of references until Python's collector comes by;
    the next run of a process, or another process, may need the room before.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def compile_encoder(method: Method, mode: str) -> None:
    """Have torch.compile make one graph of the encoder's training pass, in place.

    The loss around it has Python parts (captions, metrics) that would break the graph. Evaluation
    stays as it is: its last batch is smaller, and another shape or mode would be another
    compilation, for a small share of the time.

    Args:
        method: with an `encoder` that has forward_features.
        mode: of torch.compile.

    Raises:
        ValueError: the method has no such encoder.
    """
    encoder: Any = getattr(method, "encoder", None)
    if not hasattr(encoder, "forward_features"):
        raise ValueError(
            f"{type(method).__name__} has no encoder that can be compiled; use loop.compile = no"
        )
    plain = encoder.forward_features
    compiled = torch.compile(plain, dynamic=False, mode=mode)

    def forward_features(x: Tensor) -> Tensor:
        features: Tensor = compiled(x) if encoder.training else plain(x)
        return features

    encoder.forward_features = forward_features
