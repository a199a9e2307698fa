"""What a sweep is looked at for before its first run is trained, so that none is in vain."""

from __future__ import annotations

import torch

from datasets_build.dataset import SkeletonDataset, open_dataset
from training import train
from training.build import build_method, build_model, language_model_identity, pick_device
from training.config import DataConfig, TrainConfig
from training.execution import release_memory
from training.loading import read_index
from training.seeding import seeded
from training.sweep_plan import SweepPlan


def check_sweep(plan: SweepPlan, dataset: SkeletonDataset) -> list[str]:
    """Names of the protocols; every row can be trained, as far as its recipe and the data tell.

    Rows that `--set ROW:data.dataset=FOLDER` gives another data set must be scored on the same
    samples. Every row's network is built. Of rows that are not trained yet, language models are
    loaded and training captions are looked for, each once.

    Raises:
        ValueError: a protocol, model, switch or device is not known or not there, a row has other
            test samples, starts from weights that its network cannot take, or a training sample
            has no caption.
        FileNotFoundError: a language model or a row's data set is not there.
    """
    names = []
    shapes: dict[str, dict[str, torch.Size]] = {}
    for row in plan.rows:
        config = next(planned.config for planned in plan.runs if planned.row == row.name)
        pick_device(config.loop.device)
        names.append(dataset.protocol(config.data.protocol).name)
        _check_data(row.name, config.data, dataset)
        with seeded(0, "not trained"):
            model = build_model(
                config.model, num_classes=dataset.num_classes, skeleton=dataset.skeleton
            )
        shapes[row.name] = {name: value.shape for name, value in model.state_dict().items()}
        if row.init_from is not None and shapes[row.name] != shapes[row.init_from]:
            raise ValueError(
                f"row {row.name!r} starts from row {row.init_from!r}, whose network is another "
                "one; give both the same [model] settings (--set model.KEY=VALUE is for all rows)"
            )
    left = [planned for planned in plan.runs if not planned.config.is_trained]
    for planned in left:
        if planned.start is not None:
            _check_ssf(planned.row, planned.config, planned.start.row, planned.start.config)
    readers = [planned.config for planned in left if planned.config.method.reads_captions]
    _check_captions(readers)
    _load_language_models(readers, dataset)
    return list(dict.fromkeys(names))


def _check_data(row: str, data: DataConfig, dataset: SkeletonDataset) -> None:
    """Refuse a row whose own data set has other test samples than the sweep's.

    Raises:
        ValueError: it has.
        FileNotFoundError: it is not there.
    """
    own = open_dataset(data.dataset)
    if own.fingerprint == dataset.fingerprint:
        return
    if (own.skeleton, own.class_names) != (dataset.skeleton, dataset.class_names):
        raise ValueError(
            f"row {row!r} is of {own.folder}, whose skeleton or classes are not those of "
            f"{dataset.folder}; rows of one table need the same"
        )
    both = [(each, each.protocol(data.protocol)) for each in (own, dataset)]
    policies = [each.second_body_for(protocol) for each, protocol in both]
    if policies[0] != policies[1]:
        raise ValueError(
            f"row {row!r} is of {own.folder}, which has {policies[0]!r} for a body that was not "
            f"seen, {dataset.folder} {policies[1]!r}; build both with the same --second-body"
        )
    ours, theirs = (read_index(each, protocol, "test", view=data.view) for each, protocol in both)
    if ours != theirs:
        num_other = len(dict(ours.items() ^ theirs.items()))
        raise ValueError(
            f"row {row!r} is of {own.folder}, whose test samples are not those of "
            f"{dataset.folder}: {num_other} are in one alone, or have another label, length or "
            "number of bodies; numbers of one table are of the same samples"
        )


def _check_ssf(row: str, ours: TrainConfig, start_row: str, theirs: TrainConfig) -> None:
    """Refuse a row whose projection and prompt cannot take those of the row it starts from.

    Raises:
        ValueError: they cannot.
        FileNotFoundError: a language model is not there.
    """
    sides = (ours, theirs)
    if any(side.method.name != "hocslm" for side in sides):
        return
    for key in ("hidden", "prompt_length"):
        own, given = getattr(ours.method, key), getattr(theirs.method, key)
        if own != given:
            raise ValueError(_unlike(row, start_row, key, own, given))
    own, given = ours.method.language_model, theirs.method.language_model
    revisions = [side.method.language_model_revision for side in sides]
    if (own, revisions[0]) != (given, revisions[1]):
        identities = [language_model_identity(side.method) for side in sides]
        if identities[0] != identities[1]:
            raise ValueError(_unlike(row, start_row, "language_model", own, given))


def _unlike(row: str, start_row: str, key: str, own: object, given: object) -> str:
    return (
        f"row {row!r} starts from row {start_row!r}, whose projection and prompt are for another "
        f"method.{key}: {own} here and {given} there; give both rows the same "
        "(--set '*hocslm*:method.KEY=VALUE' is for all rows named so)"
    )


def _check_captions(readers: list[TrainConfig]) -> None:
    """Refuse a training split that a row cannot learn text from.

    Raises:
        ValueError: a sample has no caption, or the split cannot be trained on for another reason.
    """
    distinct = {
        (config.data.model_dump_json(exclude={"stream"}), config.method.prompt_ids): config
        for config in readers
    }
    for config in distinct.values():
        dataset = open_dataset(config.data.dataset)
        protocol = dataset.protocol(config.data.protocol)
        try:
            train.load_training_split(config, dataset, protocol, device=torch.device("cpu"))
        except ValueError as error:
            raise ValueError(
                f"row {config.out.parent.name!r} cannot be trained: {error}"
            ) from error


def _load_language_models(readers: list[TrainConfig], dataset: SkeletonDataset) -> None:
    """Load each distinct language model once, as training would, and let it go.

    Raises:
        ValueError, FileNotFoundError: it cannot be loaded.
    """
    distinct = {
        (
            config.loop.device,
            config.method.language_model,
            config.method.language_model_revision,
            config.method.language_model_dtype,
            config.method.language_model_device_map,
        ): config
        for config in readers
    }
    for config in distinct.values():
        with seeded(0, "not trained"):
            build_method(
                config,
                num_classes=dataset.num_classes,
                skeleton=dataset.skeleton,
                device=pick_device(config.loop.device),
            )
    release_memory()  # its room is for the runs, which may be other processes
