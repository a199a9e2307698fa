from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets_build import schema
from datasets_build.dataset import open_dataset
from datasets_build.manifest import read_json, write_json
from datasets_build.progress import SilentProgress
from training import train
from training.caption_controls import shown_captions
from training.checkpoint import CHECKPOINT_FILE, LAST
from training.config import MethodConfig, TrainConfig
from training.loading import load_split
from training.skeleton_data import SkeletonStore

CPU = torch.device("cpu")
NAMES = ("sit down", "clapping", "hand waving")


def with_captions_of_their_own(row: dict[str, Any]) -> None:
    text = row[schema.SAMPLE_ID] if row[schema.SUBJECT_ID] < 3 else "POISON"
    entries = row[schema.CAPTIONS]
    row[schema.CAPTIONS] = [entry | {schema.TEXT: text} for entry in entries[: 1 + len(text) % 2]]


@pytest.fixture
def folder(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    """A data set in which each training sample has captions of its own."""
    return make_dataset(tmp_path / "told", change=with_captions_of_their_own)


@pytest.fixture
def store(folder: Path, recipe: Callable[..., TrainConfig]) -> SkeletonStore:
    dataset = open_dataset(folder)
    data = recipe(data={"dataset": folder}).data
    protocol = dataset.protocol("ntu60-xsub")
    return load_split(dataset, protocol, "train", data, device=CPU, with_captions=True)


def shown(store: SkeletonStore, kind: Any, seed: int = 0) -> list[list[str]]:
    return shown_captions(kind, store, class_names=NAMES, seed=seed)


def test_own_captions_stay_and_class_names_are_those_of_the_labels(store: SkeletonStore) -> None:
    assert shown(store, "own") == store.texts
    assert shown(store, "class-name") == [[NAMES[label]] for label in store.labels]


@pytest.mark.parametrize("kind", ["shuffled", "shuffled-in-class"])
def test_a_shuffle_gives_each_caption_to_one_sample(store: SkeletonStore, kind: str) -> None:
    assert store.texts is not None
    found = shown(store, kind)
    assert found != store.texts
    assert Counter(map(tuple, found)) == Counter(map(tuple, store.texts))
    label_of = dict(zip(store.sample_ids, store.labels, strict=True))
    labels = [label_of[texts[0]] for texts in found]
    in_class = np.array_equal(labels, store.labels)
    assert in_class == (kind == "shuffled-in-class")
    assert shown(store, kind) == found
    assert shown(store, kind, seed=1) != found


@pytest.mark.parametrize("kind", ["shuffled", "shuffled-in-class"])
def test_a_shuffle_follows_from_sample_ids_and_not_from_their_order(
    store: SkeletonStore, kind: str
) -> None:
    assert store.texts is not None
    before = dict(zip(store.sample_ids, shown(store, kind), strict=True))
    order = np.random.default_rng(3).permutation(len(store))
    store.sample_ids = [store.sample_ids[i] for i in order]
    store.labels = store.labels[order]
    store.texts = [store.texts[i] for i in order]
    assert dict(zip(store.sample_ids, shown(store, kind), strict=True)) == before


def test_a_control_that_changes_nothing_is_refused(
    recipe: Callable[..., TrainConfig], hocslm: dict[str, Any]
) -> None:
    # in the small data set all samples of a class have the same captions
    with pytest.raises(ValueError, match="changes no caption of these 24 training samples"):
        train.run(recipe(method=hocslm | {"captions": "shuffled-in-class"}), SilentProgress())
    with pytest.raises(ValueError, match="reads no captions"):
        MethodConfig(captions="shuffled")


def test_a_run_is_trained_with_the_captions_of_its_control(
    recipe: Callable[..., TrainConfig],
    hocslm: dict[str, Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    plain = SkeletonStore.tokenise

    def noting(store: SkeletonStore, *arguments: Any) -> None:
        assert store.texts is not None
        read.extend(text for texts in store.texts for text in texts)
        plain(store, *arguments)

    monkeypatch.setattr(SkeletonStore, "tokenise", noting)
    own = {"data": {"dataset": folder}, "loop": {"epochs": 1}}
    train.run(recipe("name", method=hocslm | {"captions": "class-name"}, **own), SilentProgress())
    assert set(read) == set(NAMES)
    read.clear()
    train.run(recipe("any", method=hocslm | {"captions": "shuffled"}, **own), SilentProgress())
    assert "POISON" not in read
    with pytest.raises(ValueError, match=r"method\.captions: shuffled there, own now"):
        train.run(recipe("any", method=hocslm, **own), SilentProgress())


def test_a_run_made_before_a_key_was_there_goes_on_as_with_its_default(
    recipe: Callable[..., TrainConfig], hocslm: dict[str, Any]
) -> None:
    config = recipe(method=hocslm, loop={"epochs": 1})
    train.run(config, SilentProgress())
    path = config.out / LAST / CHECKPOINT_FILE
    record = read_json(path, made_by="hoc train")
    del record["request"]["method"]["captions"]
    del record["request"]["data"]["orphan"]
    write_json(path, record)
    assert train.run(config, SilentProgress()).already_finished
    other = config.method.model_copy(update={"captions": "class-name"})
    with pytest.raises(ValueError, match=r"method\.captions: own there, class-name now"):
        train.run(config.model_copy(update={"method": other}), SilentProgress())
