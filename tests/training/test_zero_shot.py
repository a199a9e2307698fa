"""Classes left out of training, and what `hoc zero-shot` and its sweep make of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from datasets_build.dataset import open_dataset
from datasets_build.progress import SilentProgress
from training import train, zero_shot, zero_shot_sweep
from training.class_sentences import read_class_sentences
from training.command_config import ZeroShotConfig, ZeroShotSweepConfig
from training.config import TrainConfig
from training.evaluate import load_run
from training.likelihoods import mean_log_likelihoods, prefixes
from training.loading import load_split
from training.methods.classify import ClassifyMethod
from training.models.language_model import FrozenLanguageModel
from training.scores import read_scores
from training.unseen_classes import unseen_labels
from training.zero_shot_plan import draw_splits, plan_splits

Recipe = Callable[..., TrainConfig]
CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "data": {"num_frames": 8, "unseen_classes": ["hand waving", "A024"]},
    "model": {"base_channels": 4, "switches": {"num_subsets": 1}},
}
UNSEEN = (2, 3)  # labels of these classes
TEXTS = """class,text
sit down,A person sits down.
clapping,A person claps.
clapping,A person claps again.
hand waving,A person waves.
hand waving,A person waves again.
kicking something,A person kicks something.
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero-shot")


@pytest.fixture
def four(place: Path, make_dataset: Callable[..., Path]) -> Path:
    """One data set of four classes for this file."""
    folder = place / "data"
    return folder if folder.is_dir() else make_dataset(folder, num_classes=4)


@pytest.fixture
def texts(place: Path) -> Path:
    path = place / "texts.csv"
    path.write_text(TEXTS)
    return path


@pytest.fixture
def small(recipe: Recipe, four: Path) -> Recipe:
    """Makes a recipe that leaves two of the four classes out."""

    def make(out: str = "run", **sections: dict[str, Any]) -> TrainConfig:
        parts = {
            **SMALL,
            "data": {**SMALL["data"], "dataset": four, **sections.pop("data", {})},
            "loop": {"epochs": 1},
        }
        return recipe(out, **parts, **sections)

    return make


@pytest.fixture
def trained(small: Recipe, hocslm: dict[str, Any], place: Path) -> Path:
    """One run with text for this file."""
    config = small(method=hocslm).model_copy(update={"out": place / "run"})
    train.run(config, SilentProgress())
    return place / "run"


def ask(run: Path, *texts: Path, **changes: Any) -> zero_shot.ZeroShotResult:
    config = ZeroShotConfig(run=run, texts=texts, device="cpu", **changes)
    return zero_shot.run(config, SilentProgress())


# ---- classes that are left out ----


def test_samples_of_unseen_classes_are_in_no_batch(
    small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    plain = ClassifyMethod.training_step

    def spied(self: ClassifyMethod, batch: Any, generator: torch.Generator) -> Any:
        seen.update(batch.label.tolist())
        return plain(self, batch, generator)

    monkeypatch.setattr(ClassifyMethod, "training_step", spied)
    summary = train.run(small(), SilentProgress())
    assert seen == {0, 1}
    assert summary.num_samples == 2 * 2 * 4, "two classes of two subjects"


def test_unseen_classes_are_in_the_test_split_but_in_no_other(small: Recipe, four: Path) -> None:
    dataset = open_dataset(four)
    data = small(data={"validation_subjects": [2]}).data
    labels = {
        split: set(
            load_split(dataset, dataset.protocol("ntu60-xsub"), split, data, device=CPU).labels
        )
        for split in ("train", "validation", "test")
    }
    assert labels == {"train": {0, 1}, "validation": {0, 1}, "test": {0, 1, 2, 3}}


def test_the_head_keeps_all_classes_and_an_empty_class_is_still_refused(
    small: Recipe, tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    config = small()
    train.run(config, SilentProgress())
    loaded = load_run(config.out, dataset=None, protocol=None, device="cpu")
    assert loaded.record.unseen == set(UNSEEN)
    test = load_split(loaded.dataset, loaded.protocol, "test", config.data, device=CPU)
    scores = loaded.method.predict(test.batch(test.in_order(), training=False))
    assert scores is not None
    assert scores.shape == (16, 4)

    def to_test(row: dict[str, Any]) -> None:
        row["subject_id"] = 3 if row["label"] == 0 else row["subject_id"]

    other = make_dataset(tmp_path / "other", num_classes=4, change=to_test)
    with pytest.raises(ValueError, match=r"1 of 4 classes have no training sample \(sit down\)"):
        train.run(small("other", data={"dataset": other}), SilentProgress())


@pytest.mark.parametrize("given", [[23], ["23"], ["A023"], ["Hand-Waving"], [" hand waving "]])
def test_a_class_is_named_by_its_name_or_action_id(given: list[Any], four: Path) -> None:
    assert unseen_labels(open_dataset(four).classes, given) == {2}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["hand wavin"], "did you mean 'hand waving'"),
        ([2], "'2' is no class of the data set; give names or action ids of: 8 sit down, 10 clap"),
        (["clapping", 10], "names 'clapping' twice"),
        ([8, 10, 23, 24], "names all 4 classes; leave some to train on"),
    ],
)
def test_unseen_classes_that_cannot_be_are_refused(
    given: list[Any], said: str, small: Recipe
) -> None:
    with pytest.raises(ValueError, match=said):
        train.run(small(data={"unseen_classes": given}), SilentProgress())


def test_an_encoder_that_saw_an_unseen_class_is_no_start(
    small: Recipe, hocslm: dict[str, Any]
) -> None:
    train.run(small("zero", data={"unseen_classes": ["hand waving"]}), SilentProgress())
    start = {**hocslm, "init_from": small("zero").out}
    with pytest.raises(ValueError, match="was trained on 'kicking something', which data"):
        train.run(small("one", method=start), SilentProgress())
    fewer = small("one", method=start, data={"unseen_classes": [23]})
    assert train.run(fewer, SilentProgress()).epochs == 1


def test_a_run_begun_before_there_were_unseen_classes_is_found_finished(small: Recipe) -> None:
    config = small(data={"unseen_classes": []})
    train.run(config, SilentProgress())
    for path, keys in (
        (config.out / "last" / "checkpoint.json", ("request", "data")),
        (config.out / "config.json", ("settings", "data")),
    ):
        value = json.loads(path.read_text())
        assert value[keys[0]][keys[1]].pop("unseen_classes") == []
        path.write_text(json.dumps(value))
    assert train.run(config, SilentProgress()).already_finished
    with pytest.raises(ValueError, match=r"data\.unseen_classes"):
        train.run(small(), SilentProgress())


# ---- scores ----


def test_a_likelihood_is_the_mean_over_the_tokens_of_a_text(language_model_folder: Path) -> None:
    model = FrozenLanguageModel.load(str(language_model_folder))
    decoder, embedding, head = model.modules_and_head()
    prefix = torch.randn(3, 2, model.width, generator=torch.Generator().manual_seed(0))
    texts = ["A person kicks something again.", "A person claps.", "A person waves."]
    tokens, mask = model.tokenize(texts, 12)
    found = mean_log_likelihoods(model, prefix, tokens, mask, batch_size=4)
    assert found.shape == (3, 3)
    for text in range(3):
        row = tokens[text][mask[text]]
        for sample in range(3):
            read = torch.cat((prefix[sample], embedding(row[:-1])))[None]  # (1, P + l - 1, D)
            hidden = decoder(inputs_embeds=read).last_hidden_state[0, 1:]
            logs = head(hidden).log_softmax(-1)[torch.arange(len(row)), row]
            assert found[sample, text].item() == pytest.approx(logs.mean().item(), abs=1e-5)


def test_shares_of_a_case_by_hand() -> None:
    names = ["a", "b", "c", "d"]
    scores = np.array(
        [
            [9, 1, 1, 2],  # a as a
            [1, 2, 9, 1],  # b as c
            [1, 1, 2, 0],  # c as c
            [9, 1, 3, 2],  # c: c before d, but a before both
            [1, 1, 3, 2],  # d as c
            [0, 0, 1, 2],  # d as d
            [0, 0, 1, 2],  # d as d
        ],
        np.float32,
    )
    labels = np.array([0, 1, 2, 2, 3, 3, 3])
    found = zero_shot.measure(scores, labels, names=names, unseen={2, 3})
    assert found.unseen == pytest.approx(4 / 5)
    assert found.per_class == pytest.approx({"c": 1.0, "d": 2 / 3})
    assert found.unseen_mean_class == pytest.approx(5 / 6)
    assert found.generalised_seen == pytest.approx(1 / 2)
    assert found.generalised_unseen == pytest.approx(3 / 5)
    assert found.harmonic == pytest.approx(2 * 0.5 * 0.6 / 1.1)


def test_scores_are_of_the_sentences_of_each_class(trained: Path, texts: Path) -> None:
    result = ask(trained, texts, batch_size=7)
    record = json.loads((trained / "zero-shot.json").read_text())
    names, labels, scores = read_scores(trained / "scores-zero-shot.parquet")
    assert record["unseen"] == list(result.unseen) == ["hand waving", "kicking something"]
    assert (result.chance, result.num_unseen_samples, result.num_seen_samples) == (0.5, 8, 8)
    loaded = load_run(trained, dataset=None, protocol=None, device="cpu")
    method: Any = loaded.method
    data = loaded.record.config.data
    test, seen = (
        load_split(loaded.dataset, loaded.protocol, split, data, device=CPU)
        for split in ("test", "train")
    )
    assert names == sorted(test.sample_ids)
    lines = [line.split(",")[1] for line in TEXTS.splitlines()[1:]]
    tokens, mask = method.language_model.tokenize(lines, 12)
    with torch.no_grad():
        (prefix,) = prefixes(method, test, batch_size=99)
        likely = mean_log_likelihoods(method.language_model, prefix, tokens, mask, batch_size=99)
        (known,) = prefixes(method, seen, batch_size=99)
        mean = known.mean(dim=0, keepdim=True)
        prior = mean_log_likelihoods(method.language_model, mean, tokens, mask, batch_size=99)
    by_class = [likely[:, part].mean(dim=1) for part in ([0], [1, 2], [3, 4], [5])]
    expected = torch.stack(by_class, dim=1).numpy()[np.argsort(test.sample_ids)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    priors = [prior[0, part].mean().item() for part in ([0], [1, 2], [3, 4], [5])]
    assert [record["prior"][name] for name in loaded.record.class_names] == pytest.approx(
        priors, abs=1e-5
    )
    by_hand = {"plain": scores, "calibrated": scores - np.array(priors, np.float32)}
    for kind, values in by_hand.items():
        among = values[labels >= 2][:, 2:].argmax(axis=1) + 2
        assert result.shares[kind].unseen == pytest.approx((among == labels[labels >= 2]).mean())
        overall = values[labels < 2].argmax(axis=1)
        hits = (overall == labels[labels < 2]).mean()
        assert result.shares[kind].generalised_seen == record[kind]["generalised_seen"] == hits
    assert by_hand["plain"].argmax(axis=1).tolist() != by_hand["calibrated"].argmax(axis=1).tolist()


def test_the_prior_is_of_the_samples_trained_on_whatever_data_set_is_scored(
    trained: Path, texts: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    ask(trained, texts)
    own = json.loads((trained / "zero-shot.json").read_text())
    other = make_dataset(tmp_path / "other", num_classes=4, seed=5)
    (file,) = (path for path in ask(trained, texts, dataset=other).files if path.suffix == ".json")
    elsewhere = json.loads(file.read_text())
    assert elsewhere["dataset_fingerprint"] != own["dataset_fingerprint"]
    assert elsewhere["prior"] == own["prior"]


def test_what_was_scored_before_counts_while_run_texts_and_files_are_the_same(
    trained: Path, texts: Path, tmp_path: Path
) -> None:
    result = ask(trained, texts)
    dataset = open_dataset(
        load_run(trained, dataset=None, protocol=None, device="cpu").dataset.folder
    )
    config = ZeroShotConfig(run=trained, texts=(texts,))
    assert zero_shot.scored_before(config, dataset) == result
    other = tmp_path / "texts.csv"
    other.write_text(TEXTS.replace("A person claps.", "claps."))
    assert zero_shot.scored_before(ZeroShotConfig(run=trained, texts=(other,)), dataset) is None
    path = trained / "zero-shot.json"
    record = json.loads(path.read_text())
    for key in ("weights_sha256", "dataset_fingerprint", "protocol", "scores_sha256"):
        path.write_text(json.dumps(record | {key: "another"}))
        assert zero_shot.scored_before(config, dataset) is None, key


def test_without_a_table_each_name_stands_in_one_sentence(four: Path) -> None:
    found = read_class_sentences([], open_dataset(four))
    assert found.flat[2] == "A person is doing: hand waving."
    assert found.mean_matrix().tolist() == np.eye(4).tolist()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (TEXTS.replace("hand waving,", "clapping,"), r"no text for 1 of 4 classes \(hand waving\)"),
        (TEXTS.replace("A person sits down.", '" "'), r"no text for 1 of 4 classes \(sit down\)"),
        ("sample_id,text\na,b\n", "line 2 is a text of sample a; a table of class sentences"),
        (TEXTS.replace("hand waving,", "hand wavin,"), "did you mean 'hand waving'"),
    ],
)
def test_a_table_that_does_not_name_every_class_is_refused(
    trained: Path, tmp_path: Path, table: str, said: str
) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(ValueError, match=said):
        ask(trained, tmp_path / "t.csv")


def test_a_run_without_text_or_unseen_classes_or_test_samples_of_them_is_refused(
    small: Recipe,
    hocslm: dict[str, Any],
    make_dataset: Callable[..., Path],
    tmp_path: Path,
) -> None:
    train.run(small(), SilentProgress())
    done = CliRunner().invoke(app, ["zero-shot", str(small().out)])
    assert done.exit_code == 2
    assert "which learns no text" in " ".join(done.output.split())
    every = small("every", method=hocslm, data={"unseen_classes": []})
    train.run(every, SilentProgress())
    with pytest.raises(ValueError, match="left no class out of training"):
        ask(every.out)

    def to_train(row: dict[str, Any]) -> None:
        row["subject_id"] = 1 if row["label"] == 2 else row["subject_id"]

    folder = make_dataset(tmp_path / "other", num_classes=4, change=to_train)
    other = small("other", method=hocslm, data={"dataset": folder})
    train.run(other, SilentProgress())
    with pytest.raises(ValueError, match="no sample of the unseen class 'hand waving'"):
        ask(other.out)


def test_the_command_shows_runs_against_chance(trained: Path, texts: Path) -> None:
    arguments = ["zero-shot", str(trained), "--texts", str(texts), "--device", "cpu"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "among the unseen: top-1" in done.stdout
    assert "50.00%" in done.stdout
    record = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert record["plain"]["harmonic"] <= 1


# ---- all splits ----

Sweep = Callable[..., ZeroShotSweepConfig]


@pytest.fixture
def sweep(
    tmp_path: Path, recipe_file: Path, four: Path, texts: Path, hocslm: dict[str, Any]
) -> Sweep:
    def make(**changes: Any) -> ZeroShotSweepConfig:
        method = "".join(f"{key} = {json.dumps(value)}\n" for key, value in hocslm.items())
        (tmp_path / "one.toml").write_text(f"{recipe_file.read_text()}[method]\n{method}")
        values = {
            "dataset": four,
            "out": tmp_path / "out",
            "stage_zero": str(recipe_file),
            "stage_one": str(tmp_path / "one.toml"),
            "texts": (texts,),
        }
        return ZeroShotSweepConfig.model_validate(values | changes)

    return make


def test_a_sweep_trains_both_stages_of_every_split_and_goes_on(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweep(splits=(("hand waving", 24), (8, 23)))
    trained: list[str] = []
    plain = train.run

    def stopping(config: TrainConfig, progress: Any) -> Any:
        trained.append(f"{config.out.parent.name}/{config.out.name}")
        if len(trained) == 4:
            raise KeyboardInterrupt
        return plain(config, progress)

    monkeypatch.setattr(train, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        zero_shot_sweep.run(config, SilentProgress())
    assert trained[:2] == ["A023-A024/stage-zero", "A023-A024/stage-one"]
    assert "1 of 2 splits ended" in (config.out / "zero-shot-sweep.md").read_text()

    # as if the first split's stage one had been trained elsewhere
    path = config.out / "A023-A024" / "stage-one" / "environment.json"
    first_environment = json.loads(path.read_text())
    there = {"git_commit": "0123abc", "device": "H200"}
    path.write_text(json.dumps({**first_environment, "starts": [there]}))

    asked: list[Path] = []
    plain_asking = zero_shot.run
    monkeypatch.setattr(train, "run", plain)

    def spied(config: ZeroShotConfig, progress: Any) -> zero_shot.ZeroShotResult:
        asked.append(config.run)
        return plain_asking(config, progress)

    monkeypatch.setattr(zero_shot, "run", spied)
    summary = zero_shot_sweep.run(config, SilentProgress())
    assert [path.parent.name for path in asked] == ["A008-A023"]
    assert [split.unseen[0] for split in summary.splits] == ["hand waving", "sit down"]
    settings = json.loads((asked[0] / "config.json").read_text())["settings"]
    assert settings["method"]["init_from"] == str(config.out / "A008-A023" / "stage-zero")
    assert settings["data"]["unseen_classes"] == [8, 23]

    record = json.loads((config.out / "zero-shot-sweep.json").read_text())
    shares = [split["plain"]["unseen"] for split in record["splits"]]
    assert record["statistics"]["plain"]["unseen"] == pytest.approx(
        {
            "mean": np.mean(shares),
            "std": np.std(shares, ddof=1),
            "min": min(shares),
            "max": max(shares),
        }
    )
    assert (record["chance"]["unseen"], record["chance"]["harmonic"]) == (0.5, 0.25)
    own = json.loads((config.out / record["splits"][1]["folder"] / "zero-shot.json").read_text())
    assert own["plain"] == record["splits"][1]["plain"]
    here = {key: first_environment[key] for key in ("git_commit", "device")}
    assert record["splits"][0]["made_by"] == [here, there]
    assert record["splits"][1]["made_by"] == [here]
    assert "0123abc on H200" in (config.out / "zero-shot-sweep.md").read_text()
    with (config.out / "zero-shot-sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["split"] for line in lines] == ["A023-A024", "A008-A023"]
    assert [float(line["plain_unseen"]) for line in lines] == shares
    columns, rows = summary.table()
    assert rows[0][:3] == ["among the unseen: top-1", "plain", f"{100 * np.mean(shares):.2f}"]
    assert rows[0][columns.index("chance")] == "50.00"
    ranked = [float(row[1]) for row in summary.split_table()[1]]
    assert ranked == sorted(ranked, reverse=True)


def test_a_split_that_fails_stands_in_the_table_and_the_others_go_on(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train.run

    def failing(config: TrainConfig, progress: Any) -> Any:
        if config.out.parts[-2:] == ("A008-A010", "stage-one"):
            raise FloatingPointError("the loss is not finite")
        return plain(config, progress)

    monkeypatch.setattr(train, "run", failing)
    summary = zero_shot_sweep.run(sweep(splits=((8, 10), (23, 24))), SilentProgress())
    assert [split.name for split in summary.failures] == ["A008-A010"]
    assert len(summary.ranked()) == 1
    text = (summary.folder / "zero-shot-sweep.md").read_text()
    assert "Failed: A008-A010: FloatingPointError: the loss is not finite" in text
    assert "is in zero-shot-sweep.json" in text


class Messages(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def test_splits_side_by_side_are_found_by_a_sweep_of_one_at_a_time(
    sweep: Sweep, four: Path, tmp_path: Path
) -> None:
    chosen = {"splits": ((8, 10), (23, 24))}
    both = zero_shot_sweep.run(sweep(**chosen, jobs=2), SilentProgress())
    assert not both.failures
    messages = Messages()
    found = zero_shot_sweep.run(sweep(**chosen), messages)
    assert found.statistics() == both.statistics()
    assert messages.said[0] == "2 of 2 splits were scored before"
    names = open_dataset(four).class_names
    table = tmp_path / "texts.csv"
    table.write_text("class,text\n" + "".join(f"{name},they {name}\n" for name in names))
    asked = Messages()
    zero_shot_sweep.run(sweep(**chosen, texts=(table,)), asked)
    assert "scored before" not in asked.said[0]


def test_a_sweep_is_not_started_by_torchrun(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="started by torchrun; start it plainly, with --jobs N"):
        zero_shot_sweep.run(sweep(), SilentProgress())


def test_the_first_splits_of_a_seeded_order_cover_the_classes_evenly(
    sweep: Sweep, four: Path
) -> None:
    dataset = open_dataset(four)
    every = [plan.name for plan in plan_splits(sweep(), dataset)]
    assert len(set(every)) == len(every) == 6
    assert [plan.name for plan in plan_splits(sweep(num_splits=4), dataset)] == every[:4]
    assert every != sorted(every)
    assert len(plan_splits(sweep(num_unseen=3), dataset)) == 4


def test_assignments_reach_both_stages_or_the_one_they_name(sweep: Sweep, four: Path) -> None:
    given = ("loop.seed=3", "stage-zero:loop.epochs=7", "stage-one:method.lambda_gen=0.9")
    plan = plan_splits(sweep(assignments=given, jobs=2), open_dataset(four))[0]
    zero, one = plan.stages
    assert (zero.loop.seed, one.loop.seed, zero.loop.epochs, one.loop.epochs) == (3, 3, 7, 1)
    assert one.method.lambda_gen == 0.9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"splits": ((8, "clap"),)}, "did you mean 'clapping'"),
        ({"splits": ((8, 10, 23),)}, "split 8\\+10\\+23 has 3 classes, num_unseen is 2"),
        ({"splits": ((8, 10),), "num_splits": 2}, "not both"),
        ({"num_unseen": 4}, "leave some to train on"),
        ({"stage_one": "nw-ucla-hglnet"}, "stage-one needs a recipe of method 'hocslm'"),
        ({"assignments": ("stage-two:loop.epochs=1",)}, "'stage-two' is no stage"),
        ({"assignments": ("method.init_from=a",)}, "told that by stage zero of each split"),
        ({"assignments": ("stage-zero:loop.batch_size=1000",)}, "lower it"),
        ({"assignments": ("stage-one:method.language_model=no-such",)}, "no-such"),
        ({"assignments": ("stage-zero:model.base_channels=8",)}, "whose network is another one"),
        (
            {"assignments": ("stage-zero:data.stream=bone",)},
            "stage-one has data.stream 'joint' and stage-zero, which it starts from, 'bone'",
        ),
        (
            {"assignments": ("stage-one:data.protocol=ntu60-xview",)},
            "stage-one has data.protocol 'ntu60-xview' and stage-zero",
        ),
        ({"texts": (Path("none.csv"),)}, r"none\.csv does not exist"),
    ],
)
def test_a_users_mistake_is_a_sentence_before_anything_is_trained(
    sweep: Sweep, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        zero_shot_sweep.run(sweep(**changes), SilentProgress())
    assert not sweep().out.exists()


def test_so_many_splits_that_nobody_trains_them_need_a_number() -> None:
    with pytest.raises(ValueError, match="in 5,461,512 ways; give --splits a number up to 2000"):
        draw_splits(60, 5, most=None)
    assert len(set(draw_splits(60, 5, most=30))) == 30


def test_the_sweep_command_takes_a_number_of_splits_or_a_list(sweep: Sweep) -> None:
    config = sweep()
    arguments = ["zero-shot-sweep", "--data", str(config.dataset), "--out", str(config.out)]
    arguments += ["--stage-zero", config.stage_zero, "--stage-one", config.stage_one]
    arguments += ["--texts", str(config.texts[0])]
    for given, names in (("2", None), ("8+clapping, 23+24", ["A008-A010", "A023-A024"])):
        shown = CliRunner().invoke(app, [*arguments, "--splits", given, "--dry-run", "--json"])
        plans = json.loads(shown.stdout)
        assert len(plans) == 2
        folders = [Path(stages[0]["out"]).parent.name for stages in plans]
        assert names is None or folders == names
    assert not config.out.exists()
    done = CliRunner().invoke(app, [*arguments, "--splits", "8+23"], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "sit down + hand waving" in done.stdout
    assert "1 of 1 splits ended" in done.stdout
