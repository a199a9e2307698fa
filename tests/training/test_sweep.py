from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from cli.main import app
from datasets_build.progress import SilentProgress
from training import ensemble, evaluate, sweep, train
from training.command_config import SweepConfig
from training.config import Stream, TrainConfig
from training.loop import NonFiniteLossError
from training.recipe_files import SWEEPS_FOLDER, recipe_names
from training.sweep_plan import plan_sweep, sweep_names
from training.sweep_results import SweepSummary

SWEEP = """
title = "What GTA adds"
recipe = "small.toml"
published = "NTU60 X-Sub"
[[rows]]
name = "ltc"
label = "without GTA"
set = ["model.switches.temporal=ltc"]
paper = 90.37
[[rows]]
name = "hglnet"
"""
Config = Callable[..., SweepConfig]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_evaluate.py looks at them; twenty more would take longer than the runs."""
    for module in (evaluate, ensemble):
        monkeypatch.setattr(module, "write_confusion_png", lambda *_: None)


@pytest.fixture
def config(sweep_config: Config) -> Config:
    """Makes a sweep; `text` is its file's."""
    return lambda text=SWEEP, **changes: sweep_config(text, **changes)


def read(summary: SweepSummary) -> dict[str, Any]:
    return json.loads((summary.folder / "mine.json").read_text())


def test_a_sweep_trains_scores_and_sums_every_row_stream_and_seed_once(
    config: Config, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = ("joint", "bone-motion")
    trained: list[str] = []
    plain = train.run

    def stopping(config: TrainConfig, progress: Any) -> Any:
        trained.append(f"{config.out.parent.name}/{config.out.name}")
        if len(trained) == 6:
            raise KeyboardInterrupt
        return plain(config, progress)

    monkeypatch.setattr(train, "run", stopping)
    settings = config(streams=streams, seeds=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(settings, SilentProgress())
    # What is there after five runs: the whole of seed 0 with its ensembles, one run of seed 1.
    record = json.loads((settings.out / "mine.json").read_text())
    assert len(record["runs"]) == 5
    assert len(record["ensembles"]) == 4
    assert record["table"][1]["cells"][1] is None
    assert "5 of 8 runs" in (settings.out / "mine.md").read_text()

    trained.clear()
    scored: list[Path] = []
    plain_scoring = evaluate.run
    monkeypatch.setattr(train, "run", plain)
    monkeypatch.setattr(
        evaluate, "run", lambda c, progress: scored.append(c.run) or plain_scoring(c, progress)
    )
    summary = sweep.run(settings, heard)
    assert heard.messages[0] == "5 of 8 runs are already trained"
    assert len(scored) == 3, "evaluations of the present weights are kept"
    assert [run.name for run in summary.runs] == [
        f"{row}, {stream}, seed {seed}"
        for seed in (0, 1)
        for row in ("ltc", "hglnet")
        for stream in streams
    ]
    _check_files(summary)


def _check_files(summary: SweepSummary) -> None:
    record = read(summary)
    commit = json.loads((summary.runs[0].folder / "environment.json").read_text())["git_commit"]
    assert record["made_by"] == [{"git_commit": commit, "device": "cpu"}]
    assert (record["dataset"], record["protocol"]) == ("small", "ntu60-xsub")
    run = record["runs"][0]
    own = json.loads((summary.folder / run["folder"] / "metrics.json").read_text())
    assert run["folder"] == "ltc/joint-seed0"
    assert run["reached"]["top1"] == own["top1"]
    assert run["epochs"] == 1
    settings = json.loads((summary.folder / run["folder"] / "config.json").read_text())["settings"]
    assert settings["model"]["switches"] == {"num_subsets": 1, "temporal": "ltc"}
    sums = [(sum_["row"], sum_["seed"], sum_["weights"]) for sum_ in record["ensembles"]]
    equal, fixed = {"joint": 1.0, "bone-motion": 1.0}, {"joint": 1.5, "bone-motion": 1.0}
    assert len(sums) == 8
    for row in ("ltc", "hglnet"):
        for seed in (0, 1):
            assert (row, seed, equal) in sums
            assert (row, seed, fixed) in sums
    columns, rows = summary.table()
    assert columns == [
        "row",
        "stream",
        "seed 0",
        "seed 1",
        "mean",
        "std",
        "paper (NTU60 X-Sub)",
    ]
    assert [row[1] for row in rows[:4]] == [
        "joint",
        "bone-motion",
        *sweep.RULES.values(),
    ]
    assert [row[-1] for row in rows] == ["90.37", "", "", "", "", "", "", ""]
    assert [row[0] for row in rows] == ["without GTA", "", "", "", "hglnet", "", "", ""]
    first = [run.reached.top1 for run in summary.runs if run.row == "ltc" and run.stream == "joint"]
    assert rows[0][4] == f"{50 * sum(first):.2f}"
    text = (summary.folder / "mine.md").read_text()
    assert "| without GTA | joint |" in text
    assert f"Trained by {commit or 'an unknown commit'} on cpu." in text
    assert "std with n - 1" in text
    with (summary.folder / "mine.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8 + 8
    assert float(lines[0]["top1"]) == own["top1"]


def test_an_evaluation_of_other_weights_or_data_is_made_anew(config: Config) -> None:
    settings = config(text=SWEEP.split("[[rows]]")[0] + '[[rows]]\nname = "hglnet"\n')
    summary = sweep.run(settings, SilentProgress())
    path = summary.runs[0].folder / "metrics.json"
    true = json.loads(path.read_text())
    for key in ("weights_sha256", "dataset_fingerprint", "protocol"):
        path.write_text(json.dumps(true | {key: "another", "top1": 0.125}))
        again = sweep.run(settings, SilentProgress())
        assert again.runs[0].reached == summary.runs[0].reached, key
        assert json.loads(path.read_text()) == true


def test_a_run_that_fails_stands_in_the_table_and_the_others_go_on(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train.run

    def failing(config: TrainConfig, progress: Any) -> Any:
        if config.out.parent.name == "ltc" and config.data.stream == "joint":
            raise NonFiniteLossError("the loss is not finite at step 3")
        return plain(config, progress)

    monkeypatch.setattr(train, "run", failing)
    summary = sweep.run(config(streams=("joint", "bone")), SilentProgress())
    assert [run.name for run in summary.failures] == ["ltc, joint, seed 0"]
    assert summary.failures[0].problem == "the loss is not finite at step 3"
    assert "NonFiniteLossError" in read(summary)["runs"][0]["traceback"]
    rows = summary.table()[1]
    assert rows[0][2] == "failed"
    whats = [row[1] for row in rows]
    assert whats == ["joint", "bone", "joint", "bone", "sum 1:1"], "no sum without all streams"
    # two positions have the same weight under both rules: one ensemble
    assert [(sum_.row, sum_.rule) for sum_ in summary.ensembles] == [("hglnet", "sum 1:1")]
    text = (summary.folder / "mine.md").read_text()
    assert "Failed: ltc, joint, seed 0: the loss is not finite at step 3" in text


def test_a_table_tells_of_every_commit_and_device_that_trained_its_runs(config: Config) -> None:
    settings = config(seeds=(0, 1))
    sweep.run(settings, SilentProgress())
    # another seed was begun elsewhere and ended here, with one start of the same kind in between
    path = settings.out / "ltc" / "joint-seed1" / "environment.json"
    first = json.loads(path.read_text())
    here = {"git_commit": first["git_commit"], "device": first["device"]}
    there = {"git_commit": "0123abc", "device": "H200"}
    path.write_text(json.dumps(first | {"starts": [there, here, there]}))
    record = read(sweep.run(settings, SilentProgress()))
    assert record["made_by"] == [here, there]
    assert [len(run["made_by"]) for run in record["runs"]] == [1, 1, 2, 1]
    assert "0123abc on H200" in (settings.out / "mine.md").read_text()


def test_a_sweep_of_more_streams_has_an_ensemble_beside_that_of_fewer(config: Config) -> None:
    text = SWEEP.split("[[rows]]")[0] + '[[rows]]\nname = "hglnet"\n'
    first = sweep.run(config(text, streams=("joint", "bone")), SilentProgress())
    summary = sweep.run(config(text, streams=("joint", "bone", "bone2")), SilentProgress())
    for found, streams in ((first, ["joint", "bone"]), (summary, ["joint", "bone", "bone2"])):
        (sum_,) = found.ensembles
        assert sum_.folder.name == f"ensemble-{'+'.join(streams)}-equal-seed0"
        record = json.loads((sum_.folder / "ensemble.json").read_text())
        assert [member["stream"] for member in record["members"]] == streams
        assert {member["trained"] for member in record["members"]} == {"last epoch"}


def test_bars_are_escaped_and_long_failures_shortened_in_the_table_but_not_in_json(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = "no room on the device, " * 40 + "the end"

    def failing(*_: Any) -> None:
        raise ValueError(problem)

    monkeypatch.setattr(train, "run", failing)
    labelled = SWEEP.replace('"without GTA"', '"LTC | no GTA"')
    summary = sweep.run(config(labelled), SilentProgress())
    text = (summary.folder / "mine.md").read_text()
    assert "| LTC \\| no GTA | joint | failed |" in text
    told = [line for line in text.splitlines() if line.startswith("Failed: ")]
    assert len(told) == 2
    assert all(line.endswith(" ...") and len(line) < 200 for line in told)
    assert [run["problem"] for run in read(summary)["runs"]] == [problem, problem]
    assert "Trained by" not in text, "nothing was"


def test_the_command_prints_the_table_and_exits_1_where_a_run_failed(config: Config) -> None:
    settings = config(text=SWEEP.replace("model.switches.temporal=ltc", "loop.batch_size=1000"))
    arguments = ["sweep", settings.sweep, "--data", str(settings.dataset), "--out"]
    done = CliRunner().invoke(app, [*arguments, str(settings.out), "--json"])
    assert done.exit_code == 1
    table = json.loads(done.stdout)["table"]
    assert table[0]["cells"] == ["failed"]
    assert 0 <= table[1]["cells"][0] <= 1
    done = CliRunner().invoke(app, [*arguments, str(settings.out)], env={"COLUMNS": "160"})
    assert done.exit_code == 1
    assert "paper (NTU60 X-Sub)" in done.stdout
    assert "Data set small, protocol ntu60-xsub" in done.stdout
    assert "Failed: ltc, joint, seed 0: " in done.stdout
    planned = CliRunner().invoke(
        app, [*arguments, str(settings.out), "--dry-run"], env={"COLUMNS": "160"}
    )
    marks = [line.split("│")[-2].strip() for line in planned.stdout.splitlines() if "│" in line]
    assert marks == ["", "yes"], "trained"
    wrong = CliRunner().invoke(app, [*arguments, str(settings.out), "--streams", "bones"])
    assert wrong.exit_code == 2


def test_sweeps_in_one_folder_share_runs_and_keep_a_table_each(config: Config) -> None:
    first = sweep.run(config(), SilentProgress())
    settings = config()
    recipe = settings.model_copy(update={"sweep": settings.sweep.replace("mine", "small")})
    second = sweep.run(recipe, SilentProgress())
    assert sorted(path.name for path in settings.out.iterdir() if path.is_file()) == [
        *(f"mine.{end}" for end in ("csv", "json", "md")),
        *(f"small.{end}" for end in ("csv", "json", "md")),
    ]
    assert read(first)["sweep"] == "mine"
    assert (second.folder / "small.md").read_text().startswith("## Recipe small")


def test_a_recipe_is_a_sweep_of_one_row(config: Config, tmp_path: Path) -> None:
    plan = plan_sweep(config(sweep=str(config().sweep).replace("mine", "small"), streams=("all",)))
    assert [run.row for run in plan.runs] == ["small"] * 6
    assert plan.streams == get_args(Stream)
    assert plan.runs[1].config.out == tmp_path / "out" / "small" / "bone-seed0"
    assert not plan.published


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"streams": ("joint", "bones")}, "stream 'bones' is not known; did you mean 'bone'"),
        ({"seeds": (1, 1)}, "named twice"),
        ({"sweep": "table4"}, "did you mean 'table-4'"),
        (
            {"text": SWEEP.replace("paper", "papr")},
            r"rows\.0\.papr: no such key; did you mean 'paper'",
        ),
        ({"text": SWEEP.replace("temporal", "tempral")}, "did you mean 'temporal'"),
        ({"text": SWEEP.replace("model.s", "modl.s")}, r"row 'ltc'(.|\n)*did you mean 'model'"),
        ({"text": SWEEP.replace('"hglnet"', '"ltc"')}, "the name 'ltc' is given twice"),
        ({"text": SWEEP.replace("published", "#")}, "which task"),
        (
            {"assignments": ("model.switches.temporal=gta",)},
            "row 'ltc' sets model.switches.temporal",
        ),
        ({"assignments": ("data.stream=bone",)}, "told that by --streams"),
        ({"protocol": "ntu60-xsubs"}, "ntu60-xsub"),
    ],
)
def test_a_users_mistake_is_a_sentence_before_anything_is_trained(
    config: Config, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        sweep.run(config(**changes), SilentProgress())
    assert not config().out.exists()


def test_runs_at_a_time_share_the_cores_unless_a_number_of_threads_is_given(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.config.available_cores", lambda: 7)

    small = plan_sweep(config(jobs=3)).runs[0].config
    assert small.loop.num_threads == 1  # as its recipe says
    whole = small.model_copy(update={"loop": small.loop.model_copy(update={"num_threads": None})})
    shares = [whole.sharing_cores(jobs).loop.num_threads for jobs in (1, 3, 8)]
    assert shares == [None, 2, 1]


def test_stream_and_seed_stand_in_for_themselves_in_assignments(config: Config) -> None:
    given = ("method.init_from=stage0/{stream}-seed{seed}",)
    plan = plan_sweep(config(assignments=given, streams=("joint", "bone"), seeds=(3,)))
    starts = [run.config.method.init_from for run in plan.runs]
    assert starts[:2] == [Path("stage0/joint-seed3"), Path("stage0/bone-seed3")]


@pytest.mark.parametrize("name", sweep_names())
def test_a_shipped_sweep_has_rows_of_models_and_switches_that_exist(name: str) -> None:
    from datasets_build.joints import skeleton_named
    from training.build import build_model

    assert name not in recipe_names()
    plan = plan_sweep(SweepConfig(sweep=name, dataset=Path("data"), out=Path("out")))
    skeleton = skeleton_named("ucla-20" if "nw-ucla" in name else "ntu-25")
    has_paper = any(row.paper is not None for row in plan.rows)
    assert plan.published == ("NTU60 X-Sub" if has_paper else "")
    assert plan.streams == ("joint",)
    built = []
    for run in plan.runs:
        narrow = run.config.model.model_copy(update={"base_channels": 8})
        network = build_model(narrow, num_classes=10, skeleton=skeleton)
        built.append((str(network), str(run.config.method)))
    assert len(set(built)) == len(built), "each row is another network, or trained in another way"
    text = (SWEEPS_FOLDER / f"{name}.toml").read_text()
    for word in (f"hoc sweep {name}", "Hardware", "Expected"):
        assert word in text


@pytest.mark.parametrize(
    "name", ["table-6", "table-6-nw-ucla", "table-7", "table-7-nw-ucla", "controls-nw-ucla"]
)
def test_rows_of_stage_one_differ_in_their_method_alone(name: str) -> None:
    plan = plan_sweep(SweepConfig(sweep=name, dataset=Path("data"), out=Path("out")))
    zero, *ones = plan.runs
    assert zero.config.method.name == "classify"
    assert {run.config.method.name for run in ones} == {"hocslm"}
    assert all(run.start == zero for run in ones if run.row.endswith(("phase1", "hocslm")))
    for run in ones:
        same = {"out": Path("same"), "method": zero.config.method}
        assert run.config.model_copy(update=same) == ones[0].config.model_copy(update=same)
        free = {"init_from", "freeze", "lambda_gen", "lambda_cls", "captions"}
        settings = run.config.method.model_dump(exclude=free)
        assert settings == ones[0].config.method.model_dump(exclude=free)
        assert run.config.optim.lr == 5e-5
        assert run.config.optim.weight_decay == 0.01
