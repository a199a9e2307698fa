"""`hoc export` as a person meets it: names, places and options that do not fit are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.main import app
from datasets_build.build import run
from datasets_build.config import BuildConfig

TEST_NAMES = ["a01_s01_e00_v03", "a02_s01_e00_v03"]
NAMES = ["a01_s01_e00_v01", "a02_s02_e00_v02", *TEST_NAMES]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    clips = tmp_path / "clips"
    clips.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        frames = rng.normal(size=(9, 20, 3)).round(4).tolist()
        (clips / f"{name}.json").write_text(json.dumps({"skeletons": frames, "label": 1}))
    run(BuildConfig(skeletons=(clips,), out=tmp_path / "data", name="ucla"))
    return tmp_path / "data"


def hoc(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


def test_inputs_hold_what_a_model_sees(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    arguments = ("--format", "inputs", "--protocol", "nw-ucla", "--stream", "bone", "--out", out)
    assert hoc("export", data, *arguments)[0] == 0
    with np.load(out) as file:
        assert file["sample_id"].tolist() == TEST_NAMES
        assert file["label"].tolist() == [0, 1]
        assert file["x"].shape == (2, 1, 52, 20, 3)
        assert not file["x"][:, :, :, 2].any()  # the root has no bone
    assert hoc("export", "--data", data, *arguments[:-1], tmp_path / "y.npz")[0] == 0
    assert (tmp_path / "y.npz").read_bytes() == out.read_bytes()
    kept = (*arguments[:-1], tmp_path / "z.npz", "--orphan", "keep")
    code, output = hoc("export", data, *kept)
    assert code == 0
    assert "keep their coordinates" in output
    with np.load(out) as zero, np.load(tmp_path / "z.npz") as keep:
        assert keep["x"][:, :, :, 2].any()
        others = [joint for joint in range(20) if joint != 2]
        assert np.array_equal(keep["x"][:, :, :, others], zero["x"][:, :, :, others])


@pytest.mark.parametrize("format", ["ctrgcn-npz", "pyskl-pkl"])
def test_other_formats_are_written_where_they_are_asked_for(
    data: Path, tmp_path: Path, format: str
) -> None:
    out = tmp_path / ("x" + (".npz" if format == "ctrgcn-npz" else ".pkl"))
    code, _ = hoc("export", data, "--format", format, "--protocol", "nw-ucla", "--out", out)
    assert code == 0
    assert out.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "inputs"), "takes one --protocol; this data set has nw-ucla"),
        (("--format", "npz"), "'npz' is not known; choose one of ctrgcn-npz, pyskl-pkl, inputs"),
        ((), "--format is missing"),
        (
            ("--format", "ctrgcn-npz", "--protocol", "nw-ucla", "--stream", "bone"),
            "--stream is for --format inputs",
        ),
        (("--format", "pyskl-pkl", "--orphan", "keep"), "--orphan is for --format inputs"),
        (
            ("--format", "inputs", "--protocol", "nw-ucla", "--orphan", "kept"),
            "orphan: Input should be 'zero' or 'keep'",
        ),
        (("--format", "inputs", "--protocol", "ntu60-xsub"), "is for ntu samples"),
        (("--format", "pyskl-pkl", "--out", "x.npz"), "ends in .pkl"),
        (("--format", "pyskl-pkl", "--out", "no/such/x.pkl"), "does not exist"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(
    data: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, output = hoc("export", data, *arguments)
    assert code == 2
    assert said in output


def test_a_place_inside_the_data_set_is_refused(data: Path) -> None:
    before = (data / "dataset.json").read_bytes()
    for name in ("dataset.json", "part-00000.arrow", "x.npz"):
        code, output = hoc(
            "export", data, "--format", "inputs", "--protocol", "nw-ucla", "--out", data / name
        )
        assert code == 2
        assert "lies in the data set" in output
    assert (data / "dataset.json").read_bytes() == before


def test_the_folder_is_given_once(data: Path) -> None:
    for places in ((), (data, "--data", data)):
        code, output = hoc("export", *places, "--format", "pyskl-pkl")
        assert code == 2
        assert "give the data set's folder once" in output


def test_a_run_is_exported_with_its_scores(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        "[model]\nbase_channels = 4\n[data]\nnum_frames = 8\nallow_empty_classes = true\n"
        "[optim]\nlr = 1e-4\nwarmup_epochs = 0\n[loop]\nepochs = 1\nbatch_size = 2\n"
    )
    train = ("train", "--data", data, "--recipe", recipe, "--protocol", "nw-ucla", "--out", "run")
    assert hoc(*train, "--device", "cpu")[0] == 0
    code, output = hoc("export", "--scores", "run", "--format", "pyskl-pkl")
    assert code == 2
    assert "hoc evaluate run" in output
    code, output = hoc("evaluate", "run", "--device", "cpu")
    assert code == 0, output
    code, output = hoc("export", "--scores", "run", "--format", "pyskl-pkl")
    assert code == 0, output
    assert "run-test-pyskl-pkl.pkl" in output
    assert (tmp_path / "run-test-pyskl-pkl.pkl").is_file()
    code, output = hoc("export", "--scores", "run", "--format", "ctrgcn-pkl", "--out", "s.pkl")
    assert code == 2
    assert "val_label.pkl" in output
    (tmp_path / "names.txt").write_text("\n".join(TEST_NAMES[::-1]))
    arguments = ("--format", "ctrgcn-pkl", "--out", "s.pkl", "--order", "names.txt")
    code, output = hoc("export", data, "--scores", "run", *arguments)
    assert code == 0, output
    assert "in the order of names.txt" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "or a run: `hoc export --onnx RUN`"),
        (("--onnx", "r", "--scores", "r"), "--onnx and --scores exclude each other"),
        (("--onnx", "r", "--format", "inputs", "--split", "test"), "leave out --format, --split"),
        (("--onnx", "r", "--orphan", "keep"), "leave out --orphan"),
        (("--onnx", "r", "--out", "x.pkl"), "ends in .onnx"),
        (("--onnx", "no-run"), "no-run/config.json does not exist"),
        (("--scores", "r"), "--format is missing; choose one of ctrgcn-pkl, pyskl-pkl"),
        (("--scores", "r", "--format", "inputs"), "'inputs' is not known; choose one of ctrgcn-p"),
        (("--scores", "r", "--format", "pyskl-pkl", "--stream", "bone"), "leave out --stream"),
        (
            ("--scores", "r", "--format", "pyskl-pkl", "--split", "val"),
            "--scores writes the test or",
        ),
        (("d", "--format", "pyskl-pkl", "--order", "x.txt"), "--order is for --scores; leave out"),
    ],
)
def test_options_of_a_run_and_of_a_data_set_do_not_mix(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = hoc("export", *arguments)
    assert code == 2
    assert said in output
    assert list(tmp_path.iterdir()) == []
