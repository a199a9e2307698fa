"""Layouts that are nobody's benchmark, and COCO's 2-D one, from a data set through training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets_build import schema
from datasets_build.dataset import open_dataset
from datasets_build.joints import COCO_17, Skeleton
from datasets_build.progress import SilentProgress
from training import evaluate, train
from training.build import build_model, read_run
from training.command_config import EvaluateConfig
from training.config import DataConfig, ModelConfig, TrainConfig
from training.inputs import export_inputs
from training.loading import load_split, one_clip
from training.skeleton_data import SkeletonStore

CPU = torch.device("cpu")
Recipe = Callable[..., TrainConfig]

STAR = Skeleton(
    name="five-points",
    joints=("chest", "left hand", "right hand", "left foot", "right foot"),
    parents=(0, 0, 0, 0, 0),
    centre=0,
    num_bodies=1,
)
# A chain of 33 with a score, as many landmarks as MediaPipe's pose has.
CHAIN = Skeleton(
    name="chain-33",
    joints=tuple(f"joint {i}" for i in range(33)),
    parents=(0, *range(32)),
    centre=3,
    num_bodies=2,
    has_score=True,
)
BY_SUBJECT = """
name = "by-subject"
dataset = "generic"
num_classes = 2
split_by = "subject_id"
train = [1, 2]
test = [3]
"""


def draw_clip(rng: np.random.Generator, skeleton: Skeleton, label: int) -> np.ndarray:
    """(M, T, V, C) float32: joint 1 + label swings."""
    shape = (skeleton.num_bodies, int(rng.integers(8, 20)), skeleton.num_joints)
    joints = rng.normal(0, 0.05, (*shape, skeleton.num_channels))
    joints[:, :, 1 + label, 1] += np.sin(np.linspace(0, 6, shape[1]))
    if skeleton.joint_dims == 2:
        joints[..., :2] = 960 + 300 * joints[..., :2]
    if skeleton.has_score:
        joints[..., -1] = rng.uniform(0.2, 1, shape)
    return joints.astype(np.float32)


@pytest.fixture
def make_generic(write_rows: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Makes a data set: two classes, three subjects, 4 clips of each, protocol "by-subject"."""

    def make(
        skeleton: Skeleton,
        *,
        name: str = "data",
        image_size: tuple[int | None, int | None] = (None, None),
        change: Callable[[np.ndarray], None] | None = None,
    ) -> Path:
        rng = np.random.default_rng(0)
        rows = []
        for number in range(24):
            joints = draw_clip(rng, skeleton, number % 2)
            if change is not None:
                change(joints)
            row = {
                schema.SAMPLE_ID: f"take {number:02d}",
                schema.DATASET: "generic",
                schema.LABEL: number % 2,
                schema.ACTION_ID: number % 2 + 1,
                schema.SUBJECT_ID: 1 + number // 8,
                schema.NUM_FRAMES: joints.shape[1],
                schema.NUM_BODIES: joints.shape[0],
                schema.IMAGE_WIDTH: image_size[0],
                schema.IMAGE_HEIGHT: image_size[1],
                schema.JOINTS: joints.reshape(-1),
                schema.CAPTIONS: [],
            }
            rows.append(row)
        classes = [(1, "swing one"), (2, "swing two")]
        folder = tmp_path / name
        write_rows(folder, rows, family="generic", skeleton=skeleton, classes=classes)
        (folder / "protocols").mkdir()
        (folder / "protocols" / "by-subject.toml").write_text(BY_SUBJECT)
        return folder

    return make


def small_run(recipe: Recipe, folder: Path, **data: Any) -> Path:
    """A run of one epoch of a tiny model."""
    config = recipe(
        data={"dataset": folder, "protocol": "by-subject", "num_frames": 8, **data},
        model={"base_channels": 4, "switches": {"num_heads_gsm": 3}},
        loop={"epochs": 1},
    )
    train.run(config, SilentProgress())
    return config.out


def scored(run: Path, **options: Any) -> evaluate.EvaluateSummary:
    return evaluate.run(EvaluateConfig(run=run, device="cpu", **options), SilentProgress())


def store_of(folder: Path, split: Any = "test", **options: Any) -> SkeletonStore:
    dataset = open_dataset(folder)
    config = DataConfig(dataset=folder, protocol="by-subject", num_frames=8, **options)
    return load_split(dataset, dataset.protocol("by-subject"), split, config, device=CPU)


@pytest.mark.parametrize(
    ("skeleton", "image_size"),
    [(STAR, (None, None)), (CHAIN, (None, None)), (COCO_17, (1920, 1080))],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.parametrize("stream", ["joint", "bone2-motion"])
def test_any_layout_trains_and_is_evaluated(
    recipe: Recipe,
    make_generic: Callable[..., Path],
    skeleton: Skeleton,
    image_size: tuple[int | None, int | None],
    stream: str,
) -> None:
    run = small_run(recipe, make_generic(skeleton, image_size=image_size), stream=stream)
    assert read_run(run).skeleton == skeleton
    summary = scored(run)
    assert summary.accuracy.num_samples == 8


def test_a_model_takes_a_layout_itself_and_all_of_its_channels() -> None:
    settings = ModelConfig(base_channels=4)
    model = build_model(settings, num_classes=2, skeleton=CHAIN)
    assert model(torch.randn(2, 2, 8, 33, 4)).shape == (2, 2)
    with pytest.raises(ValueError, match=r"3 channels was given to a model of 2, 33 and 4 \(chain"):
        model(torch.randn(2, 2, 8, 33, 3))
    with pytest.raises(ValueError, match="choose 1 to 5, the joints of 'five-points'"):
        build_model(
            ModelConfig(base_channels=4, switches={"num_heads_gsm": 6}),
            num_classes=2,
            skeleton=STAR,
        )


def test_a_data_set_of_a_changed_layout_is_refused(
    recipe: Recipe, make_generic: Callable[..., Path]
) -> None:
    run = small_run(recipe, make_generic(STAR))
    renamed = make_generic(replace(STAR, name="star"), name="renamed")
    with pytest.raises(ValueError, match=r"layout five-points, .*renamed holds star; give"):
        scored(run, dataset=renamed)
    rewired = make_generic(replace(STAR, parents=(0, 0, 1, 0, 0)), name="rewired")
    with pytest.raises(ValueError, match="another layout of that name"):
        scored(run, dataset=rewired)


def test_a_protocol_whose_rule_changed_after_training_is_refused(
    recipe: Recipe, make_generic: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_generic(STAR)
    run = small_run(recipe, folder)
    trained_with = open_dataset(folder).protocol("by-subject")
    assert read_run(run).protocol_fingerprint == trained_with.fingerprint
    own = folder / "protocols" / "by-subject.toml"
    own.write_text(BY_SUBJECT + 'rule = "the same in other words"\n')
    scored(run)
    own.write_text(BY_SUBJECT.replace("[1, 2]", "[2, 3]").replace("[3]", "[1]"))
    for options in ({}, {"protocol": "by-subject"}):  # subject 1 is test by now
        with pytest.raises(ValueError, match=r"by-subject, whose rule has changed since.*subject"):
            scored(run, **options)
    renamed = BY_SUBJECT.replace("by-subject", "other").replace("[3]", "[1]")
    (folder / "protocols" / "other.toml").write_text(renamed.replace("[1, 2]", "[2, 3]"))
    with pytest.raises(ValueError, match="whose rule has changed since"):
        scored(run, protocol="other")
    with pytest.raises(ValueError, match="protocol_fingerprint"):
        small_run(recipe, folder)  # no resume under another rule


def test_samples_trained_on_are_known_in_another_data_set_by_the_runs_own(
    recipe: Recipe, make_generic: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_generic(STAR)
    run = small_run(recipe, folder)
    other = make_generic(STAR, name="other", change=lambda joints: joints.__iadd__(1))
    assert scored(run, dataset=other).accuracy.num_samples == 8  # under the same rule
    rule = BY_SUBJECT.replace("by-subject", "swapped").replace("[3]", "[1]")
    rule = rule.replace("[1, 2]", "[2, 3]")
    (other / "protocols" / "swapped.toml").write_text(rule)
    with pytest.raises(ValueError, match="trained on 8 of the 8 test samples of swapped"):
        scored(run, dataset=other, protocol="swapped")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"is not there, so it cannot be told"):
        scored(run, dataset=other, protocol="swapped")


def test_pixels_are_normalised_by_the_size_of_their_picture(
    make_generic: Callable[..., Path],
) -> None:
    def hide(joints: np.ndarray) -> None:
        joints[1, 2:] = 0  # the second body leaves
        joints[0, 0, 3, 2] = 0.004  # a joint that was hardly found

    folder = make_generic(COCO_17, image_size=(1920, 1080), change=hide)
    store = store_of(folder, "train")
    x = store.batch(store.picks(np.array([0])), training=False).x[0]  # (M, T, V, C)
    # One clip by hand, as PYSKL's PreNormalize2D and the resize of the view do it.
    rng = np.random.default_rng(0)
    joints = draw_clip(rng, COCO_17, 0)
    hide(joints)
    want = joints.copy()
    want[..., 0] = (joints[..., 0] - 960) / 960
    want[..., 1] = (joints[..., 1] - 540) / 540
    want[..., :2][joints[..., 2] <= 0.01] = 0
    clip = want.transpose(0, 2, 3, 1).reshape(1, -1, want.shape[1])
    size = (clip.shape[1], 8)
    want = (
        torch.nn.functional.interpolate(
            torch.from_numpy(clip)[None], size=size, mode="bilinear", align_corners=False
        )
        .view(2, 17, 3, 8)
        .permute(0, 3, 1, 2)
    )
    torch.testing.assert_close(x, want, rtol=0, atol=1e-5)
    assert torch.count_nonzero(x[1, -1]) == 0


def test_neither_views_nor_streams_touch_the_score(make_generic: Callable[..., Path]) -> None:
    for skeleton, size in ((COCO_17, (640, 480)), (CHAIN, (None, None))):
        folder = make_generic(skeleton, name=skeleton.name, image_size=size)
        views = []
        for stream in ("joint", "bone", "joint-motion"):
            store = store_of(folder, stream=stream)
            views.append(store.batch(store.in_order(), training=True).x)
        assert torch.equal(views[0][..., -1], views[1][..., -1])
        assert torch.equal(views[0][..., -1], views[2][..., -1])
        assert float(views[0][..., -1].min()) >= 0.2
        assert float(views[0][..., -1].max()) <= 1.0


def test_only_3d_joints_are_turned_for_training(make_generic: Callable[..., Path]) -> None:
    """A clip whose frames are all alike does not depend on the crop."""

    def freeze(joints: np.ndarray) -> None:
        joints[:] = joints[:, :1]

    for skeleton, size in ((COCO_17, (640, 480)), (CHAIN, (None, None))):
        folder = make_generic(skeleton, name=skeleton.name, image_size=size, change=freeze)
        store = store_of(folder)
        training, test = (store.batch(store.in_order(), training=t).x for t in (True, False))
        is_equal = torch.allclose(training, test, atol=1e-5)
        assert is_equal == (skeleton.joint_dims == 2)


def test_3d_joints_are_centred_and_their_score_is_not(make_generic: Callable[..., Path]) -> None:
    def move(joints: np.ndarray) -> None:
        joints[..., :3] += 5
        joints[1, 1:] = 0

    store = store_of(make_generic(CHAIN, change=move), "train")
    x = store.batch(store.picks(np.array([0])), training=False).x[0]  # (M, T, V, C)
    assert x[0, 0, CHAIN.centre, :3].abs().max() < 0.1  # the view mixes the first two frames
    assert x[0, ..., :3].abs().max() < 3
    assert torch.count_nonzero(x[1, -1]) == 0
    assert x[0, :, :, 3].min() >= 0.2


def test_pixels_without_a_picture_size_are_refused(make_generic: Callable[..., Path]) -> None:
    for size in ((None, None), (640, None)):
        folder = make_generic(COCO_17, name=f"data-{size[0]}", image_size=size)
        with pytest.raises(ValueError, match="take 16 has joints in pixels but no image size"):
            store_of(folder)
    config = DataConfig(dataset=folder, protocol="by-subject")
    joints = draw_clip(np.random.default_rng(0), COCO_17, 0)
    with pytest.raises(ValueError, match="sample a has joints in pixels"):
        one_clip(joints, name="a", skeleton=COCO_17, config=config, second_body="zeros", device=CPU)


def test_the_ucla_view_refuses_layouts_that_it_is_not_made_for(
    make_generic: Callable[..., Path],
) -> None:
    flat = replace(COCO_17, name="flat", num_bodies=1)  # three channels, but no z among them
    for skeleton, size in ((flat, (640, 480)), (CHAIN, (None, None))):
        folder = make_generic(skeleton, name=skeleton.name, image_size=size)
        with pytest.raises(ValueError, match=r'view "ucla" is for one body.*and a score'):
            store_of(folder, view="ucla")
    store = store_of(make_generic(STAR), view="ucla")
    assert store.batch(store.in_order(), training=True).x.shape == (8, 1, 8, 5, 3)


def test_inputs_of_a_layout_have_its_shape(
    make_generic: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = open_dataset(make_generic(CHAIN))
    path = tmp_path / "inputs.npz"
    export_inputs(
        dataset,
        path,
        protocol=dataset.protocol("by-subject"),
        split="test",
        stream="bone",
        progress=SilentProgress(),
    )
    arrays = np.load(path)
    assert arrays["x"].shape == (8, 2, 64, 33, 4)
    assert arrays["sample_id"].tolist() == [f"take {i}" for i in range(16, 24)]
    assert arrays["label"].tolist() == [0, 1] * 4
