"""Small seeded data sets and a two-layer language model, made in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from datasets_build import schema
from datasets_build.joints import NTU_25, Skeleton, skeleton_named
from datasets_build.manifest import fingerprint, write_json
from datasets_build.shards import index_entries, write_shard
from training.command_config import SweepConfig
from training.config import TrainConfig

NAMES = ("sit down", "clapping", "hand waving", "kicking something")
ACTION_IDS = (8, 10, 23, 24)
WORDS = ("sits down", "claps", "waves", "kicks something")
MOVED_JOINTS = ((0, 1, 12, 16), (7, 11), (11, 24), (18, 19))
SMALL_RECIPE = """
[data]
protocol = "ntu60-xsub"
num_frames = 8
[model]
base_channels = 4
switches = { num_subsets = 1 }
[optim]
name = "adamw"
lr = 3e-3
schedule = "cosine"
warmup_epochs = 0
[loop]
epochs = 1
batch_size = 8
device = "cpu"
num_threads = 1
"""


def draw_joints(rng: np.random.Generator, label: int, *, num_bodies: int = 1) -> np.ndarray:
    """A standing body whose moving joints tell its class: (M, T, 25, 3) float32, metres."""
    skeleton = skeleton_named("ntu-25")
    num_frames = int(rng.integers(12, 30))
    rest = np.random.default_rng(7).normal(0, 0.4, (skeleton.num_joints, 3))
    joints = np.tile(rest, (num_bodies, num_frames, 1, 1))
    phase = np.sin(np.linspace(0, 2 * np.pi * rng.uniform(1.5, 2.5), num_frames))
    joints[:, :, list(MOVED_JOINTS[label]), 1] += 0.6 * phase[:, None]
    joints += rng.normal(0, 0.01, joints.shape) + rng.normal(0, 0.3, 3) + [0, 0, 3]
    return joints.astype(np.float32)


def build_dataset(
    folder: Path,
    *,
    num_classes: int = 3,
    repetitions: int = 4,
    seed: int = 0,
    captions: str = "train",
    change: Callable[[dict[str, Any]], None] | None = None,
    class_order: tuple[int, ...] | None = None,
    family: str = "ntu",
) -> Path:
    """A data set in the form that `hoc build-dataset` writes, from seeded motions.

    Subjects 1 and 2 are training, 3 is test (NTU60 cross-subject). Captions of the test subject are
    poison that nothing may read, unless captions is "none".
    """
    rng = np.random.default_rng(seed)
    order = class_order or tuple(range(num_classes))
    rows = []
    for subject in (1, 2, 3):
        for kind in order:
            for repetition in range(1, repetitions + 1):
                action = ACTION_IDS[kind]
                joints = draw_joints(rng, kind, num_bodies=1 + repetition % 2)
                name = f"S001C001P{subject:03d}R{repetition:03d}A{action:03d}"
                text = f"A person {WORDS[kind]}."
                texts = [text, text[:-1] + " again."] if subject < 3 else ["POISON"]
                row = {
                    schema.SAMPLE_ID: name,
                    schema.DATASET: "ntu",
                    schema.LABEL: order.index(kind),
                    schema.ACTION_ID: action,
                    schema.SETUP_ID: 1,
                    schema.CAMERA_ID: 1,
                    schema.SUBJECT_ID: subject,
                    schema.REPETITION_ID: repetition,
                    schema.NUM_FRAMES: joints.shape[1],
                    schema.NUM_BODIES: joints.shape[0],
                    schema.JOINTS: joints.reshape(-1),
                    schema.CAPTIONS: [
                        {schema.PROMPT_ID: f"p{i}", schema.TEXT: t, schema.REQUEST_KEY: "k"}
                        for i, t in enumerate(texts if captions != "none" else [])
                    ],
                }
                if change is not None:
                    change(row)
                rows.append(row)
    classes = [(ACTION_IDS[kind], NAMES[kind]) for kind in order]
    return write_dataset(folder, rows, family=family, skeleton=NTU_25, classes=classes)


def write_dataset(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    family: str,
    skeleton: Skeleton,
    classes: Sequence[tuple[int, str]],
) -> Path:
    """Two parts and dataset.json of rows of DATASET_SCHEMA; classes are (action_id, name)."""
    rows = sorted(rows, key=lambda row: row[schema.SAMPLE_ID])
    folder.mkdir(parents=True, exist_ok=True)
    half = len(rows) // 2
    shards = [
        write_shard(
            folder / f"part-{i:05d}.arrow", pa.Table.from_pylist(part, schema.DATASET_SCHEMA)
        )
        for i, part in enumerate((rows[:half], rows[half:]))
    ]
    record = {
        "schema_version": schema.DATASET_SCHEMA_VERSION,
        "name": "small",
        "format": "ntu",
        "family": family,
        "skeleton": skeleton.as_json(),
        "classes": [
            {"label": label, "action_id": action_id, "name": name}
            for label, (action_id, name) in enumerate(classes)
        ],
        "options": {"bodies": {"second_body": "original"}},
        "counts": {"num_rows": len(rows), "num_captions": 0},
        "fingerprint": fingerprint({"shards": [shard.sha256 for shard in shards]}),
        "shards": index_entries(shards),
        "files": {},
    }
    write_json(folder / "dataset.json", record)
    return folder


def build_language_model(folder: Path) -> Path:
    """A two-layer random Qwen3 with a word tokenizer, as `save_pretrained` leaves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = sorted({w for text in WORDS for w in text.split()} | {"A", "person", "again", "."})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.save_pretrained(str(folder))
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(autouse=True)
def same_weights_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="session")
def language_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_language_model(tmp_path_factory.mktemp("models") / "two-layers")


@pytest.fixture
def make_dataset() -> Callable[..., Path]:
    return build_dataset


@pytest.fixture
def write_rows() -> Callable[..., Path]:
    return write_dataset


@pytest.fixture
def recipe(dataset_folder: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes a small classify recipe; sections given as keywords are laid over it."""

    def make(out: str = "run", **sections: dict[str, Any]) -> TrainConfig:
        values: dict[str, dict[str, Any]] = {
            "data": {"dataset": dataset_folder, "protocol": "ntu60-xsub", "num_frames": 16},
            "model": {"base_channels": 8},
            "method": {"name": "classify"},
            "optim": {
                "name": "adamw",
                "lr": 3e-3,
                "weight_decay": 0.01,
                "schedule": "cosine",
                "warmup_epochs": 0,
            },
            "loop": {
                "epochs": 2,
                "batch_size": 8,
                "device": "cpu",
                "deterministic": True,
                "num_threads": 1,
            },
        }
        for section, changes in sections.items():
            values[section] = {**values[section], **changes}
        return TrainConfig.model_validate({"out": tmp_path / out, **values})

    return make


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe of one short epoch, for sweeps."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL_RECIPE)
    return path


@pytest.fixture
def sweep_config(tmp_path: Path, dataset_folder: Path, recipe_file: Path) -> Callable[..., Any]:
    """Makes the settings of a sweep from its file's text, which may name "small.toml"."""

    def make(text: str, **changes: Any) -> SweepConfig:
        (tmp_path / "mine.toml").write_text(text)
        values = {
            "sweep": str(tmp_path / "mine.toml"),
            "dataset": dataset_folder,
            "out": tmp_path / "out",
        }
        return SweepConfig.model_validate(values | changes)

    return make


@pytest.fixture
def hocslm(language_model_folder: Path) -> dict[str, Any]:
    """The method section of a small HocSLM recipe."""
    return {
        "name": "hocslm",
        "language_model": str(language_model_folder),
        "hidden": 32,
        "prompt_length": 2,
        "max_caption_tokens": 12,
    }
