"""The card of a model: README.md with the YAML header that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from datasets_build.card import OWNERS


def card_text(config: Mapping[str, Any], *, num_parameters: int, repo_id: str | None = None) -> str:
    """The card of a SkeletonModel; numbers that were not measured are not in it.

    No licence is claimed: the weights come from recordings that have terms of their own.

    Args:
        config: its config.json, the arguments of SkeletonModel.
        num_parameters: of the model.
        repo_id: its name on the Hub, for the example; None: the folder the card lies in.
    """
    training = config["training"]
    inputs, skeleton = config["inputs"], config["skeleton"]
    head = ModelCardData(
        library_name="hocslm",
        tags=[
            "skeleton-based-action-recognition",
            config["architecture"],
            skeleton["name"],
            "model_hub_mixin",
            "pytorch_model_hub_mixin",
        ],
    )
    data = "" if training is None else f" on {training['dataset']}"
    paragraphs = [
        f"---\n{head.to_yaml()}\n---",
        f"# {config['architecture']}, {inputs['stream']} stream{data}",
        f"A skeleton-based action recognition model of {len(config['classes'])} classes. It takes "
        f"the {inputs['stream']} stream of {inputs['num_frames']} frames in the {inputs['view']} "
        f"view, joint layout {skeleton['name']} ({len(skeleton['joints'])} joints, up to "
        f"{skeleton['num_bodies']} bodies); config.json names joints and classes.",
        _table(_rows(config, num_parameters)),
        *_notes(training),
        _example(config, repo_id),
        "The data, and so the use of these weights: "
        + OWNERS.get(inputs["family"], "the terms of the original recordings apply.")
        + " No licence of the weights is claimed here.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _rows(config: Mapping[str, Any], num_parameters: int) -> list[tuple[str, str]]:
    switches = ", ".join(f"{name} = {value}" for name, value in config["switches"].items())
    rows = [
        ("model", f"{config['architecture']}, {num_parameters:,} parameters"),
        ("base channels", f"{config['base_channels']}{'; ' if switches else ''}{switches}"),
        ("protocol", config["inputs"]["protocol"]),
    ]
    training = config["training"]
    if training is None:
        return rows
    planned = training["epochs_planned"]
    unfinished = "" if training["epochs"] == planned else f" of {planned}: not finished"
    rows += [
        ("data set", f"{training['dataset']}, fingerprint {training['dataset_fingerprint'][:12]}"),
        (
            "training",
            f"{training['method']}, {training['optimizer']}, learning rate {training['lr']:g}, "
            f"batch {training['batch_size']}, seed {training['seed']}",
        ),
        ("weights", f"last epoch ({training['epochs']}{unfinished})"),
        ("commit", training["git_commit"] or "not known"),
    ]
    return rows + _measured(training["test"])


def _measured(test: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if test is None:
        return [("test", "not measured")]
    where = f"{test['num_samples']:,} samples of {test['dataset']}, {test['protocol']}"
    return [
        ("test", where),
        ("top-1", f"{test['top1']:.2%}"),
        ("top-5", f"{test['top5']:.2%}"),
        ("mean per class", f"{test['mean_class']:.2%}"),
    ]


def _table(rows: list[tuple[str, str]]) -> str:
    lines = ["| what | value |", "|---|---|"]
    lines += [f"| {name} | {value.replace('|', '&#124;')} |" for name, value in rows]
    return "\n".join(lines)


def _notes(training: Mapping[str, Any] | None) -> list[str]:
    notes = []
    if training is not None and training["method"] == "hocslm":
        notes.append(
            "Trained with captions (HocSLM). This is the encoder with its classifier alone; the "
            "projection and the language model are not part of it."
        )
    if training is not None and training["starts_from"] is not None:
        notes.append(
            "The training began with the weights of another run (sha256 "
            f"{training['starts_from'][:12]}); epochs are those of the second one."
        )
    return notes


def _example(config: Mapping[str, Any], repo_id: str | None) -> str:
    skeleton = config["skeleton"]
    joints, dims = len(skeleton["joints"]), skeleton["joint_dims"]
    channels = dims + skeleton["has_score"]
    is_flat = dims == 2
    unit = "pixels" if is_flat else "metres"
    score = ", then a score" if skeleton["has_score"] else ""
    sizes = ", image_sizes=[(1920, 1080)]" if is_flat else ""
    return (
        "```python\n"
        "import numpy as np\n"
        "from training.pretrained import SkeletonModel  # of the package hocslm\n\n"
        f'model = SkeletonModel.from_pretrained("{repo_id or "."}")\n'
        f"# One recording: bodies, frames, joints, coordinates in {unit}{score}.\n"
        f"clip = np.random.default_rng(0).random((1, 60, {joints}, {channels}), np.float32)\n"
        f"for guess in model.predict([clip]{sizes})[0]:\n"
        '    print(f"{guess.probability:6.1%}  {guess.name}")\n'
        "```"
    )
