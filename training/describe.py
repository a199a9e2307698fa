"""Text from skeletons: what a HocSLM run says of samples of its data set or of `.skeleton` files.

The text comes from the skeleton alone: no video and no caption of the sample is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_build.bodies import BodySettings, select_bodies
from datasets_build.joints import NTU_25
from datasets_build.manifest import write_json
from datasets_build.ntu import read_skeleton
from datasets_build.ntu_names import parse_ntu_name
from datasets_build.progress import Progress
from training.config import DescribeConfig
from training.evaluate import LoadedRun, load_run
from training.loading import load_split, one_clip
from training.methods.hocslm import HocSLMMethod
from training.seeding import cpu_threads, deterministic_kernels
from training.skeleton_data import SkeletonStore

# text, class name -> whether the text names that action
NamesAction = Callable[[str, str], bool]


@dataclass(frozen=True)
class Description:
    """What the run says of one clip.

    Attributes:
        sample_id: the sample, or the file's name without its suffix.
        text: the generated text.
        predicted: name of the class that the head gives.
        action: name of the true class, None where it is not known.
        names_action: whether the text names the true action; None where it is not known.
    """

    sample_id: str
    text: str
    predicted: str
    action: str | None
    names_action: bool | None


@dataclass(frozen=True)
class DescribeSummary:
    """All descriptions of one call.

    Attributes:
        run: the run folder.
        descriptions: in the order asked for.
        share_named: share of the clips of known class whose text names the action; None without
            any.
        file: the JSON file; written where a whole split was described.
    """

    run: Path
    descriptions: tuple[Description, ...]
    share_named: float | None
    file: Path | None

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "run": str(self.run),
            "share_named": self.share_named,
            "descriptions": [asdict(entry) for entry in self.descriptions],
        }


def mentions_class_name(text: str, class_name: str) -> bool:
    """Whether every word of a class name, or of one of its "/" or "(...)" forms, is in the text.

    Words are compared by their stems: "clapping" is found in "claps".
    """
    words = {_stem(word) for word in re.findall(r"[a-z]+", text.lower())}
    forms = re.split(r"[/()]", class_name.lower())
    for form in forms:
        wanted = re.findall(r"[a-z]+", form)
        if wanted and all(_stem(word) in words for word in wanted):
            return True
    return False


def run(
    config: DescribeConfig, progress: Progress, *, names_action: NamesAction = mentions_class_name
) -> DescribeSummary:
    """Describe samples, files or a whole split, in batches.

    Args:
        config: which run and which clips.
        progress: told of every batch.
        names_action: decides whether a text names the action of a class; by default by its name.

    Raises:
        FileNotFoundError: the run, the data set or a file is not there.
        ValueError: the run learned no text, a sample is not in the data set, a file is no skeleton.
    """
    loaded = load_run(config.run, dataset=config.dataset, protocol=None, device=config.device)
    method = loaded.method
    if not isinstance(method, HocSLMMethod):
        raise ValueError(
            f"{config.run} was trained with method {loaded.record.config.method.name}, which "
            'learns no text; train with method.name = "hocslm" to describe skeletons'
        )
    stores = _stores(config, loaded)
    progress.start("describe", sum(len(store) for store, _ in stores), unit="clips")
    found: dict[str, Description] = {}
    loop = loaded.record.config.loop
    with cpu_threads(loop.num_threads), deterministic_kernels(loop.deterministic):
        for store, labels in stores:
            for start in range(0, len(store), config.batch_size):
                entries = _described(config, loaded, method, store, labels, start, names_action)
                found |= {entry.sample_id: entry for entry in entries}
                progress.advance(len(entries))
    progress.finish()
    order = [*config.sample_ids, *(path.stem for path in config.skeletons)]
    descriptions = tuple(found.values()) if config.every else tuple(found[name] for name in order)
    known = [entry.names_action for entry in descriptions if entry.names_action is not None]
    share = sum(known) / len(known) if known else None
    file = config.run / f"describe-{config.split}.json" if config.every else None
    summary = DescribeSummary(config.run, descriptions, share, file)
    if file is not None:
        write_json(file, summary.as_json())
    return summary


def _described(
    config: DescribeConfig,
    loaded: LoadedRun,
    method: HocSLMMethod,
    store: SkeletonStore,
    labels: Sequence[int | None],
    start: int,
    names_action: NamesAction,
) -> list[Description]:
    """The descriptions of one batch of a store."""
    stop = min(start + config.batch_size, len(store))
    with torch.no_grad():
        batch = store.batch(store.picks(np.arange(start, stop)), training=False)
        texts = method.describe(
            batch, max_new_tokens=config.max_new_tokens, num_beams=config.num_beams
        )
        predicted = method.predict(batch).argmax(dim=1).tolist()  # (N,)
    names = loaded.record.class_names
    entries = []
    for at, text, given in zip(range(start, stop), texts, predicted, strict=True):
        label = labels[at]
        action = None if label is None else names[label]
        named = None if action is None else names_action(text, action)
        entries.append(Description(store.sample_ids[at], text, names[given], action, named))
    return entries


def _stores(
    config: DescribeConfig, loaded: LoadedRun
) -> list[tuple[SkeletonStore, list[int | None]]]:
    """The clips that were asked for, with their labels where they are known."""
    stores: list[tuple[SkeletonStore, list[int | None]]] = []
    if config.every:
        stores.append(_labelled(_split(loaded, config.split)))
    elif config.sample_ids:
        wanted = list(config.sample_ids)
        left = set(wanted)
        for split in ("train", "test"):
            try:
                store = _split(loaded, split, wanted)
            except ValueError:
                continue  # none of them is in this split
            stores.append(_labelled(store))
            left -= set(store.sample_ids)
        if left:
            raise ValueError(
                f"{len(left)} of {len(wanted)} samples are not in {loaded.dataset.folder} under "
                f"protocol {loaded.protocol.name}, for example {min(left)}; `sample_id`s look like "
                "S001C001P003R001A010 (NTU) or a01_s01_e00_v03 (NW-UCLA)"
            )
    label_of = {entry["action_id"]: entry["label"] for entry in loaded.record.classes}
    for path in config.skeletons:
        name = parse_ntu_name(path.name)
        label = None if name is None else label_of.get(name.action_id)
        stores.append((_file(loaded, path), [label]))
    return stores


def _split(loaded: LoadedRun, split: Any, sample_ids: Sequence[str] | None = None) -> SkeletonStore:
    return load_split(
        loaded.dataset,
        loaded.protocol,
        split,
        loaded.record.config.data,
        device=loaded.device,
        sample_ids=sample_ids,
    )


def _labelled(store: SkeletonStore) -> tuple[SkeletonStore, list[int | None]]:
    return store, [int(label) for label in store.labels]


def _file(loaded: LoadedRun, path: Path) -> SkeletonStore:
    """A `.skeleton` file as a store of one clip."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the path of a .skeleton file")
    if loaded.record.skeleton != NTU_25:
        raise ValueError(
            f"{path} is an NTU skeleton of 25 joints, {loaded.record.folder} was trained on layout "
            f"{loaded.record.skeleton.name}; describe samples of its data set by their sample_id"
        )
    try:
        joints = select_bodies(read_skeleton(path.read_bytes()), BodySettings())  # (M, T, V, C)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable .skeleton file: {error}") from error
    return one_clip(
        joints,
        name=path.stem,
        skeleton=loaded.record.skeleton,
        config=loaded.record.config.data,
        second_body=loaded.dataset.second_body_for(loaded.protocol),
        device=loaded.device,
        family=loaded.dataset.family,
    )


def _stem(word: str) -> str:
    """A word without its usual endings: clapping, claps and clap are one."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]  # clapp -> clap
    return word[:-1] if len(word) > 3 and word.endswith("e") else word  # wave -> wav
