"""Trained models for others: `SkeletonModel.from_pretrained("OWNER/NAME")` knows its inputs.

Letters: N samples, M bodies, T frames, V joints, C channels.

A model's folder, on a disk or on the Hugging Face Hub, holds
- config.json         the arguments of SkeletonModel: architecture, joint layout, classes, inputs;
- model.safetensors   its weights; no pickle is read or written;
- README.md           the card (model_card.py).
What stands between a recording and the model (centring, cropping, stream) is that of training and
evaluation: `prepare` goes through the same store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from datasets_build.bodies import SecondBody
from datasets_build.joints import skeleton_from_json
from datasets_build.manifest import read_json
from datasets_build.settings import resolve
from training.build import RunRecord, build_model, read_run
from training.checkpoint import (
    ENVIRONMENT_FILE,
    MADE_BY,
    MODEL_FILE,
    SavedWeights,
    load_saved_weights,
    read_request,
)
from training.config import DataConfig, ModelConfig
from training.loading import one_clip
from training.methods.method import copy_state
from training.model_card import card_text
from training.scores import metrics_file
from training.seeding import seeded

_ENCODER = "encoder."  # what its names begin with in a method and here
# Settings of a recipe's [data] that say nothing of what one clip becomes.
_NOT_INPUTS = {
    "dataset", "validation_subjects", "repeat", "allow_empty_classes", "resident_gib",
}  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """One class that a clip may show.

    Attributes:
        name: of the class.
        label: its 0-based number.
        probability: 0 .. 1, over all classes 1.
    """

    name: str
    label: int
    probability: float


class SkeletonModel(nn.Module, PyTorchModelHubMixin, library_name="hocslm"):
    """A trained encoder with its classifier, its classes and its inputs.

    `from_pretrained`, `save_pretrained` and `push_to_hub` are those of huggingface_hub; a model of
    this project is found again by its config.json, which holds these arguments:

    Args:
        architecture: a name of training.build.MODELS.
        base_channels: width of its first blocks.
        switches: further keywords of its constructor.
        skeleton: the joint layout, as Skeleton.as_json gives it.
        classes: {label, action_id, name} each, in label order.
        inputs: what x is made by: "stream", "view", "num_frames" and others of a recipe's [data],
            "family" (SkeletonDataset.family) and "second_body" (what stands for an unseen one).
        training: how it was trained and what it reached, for the card; see `from_run`.

    Raises:
        ValueError: an unknown architecture, switch or layout, or inputs that are none.
    """

    def __init__(
        self,
        architecture: str,
        *,
        base_channels: int,
        switches: dict[str, Any],
        skeleton: dict[str, Any],
        classes: list[dict[str, Any]],
        inputs: dict[str, Any],
        training: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.skeleton = skeleton_from_json(skeleton)
        self.classes = classes
        settings = {**inputs, "dataset": "."}  # none is read
        self.family: str = settings.pop("family")
        self.second_body: SecondBody = settings.pop("second_body")
        self.inputs = resolve(DataConfig, settings, source="the model's inputs")
        self.record = training
        values = {"name": architecture, "base_channels": base_channels, "switches": switches}
        config = resolve(ModelConfig, values, source="the model's config.json")
        with seeded(0, "replaced weights"):
            self.encoder = build_model(config, num_classes=len(classes), skeleton=self.skeleton)

    @property
    def class_names(self) -> list[str]:
        """Names in label order."""
        return [entry["name"] for entry in self.classes]

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(M, T, V, C) of a prepared clip."""
        skeleton = self.skeleton
        return (
            skeleton.num_bodies,
            self.inputs.num_frames,
            skeleton.num_joints,
            skeleton.num_channels,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of prepared clips (N, M, T, V, C)."""
        logits: Tensor = self.encoder(x)
        return logits

    def prepare(self, clip: np.ndarray, *, image_size: tuple[int, int] | None = None) -> Tensor:
        """One recording as the model takes it: cropped or resized to T frames, one stream.

        Args:
            clip: (bodies, frames, V, C), at least one body and frame, in the coordinates of a data
                set: metres (pixels in 2-D layouts), not centred, at its real length.
            image_size: (width, height) in pixels; needed for 2-D layouts.

        Returns:
            (M, T, V, C) float32 on the CPU.

        Raises:
            ValueError: another shape, numbers that are none, or no image size where one is needed.
        """
        joints = np.asarray(clip, np.float32)
        V, C = self.skeleton.num_joints, self.skeleton.num_channels
        if joints.ndim != 4 or joints.shape[2:] != (V, C) or not joints.size:
            raise ValueError(
                f"a clip of shape {joints.shape} was given; this model takes (bodies, frames, {V}, "
                f"{C}) of layout {self.skeleton.name}, with at least one body and one frame"
            )
        if not np.isfinite(joints).all():
            raise ValueError("a clip has joints that are not numbers; leave such frames out")
        store = one_clip(
            joints,
            name="the clip",
            skeleton=self.skeleton,
            config=self.inputs,
            second_body=self.second_body,
            device=torch.device("cpu"),
            family=self.family,
            image_size=image_size,
        )
        return store.batch(store.in_order(), training=False).x[0]

    @torch.no_grad()
    def predict(
        self,
        clips: Sequence[np.ndarray],
        *,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        num_classes: int = 5,
        batch_size: int = 64,
    ) -> list[list[Prediction]]:
        """The most probable classes of recordings.

        Args:
            clips: see `prepare`; none give an empty list.
            image_sizes: one a clip; needed for 2-D layouts.
            num_classes: how many classes of each clip, the most probable one first.
            batch_size: clips computed at once.

        Raises:
            ValueError: see `prepare`.
        """
        sizes = [None] * len(clips) if image_sizes is None else image_sizes
        if len(sizes) != len(clips):
            raise ValueError(f"{len(sizes)} image sizes were given for {len(clips)} clips")
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        found: list[list[Prediction]] = []
        for start in range(0, len(clips), batch_size):
            part = slice(start, start + batch_size)
            x = torch.stack(
                [
                    self.prepare(clip, image_size=size)
                    for clip, size in zip(clips[part], sizes[part], strict=True)
                ]
            )  # (N, M, T, V, C)
            probabilities = self(x.to(device)).float().softmax(dim=1)  # (N, num_classes)
            best = probabilities.topk(min(num_classes, len(self.classes)), dim=1)
            found += [
                [
                    Prediction(self.class_names[label], label, probability)
                    for label, probability in zip(labels, values, strict=True)
                ]
                for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        self.train(was_training)
        return found

    @classmethod
    def from_run(cls, run: Path) -> SkeletonModel:
        """The model of a training run, with the weights that evaluation uses.

        Of a HocSLM run this is the encoder with its classifier; the projection and the language
        model are left out. Accuracies are those of `hoc evaluate`, where it scored these weights.

        Args:
            run: the run folder.

        Raises:
            FileNotFoundError: no such run, or it has no checkpoint.
            ValueError: a file is damaged.
        """
        run = Path(run)
        record = read_run(run)
        weights = load_saved_weights(run)
        config = record.config
        _, request = read_request(run)
        model = cls(
            config.model.name,
            base_channels=config.model.base_channels,
            switches=dict(config.model.switches),
            skeleton=record.skeleton.as_json(),
            classes=record.classes,
            inputs={
                **config.data.model_dump(mode="json", exclude=_NOT_INPUTS),
                "protocol": request["protocol"],  # its name, where the recipe gave a file
                "family": record.family,
                "second_body": record.second_body,
            },
            training=_training(record, weights),
        )
        own = {name: value for name, value in weights.tensors.items() if name.startswith(_ENCODER)}
        copy_state(model.state_dict(), own, what=f"the checkpoint of {run}")
        return model.eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that save_pretrained and push_to_hub write; see model_card.card_text."""
        num_parameters = sum(parameter.numel() for parameter in self.parameters())
        config = self._hub_mixin_config
        assert isinstance(config, dict), "the mixin keeps our arguments as they are"
        return ModelCard(card_text(config, num_parameters=num_parameters, **kwargs))

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **kwargs: Any) -> str:
        """See huggingface_hub; here only its owner sees a new repository unless told otherwise."""
        kwargs.setdefault("model_card_kwargs", {"repo_id": repo_id})
        url: str = super().push_to_hub(repo_id, private=private, **kwargs)
        return url

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        **model_kwargs: Any,
    ) -> SkeletonModel:
        """The weights of a folder or repository; every tensor must fit, and no pickle is tried."""
        try:
            model = cls(**model_kwargs)
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{model_id} holds no config.json of a SkeletonModel of this version ({error}); "
                "give what `hoc push` or SkeletonModel.save_pretrained made"
            ) from error
        path = Path(model_id) / MODEL_FILE
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    model_id,
                    MODEL_FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({error}); get the model anew") from error
        copy_state(model.state_dict(), weights, what=str(path))
        return model.to(map_location).eval()


def _training(record: RunRecord, weights: SavedWeights) -> dict[str, Any]:
    """JSON values for the card: data, recipe, where the weights come from, what they reach."""
    config, folder = record.config, record.folder
    _, request = read_request(folder)
    environment = read_json(folder / ENVIRONMENT_FILE, made_by=MADE_BY)
    values = {
        "dataset": record.dataset_name,
        "dataset_fingerprint": record.dataset_fingerprint,
        "protocol_fingerprint": record.protocol_fingerprint,
        "method": config.method.name,
        "starts_from": request.get("init_weights_sha256"),
        "optimizer": config.optim.name,
        "lr": config.optim.lr,
        "batch_size": config.loop.batch_size,
        "epochs": weights.epoch,
        "epochs_planned": config.loop.epochs,
        "seed": config.loop.seed,
        "git_commit": environment.get("git_commit"),
        "test": None,
    }
    path = metrics_file(folder, "test")
    if path.is_file():
        metrics = read_json(path, made_by="hoc evaluate")
        ours = {
            "epochs": weights.epoch,
            "weights_sha256": weights.sha256,
            "dataset_fingerprint": record.dataset_fingerprint,
            "protocol": request["protocol"],
        }
        # Else they are of weights that the run no longer has, or of another task.
        if all(metrics.get(key, value) == value for key, value in ours.items()):
            kept = ("dataset", "protocol", "num_samples", "top1", "top5", "mean_class")
            values["test"] = {key: metrics[key] for key in kept}
    return values
