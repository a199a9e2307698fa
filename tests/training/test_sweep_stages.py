"""Sweeps whose rows start from other rows: Table 6 and the like."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from datasets_build.dataset import open_dataset
from datasets_build.progress import SilentProgress
from training import evaluate, loop, sweep, train
from training.build import read_run
from training.checkpoint import load_weights
from training.command_config import SweepConfig
from training.config import TrainConfig
from training.models.language_model import FrozenLanguageModel
from training.skeleton_data import Picks, SkeletonStore
from training.sweep_check import check_sweep
from training.sweep_plan import SweepPlan, plan_sweep
from training.sweep_results import Reached, RunResult, SweepSummary

CHAIN = """
title = "Stages"
recipe = "small.toml"
published = "NTU60 X-Sub"
baseline = "zero"
[[rows]]
name = "zero"
label = "T0"
paper = 90.63
[[rows]]
name = "half"
init_from = "zero"
in_table = false
[[rows]]
name = "whole"
init_from = "half"
paper = 90.84
[[rows]]
name = "alone"
"""
Config = Callable[..., SweepConfig]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "write_confusion_png", lambda *_: None)


@pytest.fixture
def config(sweep_config: Config) -> Config:
    """Makes a sweep; `text` is its file's."""
    return lambda text=CHAIN, **changes: sweep_config(text, **changes)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], part: str) -> bool:
    names = [name for name in one if name.startswith(part)]
    assert names
    return all(torch.equal(one[name], two[name]) for name in names)


def test_table_6_trains_each_strategy_from_the_weights_of_its_stage_before(
    config: Config, hocslm: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All stages draw alike here, so that T1 and the control can be compared to the last bit.
    monkeypatch.setattr(loop, "STAGE_KEY", "no such key")
    small = (
        "data.num_frames=8",
        "model.base_channels=4",
        "model.switches.num_subsets=1",
        "loop.epochs=1",
        "loop.batch_size=8",
        "loop.mixed_precision=no",
        "loop.deterministic=true",
        "loop.evaluate_every_epochs=0",
        "loop.num_threads=1",
        f"*hocslm*:method.language_model={hocslm['language_model']}",
        "*hocslm*:method.language_model_dtype=fp32",
        "*hocslm*:method.hidden=16",
    )
    settings = config(sweep="table-6", assignments=small, device="cpu")
    summary = sweep.run(settings, SilentProgress())
    assert not summary.failures
    weights = {run.row: load_weights(run.folder) for run in summary.runs}
    zero = weights["ntu60-xsub-hglnet"]
    first, second = (weights[f"ntu60-xsub-hocslm-t1{end}"] for end in ("-phase1", ""))
    assert same(zero, first, "encoder."), "T1, phase 1: the encoder is frozen, with its head"
    assert same(first, second, "ssf."), "T1, phase 2: the captions are over"
    assert not same(zero, second, "encoder.")
    first, second = (weights[f"ntu60-xsub-hocslm-t2{end}"] for end in ("-phase1", ""))
    assert not same(zero, first, "encoder.blocks")
    assert same(zero, first, "encoder.head")
    assert same(first, second, "ssf.")
    three, four = (weights[f"ntu60-xsub-hocslm{end}"] for end in ("", "-t4"))
    assert not same(three, four, "encoder.")
    starts = {run.row: read_run(run.folder).config.method.init_from for run in summary.runs}
    assert starts["ntu60-xsub-hocslm"] == settings.out / "ntu60-xsub-hglnet" / "joint-seed0"
    assert starts["ntu60-xsub-hocslm-t4"] is None

    columns, rows = summary.table()
    assert [row[0] for row in rows] == ["T0", "T1", "T2", "T3", "T4"], "phases have no line"
    assert columns[-3:] == ["over T0", "paper (NTU60 X-Sub)", "paper over T0"]
    assert [row[-1] for row in rows] == ["", "-1.55", "+0.10", "+0.21", "-22.40"]

    # What the recipe of phase 2 says: T1 ends as the control without captions does.
    plan = plan_sweep(settings)
    (last,) = (run for run in plan.runs if run.row == "ntu60-xsub-hocslm-t1")
    assert last.start is not None
    assert last.start.start is not None
    method = last.config.method.model_copy(update={"init_from": last.start.start.config.out})
    control = last.config.model_copy(update={"out": tmp_path / "control", "method": method})
    train.run(control, SilentProgress())
    assert same(load_weights(control.out), weights[last.row], "encoder.")


def test_each_stage_of_a_chain_draws_anew_and_rows_of_one_stage_draw_alike(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[int]] = {}
    plain = SkeletonStore.shuffled

    def noted(self: SkeletonStore, seed: int, epoch: int) -> Picks:
        picks = plain(self, seed, epoch)
        drawn.setdefault(trained[-1], []).append(hash((seed, tuple(picks.index))))
        return picks

    trained: list[str] = []
    first = train.run

    def named(config: TrainConfig, progress: Any) -> Any:
        trained.append(config.out.parent.name)
        return first(config, progress)

    monkeypatch.setattr(SkeletonStore, "shuffled", noted)
    monkeypatch.setattr(train, "run", named)
    row = '[[rows]]\nname = "{}"\ninit_from = "{}"\n'
    text = CHAIN.split("[[rows]]")[0] + '[[rows]]\nname = "zero"\n'
    text += row.format("one", "zero") + row.format("beside", "zero") + row.format("two", "one")
    summary = sweep.run(config(text), SilentProgress())
    assert not summary.failures
    assert drawn["one"] == drawn["beside"]
    assert len({tuple(drawn[name]) for name in ("zero", "one", "two")}) == 3


def test_a_row_is_trained_again_with_the_run_it_starts_from_and_else_found(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config()
    sweep.run(settings, SilentProgress())
    order: list[str] = []
    plain = train.run

    def noted(config: TrainConfig, progress: Any) -> Any:
        found = plain(config, progress)
        order.append(config.out.parent.name + ("" if found.already_finished else " trained"))
        return found

    monkeypatch.setattr(train, "run", noted)
    sweep.run(settings, SilentProgress())
    assert order == ["zero", "half", "whole", "alone"]
    order.clear()
    shutil.rmtree(settings.out / "zero")
    summary = sweep.run(settings, SilentProgress())
    # on the CPU its weights are the same again, so that the others are still of them
    assert order == ["alone", "zero trained", "half", "whole"]
    assert not summary.failures


def test_rows_that_start_from_one_that_fails_fail_with_a_sentence_and_are_not_trained(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.run(config(), SilentProgress())
    shutil.rmtree(config().out / "half")
    trained: list[str] = []
    plain = train.run
    monkeypatch.setattr(train, "run", lambda c, p: trained.append(c.out.parent.name) or plain(c, p))
    # "zero" is finished, but under other settings: nothing may start from it
    summary = sweep.run(config(assignments=("zero:optim.lr=1e-3",)), SilentProgress())
    assert trained == ["zero", "alone"]
    problems = {run.row: run.problem for run in summary.failures}
    assert "holds a run with other settings" in problems["zero"]
    assert problems["half"] == "it starts from zero, joint, seed 0, which failed"
    assert problems["whole"] == "it starts from half, joint, seed 0, which failed"
    text = (summary.folder / "mine.md").read_text()
    assert "4 of 4 runs ended, 3 of them failed." in text
    assert "Failed: whole, joint, seed 0: it starts from half, joint, seed 0, which failed" in text


def test_stage_zero_may_be_of_a_data_set_without_captions(
    config: Config, hocslm: dict[str, Any], make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    """It was trained before there were any, and is not trained again."""
    plain = make_dataset(tmp_path / "plain", captions="none")
    text = CHAIN[: CHAIN.index('[[rows]]\nname = "half"')]
    text += '[[rows]]\nname = "told"\ninit_from = "zero"\nset = ["method.name=hocslm"]\n'
    first = sweep.run(config(text[: text.rindex("[[rows]]")], dataset=plain), SilentProgress())
    weights = load_weights(first.runs[0].folder)
    told = [f"told:method.{key}={value}" for key, value in hocslm.items() if key != "name"]
    settings = config(text, assignments=(*told, f"zero:data.dataset={plain}"))
    messages: list[str] = []

    class Heard(SilentProgress):
        def message(self, text: str) -> None:
            messages.append(text)

    summary = sweep.run(settings, Heard())
    assert not summary.failures
    assert "1 of 2 runs are already trained" in messages
    assert same(weights, load_weights(summary.runs[0].folder), "encoder.")
    assert read_run(summary.runs[1].folder).config.data.dataset == settings.dataset
    both = f"Trained on {plain} for T0; {settings.dataset} for told; the test samples are the same."
    assert both in summary.notes()
    assert not any("Trained on" in note for note in first.notes())


def test_rows_of_other_test_samples_are_refused(
    config: Config, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    for name, changes, said in (
        ("other", {"seed": 1}, r"whose test samples are not those of .*: \d+ are in one alone"),
        ("two", {"num_classes": 2}, "whose skeleton or classes are not those"),
    ):
        folder = make_dataset(tmp_path / name, **changes)
        with pytest.raises(ValueError, match=f"row 'zero' is of .*{said}"):
            sweep.run(config(assignments=(f"zero:data.dataset={folder}",)), SilentProgress())
    with pytest.raises(FileNotFoundError, match="none"):
        sweep.run(config(assignments=("zero:data.dataset=none",)), SilentProgress())
    for assignments in (("data.dataset=few",), ("zero:data.dataset=few", "data.dataset=few")):
        with pytest.raises(ValueError, match="told that by --data"):
            plan_sweep(config(assignments=assignments))
    with pytest.raises(ValueError, match="told that by --data"):
        plan_sweep(config(CHAIN + 'set = ["data.dataset=few"]\n'))


def test_runs_side_by_side_wait_for_their_start_and_one_that_fails_ends_those_alone(
    config: Config,
) -> None:
    # most of the time goes into starting processes: the chain's middle is left out
    middle = CHAIN[CHAIN.index('[[rows]]\nname = "half"') : CHAIN.index('[[rows]]\nname = "whole"')]
    text = CHAIN.replace(middle, "").replace('init_from = "half"', 'init_from = "zero"')
    text += 'set = ["loop.batch_size=1000"]\n[[rows]]\nname = "after"\ninit_from = "alone"\n'
    summary = sweep.run(config(text, jobs=2), SilentProgress())
    reached = {run.row: run.reached is not None for run in summary.runs}
    # begun too early, "whole" would say that there is no checkpoint to start from
    assert reached == {"zero": True, "whole": True, "alone": False, "after": False}
    assert (summary.runs[0].folder / "metrics.json").is_file()
    assert "fewer than loop.batch_size 1000" in summary.failures[0].problem
    assert summary.failures[1].problem == "it starts from alone, joint, seed 0, which failed"
    assert not (summary.folder / "after").exists()
    record = json.loads((summary.folder / "mine.json").read_text())
    assert [line["cells"] for line in record["table"][2:]] == [["failed"], ["failed"]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"text": CHAIN.replace('= "half"\nin', '= "halff"\nin').replace("whole", "haff")},
            r"row 'haff' starts from 'half', which is no row; did you mean 'halff'\?",
        ),
        (
            {"text": CHAIN.replace('init_from = "zero"', 'init_from = "whole"')},
            "row 'half' starts from 'whole', which is not above it",
        ),
        (
            {"text": CHAIN.replace('init_from = "zero"', 'init_from = "half"')},
            "row 'half' starts from 'half', which is not above it",
        ),
        ({"text": CHAIN.replace('baseline = "zero"', 'baseline = "half"')}, "no row of the table"),
        ({"text": CHAIN.replace('"half"', '"a:b"')}, "name"),
        ({"assignments": ("method.init_from=x",)}, "row 'half' sets method.init_from itself"),
        ({"assignments": ("zer:loop.epochs=3",)}, "no row is named 'zer'; did you mean 'zero'"),
        ({"assignments": ("zero,x*:loop.epochs=3",)}, r"no row is named 'x\*'; there are zero, "),
        ({"assignments": ("zero:data.stream=bone",)}, "told that by --streams"),
        (
            {"assignments": ("zero:model.base_channels=8",)},
            "row 'half' starts from row 'zero', whose network is another one",
        ),
    ],
)
def test_a_chain_that_cannot_be_is_refused_before_anything_is_trained(
    config: Config, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        sweep.run(config(**changes), SilentProgress())
    assert not config().out.exists()


TEXT = """[method]
name = "hocslm"
language_model = "tiny"
hidden = 16
prompt_length = 2
max_caption_tokens = 12
"""
TEXT_CHAIN = CHAIN.replace('name = "half"', 'name = "half"\nrecipe = "text.toml"').replace(
    'name = "whole"', 'name = "whole"\nrecipe = "text.toml"'
)


@pytest.fixture
def text_config(config: Config, recipe_file: Path) -> Config:
    """Makes a sweep in which rows "half" and "whole" learn text."""

    def make(**changes: Any) -> SweepConfig:
        recipe_file.with_name("text.toml").write_text(recipe_file.read_text() + TEXT)
        return config(TEXT_CHAIN, **changes)

    return make


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("half,whole:method.language_model=no-such-model", "no-such-model"),
        ("whole:method.language_model=no-such-model", "no-such-model"),
        ('whole:method.prompt_ids=["p7"]', r"row 'whole' (.|\n)*24 of 24 .* have no caption"),
        ("whole:method.hidden=32", r"row 'half', .* another method\.hidden: 32 here and 16 there"),
        ("half:method.prompt_length=0", r"for another method\.prompt_length: 2 here and 0 there"),
        ("half:method.language_model={two_layers}", r"another method\.language_model: tiny"),
    ],
)
def test_a_language_model_captions_or_sizes_that_do_not_fit_are_found_before_any_training(
    text_config: Config, language_model_folder: Path, given: str, said: str
) -> None:
    text = given.replace("{two_layers}", str(language_model_folder))
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        sweep.run(text_config(assignments=(text,)), SilentProgress())
    assert not text_config().out.exists()


def test_samples_without_captions_are_found_before_any_training(
    text_config: Config, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    bare = make_dataset(tmp_path / "bare", captions="none")
    with pytest.raises(ValueError, match="24 of 24 training samples have no caption"):
        sweep.run(text_config(dataset=bare), SilentProgress())
    assert not text_config().out.exists()
    # a row without the caption loss reads none
    silent = text_config(dataset=bare, assignments=("half,whole:method.lambda_gen=0",))
    assert check_sweep(plan_sweep(silent), open_dataset(bare)) == ["ntu60-xsub"]


def test_a_language_model_is_loaded_once_for_all_rows_and_never_for_trained_ones(
    text_config: Config, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    plain = FrozenLanguageModel.load

    def spied(name: str, **options: Any) -> FrozenLanguageModel:
        loaded.append(name)
        return plain(name, **options)

    monkeypatch.setattr(FrozenLanguageModel, "load", spied)
    given = 'whole:method.prompt_ids=["p1"]', "whole:method.captions=shuffled"
    plan = plan_sweep(text_config(seeds=(0, 1), assignments=given))
    dataset = open_dataset(dataset_folder)
    check_sweep(plan, dataset)
    assert loaded == ["tiny"]
    for run in plan.runs:
        run.config.out.mkdir(parents=True)
        (run.config.out / "train.json").touch()
    check_sweep(plan, dataset)
    assert loaded == ["tiny"]


def test_a_set_with_names_of_rows_is_for_those_rows_and_over_that_for_all(config: Config) -> None:
    given = ("zero,wh*:loop.epochs=3", "loop.epochs=2", "whole:optim.lr=0.5", "optim.name=sgd")
    runs = plan_sweep(config(assignments=given)).runs
    assert [run.config.loop.epochs for run in runs] == [3, 2, 3, 2]
    assert [run.config.optim.lr for run in runs] == [3e-3, 3e-3, 0.5, 3e-3]
    assert {run.config.optim.name for run in runs} == {"sgd"}


def test_starts_are_of_the_same_stream_and_seed(config: Config) -> None:
    plan = plan_sweep(config(streams=("joint", "bone"), seeds=(0, 3)))
    for run in plan.runs:
        if run.start is not None:
            assert (run.start.stream, run.start.seed) == (run.stream, run.seed)
            assert run.config.method.init_from == run.start.config.out
            assert plan.runs.index(run.start) < plan.runs.index(run)
    assert sum(run.start is not None for run in plan.runs) == 8


def test_differences_to_the_baseline_are_taken_seed_by_seed(config: Config) -> None:
    plan: SweepPlan = plan_sweep(config(seeds=(0, 1, 2)))
    shares = {"zero": (0.90, 0.92, 0.94), "whole": (0.92, 0.93, None), "half": (0.5, 0.5, 0.5)}
    runs = tuple(
        RunResult(
            row,
            "joint",
            seed,
            config().out / row / str(seed),
            reached=None if share is None else Reached(share, share, share),
            problem="" if share else "no room",
        )
        for row, values in shares.items()
        for seed, share in enumerate(values)
    )
    summary = SweepSummary(config().out, plan, "small", "f", "ntu60-xsub", runs, ())
    columns, rows = summary.table()
    assert columns[5:] == [
        "mean",
        "std",
        "over T0",
        "its std",
        "paper (NTU60 X-Sub)",
        "paper over T0",
    ]
    assert [row[0] for row in rows] == ["T0", "whole", "alone"]
    assert rows[0][5:] == ["92.00", "2.00", "", "-", "90.63", ""]
    assert rows[1][2:] == [
        *("92.00", "93.00", "failed"),
        *("92.50", "0.71", "+1.50", "0.71", "90.84", "+0.21"),
    ]
    assert rows[2][2:] == ["-", "-", "-", "-", "-", "", "-", "", ""]
    record = summary.as_json()
    assert record["baseline"] == "zero"
    whole = record["table"][1]
    assert whole["differences"][:2] == pytest.approx([0.02, 0.01])
    assert whole["differences"][2] is None
    assert whole["mean_difference"] == pytest.approx(0.015)
    assert whole["published_difference"] == 0.21
    assert "over T0: the difference to that line" in " ".join(summary.notes())


def test_the_command_takes_the_number_of_a_table_or_a_name() -> None:
    arguments = ["sweep", "--data", "data", "--out", "out", "--dry-run"]
    done = CliRunner().invoke(app, [*arguments, "--table", "6", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["sweep"] == "table-6"
    done = CliRunner().invoke(app, [*arguments, "--table", "6"], env={"COLUMNS": "160"})
    assert "starts from" in done.stdout
    assert "changes" not in done.stdout, "no row has any"
    for wrong in ([], ["--table", "6", "table-6"]):
        assert CliRunner().invoke(app, [*arguments, *wrong]).exit_code == 2
