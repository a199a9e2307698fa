from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datasets_build.progress import SilentProgress
from training.config import TrainConfig
from training.train import run

Recipe = Callable[..., TrainConfig]


class StandIn(SimpleNamespace):
    """The three functions of wandb and trackio; it notes what it is told."""

    def __init__(self) -> None:
        super().__init__(begun=[], logged=[], num_finished=0)

    def init(self, **keywords: Any) -> None:
        print("a banner")
        self.begun.append(keywords)

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.num_finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_is_told_every_line_and_goes_on_in_its_run(
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    module = StandIn()
    monkeypatch.setitem(sys.modules, name, module)
    config = recipe(loop={"epochs": 1, "log_every_steps": 2, "tracker": name})
    run(config, SilentProgress())
    (config.out / "train.json").unlink()  # killed before the last file
    run(config, SilentProgress())
    first, second = module.begun
    assert first["project"] == "hocslm"
    assert first["resume"] == "allow"
    assert first["config"]["optim"]["name"] == "adamw"
    assert first["name"] == second["name"]
    assert first["name"].startswith("run-")
    assert ("id" in first) == (name == "wandb")
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in module.logged] == [line["step"] for line in lines]
    for (_, values), line in zip(module.logged, lines, strict=True):
        assert values.keys() == line.keys() - {"epoch", "step"}
        assert values["train/loss"] == pytest.approx(line["train/loss"], rel=1e-5)
    assert module.num_finished == 2
    assert capsys.readouterr().out == ""  # standard output is for results


@pytest.mark.parametrize(
    ("loop", "module"), [({"tracker": "wandb"}, "wandb"), ({"tensorboard": True}, "tensorboard")]
)
def test_a_missing_package_is_told_with_how_to_install_it(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, loop: dict[str, Any], module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=rf"pip install 'hocslm\[{module}\]'"):
        run(recipe(loop=loop), SilentProgress())
    assert not recipe().out.exists()  # told before anything was loaded or made


def test_trackio_takes_a_run_for_real(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="the extra hocslm[trackio] is not installed")
    config = recipe(loop={"epochs": 1})
    path = tmp_path / "config.json"
    path.write_text(config.model_copy(update={"out": tmp_path / "run"}).model_dump_json())
    # Where it writes is read from the environment at its import.
    program = (
        "import sys; from training.config import TrainConfig; from training.train import run;"
        "from datasets_build.progress import SilentProgress;"
        "c = TrainConfig.model_validate_json(open(sys.argv[1]).read());"
        "loop = c.loop.model_copy(update={'tracker': 'trackio'});"
        "run(c.model_copy(update={'loop': loop}), SilentProgress())"
    )
    environment = {
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run(
        [sys.executable, "-c", program, str(path)], env=os.environ | environment, check=True
    )
    assert list((tmp_path / "trackio").glob("hocslm*"))
