"""`--devices`: one process a GPU, all on the same run; each takes the next shard that is free.

The parent has probed and planned. A child that dies lets go of its shard, and another one goes on
with it from its journal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from captioning.config import CaptionConfig
from captioning.plan import Plan
from captioning.results import recorded_config, unfinished_shards
from captioning.run import Distribute
from datasets_build.child_processes import available_cores
from datasets_build.progress import Progress


def parse_devices(text: str) -> list[str]:
    """The devices that `--devices` names, one a process.

    Args:
        text: "all" (every GPU of this machine), "0,2" (these), or "cpu:2" (two CPU processes).

    Raises:
        ValueError: it is none of these, or there is no such GPU.
    """
    import torch

    num_gpus = torch.cuda.device_count()
    kind, colon, count = text.partition(":")
    if text == "all":
        if not num_gpus:
            raise ValueError(
                "--devices all was given, but PyTorch finds no GPU here; "
                "leave it out, or give cpu:2 for two CPU processes"
            )
        return [f"cuda:{number}" for number in range(num_gpus)]
    if kind == "cpu" and colon and count.isdigit() and int(count) > 0:
        return ["cpu"] * int(count)
    numbers = text.split(",")
    if not all(number.strip().isdigit() for number in numbers):
        raise ValueError(f"--devices {text!r} is not understood; give all, 0,1,3 or cpu:2")
    chosen = [int(number) for number in numbers]
    if len(set(chosen)) < len(chosen) or max(chosen) >= num_gpus:
        raise ValueError(
            f"--devices {text!r}: PyTorch finds {num_gpus} GPUs here, numbered from 0; "
            "name each of them once at most"
        )
    return [f"cuda:{number}" for number in chosen]


def on_devices(devices: Sequence[str]) -> Distribute:
    """What `run` hands its shards to: a process for each of these devices."""

    def distribute(
        config: CaptionConfig,
        plan: Plan,
        shards: Sequence[int],
        attempt: int,
        progress: Progress,
    ) -> None:
        reports: SimpleQueue[dict[str, Any]] = SimpleQueue()
        children: list[_Child] = []
        errors = []
        try:
            for number, device in enumerate(devices):
                order = in_turn(shards, first=number, count=len(devices))
                own = {"device": device, "num_workers": max(1, config.num_decoders // len(devices))}
                children.append(_Child(config, own, order, attempt, len(devices), reports))
            num_running = len(children)
            while num_running:
                report = reports.get()
                if "ended" in report:
                    num_running -= 1
                    if report["ended"]:
                        errors.append(f"{report['device']}: {report['error']}")
                        progress.message(f"a process ended early; {errors[-1]}")
                elif "message" in report:
                    progress.message(report["message"])
                else:
                    progress.advance(report["done"], num_failed=report["failed"])
        finally:
            for child in children:
                child.close()
        left = set(unfinished_shards(config.out, plan)) & set(shards)
        if left and errors:
            raise RuntimeError(
                f"{len(left)} of {len(shards)} shards are not finished: {'; '.join(errors)}"
            )

    return distribute


def in_turn(shards: Sequence[int], *, first: int, count: int) -> list[int]:
    """All shards for one of `count` processes: its own share, then what is left of the others'."""
    starts = [(first + offset) % count for offset in range(count)]
    return [shard for start in starts for shard in shards[start::count]]


class _Child:
    """One process; its reports go to a queue that all share."""

    def __init__(
        self,
        config: CaptionConfig,
        changes: dict[str, Any],
        shards: Sequence[int],
        attempt: int,
        num_children: int,
        reports: SimpleQueue[dict[str, Any]],
    ) -> None:
        settings = recorded_config(config) | changes
        order = {"config": settings, "shards": list(shards), "attempt": attempt}
        threads = str(max(1, available_cores() // num_children))
        path = [str(Path(__file__).resolve().parent.parent), *(p for p in sys.path if p)]
        self._device = changes["device"]
        self._reports = reports
        self._process = subprocess.Popen(
            [sys.executable, "-m", "captioning.device_worker"],
            stdin=subprocess.PIPE,  # stays open: its end tells the child that the parent is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": threads},
            start_new_session=True,  # Ctrl-C reaches the parent only
            text=True,
            errors="replace",
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._collect_errors, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the process, if it has not ended, and what listens to it."""
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _collect_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors = [*self._errors[-20:], line.rstrip()]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        error = ""
        for line in self._process.stdout:
            try:
                report = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut off by a kill
            if "error" in report:
                error = report["error"]
            else:
                self._reports.put(report)
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = self._errors[-1] if self._errors else ""
        self._reports.put(
            {"ended": code, "device": self._device, "error": error or f"{how}, {last}".rstrip(", ")}
        )
