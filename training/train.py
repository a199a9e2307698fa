"""Train one stream of one recipe. `run` is what `hoc train` calls."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from datasets_build.dataset import SkeletonDataset, open_dataset
from datasets_build.manifest import environment, read_json, sha256_file, write_json
from datasets_build.progress import Progress, SilentProgress
from datasets_build.protocols import Protocol
from training.best_epoch import forget_best, save_best
from training.build import (
    CONFIG_FILE,
    RunRecord,
    build_method,
    class_entries,
    language_model_identity,
    pick_device,
    read_run,
)
from training.caption_controls import shown_captions
from training.checkpoint import (
    LANGUAGE_MODEL_KEY,
    MADE_BY,
    STAGE_KEY,
    has_checkpoint,
    load_weights,
    model_path,
    read_progress,
    read_request,
    refuse_other_request,
)
from training.config import SUMMARY_FILE, MethodConfig, Split, TrainConfig, with_later_keys
from training.evaluate import score_store
from training.execution import keep_freed_memory, make_accelerator
from training.loading import load_split
from training.loop import fit
from training.methods.hocslm import HocSLMMethod
from training.methods.method import Method, copy_state
from training.metrics import accuracy
from training.models.shared_norm import share_statistics
from training.replay import NONFINITE_FILE, NONFINITE_TENSORS
from training.run_folder import note_start, sole_trainer
from training.seeding import cpu_threads, deterministic_kernels, full_float32, seeded
from training.skeleton_data import SkeletonStore, training_problems
from training.trackers import check_trackers
from training.unseen_classes import unseen_labels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSummary:
    """How a training run ended.

    Attributes:
        folder: run folder.
        epochs: epochs trained, over all starts.
        steps: optimiser steps, over all starts.
        num_samples: training samples of the split, repeats not counted.
        num_parameters: trained numbers.
        resumed_from: optimiser steps that were already done when this start began.
        already_finished: nothing was left to do.
        seconds: wall time of the start that finished.
        samples_per_s: training rate of that start.
        metrics: the last training metrics (train/loss, train/accuracy, ...) and, where the run
            evaluates as it trains, the last of these (test/top1, ...).
    """

    folder: Path
    epochs: int
    steps: int
    num_samples: int
    num_parameters: int
    resumed_from: int
    already_finished: bool
    seconds: float
    samples_per_s: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Asked:
    """The data of a recipe, and what decides the weights that it ends with."""

    dataset: SkeletonDataset
    protocol: Protocol
    request: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """All that a run needs before its first step."""

    accelerator: Accelerator
    store: SkeletonStore
    method: Method
    record: RunRecord

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(p.numel() for p in self.method.parameters() if p.requires_grad)


def run(config: TrainConfig, progress: Progress) -> TrainSummary:
    """Train, or go on with, or find finished, the run of a recipe in its folder.

    Args:
        config: the resolved recipe.
        progress: told of every logged step.

    Raises:
        ValueError: the recipe does not fit the data, the folder holds another run, or another
            process is training there.
        FileNotFoundError: the data set or the run to start from is not there.
        NonFiniteLossError: the loss is infinite or no number.
        OSError: a checkpoint could not be written.
        SystemExit: SIGTERM came; a checkpoint is saved.
    """
    asked = open_asked(config)
    check_trackers(tensorboard=config.loop.tensorboard, name=config.loop.tracker)
    with ExitStack() as stack:
        stack.enter_context(cpu_threads(config.loop.num_threads))
        stack.enter_context(deterministic_kernels(config.loop.deterministic))
        stack.enter_context(full_float32(config.loop.mixed_precision == "no"))
        finished = find_finished(config.out, asked.request)
        if finished is None:
            ready = prepare(config, asked)
            if ready.accelerator.is_main_process:
                stack.enter_context(sole_trainer(config.out))
            # Another process may have trained here until now.
            finished = find_finished(config.out, asked.request)
        if finished is not None:
            progress.message(f"{config.out} is already trained; nothing is left to do")
            return finished
        return _train(config, asked, ready, progress)


def open_asked(config: TrainConfig) -> Asked:
    """Open the data of a recipe.

    Raises:
        ValueError, FileNotFoundError: as `run`.
    """
    if "encoder" in config.method.freeze and config.method.init_from is None:
        raise ValueError(
            "method.freeze has encoder, but there is no method.init_from: random weights would be "
            "kept; give the run folder whose encoder is to be frozen"
        )
    dataset = open_dataset(config.data.dataset)
    protocol = dataset.protocol(config.data.protocol)
    request = {
        **config.request(),
        "dataset_fingerprint": dataset.fingerprint,
        "protocol": protocol.name,
        "protocol_fingerprint": protocol.fingerprint,
    }
    if config.method.reads_captions:
        request[LANGUAGE_MODEL_KEY] = language_model_identity(config.method)
    if config.method.init_from is not None:
        request["init_weights_sha256"] = _weights_hash(config.method.init_from)
        request[STAGE_KEY] = 1 + read_request(config.method.init_from)[1].get(STAGE_KEY, 0)
        _refuse_other_language_model(config.method, request)
    return Asked(dataset, protocol, request)


def _refuse_other_language_model(method: MethodConfig, request: dict[str, Any]) -> None:
    """Refuse to go on from a projection and prompt that were learned for another one.

    Raises:
        ValueError: they were.
    """
    assert method.init_from is not None
    ours = request.get(LANGUAGE_MODEL_KEY)
    theirs = read_request(method.init_from)[1].get(LANGUAGE_MODEL_KEY)
    if None not in (ours, theirs) and ours != theirs:
        raise ValueError(
            f"method.init_from {method.init_from} learned text with another language model "
            f"(weights {theirs}) than {method.language_model!r} (weights {ours}): its projection "
            "and prompt say nothing to this one; give the same method.language_model, or start "
            "from a run without text"
        )


def find_finished(folder: Path, request: dict[str, Any]) -> TrainSummary | None:
    """The summary of a run that is trained to its end; None for one that is not, or not begun.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    if not has_checkpoint(folder):
        return None
    _, saved = read_request(folder)
    if LANGUAGE_MODEL_KEY in request:  # runs of earlier versions do not tell
        saved = {LANGUAGE_MODEL_KEY: request[LANGUAGE_MODEL_KEY], **saved}
    refuse_other_request(folder, with_later_keys(saved), request)
    return _finished(folder)


def prepare(config: TrainConfig, asked: Asked) -> Prepared:
    """Load the training split and build the method on the device.

    Raises:
        ValueError, FileNotFoundError: as `run`.
    """
    dataset, protocol = asked.dataset, asked.protocol
    accelerator = make_accelerator(config.loop, pick_device(config.loop.device))
    device = accelerator.device
    if device.type == "cpu":
        keep_freed_memory()
    if accelerator.num_processes > 1 and config.method.language_model_device_map is not None:
        raise ValueError(
            "method.language_model_device_map spreads the language model over all devices, which "
            f"{accelerator.num_processes} processes cannot share; start one process, or leave it "
            "out so that each has a copy on its own device"
        )
    store = load_training_split(config, dataset, protocol, device=device)
    record = RunRecord(
        folder=config.out,
        config=config,
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        skeleton=dataset.skeleton,
        classes=class_entries(dataset),
        protocol_fingerprint=protocol.fingerprint,
        family=dataset.family,
        second_body=dataset.second_body_for(protocol),
    )
    with seeded(config.loop.seed, "weights"):
        method = build_method(
            config, num_classes=dataset.num_classes, skeleton=dataset.skeleton, device=device
        )
    if config.loop.sync_batch_norm:
        share_statistics(method)
    if config.method.init_from is not None:
        start_from(method, config.method.init_from, record)
    if isinstance(method, HocSLMMethod) and config.method.reads_captions:
        store.texts = shown_captions(
            config.method.captions, store, class_names=dataset.class_names, seed=config.loop.seed
        )
        store.tokenise(method.language_model.tokenize, config.method.max_caption_tokens)
    return Prepared(accelerator, store, method, record)


def _train(config: TrainConfig, asked: Asked, ready: Prepared, progress: Progress) -> TrainSummary:
    is_main = ready.accelerator.is_main_process
    if is_main:
        _begin(config.out, ready)
        if config.method.reads_captions and config.method.init_from is None:
            progress.message(
                "no method.init_from: the encoder starts from random weights, as in strategy T4"
            )
    result = fit(
        ready.method,
        ready.store,
        optim=config.optim,
        loop=config.loop,
        accelerator=ready.accelerator,
        folder=config.out,
        request=asked.request,
        progress=progress if is_main else SilentProgress(),
        evaluate=_evaluation(config, asked, ready.accelerator.device) if is_main else None,
    )
    summary = TrainSummary(
        folder=config.out,
        epochs=result.epochs,
        steps=result.steps,
        num_samples=len(ready.store),
        num_parameters=ready.num_parameters,
        resumed_from=result.resumed_from,
        already_finished=False,
        seconds=result.seconds,
        samples_per_s=result.samples_per_s,
        metrics=result.last,
    )
    if is_main:
        values = dataclasses.asdict(summary)
        del values["folder"], values["already_finished"]
        write_json(config.out / SUMMARY_FILE, values)
    return summary


def _begin(folder: Path, ready: Prepared) -> None:
    """Bring the files beside the checkpoint to the state of a run that begins or goes on now."""
    epochs, step = read_progress(folder)
    forget_best(folder, after=epochs)
    # The summary is of a run whose checkpoint is gone, the bad step of an earlier start.
    for name in (SUMMARY_FILE, NONFINITE_FILE, NONFINITE_TENSORS):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / CONFIG_FILE, ready.record.as_json())
    note_start(folder, _environment(ready), from_step=step)


def start_from(method: Method, run_folder: Path, ours: RunRecord) -> None:
    """Give a method the encoder weights of a finished run, and those of SSF where both have it.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: it has other classes, another skeleton or another model, or it was trained on
            a class that is left out here.
    """
    theirs = read_run(run_folder)
    if theirs.skeleton != ours.skeleton or theirs.classes != ours.classes:
        raise ValueError(
            f"method.init_from {run_folder} was trained on {theirs.dataset_name} "
            f"({theirs.skeleton.name}, {len(theirs.classes)} classes), this run is on "
            f"{ours.dataset_name} ({ours.skeleton.name}, {len(ours.classes)} classes); both need "
            "the same skeleton and the same classes in the same order"
        )
    _refuse_other_samples(theirs, ours)
    if shown := sorted(ours.unseen - theirs.unseen):
        raise ValueError(
            f"method.init_from {run_folder} was trained on {ours.class_names[shown[0]]!r}, which "
            "data.unseen_classes leaves out: its encoder knows the class; start from a run with "
            "the same data.unseen_classes"
        )
    weights = load_weights(run_folder)
    own = method.saved_state()
    has_ssf = all(any(name.startswith("ssf.") for name in side) for side in (own, weights))
    parts = ("encoder.", "ssf.") if has_ssf else ("encoder.",)
    copy_state(own, weights, what=f"method.init_from {run_folder}", only=parts)


def _refuse_other_samples(theirs: RunRecord, ours: RunRecord) -> None:
    """Refuse to start from a run that saw other inputs, or samples that are held out here.

    Raises:
        ValueError: it is such a run.
    """
    there, here = theirs.config.data, ours.config.data
    if theirs.protocol_fingerprint != ours.protocol_fingerprint:
        raise ValueError(
            f"method.init_from {theirs.folder} was trained under protocol {there.protocol}, this "
            f"run is under {here.protocol}: it may have seen test samples; start from a run under "
            "the same protocol"
        )
    if shown := sorted(set(here.validation_subjects) - set(there.validation_subjects)):
        raise ValueError(
            f"method.init_from {theirs.folder} was trained on subjects {shown}, whom "
            "data.validation_subjects holds out here; start from a run that holds them out, too"
        )
    if theirs.second_body != ours.second_body:
        raise ValueError(
            f"method.init_from {theirs.folder} was trained with {theirs.second_body!r} for a body "
            f"that was not seen, this run has {ours.second_body!r}; build both data sets with the "
            "same --second-body"
        )
    for key in ("stream", "orphan", "view"):
        if getattr(there, key) != getattr(here, key):
            raise ValueError(
                f"method.init_from {theirs.folder} was trained with data.{key} = "
                f"{getattr(there, key)!r}, this run has {getattr(here, key)!r}; both need the same"
            )


def load_training_split(
    config: TrainConfig, dataset: SkeletonDataset, protocol: Protocol, *, device: torch.device
) -> SkeletonStore:
    """The samples that a recipe trains on, with their captions where its method reads them.

    Raises:
        ValueError: they cannot be trained on as they are; the message names every reason.
    """
    store = load_split(
        dataset,
        protocol,
        "train",
        config.data,
        device=device,
        with_captions=config.method.reads_captions,
        prompt_ids=config.method.prompt_ids,
    )
    problems = training_problems(
        store,
        dataset.class_names,
        allow_empty_classes=config.data.allow_empty_classes,
        unseen=unseen_labels(dataset.classes, config.data.unseen_classes),
    )
    if store.num_picks < config.loop.batch_size:
        problems.append(
            f"an epoch has {store.num_picks} training samples, fewer than loop.batch_size "
            f"{config.loop.batch_size}; lower it"
        )
    if problems:
        raise ValueError(
            f"{dataset.folder} cannot be trained on as it is:\n  " + "\n  ".join(problems)
        )
    return store


def _evaluation(
    config: TrainConfig, asked: Asked, device: torch.device
) -> Callable[[Method, int], dict[str, float]] | None:
    """What scores a run for its log: its validation split or, to watch only, the test split.

    None where that is not asked for.
    """
    if not config.loop.evaluate_every_epochs:
        return None
    split: Split = "validation" if config.data.validation_subjects else "test"
    log = "val" if split == "validation" else "test"
    store = load_split(asked.dataset, asked.protocol, split, config.data, device=device)
    names = asked.dataset.class_names

    def evaluate(method: Method, epochs: int) -> dict[str, float]:
        scores = score_store(method, store, batch_size=config.loop.batch_size)
        measured = accuracy(scores, store.labels, names)
        if config.loop.keep_best_epoch:
            weights = method.saved_state()
            save_best(config.out, weights, epoch=epochs, value=measured.top1, split=split)
        return {f"{log}/top1": measured.top1, f"{log}/mean_class": measured.mean_class}

    return evaluate


def _environment(ready: Prepared) -> dict[str, Any]:
    device, method = ready.accelerator.device, ready.method
    values = {
        **environment(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_threads": torch.get_num_threads(),
        "num_processes": ready.accelerator.num_processes,
    }
    if isinstance(method, HocSLMMethod) and ready.record.config.method.reads_captions:
        values["language_model"] = method.language_model.identity
    return values


def _finished(folder: Path) -> TrainSummary | None:
    path = folder / SUMMARY_FILE
    if not path.is_file():
        return None
    values = read_json(path, made_by=MADE_BY)
    return TrainSummary(folder=folder, already_finished=True, **values)


def _weights_hash(run_folder: Path) -> str:
    if not has_checkpoint(run_folder):
        raise FileNotFoundError(
            f"method.init_from {run_folder} holds no checkpoint; give the folder of a finished "
            f"`{MADE_BY}` run"
        )
    if _finished(run_folder) is None:
        raise ValueError(
            f"method.init_from {run_folder} is not trained to its end; run its `{MADE_BY}` command "
            "again to finish it"
        )
    return sha256_file(model_path(run_folder))
