"""From a recipe's names to models and methods, and from a run folder back to them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets_build.bodies import SecondBody
from datasets_build.dataset import DATASET_FILE, ClassEntry, SkeletonDataset, open_dataset
from datasets_build.joints import Skeleton, skeleton_from_json
from datasets_build.manifest import read_json
from datasets_build.nearest import did_you_mean
from datasets_build.protocols import Protocol
from training.checkpoint import MADE_BY
from training.config import MethodConfig, ModelConfig, TrainConfig
from training.methods.classify import ClassifyMethod
from training.methods.hocslm import HocSLMMethod
from training.methods.method import Method
from training.models.ctrgcn import CTRGCN
from training.models.hglnet import HGLNet
from training.models.language_model import FrozenLanguageModel
from training.models.language_model_files import model_identity, model_width
from training.models.ssf import SSF
from training.unseen_classes import unseen_labels

MODELS: dict[str, type[nn.Module]] = {"hglnet": HGLNet, "ctrgcn": CTRGCN}
METHODS: dict[str, type[Method]] = {"classify": ClassifyMethod, "hocslm": HocSLMMethod}

CONFIG_FILE = "config.json"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "8bit": "8bit", "4bit": "4bit"}
# given by build_model itself, not by model.switches
_OWN_KEYWORDS = ("num_classes", "skeleton", "num_bodies", "in_channels", "base_channels")


@dataclass(frozen=True)
class RunRecord:
    """config.json of a run folder: what was asked for, and the data it was trained on.

    Attributes:
        folder: the run folder.
        config: the resolved recipe.
        dataset_name: name of the data set.
        dataset_fingerprint: identifies its content.
        skeleton: its layout.
        classes: its classes in label order, {label, action_id, name} each.
        protocol_fingerprint: see Protocol.fingerprint.
        family: of its samples (SkeletonDataset.family).
        second_body: what stood for a body that was not seen.
    """

    folder: Path
    config: TrainConfig
    dataset_name: str
    dataset_fingerprint: str
    skeleton: Skeleton
    classes: list[dict[str, Any]]
    protocol_fingerprint: str
    family: str
    second_body: SecondBody

    @property
    def class_names(self) -> list[str]:
        """Names in label order."""
        return [entry["name"] for entry in self.classes]

    @property
    def unseen(self) -> frozenset[int]:
        """Labels of the classes that were left out of training."""
        classes = [ClassEntry(**entry) for entry in self.classes]
        return unseen_labels(classes, self.config.data.unseen_classes)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "settings": self.config.model_dump(mode="json"),
            "dataset": {
                "name": self.dataset_name,
                "fingerprint": self.dataset_fingerprint,
                "skeleton": self.skeleton.as_json(),
                "classes": self.classes,
                "family": self.family,
                "second_body": self.second_body,
            },
            "protocol_fingerprint": self.protocol_fingerprint,
        }

    def check_protocol(self, protocol: Protocol) -> None:
        """Refuse the protocol trained with where its rule is another one by now.

        Raises:
            ValueError: it is.
        """
        if self.protocol_fingerprint != protocol.fingerprint:
            raise ValueError(
                f"{self.folder} was trained under protocol {protocol.name}, whose rule has changed "
                f"since (now: {protocol.rule}), so that a test sample may be one it was trained "
                "on; bring the old rule back (the new one under another name) or train again"
            )

    def open_dataset(self, other: Path | None = None) -> SkeletonDataset:
        """The data set to be read: `other`, or without one that which the run was trained on.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: see datasets_build.dataset.open_dataset.
        """
        own = self.config.data.dataset
        if other is None and not (own / DATASET_FILE).is_file():
            raise FileNotFoundError(
                f"the data set that {self.folder} was trained on is not at {own.absolute()}; bring "
                "it back, start from the folder that the run was started from, or give it where it "
                "lies now with --data"
            )
        return open_dataset(other or own)

    def check_dataset(self, dataset: SkeletonDataset) -> None:
        """Refuse a data set of another skeleton, other classes or another class order.

        Raises:
            ValueError: it is one.
        """
        if dataset.skeleton != self.skeleton:
            names = self.skeleton.name, dataset.skeleton.name
            theirs = names[1] if names[0] != names[1] else "another layout of that name"
            raise ValueError(
                f"{self.folder} was trained on skeletons of layout {names[0]}, {dataset.folder} "
                f"holds {theirs}; give a data set of the same joints, bones and bodies"
            )
        classes = class_entries(dataset)
        if classes != self.classes:
            for ours, other in zip(self.classes, classes, strict=False):
                if ours != other:
                    where = (
                        f"label {ours['label']} is {ours['name']!r} (A{ours['action_id']:03d}) "
                        f"there and {other['name']!r} (A{other['action_id']:03d}) here"
                    )
                    break
            else:
                where = f"there are {len(self.classes)} classes there and {len(classes)} here"
            raise ValueError(
                f"{self.folder} was trained on other classes than {dataset.folder} has: {where}; "
                "scores are joined by label, so both must have the same classes in the same order"
            )


def class_entries(dataset: SkeletonDataset) -> list[dict[str, Any]]:
    """The classes of a data set as JSON values, in label order."""
    return [
        {"label": entry.label, "action_id": entry.action_id, "name": entry.name}
        for entry in dataset.classes
    ]


def read_run(folder: Path) -> RunRecord:
    """What a run folder says about itself.

    Raises:
        FileNotFoundError: it is no run folder.
        ValueError: its config.json is not one of ours.
    """
    value = read_json(folder / CONFIG_FILE, made_by=MADE_BY)
    try:
        data = value["dataset"]
        settings = {**value["settings"], "out": str(folder)}
        return RunRecord(
            folder=folder,
            config=TrainConfig.model_validate(settings),
            dataset_name=data["name"],
            dataset_fingerprint=data["fingerprint"],
            skeleton=skeleton_from_json(data["skeleton"]),
            classes=data["classes"],
            protocol_fingerprint=value["protocol_fingerprint"],
            family=data["family"],
            second_body=data["second_body"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / CONFIG_FILE} is not the record of a run of this version ({error}); train "
            f"again with `{MADE_BY}`"
        ) from error


def build_model(config: ModelConfig, *, num_classes: int, skeleton: Skeleton) -> nn.Module:
    """An encoder with its head, freshly initialised from torch's global generator.

    Raises:
        ValueError: no such model or switch; the message gives the nearest one.
    """
    if config.name not in MODELS:
        hint = did_you_mean(config.name, MODELS)
        raise ValueError(
            f"model.name {config.name!r} is not known; {hint}choose one of {', '.join(MODELS)}"
        )
    model = MODELS[config.name]
    known = [name for name in inspect.signature(model).parameters if name not in _OWN_KEYWORDS]
    for name in config.switches:
        if name not in known:
            raise ValueError(
                f"model.switches.{name}: {config.name} has no such switch; "
                f"{did_you_mean(name, known)}it has {', '.join(known)}"
            )
    return model(
        num_classes=num_classes,
        skeleton=skeleton,
        in_channels=skeleton.num_channels,
        base_channels=config.base_channels,
        **config.switches,
    )


def build_method(
    config: TrainConfig,
    *,
    num_classes: int,
    skeleton: Skeleton,
    device: torch.device,
    language_width: int | None = None,
) -> Method:
    """The method of a recipe on a device, freshly initialised from torch's global generator.

    Args:
        config: the recipe.
        num_classes: of the head.
        skeleton: the layout.
        device: where it goes.
        language_width: width of the language model's embeddings, where weights are at hand that
            tell it: the model is then loaded when it is first asked for.

    Raises:
        ValueError: a name or a combination in the recipe is not known.
    """
    encoder = build_model(config.model, num_classes=num_classes, skeleton=skeleton)
    settings = config.method
    if settings.name == "classify":
        return ClassifyMethod(encoder, freeze=settings.freeze).to(device)
    assert settings.language_model is not None, "the recipe was checked"
    load = partial(
        FrozenLanguageModel.load,
        settings.language_model,
        revision=settings.language_model_revision,
        dtype=_DTYPES[settings.language_model_dtype],  # type: ignore[arg-type]
        device=device,
        device_map=settings.language_model_device_map,
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    language_model: FrozenLanguageModel | None = None
    if language_width is None and settings.reads_captions:
        language_model = load()
        language_width = language_model.width
    elif language_width is None:
        language_width = model_width(
            settings.language_model, revision=settings.language_model_revision
        )
    ssf = SSF(
        encoder.num_features,  # type: ignore[arg-type]
        language_width,
        hidden=settings.hidden,
        prompt_length=settings.prompt_length,
        scale=1.0 if language_model is None else language_model.embedding_scale,
    )
    method = HocSLMMethod(
        encoder,
        ssf,
        language_model or load,
        lambda_gen=settings.lambda_gen,
        lambda_cls=settings.lambda_cls,
        freeze=settings.freeze,
    )
    return method.to(device)


def language_model_identity(method: MethodConfig) -> str:
    """What the weights of a recipe's language model are now; see model_identity.

    Raises:
        FileNotFoundError: no such model, or it cannot be reached.
    """
    assert method.language_model is not None, "the recipe was checked"
    return model_identity(method.language_model, revision=method.language_model_revision)


def pick_device(name: str) -> torch.device:
    """The torch device of "auto", "cpu", "cuda" or "mps".

    Raises:
        ValueError: it was asked for by name and is not there.
    """
    has = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = "cuda" if has["cuda"] else "mps" if has["mps"] else "cpu"
    if not has[name]:
        raise ValueError(
            f"device {name!r} is not available to torch {torch.__version__} on this machine; use "
            "device auto or cpu, or install a torch build for it (`hoc doctor` tells more)"
        )
    return torch.device(name)
