"""A built data set as the rest of the project sees it: its record in memory, tables one by one.

Letters: M bodies, T frames, V joints, C coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from datasets_build import schema
from datasets_build.bodies import BodySettings, SecondBody
from datasets_build.joints import Skeleton, skeleton_from_json
from datasets_build.manifest import read_json, sha256_file
from datasets_build.protocol_files import FOLDER as PROTOCOLS_FOLDER
from datasets_build.protocol_files import find_protocol
from datasets_build.protocols import NTU, PROTOCOLS, Protocol
from datasets_build.shards import ShardInfo, check_shards, iterate_shards

CTRGCN_NPZ = "ctrgcn-npz"
DATASET_FILE = "dataset.json"
MADE_BY = "hoc build-dataset"


@dataclass(frozen=True)
class ClassEntry:
    """One class of a data set."""

    label: int
    action_id: int
    name: str


@dataclass(frozen=True)
class SkeletonDataset:
    """An opened data set; nothing but dataset.json has been read.

    Attributes:
        folder: where it lies.
        name: its name.
        format: what it was built from, a word of `hoc build-dataset --format`.
        family: of its samples: "ntu", "nw-ucla" or "generic" (Protocol.dataset).
        skeleton: its joint layout.
        classes: in label order.
        num_rows: samples in it.
        num_captions: captions in it.
        bodies: how bodies were chosen when it was built; see `second_body_for`.
        fingerprint: identifies its content.
        shards: its part files.
        files: sha256 of the files beside them, by path in the folder.
    """

    folder: Path
    name: str
    format: str
    family: str
    skeleton: Skeleton
    classes: tuple[ClassEntry, ...]
    num_rows: int
    num_captions: int
    bodies: BodySettings
    fingerprint: str
    shards: tuple[ShardInfo, ...]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1."""
        return len(self.classes)

    @property
    def class_names(self) -> list[str]:
        """Names in label order."""
        return [entry.name for entry in self.classes]

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The parts one after the other: by sample_id, or in the order of a packed source."""
        return iterate_shards(self.folder, self.shards, columns=columns)

    def problems(self) -> list[str]:
        """What is wrong with the files on disk, a sentence each; reads them all."""
        problems = check_shards(self.folder, self.shards)
        for name, sha256 in self.files.items():
            path = self.folder / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif sha256_file(path) != sha256:
                problems.append(f"{name} has another sha256 than {DATASET_FILE} says")
        return problems

    def second_body_for(self, protocol: Protocol | None) -> SecondBody:
        """What stands for an unseen second body.

        The option "original" is CTR-GCN's habit for what was built from NTU's files or CTR-GCN's
        arrays: a copy of the first in NTU's 120-class protocols (arrays without names: where there
        are more than 60 classes), else zeros. All other sources: zeros.
        """
        if self.bodies.second_body != "original":
            return self.bodies.second_body
        if self.format == CTRGCN_NPZ and self.family != NTU:
            return "copy" if self.num_classes > 60 else "zeros"
        is_ntu120 = protocol is not None and protocol.dataset == NTU and protocol.num_classes == 120
        return "copy" if is_ntu120 and self.format in (NTU, CTRGCN_NPZ) else "zeros"

    def protocol(self, name: str) -> Protocol:
        """The protocol of a name: a published one, one of this data set's own, or a TOML file.

        Raises:
            ValueError: there is none of that name, or it is made for other samples.
        """
        protocol = find_protocol(name, self.folder)
        self.check_protocol(protocol)
        return protocol

    def main_protocols(self) -> list[Protocol]:
        """The protocols one would report: published ones (NTU: of its 60 or 120 classes; without
        the one-shot ones) and the data set's own.
        """
        is_ntu60 = self.family == NTU and max(entry.action_id for entry in self.classes) <= 60
        own = sorted((self.folder / PROTOCOLS_FOLDER).glob("*.toml"))
        published = [
            protocol
            for protocol in PROTOCOLS.values()
            if protocol.dataset == self.family
            and protocol.split_by is not None
            and (self.family != NTU or protocol.num_classes == (60 if is_ntu60 else 120))
        ]
        return published + [self.protocol(path.stem) for path in own]

    def check_protocol(self, protocol: Protocol) -> None:
        """Refuse a protocol that is made for other samples.

        Raises:
            ValueError: it is.
        """
        if protocol.dataset != self.family:
            raise ValueError(
                f"protocol {protocol.name} is for {protocol.dataset} samples, but {self.folder} "
                f"holds {self.family} samples; `hoc inspect {self.folder}` lists its protocols"
            )


def open_dataset(folder: Path) -> SkeletonDataset:
    """Open what `hoc build-dataset` wrote.

    Raises:
        FileNotFoundError: no dataset.json there: not a data set, or its build has not finished.
        ValueError: dataset.json is of another version or not one of ours.
    """
    path = Path(folder) / DATASET_FILE
    record = read_json(path, made_by=MADE_BY)
    try:
        version = record["schema_version"]
        if version != schema.DATASET_SCHEMA_VERSION:
            raise ValueError(
                f"{path} has schema version {version}, this program reads "
                f"{schema.DATASET_SCHEMA_VERSION}; build it anew with `{MADE_BY}`"
            )
        return SkeletonDataset(
            folder=Path(folder),
            name=record["name"],
            format=record["format"],
            family=record["family"],
            skeleton=skeleton_from_json(record["skeleton"]),
            classes=tuple(ClassEntry(**entry) for entry in record["classes"]),
            num_rows=record["counts"]["num_rows"],
            num_captions=record["counts"]["num_captions"],
            bodies=BodySettings(**record["options"]["bodies"]),
            fingerprint=record["fingerprint"],
            shards=tuple(ShardInfo(**entry) for entry in record["shards"]),
            files=dict(record["files"]),
        )
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise ValueError(
            f"{path} is not a data set record ({error!r}); write it anew with `{MADE_BY}`"
        ) from error


def joints_of(row: Mapping[str, Any], skeleton: Skeleton) -> np.ndarray:
    """The joints of one row, (M, T, V, C) float32; a row of pyarrow, datasets or pandas will do."""
    flat = np.asarray(row[schema.JOINTS], dtype=np.float32)
    shape = (
        row[schema.NUM_BODIES],
        row[schema.NUM_FRAMES],
        skeleton.num_joints,
        skeleton.num_channels,
    )
    return flat.reshape(shape)


def joints_of_table(table: pa.Table, skeleton: Skeleton) -> list[np.ndarray]:
    """The joints of every row of a table, each (M, T, V, C) float32.

    The arrays are read-only views of the table's memory: nothing is copied and no Python list made.
    """
    clips: list[np.ndarray] = []
    bodies = table[schema.NUM_BODIES].to_pylist()
    frames = table[schema.NUM_FRAMES].to_pylist()
    for chunk in table[schema.JOINTS].chunks:
        values = chunk.values.to_numpy(zero_copy_only=True)
        offsets = chunk.offsets.to_numpy()
        for start, end in pairwise(offsets):
            at = len(clips)
            shape = (bodies[at], frames[at], skeleton.num_joints, skeleton.num_channels)
            clips.append(values[start:end].reshape(shape))
    return clips
