"""Packed sources: one file of many samples (CTR-GCN's .npz, PYSKL's .pkl, one's own tables).

A packed source tells first what it holds (`rows`, without a joint being read where the format lets
it) and then gives the clips one by one; asked in ascending order it reads its file once.

Letters: M bodies, T frames, V joints, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets_build.joints import Skeleton
from datasets_build.protocols import SampleIds
from datasets_build.sources import Clip


@dataclass(frozen=True)
class PackedRow:
    """One sample of a packed source, without its joints.

    Attributes:
        source: the file it lies in.
        index: its position there; what `PackedSource.clip` takes.
        sample_id: its name.
        ids: the ids that protocols look at; `ids.action_id` decides its label.
    """

    source: Path
    index: int
    sample_id: str
    ids: SampleIds

    @property
    def stamp(self) -> tuple[str, int]:
        """Tells it from other rows; the hash of the file tells the file's versions apart."""
        return (self.source.name, self.index)

    def __str__(self) -> str:
        return f"{self.source.name}: sample {self.index} ({self.sample_id})"


@dataclass(frozen=True)
class ListedSplit:
    """A split that a source brings along as lists of sample_ids.

    Attributes:
        name: for --protocol: lower case letters, digits, "-".
        train: sample_ids.
        test: sample_ids.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


class PackedSource(ABC):
    """What every packed format offers.

    Attributes:
        path: the file.
        skeleton: the joint layout of all of its clips.
        dataset: the family of its samples, see protocols.py ("ntu", "nw-ucla", "generic").
        class_names: names in order of action_id - 1; None takes the family's own class list.
        splits: splits that lie in the file; empty where the ids tell them.
    """

    def __init__(
        self,
        path: Path,
        samples: Sequence[SampleIds],
        *,
        skeleton: Skeleton,
        class_names: tuple[str, ...] | None,
        splits: tuple[ListedSplit, ...] = (),
    ) -> None:
        """Args as the attributes; `samples`: the ids of at least one, in the order of the file."""
        self.path = path
        self.skeleton = skeleton
        self.dataset = samples[0].dataset
        self.class_names = class_names
        self.splits = splits
        self._samples = samples

    def rows(self) -> list[PackedRow]:
        """Every sample, in the order of the file; ids may repeat (the caller looks for that)."""
        return [
            PackedRow(self.path, index, str(ids.sample_id), ids)
            for index, ids in enumerate(self._samples)
        ]

    @abstractmethod
    def clip(self, index: int) -> Clip:
        """The sample at a position; fast when asked in ascending order.

        Raises:
            ClipError: this sample cannot be used (not_finite, bad_shape, ...).
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""
