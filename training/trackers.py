"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases or Trackio, if asked for.

The libraries are called directly: wandb and trackio have the same three functions (init, log,
finish), which is less code than accelerate's trackers and knows where a resumed run goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from datasets_build.manifest import read_json, write_json

PROJECT = "hocslm"
TRACKER_FILE = "tracker.json"


class Tracker(Protocol):
    """What is told of every line of metrics.jsonl."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take metrics by their names in metrics.jsonl."""

    def close(self) -> None:
        """Write what is still held."""


class TensorBoardTracker:
    """Event files in RUN/tensorboard; events after the step that a run resumes from are purged."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """Go on after an optimiser step.

        Raises:
            ValueError: TensorBoard is not installed.
        """
        check_trackers(tensorboard=True, name=None)
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See Tracker."""
        self._writer.close()


class RunTracker:
    """A run of wandb or trackio in project "hocslm", named after the run folder.

    Its id lies in RUN/tracker.json, so that a resumed run goes on in the same tracker run. Steps
    that are then repeated are sent again with the same values: wandb ignores them, trackio shows
    them twice. What it says goes to standard error.
    """

    def __init__(self, name: str, folder: Path, *, config: Mapping[str, Any]) -> None:
        """Begin or go on with the tracker's run.

        Args:
            name: "wandb" or "trackio".
            folder: run folder.
            config: shown by the tracker as the run's settings.

        Raises:
            ValueError: the package is not installed.
        """
        check_trackers(tensorboard=False, name=name)
        self._module = importlib.import_module(name)
        path = folder / TRACKER_FILE
        if not path.is_file():
            write_json(path, {"id": f"{folder.name}-{secrets.token_hex(4)}"})
        run_id = read_json(path, made_by="hoc train")["id"]
        own = {"id": run_id, "dir": str(folder)} if name == "wandb" else {}
        with contextlib.redirect_stdout(sys.stderr):
            self._module.init(
                project=PROJECT, name=run_id, config=dict(config), resume="allow", **own
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """See Tracker."""
        with contextlib.redirect_stdout(sys.stderr):
            self._module.finish()


def open_trackers(
    folder: Path, *, tensorboard: bool, name: str | None, step: int, config: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers that a run asks for.

    Args:
        folder: run folder.
        tensorboard: also write TensorBoard events.
        name: "wandb", "trackio" or None.
        step: optimiser steps already done.
        config: settings that the tracker shows.

    Raises:
        ValueError: a package is not installed.
    """
    trackers: list[Tracker] = []
    if tensorboard:
        trackers.append(TensorBoardTracker(folder, step=step))
    if name is not None:
        trackers.append(RunTracker(name, folder, config=config))
    return trackers


def check_trackers(*, tensorboard: bool, name: str | None) -> None:
    """Refuse trackers whose packages are not installed.

    Args:
        tensorboard: TensorBoard is asked for.
        name: "wandb", "trackio" or None.

    Raises:
        ValueError: a package is not installed.
    """
    asked = [("loop.tensorboard = true", "tensorboard", "torch.utils.tensorboard")] * tensorboard
    if name is not None:
        asked.append((f"loop.tracker = {name}", name, name))
    for setting, package, module in asked:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"{setting} needs the package {package}; install it with "
                f"`pip install 'hocslm[{package}]'`"
            ) from error
