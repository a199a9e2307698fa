"""What a built data set holds: counts, lengths, captions and classes; and one sample of it.

Letters: M bodies, T frames, V joints, C channels.
"""

from __future__ import annotations

import difflib
import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datasets_build import schema
from datasets_build.dataset import DATASET_FILE, MADE_BY, SkeletonDataset, joints_of_table
from datasets_build.manifest import read_json
from datasets_build.protocols import NTU, Split, SplitCounts
from datasets_build.shards import read_shard

RECORDED_FPS = {NTU: 30.0}  # NW-UCLA's files hold chosen frames and no times

_COLUMNS = (schema.LABEL, schema.NUM_FRAMES, schema.NUM_BODIES, schema.CAPTIONS)
_NUM_NEAR = 3  # ids named instead of one that is not there
_NUM_LIKELY = 200  # our choice: a full comparison of 100,000 ids takes many seconds


@dataclass(frozen=True)
class Spread:
    """Five numbers that say how some lengths are spread."""

    least: float
    lower_quartile: float
    median: float
    upper_quartile: float
    most: float


@dataclass(frozen=True)
class PromptCaptions:
    """The captions of one prompt.

    Attributes:
        prompt_id: its name.
        num_captions: captions in the data set.
        num_samples_without: samples that have none of this prompt.
        words: lengths of the captions, in words.
    """

    prompt_id: str
    num_captions: int
    num_samples_without: int
    words: Spread


@dataclass(frozen=True)
class ClassCounts:
    """What a data set holds of one class."""

    label: int
    action_id: int
    name: str
    num_samples: int
    num_captions: int


@dataclass(frozen=True)
class Overview:
    """A data set in numbers.

    Attributes:
        name: of the data set.
        format: of the files that it was built from.
        family: of its samples: "ntu", "nw-ucla" or "generic".
        skeleton: name of the joint layout.
        num_joints: V.
        num_channels: C.
        num_samples: rows.
        num_captions: captions in the rows.
        num_held_out_captions: captions of test samples that lie apart.
        num_samples_without_caption: rows without any.
        num_frames: of all rows together.
        num_bytes: of the part files.
        fingerprint: identifies the content.
        fps: frames a second of the recordings, None where it is not known.
        frames: lengths of the clips, in frames.
        bodies: number of samples by their number of bodies.
        prompts: captions by prompt_id, sorted.
        left_out: number of samples left out, by reason.
        protocols: train and test counts.
        classes: in label order, those without a sample too.
    """

    name: str
    format: str
    family: str
    skeleton: str
    num_joints: int
    num_channels: int
    num_samples: int
    num_captions: int
    num_held_out_captions: int
    num_samples_without_caption: int
    num_frames: int
    num_bytes: int
    fingerprint: str
    fps: float | None
    frames: Spread
    bodies: dict[int, int]
    prompts: list[PromptCaptions]
    left_out: dict[str, int]
    protocols: list[SplitCounts]
    classes: list[ClassCounts]


def overview(dataset: SkeletonDataset) -> Overview:
    """Count a data set in one pass that reads neither joints nor more than one part at a time.

    Raises:
        FileNotFoundError, ValueError: a part is gone or cannot be read.
    """
    record = _record(dataset)
    tally = _Tally(dataset.num_classes)
    for table in dataset.tables(_COLUMNS):
        tally.add(table)
    frames = np.concatenate(tally.frames)
    return Overview(
        name=dataset.name,
        format=record["format"],
        family=dataset.family,
        skeleton=dataset.skeleton.name,
        num_joints=dataset.skeleton.num_joints,
        num_channels=dataset.skeleton.num_channels,
        num_samples=len(frames),
        num_captions=int(tally.captions.sum()),
        num_held_out_captions=record["counts"]["num_held_out_captions"],
        num_samples_without_caption=tally.num_uncaptioned,
        num_frames=int(frames.sum()),
        num_bytes=sum(shard.num_bytes for shard in dataset.shards),
        fingerprint=dataset.fingerprint,
        fps=RECORDED_FPS.get(dataset.family),
        frames=_spread(frames),
        bodies=dict(sorted(tally.bodies.items())),
        prompts=[
            PromptCaptions(
                prompt_id,
                num_captions=sum(map(len, words)),
                num_samples_without=len(frames) - tally.samples_with[prompt_id],
                words=_spread(np.concatenate(words)),
            )
            for prompt_id, words in sorted(tally.words.items())
        ],
        left_out=record["counts"]["left_out"],
        protocols=[SplitCounts(**counts) for counts in record["counts"]["protocols"]],
        classes=[
            ClassCounts(entry.label, entry.action_id, entry.name, int(samples), int(captions))
            for entry, samples, captions in zip(
                dataset.classes, tally.samples, tally.captions, strict=True
            )
        ],
    )


class _Tally:
    """What is kept of the parts seen so far: a few numbers a sample."""

    def __init__(self, num_classes: int) -> None:
        self.samples = np.zeros(num_classes, np.int64)
        self.captions = np.zeros(num_classes, np.int64)
        self.num_uncaptioned = 0
        self.frames: list[NDArray[np.int32]] = []
        self.bodies: Counter[int] = Counter()
        self.words: dict[str, list[NDArray[np.int32]]] = {}
        self.samples_with: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        labels = table[schema.LABEL].to_numpy()
        captions = table[schema.CAPTIONS].combine_chunks()
        owners = pc.list_parent_indices(captions).to_numpy()
        prompts, texts = captions.flatten().flatten()[:2]
        words = pc.count_substring_regex(texts, r"\S+").to_numpy()
        self.samples += np.bincount(labels, minlength=len(self.samples))
        self.captions += np.bincount(labels[owners], minlength=len(self.captions))
        self.num_uncaptioned += table.num_rows - len(np.unique(owners))
        self.frames.append(table[schema.NUM_FRAMES].to_numpy())
        self.bodies.update(table[schema.NUM_BODIES].to_pylist())
        for prompt_id in prompts.unique().to_pylist():
            is_own = pc.equal(prompts, prompt_id).to_numpy(zero_copy_only=False)
            self.words.setdefault(prompt_id, []).append(words[is_own])
            self.samples_with[prompt_id] += len(np.unique(owners[is_own]))


def _spread(lengths: NDArray[np.int32]) -> Spread:
    return Spread(*np.percentile(lengths, (0, 25, 50, 75, 100)).tolist())


def _record(dataset: SkeletonDataset) -> dict[str, Any]:
    record: dict[str, Any] = read_json(dataset.folder / DATASET_FILE, made_by=MADE_BY)
    return record


@dataclass(frozen=True)
class Sample:
    """One sample of a data set.

    Attributes:
        row: its columns but the joints, see schema.DATASET_SCHEMA.
        class_name: the name of its label.
        splits: where it belongs under each protocol of its data set; None: not in it at all.
        joints: (M, T, V, C) float32.
    """

    row: dict[str, Any]
    class_name: str
    splits: dict[str, Split | None]
    joints: NDArray[np.float32]


def read_sample(dataset: SkeletonDataset, sample_id: str) -> Sample:
    """Find a sample and read it.

    Raises:
        FileNotFoundError: a part is gone.
        ValueError: there is none of that name (the nearest names are said), or a part cannot be
            read.
    """
    ids: list[str] = []
    for shard, table in zip(dataset.shards, dataset.tables([schema.SAMPLE_ID]), strict=True):
        at = pc.index(table[schema.SAMPLE_ID], sample_id).as_py()
        if at >= 0:
            found = read_shard(dataset.folder, shard).slice(at, 1)
            break
        ids += table[schema.SAMPLE_ID].to_pylist()
    else:
        raise ValueError(
            f"{dataset.folder} has no sample {sample_id!r} among its {len(ids):,}; the nearest: "
            f"{', '.join(nearest_ids(sample_id, ids))}"
        )
    (row,) = found.drop_columns([schema.JOINTS]).to_pylist()
    names = [counts["protocol"] for counts in _record(dataset)["counts"]["protocols"]]
    return Sample(
        row=row,
        class_name=dataset.class_names[row[schema.LABEL]],
        splits={name: dataset.protocol(name).split_of_row(row) for name in names},
        joints=joints_of_table(found, dataset.skeleton)[0],
    )


def nearest_ids(wanted: str, ids: list[str]) -> list[str]:
    """The few ids most like a name, best first; only those with like ends are compared in full."""
    wanted = wanted.casefold()

    def shared_ends(sample_id: str) -> int:
        name = sample_id.casefold()
        return _num_shared(wanted, name) + _num_shared(wanted[::-1], name[::-1])

    likely = {name.casefold(): name for name in heapq.nlargest(_NUM_LIKELY, ids, key=shared_ends)}
    near = difflib.get_close_matches(wanted, likely, n=_NUM_NEAR, cutoff=0)
    return [likely[name] for name in near]


def _num_shared(first: str, second: str) -> int:
    """How many characters are equal from the beginning."""
    for number, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return number
    return min(len(first), len(second))
