"""`hoc push`: what is sent, what is refused, and what the Hub's refusals read like. No network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import typer
from huggingface_hub import CommitInfo, HfApi, RepoUrl
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects
from typer.testing import CliRunner

from cli import push as push_command
from cli.main import guarded
from datasets_build.build import run as build
from datasets_build.config import BuildConfig
from datasets_build.dataset import open_dataset
from datasets_build.push import PushConfig, run

NAMES = [f"S001C001P001R001A0{a:02d}" for a in range(1, 8)]
SENT = ["README.md", "dataset.json", "left_out.parquet"]
SENT += ["part-00000.arrow", "part-00001.arrow", "part-00002.arrow"]


class FakeHub:
    """The few members of HfApi that are used; keeps what it was asked."""

    def __init__(self, *, is_private: bool = True, failure: Exception | None = None) -> None:
        self.is_private = is_private
        self.failure = failure
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def whoami(self) -> dict[str, str]:
        self.calls.append(("whoami", {}))
        return {"name": "somebody"}

    def create_repo(self, repo_id: str, **arguments: Any) -> RepoUrl:
        self.calls.append(("create_repo", arguments))
        owner, _, name = repo_id.rpartition("/")
        return RepoUrl(f"https://huggingface.co/datasets/{owner or 'somebody'}/{name}")

    def repo_info(self, **arguments: Any) -> SimpleNamespace:
        self.calls.append(("repo_info", arguments))
        return SimpleNamespace(private=self.is_private)

    def create_branch(self, **arguments: Any) -> None:
        self.calls.append(("create_branch", arguments))

    def upload_folder(self, **arguments: Any) -> CommitInfo:
        if self.failure is not None:
            raise self.failure
        self.calls.append(("upload_folder", arguments))
        return CommitInfo(
            commit_url=f"https://huggingface.co/datasets/{arguments['repo_id']}/commit/abc",
            commit_message=arguments["commit_message"],
            commit_description="",
            oid="abc",
        )

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def folder(ntu_folder, tmp_path: Path) -> Path:
    build(BuildConfig(skeletons=(ntu_folder(NAMES),), out=tmp_path / "set", shard_rows=3))
    return tmp_path / "set"


def answered(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    request = httpx2.Request("POST", "https://huggingface.co/api/repos/create")
    response = httpx2.Response(status, request=request)
    return kind(f"{status}\n\nno", response=response, server_message="said the server")


def test_exactly_the_files_of_the_data_set_are_sent(folder: Path) -> None:
    for stray in ("part-00009.arrow", "build-journal.jsonl", "part-00000.arrow.tmp", "notes.txt"):
        (folder / stray).write_bytes(b"x")
    (folder / "protocols").mkdir()
    for name in ("own.toml", "own-train.txt", "own.toml.tmp"):
        (folder / "protocols" / name).write_bytes(b"x")
    hub = FakeHub()
    summary = run(PushConfig(data=folder, repo_id="lab/mini"), api=hub)
    assert hub.names == ["whoami", "create_repo", "repo_info", "upload_folder"]
    assert hub.calls[1][1] == {"private": True, "exist_ok": True, "repo_type": "dataset"}
    upload = hub.calls[-1][1]
    inside = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    chosen = sorted(filter_repo_objects(inside, allow_patterns=upload["allow_patterns"]))
    assert chosen == sorted([*SENT, "protocols/own.toml", "protocols/own-train.txt"])
    assert sorted(summary.files) == chosen
    assert summary.num_bytes == sum((folder / name).stat().st_size for name in chosen)
    assert (upload["repo_id"], upload["repo_type"]) == ("lab/mini", "dataset")
    assert (upload["revision"], summary.is_private) == ("main", True)
    assert (
        f"7 samples, fingerprint {open_dataset(folder).fingerprint[:12]}"
        in (upload["commit_message"])
    )
    # What an earlier, larger data set left there goes away, as the card would load it too.
    there = ["part-00008.arrow", "protocols/old.toml", ".gitattributes", "picture.png", "README.md"]
    gone = list(filter_repo_objects(there, allow_patterns=upload["delete_patterns"]))
    assert gone == ["part-00008.arrow", "protocols/old.toml"]


def test_the_real_library_takes_what_it_is_given() -> None:
    import inspect

    hub = FakeHub()
    for name in ("whoami", "create_repo", "repo_info", "create_branch", "upload_folder"):
        assert callable(getattr(hub, name))
        assert hasattr(HfApi, name)
    known = inspect.signature(HfApi.upload_folder).parameters
    assert {"folder_path", "allow_patterns", "delete_patterns", "revision"} <= set(known)
    assert {"private", "exist_ok"} <= set(inspect.signature(HfApi.create_repo).parameters)
    assert {"branch", "exist_ok"} <= set(inspect.signature(HfApi.create_branch).parameters)


def test_a_dry_run_asks_the_hub_nothing(folder: Path) -> None:
    hub = FakeHub()
    summary = run(PushConfig(data=folder, repo_id="lab/mini", is_dry_run=True), api=hub)
    assert hub.calls == []
    assert sorted(summary.files) == sorted(SENT)
    assert (summary.is_dry_run, summary.is_private, summary.url) == (True, True, None)
    config = PushConfig(
        data=folder, repo_id="lab/mini", is_dry_run=True, is_public=True, may_publish=True
    )
    assert not run(config, api=hub).is_private


def test_a_branch_and_a_message_of_ones_own(folder: Path) -> None:
    hub = FakeHub()
    run(PushConfig(data=folder, repo_id="mini", revision="v2", message="again"), api=hub)
    assert hub.names[-2:] == ["create_branch", "upload_folder"]
    assert hub.calls[-2][1] == {
        "branch": "v2", "exist_ok": True, "repo_id": "somebody/mini", "repo_type": "dataset",
    }  # fmt: skip
    upload = hub.calls[-1][1]
    assert (upload["revision"], upload["commit_message"]) == ("v2", "again")


def test_ntu_samples_are_not_published_by_accident(folder: Path) -> None:
    hub = FakeHub(is_private=False)
    with pytest.raises(ValueError, match=r"NTU RGB\+D samples, whose terms forbid"):
        run(PushConfig(data=folder, repo_id="lab/mini", is_public=True), api=hub)
    assert hub.calls == []
    # A repository that was there before stays as public as it was, whatever is asked for.
    with pytest.raises(ValueError, match="lab/mini is there already and everybody sees it"):
        run(PushConfig(data=folder, repo_id="lab/mini"), api=hub)
    assert "upload_folder" not in hub.names
    config = PushConfig(data=folder, repo_id="lab/mini", is_public=True, may_publish=True)
    assert not run(config, api=hub).is_private
    assert hub.calls[-3][1]["private"] is False
    assert hub.names[-1] == "upload_folder"


def test_ones_own_recordings_may_be_public(folder: Path) -> None:
    record = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**record, "family": "generic"}))
    hub = FakeHub(is_private=False)
    assert not run(PushConfig(data=folder, repo_id="a/b", is_public=True), api=hub).is_private


def test_a_set_that_is_not_as_it_was_built_is_not_sent(folder: Path) -> None:
    hub = FakeHub()
    config = PushConfig(data=folder, repo_id="lab/mini")
    part = folder / "part-00001.arrow"
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (folder / "part-00002.arrow").unlink()
    with pytest.raises(ValueError, match="not as it was built") as caught:
        run(config, api=hub)
    assert "part-00001.arrow has another sha256" in str(caught.value)
    assert "part-00002.arrow is missing" in str(caught.value)
    (folder / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset\.json does not exist"):
        run(config, api=hub)
    assert hub.calls == []


def test_a_set_whose_list_of_left_out_samples_was_changed_is_not_sent(folder: Path) -> None:
    (folder / "left_out.parquet").write_bytes(b"changed")
    hub = FakeHub()
    with pytest.raises(ValueError, match=r"nothing was sent:\n  left_out\.parquet has another"):
        run(PushConfig(data=folder, repo_id="lab/mini"), api=hub)
    assert hub.calls == []


def test_a_set_without_its_card_is_not_sent(folder: Path) -> None:
    (folder / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks README\.md"):
        run(PushConfig(data=folder, repo_id="lab/mini"), api=FakeHub())


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "lab/sp ace", "lab/--x", "lab/x.git", "/x"])
def test_a_wrong_name_is_told_before_anything_is_asked(folder: Path, repo_id: str) -> None:
    hub = FakeHub()
    with pytest.raises(ValueError, match="is not the name of a repository; give OWNER/NAME"):
        run(PushConfig(data=folder, repo_id=repo_id, is_dry_run=True), api=hub)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (LocalTokenNotFoundError("x"), ValueError, "there is no token"),
        (OfflineModeIsEnabled("x"), ValueError, "HF_HUB_OFFLINE"),
        (answered(401), ValueError, "does not know this token"),
        (answered(401, RepositoryNotFoundError), ValueError, "not write to lab/mini (status 401"),
        (answered(403), ValueError, "status 403: said the server"),
        (answered(400), ValueError, "refuses what was sent to lab/mini: said the server"),
        (answered(500), ConnectionError, "status 500 (said the server). The same command again"),
        (answered(429), ConnectionError, "status 429"),
        (httpx2.ConnectError("no route"), ConnectionError, "is not reached (ConnectError: no rou"),
        (httpx2.ReadTimeout("slow"), ConnectionError, "ReadTimeout: slow"),
        (TimeoutError("slow"), ConnectionError, "TimeoutError: slow"),
        (RuntimeError("cas"), ConnectionError, "RuntimeError: cas). The same command again"),
    ],
)
def test_what_the_hub_refuses_becomes_a_sentence(
    folder: Path, failure: Exception, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as caught:
        run(PushConfig(data=folder, repo_id="lab/mini"), api=FakeHub(failure=failure))
    assert type(caught.value) is kind
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interrupted_upload_goes_on_with_the_same_call(folder: Path) -> None:
    hub = FakeHub(failure=httpx2.ReadError("cable"))
    config = PushConfig(data=folder, repo_id="lab/mini")
    with pytest.raises(ConnectionError, match="what is there already is not sent twice"):
        run(config, api=hub)
    hub.failure = None
    assert run(config, api=hub).commit_url == (
        "https://huggingface.co/datasets/lab/mini/commit/abc"
    )


def test_nothing_that_is_sent_names_a_place_of_this_machine(folder: Path, tmp_path: Path) -> None:
    summary = run(PushConfig(data=folder, repo_id="lab/mini", is_dry_run=True))
    for name in summary.files:
        assert str(tmp_path).encode() not in (folder / name).read_bytes(), name

    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.items() for text in texts(list(item))]
        if isinstance(value, list):
            return [text for item in value for text in texts(item)]
        return [value] if isinstance(value, str) else []

    record = json.loads((folder / "dataset.json").read_text())
    absolute = [text for text in texts(record) if re.match(r"/|[A-Za-z]:[\\/]", text)]
    assert absolute == []


@pytest.fixture
def hoc() -> typer.Typer:
    app = typer.Typer()
    app.command("push")(guarded(push_command.push))
    return app


def test_push_on_the_command_line(folder: Path, hoc: typer.Typer) -> None:
    done = CliRunner().invoke(hoc, [str(folder), "lab/mini", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "Would be sent" in done.output
    assert "part-00002.arrow" in done.output
    assert "lab/mini, branch main, seen by its owner." in done.output
    answer = CliRunner().invoke(hoc, [str(folder), "lab/mini", "--dry-run", "--json"])
    assert sorted(json.loads(answer.stdout)["files"]) == sorted(SENT)
    done = CliRunner().invoke(hoc, [str(folder), "lab/mini", "--public", "--dry-run"])
    assert done.exit_code == 2
    assert "--i-may-publish" in done.output
    done = CliRunner().invoke(hoc, [str(folder / "no"), "lab/mini", "--dry-run"])
    assert done.exit_code == 2
    assert "dataset.json does not exist" in done.output.replace("\n", " ")
