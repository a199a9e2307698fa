from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from training.execution import keep_freed_memory

PROGRAM = """
import resource
import torch
from training.execution import keep_freed_memory

done = {call}
for _ in range(30):
    torch.ones(9 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(9 << 20)  # 38 MB, given back at once
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, call: str) -> tuple[str, int]:
    """What the call returned, and the page faults of 380 MB of tensors after it."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)],
        env=plain,
        capture_output=True,
        text=True,
        check=True,
    )
    done, faults = told.stdout.split()
    return done, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_that_tensors_gave_back_serves_the_next_ones() -> None:
    _, before = page_faults(call="None")
    done, after = page_faults(call="keep_freed_memory()")
    assert done == "True"
    assert after < 0.1 * before


def test_settings_of_the_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()
