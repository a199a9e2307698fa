from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets_build.joints import NTU_25
from datasets_build.progress import SilentProgress
from training import describe, train
from training.config import DescribeConfig, TrainConfig
from training.describe import mentions_class_name
from training.loading import one_clip
from training.skeleton_data import SkeletonStore


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture
def trained(recipe: Callable[..., TrainConfig], hocslm: dict[str, Any], shared: Path) -> Path:
    """One HocSLM run for this file."""
    config = recipe(method=hocslm, loop={"epochs": 4})
    train.run(config.model_copy(update={"out": shared}), SilentProgress())
    return shared


def ask(run: Path, **changes: Any) -> describe.DescribeSummary:
    config = DescribeConfig(run=run, device="cpu", max_new_tokens=8, **changes)
    return describe.run(config, SilentProgress())


def test_a_whole_split_is_described_and_written(trained: Path) -> None:
    summary = ask(trained, every=True, batch_size=5)
    assert len(summary.descriptions) == 12
    assert summary.file is not None
    record = json.loads(summary.file.read_text())
    assert len(record["descriptions"]) == 12
    first = record["descriptions"][0]
    assert first["action"] in ("sit down", "clapping", "hand waving")
    named = [entry.names_action for entry in summary.descriptions]
    assert summary.share_named == pytest.approx(sum(map(bool, named)) / 12)


def test_a_learned_description_uses_the_words_of_the_captions(trained: Path) -> None:
    (entry,) = ask(trained, sample_ids=("S001C001P003R001A008",)).descriptions
    assert entry.action == "sit down"
    assert "POISON" not in entry.text


def test_samples_come_in_the_order_asked_for_from_both_splits(trained: Path) -> None:
    names = ("S001C001P003R002A010", "S001C001P001R001A023", "S001C001P003R001A008")
    summary = ask(trained, sample_ids=names)
    assert tuple(entry.sample_id for entry in summary.descriptions) == names
    assert summary.file is None


def test_description_twice_gives_the_same_text(trained: Path) -> None:
    names = ("S001C001P003R002A010", "S001C001P003R001A008")
    assert ask(trained, sample_ids=names) == ask(trained, sample_ids=names)


def test_the_match_of_actions_is_the_callers(trained: Path) -> None:
    config = DescribeConfig(run=trained, every=True, device="cpu", max_new_tokens=4)
    summary = describe.run(config, SilentProgress(), names_action=lambda text, name: name[0] == "s")
    assert summary.share_named == pytest.approx(1 / 3)


def test_an_unknown_sample_is_named(trained: Path) -> None:
    with pytest.raises(ValueError, match="S009C001P003R001A008"):
        ask(trained, sample_ids=("S001C001P003R001A008", "S009C001P003R001A008"))


def test_a_skeleton_file_is_described_without_a_data_set_row(trained: Path, tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[3] / "shared" / "data" / "ntu"
    files = sorted(source.rglob("*.skeleton")) if source.is_dir() else []
    if not files:
        pytest.skip("../shared/data/ntu with real .skeleton files is not here")
    (entry,) = ask(trained, skeletons=(files[0],)).descriptions
    assert entry.sample_id == files[0].stem
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ask(trained, skeletons=(tmp_path / "a.skeleton",))
    broken = tmp_path / "b.skeleton"
    broken.write_text("nonsense")
    with pytest.raises(ValueError, match=r"not a readable \.skeleton file"):
        ask(trained, skeletons=(broken,))


def test_a_skeleton_file_is_centred_as_the_data_set_trained_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joints = np.random.default_rng(0).normal(1, 0.1, (16, 25, 3))
    joints[5] = 0  # CTR-GCN shifts empty frames of a single body like all others
    lines = ["16"]
    for frame in joints:
        lines += ["1", "72057594037944738 0 1 1 0 0 0 0.1 0.1 2", "25"]
        lines += [f"{x:.6f} {y:.6f} {z:.6f} 0 0 0 0 0 0 0 0 2" for x, y, z in frame]
    file = tmp_path / "S001C001P003R001A008.skeleton"
    file.write_text("\n".join(lines) + "\n")
    stores: list[SkeletonStore] = []

    def spied(*args: Any, **options: Any) -> SkeletonStore:
        stores.append(one_clip(*args, **options))
        return stores[-1]

    monkeypatch.setattr(describe, "one_clip", spied)
    assert ask(trained, skeletons=(file,)).descriptions[0].action == "sit down"
    x = stores[0].batch(stores[0].in_order(), training=False).x[0, 0].numpy()  # (T, V, C)
    np.testing.assert_allclose(x, joints - joints[0, NTU_25.centre], atol=2e-6)


def test_a_run_that_learned_no_text_is_refused(recipe: Callable[..., TrainConfig]) -> None:
    config = recipe(loop={"epochs": 1})
    train.run(config, SilentProgress())
    with pytest.raises(ValueError, match="learns no text"):
        ask(config.out, every=True)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("A person claps twice.", "clapping", True),
        ("A person waves the right hand.", "hand waving", True),
        ("A person sits down slowly.", "sit down", True),
        ("A person stands up.", "sit down", False),
        ("A person hops.", "hopping (one foot jumping)", True),
        ("A person kicks.", "kicking something", False),
        ("", "clapping", False),
    ],
)
def test_class_names_are_found_by_their_stems(text: str, name: str, expected: bool) -> None:
    assert mentions_class_name(text, name) is expected
