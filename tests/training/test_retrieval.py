from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.main import app
from datasets_build.progress import SilentProgress
from training import retrieval, train
from training.command_config import RetrieveConfig
from training.config import TrainConfig
from training.describe import load_text_run
from training.likelihoods import prefixes
from training.loading import load_split
from training.retrieval import recall

WORDS = {8: "sits down", 10: "claps", 23: "waves"}


def caption_test_samples(row: dict[str, Any]) -> None:
    if row["subject_id"] == 3:
        texts = [f"A person {WORDS[row['action_id']]}.", f"person  {WORDS[row['action_id']]}"]
        row["captions"] = [
            {"prompt_id": f"p{i}", "text": text, "request_key": "k"}
            for i, text in enumerate(texts[: row["repetition_id"] - 1])
        ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture
def trained(
    recipe: Callable[..., TrainConfig],
    hocslm: dict[str, Any],
    make_dataset: Callable[..., Path],
    shared: Path,
) -> Path:
    """One HocSLM run for this file; of each class a test sample has no caption, one has one."""
    data = shared.parent / "data"
    if not data.is_dir():
        make_dataset(data, change=caption_test_samples)
    config = recipe(data={"dataset": data}, method=hocslm, optim={"lr": 0.02}, loop={"epochs": 6})
    train.run(config.model_copy(update={"out": shared}), SilentProgress())
    return shared


def ask(run: Path, **changes: Any) -> retrieval.RetrieveSummary:
    return retrieval.run(RetrieveConfig(run=run, device="cpu", **changes), SilentProgress())


def test_ranks_are_those_of_the_best_right_candidate_and_ties_count_against_it() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0], [9.0, 9.0, 9.0], [0.0, 5.0, 6.0]])
    is_right = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]], bool)
    found = recall("what by what", scores, is_right)
    assert (found.queries, found.candidates) == (3, 3)  # nothing is right for the third
    assert found.r1 == pytest.approx(1 / 3)  # ranks 1, 2 and 2
    assert found.r5 == 1
    assert found.mean_rank == pytest.approx(5 / 3)


def test_chance_is_the_mean_over_all_orders() -> None:
    is_right = np.array([[1, 0, 1, 0, 0, 0, 0]], bool)
    orders = np.array(list(permutations(range(7))), float)  # each order once
    found = [recall("", order[None], is_right) for order in orders[::7]]
    all_orders = recall("", orders, np.repeat(is_right, len(orders), axis=0))
    assert all_orders.r1 == pytest.approx(found[0].chance_r1) == pytest.approx(2 / 7)
    assert all_orders.r5 == pytest.approx(found[0].chance_r5)
    assert all_orders.mean_rank == pytest.approx(found[0].chance_mean_rank)


def test_scores_are_mean_log_likelihoods_of_every_text_given_every_skeleton(trained: Path) -> None:
    summary = ask(trained, batch_size=7)
    assert (summary.samples, summary.texts) == (12, 6)
    # The same, one pair at a time.
    loaded, method = load_text_run(trained, dataset=None, device="cpu")
    config = loaded.record.config
    store = load_split(loaded.dataset, loaded.protocol, "test", config.data, device=loaded.device)
    by_sample = [
        [f"A person {WORDS[int(name[-2:])]}.", f"person {WORDS[int(name[-2:])]}"][
            : int(name[13:16]) - 1
        ]
        for name in store.sample_ids
    ]
    texts = list(dict.fromkeys(text for own in by_sample for text in own))
    is_right = np.array([[text in own for text in texts] for own in by_sample])
    (prefix,) = prefixes(method, store, batch_size=99)
    scores = np.zeros((13, len(texts)))
    for row, one in enumerate((*prefix, prefix.mean(dim=0))):
        for column, text in enumerate(texts):
            tokens, mask = method.language_model.tokenize([text], 12)
            total = method.language_model.score(one[None], tokens, mask)
            scores[row, column] = float(total) / int(mask.sum())
    plain, calibrated = scores[:-1], scores[:-1] - scores[-1]
    assert list(summary.recalls) == [
        recall("skeleton to text", plain, is_right),
        recall("skeleton to text, calibrated", calibrated, is_right),
        recall("text to skeleton", plain.T, is_right.T),
    ]
    assert [found.queries for found in summary.recalls] == [9, 9, 6]
    record = json.loads(summary.file.read_text())
    assert record["recalls"][0]["r1"] == summary.recalls[0].r1
    assert record["settings"]["texts"] == "captions of the split"


def test_class_sentences_are_right_for_all_samples_of_the_class(
    trained: Path, tmp_path: Path
) -> None:
    table = tmp_path / "sentences.csv"
    table.write_text("class,text\nsit down,sits\nclapping,claps\nhand waving,waves\n")
    summary = ask(trained, texts=(table,))
    assert summary.texts == 3
    assert [found.queries for found in summary.recalls] == [12, 12, 3]
    assert summary.recalls[0].chance_r1 == pytest.approx(1 / 3)
    # Four of the twelve samples are right for each sentence.
    assert summary.recalls[2].chance_mean_rank == pytest.approx(13 / 5)
    assert list(json.loads(summary.file.read_text())["settings"]["texts"]) == ["sentences.csv"]


def test_a_draw_of_samples_depends_on_the_seed_alone(trained: Path) -> None:
    first, again = ask(trained, num_samples=5, seed=1), ask(trained, num_samples=5, seed=1)
    assert first == again
    assert first.samples == 5
    assert ask(trained, num_samples=99).samples == 12


def test_a_split_without_captions_and_a_run_without_text_are_refused(
    trained: Path,
    make_dataset: Callable[..., Path],
    recipe: Callable[..., TrainConfig],
    tmp_path: Path,
) -> None:
    bare = make_dataset(tmp_path / "bare", captions="none")
    with pytest.raises(ValueError, match=r"have no captions to search among.*--texts"):
        ask(trained, dataset=bare)
    config = recipe(loop={"epochs": 1})
    train.run(config, SilentProgress())
    with pytest.raises(ValueError, match="learns no text"):
        ask(config.out)


def test_the_commands_print_tables_or_json(trained: Path) -> None:
    def hoc(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--device", "cpu"], env={"COLUMNS": "160"})
        assert result.exit_code == 0, result.output
        return result.stdout

    printed = hoc("retrieve", str(trained))
    assert "text to skeleton" in printed
    assert "6 in 12" in printed
    assert json.loads(hoc("retrieve", str(trained), "--json"))["texts"] == 6
    few = ("--max-new-tokens", "4")
    printed = hoc("describe", str(trained), "--all", "--per-class", *few)
    for part in ("name the right action", "BLEU", "hand waving", "describe-test.parquet"):
        assert part in printed
    assert "S001C001P003R001A008" in hoc(
        "describe", str(trained), "--sample", "S001C001P003R001A008", *few
    )
    value = json.loads(hoc("describe", str(trained), "--all", "--json", *few))
    assert len(value["descriptions"]) == 12
    assert value["naming"]["samples"] == 12
