"""What `hoc doctor` finds: models and extras, each with the command that brings it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import doctor
from cli.main import app
from datasets_build.settings import read_toml

ROOT = Path(__file__).resolve().parents[2]


def found() -> dict[str, dict[str, str]]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    return {entry["subject"]: entry for entry in json.loads(result.stdout)}


def test_what_can_be_fetched_is_named_until_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.fetch_model.models_folder", lambda: tmp_path)
    assert found()["smollm2"]["state"] == "optional"
    assert found()["smollm2"]["cure"] == "hoc fetch smollm2"
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    assert found()["smollm2"]["state"] == "ok"


def test_a_package_that_every_run_needs_ends_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda p: None if p == "accelerate" else version(p))
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    assert '"missing"' in result.stdout


def test_every_extra_for_users_is_looked_for() -> None:
    extras = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"].keys() - {"dev"}
    assert extras == doctor._EXTRAS.keys()
    lines = found()
    for extra, (package, _) in doctor._EXTRAS.items():
        assert lines[package]["state"] == "ok" or f"hocslm[{extra}]" in lines[package]["cure"]
