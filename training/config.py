"""What a training run is told; imports no torch.

A recipe is a TOML file of `training/recipes/` (or anywhere) read into a frozen `TrainConfig`.
Numbers that are defaults here follow the parent recipe (CTR-GCN's for NTU) unless a comment says
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import to_jsonable_python

from datasets_build.child_processes import available_cores
from datasets_build.settings import Settings

SUMMARY_FILE = "train.json"  # written into a run folder when its training has ended

Split = Literal["train", "validation", "test"]
View = Literal["ntu", "ucla"]
Part = Literal["encoder", "head", "ssf"]
# The names of training.streams.STREAMS, which needs torch; a test compares them.
Stream = Literal["joint", "bone", "bone2", "joint-motion", "bone-motion", "bone2-motion"]
Orphan = Literal["zero", "keep"]
Weights = Literal["last", "best"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Captions = Literal["own", "shuffled", "shuffled-in-class", "class-name"]


class DataConfig(Settings):
    """Which samples a run sees and what is done to them.

    Attributes:
        dataset: folder that `hoc build-dataset` wrote.
        protocol: name of the rule that splits it (a published one or one of the data set's own),
            or a .toml file that defines it.
        stream: which of the six inputs (training/streams.py).
        orphan: what a joint without the ancestor that its bone leads to becomes: "zero" (CTR-GCN,
            ProtoGCN), or it may "keep" its coordinates (InfoGCN).
        validation_subjects: subject ids whose training samples are not trained on but form the
            split "validation", on which choices may be made.
        num_frames: T, frames a clip is brought to.
        view: whose cropping and augmentation: "ntu" or "ucla" (CTR-GCN's feeders).
        repeat: times that each training sample is seen in an epoch, with other draws each time.
        allow_empty_classes: train although a class of the data set has no training sample.
        unseen_classes: names or action_ids (1-based, as in file names) of classes that are neither
            trained nor validated on; `hoc zero-shot` asks for them. The head keeps its width.
        resident_gib: joints up to this size lie on the training device; larger sets are
            memory-mapped.
    """

    dataset: Path
    protocol: str
    stream: Stream = "joint"
    orphan: Orphan = "zero"
    validation_subjects: tuple[int, ...] = ()
    num_frames: int = Field(default=64, ge=2)
    view: View = "ntu"
    repeat: int = Field(default=1, ge=1)
    allow_empty_classes: bool = False
    unseen_classes: tuple[int | str, ...] = ()
    resident_gib: float = Field(default=8.0, ge=0)  # our choice: NTU120 is about 2 GiB


class ModelConfig(Settings):
    """The encoder: a name of training.build.MODELS and its constructor switches.

    Attributes:
        name: which architecture.
        base_channels: width of the first blocks.
        switches: any further keyword of that architecture's constructor.
    """

    name: str = "hglnet"
    base_channels: int = Field(default=64, ge=4)
    switches: dict[str, bool | int | float | str] = Field(default_factory=dict)


class MethodConfig(Settings):
    """What is optimised: a name of training.build.METHODS and its weights.

    The paper's strategies (Table 6) are settings of "hocslm": T1 and T2 are two runs chained by
    `init_from`, told apart by `freeze` and the two weights; T3 starts from a classify run; T4 from
    nothing.

    Attributes:
        name: "classify" (cross-entropy) or "hocslm" (cross-entropy and captions).
        language_model: what training.models.language_model can load: "tiny", "smollm2", a folder,
            a .gguf file, a hub id.
        language_model_revision: the hub revision; None for the model's current one.
        language_model_dtype: precision that the frozen weights are held in; "8bit" and "4bit" need
            bitsandbytes.
        language_model_device_map: "auto" spreads a large language model over all devices.
        gradient_checkpointing: compute the language model's layers again for the gradient instead
            of keeping what they made: less memory, a third more time.
        lambda_gen: weight of the caption loss (Eq. 14; blank in the paper).
        lambda_cls: weight of the cross-entropy (Eq. 14; blank in the paper).
        prompt_length: learnable prompt positions, Lp.
        hidden: hidden width of the projection.
        max_caption_tokens: captions are cut to this many tokens, end mark included.
        prompt_ids: use only captions made with these prompts; empty: all.
        captions: those of the sample itself, or a control's (training/caption_controls.py): of any
            other training sample, of one of the same class, or the class name alone.
        init_from: run folder whose last checkpoint gives the starting weights.
        freeze: parts that keep their weights; "encoder" needs init_from.
    """

    name: Literal["classify", "hocslm"] = "classify"
    language_model: str | None = None
    language_model_revision: str | None = None
    language_model_dtype: Literal["fp32", "bf16", "8bit", "4bit"] = "fp32"
    language_model_device_map: Literal["auto"] | None = None
    gradient_checkpointing: bool = False
    lambda_gen: float = Field(default=0.5, ge=0)
    lambda_cls: float = Field(default=1.0, ge=0)
    prompt_length: int = Field(default=8, ge=0)
    hidden: int = Field(default=1024, ge=1)
    max_caption_tokens: int = Field(default=64, ge=2)
    prompt_ids: tuple[str, ...] = ()
    captions: Captions = "own"
    init_from: Path | None = None
    freeze: tuple[Part, ...] = ()

    @property
    def reads_captions(self) -> bool:
        """Whether training reads captions, and so needs the language model."""
        return self.name == "hocslm" and self.lambda_gen > 0

    @model_validator(mode="after")
    def _fits(self) -> MethodConfig:
        if self.name == "hocslm":
            if self.language_model is None:
                raise ValueError('method "hocslm" needs language_model, for example "tiny"')
            if self.lambda_gen == 0 and self.lambda_cls == 0:
                raise ValueError("lambda_gen and lambda_cls are both 0: nothing would be trained")
            trained = {"encoder", "head", "ssf"} - set(self.freeze)
            trained -= {"head"} if self.lambda_cls == 0 else set()
            trained -= {"ssf"} if self.lambda_gen == 0 else set()
        else:
            if self.language_model is not None:
                raise ValueError('method "classify" reads no language_model; use name = "hocslm"')
            if self.captions != "own":
                raise ValueError('method "classify" reads no captions; use name = "hocslm"')
            trained = {"encoder", "head"} - set(self.freeze)
        if not trained:
            raise ValueError(f"freeze = {list(self.freeze)} leaves nothing to train")
        return self


class OptimConfig(Settings):
    """Optimiser and learning-rate schedule.

    Attributes:
        name: "sgd" or "adamw".
        lr: base learning rate.
        ssf_lr: learning rate of the projection and the learnable prompt; None: `lr`.
        weight_decay: applied to every trained weight, as the parents do.
        momentum: SGD only.
        nesterov: SGD only.
        warmup_epochs: linear warm-up.
        schedule: "step" (by whole epochs, as the parent) or "cosine" to zero (by steps).
        steps: "step": epochs after which the rate is multiplied by gamma.
        gamma: "step": the factor.
        clip_norm: largest norm of the gradient; None: not clipped.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    ssf_lr: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=4e-4, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    warmup_epochs: int = Field(default=5, ge=0)
    schedule: Literal["step", "cosine"] = "step"
    steps: tuple[int, ...] = (35, 55)
    gamma: float = Field(default=0.1, gt=0, le=1)
    clip_norm: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> OptimConfig:
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps must rise, given {list(self.steps)}")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0")
        return self


class LoopConfig(Settings):
    """The training loop.

    Attributes:
        epochs: passes over the training split.
        batch_size: samples of one optimiser step, over all processes and accumulated parts; batch
            norms see batch_size / (processes x accumulation) of them at a time.
        accumulation: parts that a process computes one after the other for one step.
        sync_batch_norm: with several processes, batch norms see the parts of all of them together.
        mixed_precision: autocast of the forward pass; "no": float32, without TF32.
        seed: of the weights, the order and every draw.
        deterministic: only bit-reproducible kernels.
        checkpoint_every_epochs: how often `last/` is replaced (the last epoch always is).
        checkpoint_every_minutes: also within an epoch, after that time, at the next logged step;
            0: only at ends of epochs.
        evaluate_every_epochs: how often the test split is scored for the log, the last epoch
            included; 0: only after training.
        keep_best_epoch: also keep the weights of the epoch that scored best at these evaluations
            (training/best_epoch.py); `hoc evaluate --weights best` labels what it makes of them.
        log_every_steps: steps that one line of metrics.jsonl sums up.
        ema_decay: decay of the averaged weights that are saved and evaluated; None: no averaging.
        device: "auto", "cpu", "cuda" or "mps".
        compile: torch.compile's mode for the encoder's training pass; "no": not compiled.
        tensorboard: also write TensorBoard events.
        tracker: also send the metrics to "wandb" or "trackio"; None: to neither.
        num_threads: CPU threads; None: as many as torch takes.
    """

    epochs: int = Field(default=65, ge=1)
    batch_size: int = Field(default=64, ge=2)
    accumulation: int = Field(default=1, ge=1)
    sync_batch_norm: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = Field(default=0, ge=0)
    deterministic: bool = False
    checkpoint_every_epochs: int = Field(default=1, ge=1)
    checkpoint_every_minutes: float = Field(default=10, ge=0)  # our choice: what one likes to lose
    evaluate_every_epochs: int = Field(default=0, ge=0)
    keep_best_epoch: bool = False
    log_every_steps: int = Field(default=20, ge=1)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    device: Device = "auto"
    compile: Literal["no", "default", "reduce-overhead", "max-autotune-no-cudagraphs"] = "no"
    tensorboard: bool = False
    tracker: Literal["wandb", "trackio"] | None = None
    num_threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> LoopConfig:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulation "
                f"{self.accumulation}"
            )
        if self.keep_best_epoch and not self.evaluate_every_epochs:
            raise ValueError("keep_best_epoch needs evaluate_every_epochs, for example 1")
        return self


_NOT_IN_REQUESTS = (
    ("data", "dataset"),  # its fingerprint is compared instead
    ("data", "protocol"),  # a name or a path; its rule is compared instead
    ("data", "resident_gib"),
    ("method", "init_from"),  # the hash of its weights is compared instead
    ("method", "language_model"),  # what its weights are is compared instead
    ("method", "language_model_revision"),
    ("method", "language_model_device_map"),
    ("method", "gradient_checkpointing"),
    ("loop", "checkpoint_every_epochs"),
    ("loop", "checkpoint_every_minutes"),
    ("loop", "evaluate_every_epochs"),
    ("loop", "keep_best_epoch"),
    ("loop", "log_every_steps"),
    ("loop", "device"),
    ("loop", "compile"),
    ("loop", "tensorboard"),
    ("loop", "tracker"),
    ("loop", "num_threads"),
)


class TrainConfig(Settings):
    """One training run.

    Attributes:
        out: run folder; resumed where it holds an unfinished run of the same recipe and data.
    """

    out: Path
    data: DataConfig
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    loop: LoopConfig = LoopConfig()

    @property
    def is_trained(self) -> bool:
        """Whether the run folder's training ended."""
        return (self.out / SUMMARY_FILE).is_file()

    def sharing_cores(self, jobs: int) -> TrainConfig:
        """The same on its share of the cores where several jobs run at a time; a number stands."""
        if jobs == 1 or self.loop.num_threads is not None:
            return self
        loop = self.loop.model_copy(update={"num_threads": max(1, available_cores() // jobs)})
        return self.model_copy(update={"loop": loop})

    def request(self) -> dict[str, Any]:
        """What decides the trained weights, and so what a resume must match; no path is in it."""
        parts = self.model_dump(mode="json", exclude={"out"})
        for section, name in _NOT_IN_REQUESTS:
            del parts[section][name]
        return parts


def with_later_keys(request: Mapping[str, Any]) -> dict[str, Any]:
    """The stored request of a run as one of today: keys that came later, without those that went.

    New keys stand at their defaults, which mean what was done before there was such a key.
    """
    filled = dict(request)
    for section, field in TrainConfig.model_fields.items():
        model = field.annotation
        if section in request and isinstance(model, type) and issubclass(model, Settings):
            later = {
                name: to_jsonable_python(own.get_default(call_default_factory=True))
                for name, own in model.model_fields.items()
                if name not in request[section] and (section, name) not in _NOT_IN_REQUESTS
            }
            known = {
                name: value
                for name, value in request[section].items()
                if (section, name) not in _NOT_IN_REQUESTS
            }
            filled[section] = {**known, **later}
    return filled
