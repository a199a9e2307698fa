"""`hoc push RUN`: what of a run is sent, and to whom. No network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import CommitInfo, RepoUrl
from typer.testing import CliRunner

from cli.main import app
from datasets_build.joints import UCLA_20
from datasets_build.progress import SilentProgress
from datasets_build.push import PushConfig
from training import train
from training.config import TrainConfig
from training.pretrained import SkeletonModel
from training.push_model import run as push_model

SENT = ["README.md", "config.json", "model.safetensors"]


class FakeHub:
    """The few members of HfApi that are used; a folder stands for the repository."""

    def __init__(self, folder: Path, *, is_private: bool = True) -> None:
        self.folder = folder
        self.is_private = is_private
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def whoami(self) -> dict[str, str]:
        self.calls.append(("whoami", {}))
        return {"name": "somebody"}

    def create_repo(self, repo_id: str, **arguments: Any) -> RepoUrl:
        self.calls.append(("create_repo", arguments))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def repo_info(self, **arguments: Any) -> SimpleNamespace:
        self.calls.append(("repo_info", arguments))
        return SimpleNamespace(private=self.is_private)

    def upload_folder(self, **arguments: Any) -> CommitInfo:
        self.calls.append(("upload_folder", arguments))
        for path in Path(arguments["folder_path"]).iterdir():
            if path.name in (arguments["allow_patterns"] or SENT):
                (self.folder / path.name).write_bytes(path.read_bytes())
        return CommitInfo(
            commit_url=f"https://huggingface.co/{arguments['repo_id']}/commit/abc",
            commit_message=arguments["commit_message"],
            commit_description="",
            oid="abc",
        )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def folder(recipe: Callable[..., TrainConfig], shared: Path) -> Path:
    config = recipe(loop={"epochs": 1}).model_copy(update={"out": shared / "run"})
    train.run(config, SilentProgress())
    return config.out


def test_the_model_of_a_run_is_sent_and_can_be_loaded(folder: Path, tmp_path: Path) -> None:
    hub = FakeHub(tmp_path)
    summary = push_model(PushConfig(data=folder, repo_id="lab/mini"), api=hub)
    assert [name for name, _ in hub.calls] == [
        "whoami", "create_repo", "repo_info", "upload_folder",
    ]  # fmt: skip
    assert hub.calls[1][1] == {"private": True, "exist_ok": True, "repo_type": "model"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(summary.files) == SENT
    assert summary.is_private
    assert summary.url == "https://huggingface.co/lab/mini"
    message = hub.calls[-1][1]["commit_message"]
    assert message.startswith("small, joint stream: 1 epochs, seed 0, weights ")
    loaded, ours = SkeletonModel.from_pretrained(tmp_path), SkeletonModel.from_run(folder)
    x = torch.randn(2, *ours.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(x), ours(x))
    assert 'from_pretrained("lab/mini")' in (tmp_path / "README.md").read_text()
    for path in tmp_path.iterdir():
        assert str(folder.parent).encode() not in path.read_bytes()


def test_weights_from_ntu_are_not_public_by_accident(folder: Path, tmp_path: Path) -> None:
    hub = FakeHub(tmp_path, is_private=False)
    public = PushConfig(data=folder, repo_id="lab/mini", is_public=True)
    with pytest.raises(ValueError, match=r"trained on NTU RGB\+D samples, .* without --public"):
        push_model(public, api=hub)
    assert hub.calls == []
    with pytest.raises(ValueError, match="lab/mini is there already and everybody sees it"):
        push_model(PushConfig(data=folder, repo_id="lab/mini"), api=hub)
    assert list(tmp_path.iterdir()) == []
    allowed = public.model_copy(update={"may_publish": True})
    assert not push_model(allowed, api=hub).is_private


def test_a_dry_run_of_the_command_lists_the_files(folder: Path) -> None:
    done = CliRunner().invoke(app, ["push", str(folder), "lab/mini", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in SENT)
    assert "lab/mini, branch main, seen by its owner." in done.output
    done = CliRunner().invoke(app, ["push", str(folder), "lab/--x", "--dry-run"])
    assert done.exit_code == 2
    assert "give OWNER/NAME" in " ".join(done.output.split())
    (folder / "last" / "model.safetensors").write_bytes(b"damaged")
    done = CliRunner().invoke(app, ["push", str(folder), "lab/mini", "--dry-run"])
    assert done.exit_code == 2
    assert "sha256 differs" in " ".join(done.output.split())


def test_push_to_hub_makes_a_private_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", lambda **_: hub)
    model = SkeletonModel(**_arguments())
    model.push_to_hub("lab/mini")
    assert hub.calls[0] == ("create_repo", {"private": True, "exist_ok": True})
    assert 'from_pretrained("lab/mini")' in (tmp_path / "README.md").read_text()


def _arguments() -> dict[str, Any]:
    inputs = {
        "stream": "joint", "view": "ntu", "num_frames": 8, "protocol": "own",
        "family": "generic", "second_body": "zeros",
    }  # fmt: skip
    return {
        "architecture": "hglnet",
        "base_channels": 4,
        "switches": {},
        "skeleton": UCLA_20.as_json(),
        "classes": [{"label": 0, "action_id": 1, "name": "x"}],
        "inputs": inputs,
    }
