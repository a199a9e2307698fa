"""The command line as a person meets it: help, exit codes, sentences instead of tracebacks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import main
from cli.main import COMMANDS, GROUPS, app, guarded

ROOT = Path(__file__).resolve().parents[2]


def _hoc(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd or ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200", "HOME": str(ROOT)},
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_that_explains_each_option(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    assert len(result.output) > 200


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/captioning.md",
        "docs/datasets.md",
        "docs/describe.md",
        "docs/own-recordings.md",
        "docs/training.md",
        "docs/zero-shot.md",
    ],
)
def test_documented_commands_are_commands_with_those_options(page: str) -> None:
    """Every `hoc ...` line in a page's code blocks names existing commands and options."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [line.split("#")[0].split() for line in lines if line.startswith("hoc ")]
    assert calls
    for call in calls:
        command = call[1:3] if call[1] in GROUPS else call[1:2]
        assert command[0] in COMMANDS or command[1] in GROUPS[command[0]][1], call
        output = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
        for word in call[1 + len(command) :]:
            if word.startswith("--"):
                assert word.split("=")[0] in output, f"{command} has no {word}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("caption", "--videos", "no/such/folder"), "no/such/folder"),
        (("build-dataset", "--skeletons", "no/such/folder"), "no/such/folder"),
        (("train", "--data", "x", "--recipe", "dmo", "--out", "y"), "did you mean 'demo'"),
        (("sweep", "tabl-4", "--data", "x", "--out", "y"), "did you mean 'table-4'"),
        (("sweep", "table-4", "--data", "no/such/set", "--out", "y"), "no/such/set"),
        (("recipes", "table-4", "--resolved"), "hoc sweep SWEEP --dry-run"),
        (("recipes", "demo", "--json"), "hoc recipes demo --resolved"),
        (("evaluate", "no/such/run"), "no/such/run"),
        (("describe", "no/such/run", "--all"), "no/such/run"),
        (("zero-shot", "no/such/run"), "no/such/run"),
        (("zero-shot-sweep", "--data", "no/such/set", "--out", "y"), "no/such/set"),
        (("ensemble", "no/such/run"), "no/such/run"),
        (("verify", "no/such/folder"), "no/such/folder"),
        (("recipes", "nothing"), "there is no recipe 'nothing'"),
        (("recipes", "demoo"), "did you mean 'demo'"),
        (("train", "--data", "x", "--recipe", "table-4", "--out", "y"), "`hoc sweep table-4`"),
        (("protocols", "--names", "no/such/list"), "no/such/list"),
        (("caption", "--no-such-option"), "No such option"),
        (("captoin",), "No such command"),
    ],
)
def test_a_users_mistake_is_a_sentence_and_exit_code_2(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = _hoc(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in re.sub(r"\s+", " ", done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is written for a mistake"


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    done = _hoc("verify", "no/such/folder", "--debug", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_version_tells_where_it_runs_from() -> None:
    done = _hoc("--version")
    assert done.returncode == 0
    assert str(ROOT) in done.stdout


def test_protocols_can_be_read_by_a_machine() -> None:
    done = _hoc("protocols", "--json")
    assert {entry["name"] for entry in json.loads(done.stdout)} >= {"ntu60-xsub", "nw-ucla"}


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (KeyboardInterrupt(), 130, "same command again"),
        (ValueError("label 60 is too large"), 2, "label 60 is too large"),
        (OSError(28, "No space left on device"), 1, "make room"),
        (KeyError("joints"), 1, "fault of hoc"),
    ],
)
def test_errors_become_sentences(
    error: BaseException, exit_code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    with pytest.raises(main.typer.Exit) as caught:
        guarded(command)()
    assert caught.value.exit_code == exit_code
    assert said in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_an_exit_code_that_a_command_chooses_is_no_fault() -> None:
    def choose() -> None:
        raise typer.Exit(1)

    with pytest.raises(typer.Exit) as caught:
        guarded(choose)()
    assert caught.value.exit_code == 1


def test_a_folder_of_another_kind_is_not_captioned_into(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset.json").write_text("{}")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no video")
    done = _hoc("caption", "--videos", "videos", "--out", "set", cwd=tmp_path)
    assert done.returncode == 2
    assert "set holds a data set; give another output folder" in done.stderr
    # Nothing could be captioned: a job that follows must notice.
    done = _hoc("caption", "--videos", "videos", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "nothing was captioned" in done.stderr
    assert "not a readable video" in done.stdout
    assert "fault of hoc" not in done.stderr


def test_options_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sample_id,text\na,b\n")
    for arguments in (
        ("--from-text", "t.csv", "--dry-run"),
        ("--from-text", "t.csv", "--pilot", "3"),
        ("--videos", "v", "--dry-run", "--plan"),
        ("--videos", "v", "--render", "s"),
    ):
        done = _hoc("caption", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "exclude each other" in done.stderr, arguments
