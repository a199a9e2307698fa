"""One part of a data set: planned samples read, turned into rows and written as one Arrow shard."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datasets_build import schema
from datasets_build.bodies import BodySettings
from datasets_build.formats import FORMATS
from datasets_build.join import LeftOut, PlannedSample
from datasets_build.manifest import canonical_json, sha256_bytes
from datasets_build.packed import PackedRow, PackedSource
from datasets_build.shards import ShardInfo, write_shard
from datasets_build.sources import Clip, ClipError, ClipFile, read_clip


@dataclass(frozen=True)
class PartJob:
    """What a worker needs to make one part; small enough to send to another process."""

    number: int
    folder: Path
    format_name: str
    family: str
    samples: tuple[PlannedSample, ...]
    bodies: BodySettings
    frame_tolerance: int | None

    @property
    def file_name(self) -> str:
        """part-00000.arrow and so on."""
        return f"part-{self.number:05d}.arrow"

    @property
    def stamp(self) -> str:
        """A hash over names, sizes and times of what it reads: equal when nothing was touched."""
        places = [
            [str(p), p.num_bytes, p.mtime_ns] if isinstance(p, ClipFile) else [str(p)]
            for p in (sample.place for sample in self.samples)
        ]
        return sha256_bytes(canonical_json(places).encode())


@dataclass(frozen=True)
class PartResult:
    """What became of one part.

    Attributes:
        number: the part's number.
        stamp: that of its job.
        shard: its file, None where none of its samples could be read.
        left_out: samples that are not in it.
        content_sha256: over the hashes of the files read, in order (of packed sources: of the
            joints).
        num_captions: captions in it.
        num_frames: frames in it.
        num_two_bodies: clips in it with two bodies.
    """

    number: int
    stamp: str
    shard: ShardInfo | None
    left_out: tuple[LeftOut, ...]
    content_sha256: str
    num_captions: int
    num_frames: int
    num_two_bodies: int

    def to_json(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PartResult:
        """What `to_json` wrote.

        Raises:
            KeyError, TypeError: it is something else.
        """
        shard = value["shard"]
        return cls(
            **{
                **value,
                "shard": None if shard is None else ShardInfo(**shard),
                "left_out": tuple(LeftOut(**entry) for entry in value["left_out"]),
            }
        )


def build_part(job: PartJob, packed: Mapping[Path, PackedSource] | None = None) -> PartResult:
    """Read the samples of one part and write it; clips that cannot be read are listed.

    Args:
        job: which samples.
        packed: the opened sources that rows of packed files lie in.
    """
    rows: list[tuple[PlannedSample, Clip]] = []
    left_out: list[LeftOut] = []
    digest = hashlib.sha256()
    for sample in job.samples:
        try:
            if isinstance(sample.place, PackedRow):
                assert packed is not None, "packed sources are read where they were opened"
                clip = packed[sample.place.source].clip(sample.place.index)
                digest.update(hashlib.sha256(clip.joints.tobytes()).digest())
            else:
                data = read_clip(sample.place)
                digest.update(hashlib.sha256(data).digest())
                clip = FORMATS[job.format_name].read(data, job.bodies)
        except ClipError as error:
            left_out.append(LeftOut(sample.sample_id, "unreadable", str(error)))
            continue
        mismatch = _frame_mismatch(sample, clip, job.frame_tolerance)
        if mismatch:
            left_out.append(LeftOut(sample.sample_id, "frame-count", mismatch))
            continue
        rows.append((sample, clip))
    path = job.folder / job.file_name
    shard = write_shard(path, rows_table(rows, job.family)) if rows else None
    return PartResult(
        job.number,
        job.stamp,
        shard,
        tuple(left_out),
        digest.hexdigest(),
        num_captions=sum(len(sample.captions) for sample, _ in rows),
        num_frames=sum(clip.joints.shape[1] for _, clip in rows),
        num_two_bodies=sum(clip.joints.shape[0] > 1 for _, clip in rows),
    )


def rows_table(rows: Sequence[tuple[PlannedSample, Clip]], dataset: str) -> pa.Table:
    """Samples and their clips as a table of schema.DATASET_SCHEMA, in the order given."""
    samples = [sample for sample, _ in rows]
    clips = [clip for _, clip in rows]
    offsets = np.cumsum([0] + [clip.joints.size for clip in clips])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(
            f"one part would hold {offsets[-1]} coordinates, more than a shard can address; "
            "lower shard_rows"
        )
    joints = np.concatenate([clip.joints.ravel() for clip in clips]) if clips else np.empty(0)
    sizes = [clip.image_size or (None, None) for clip in clips]
    columns = {
        schema.SAMPLE_ID: [sample.sample_id for sample in samples],
        schema.DATASET: [dataset] * len(samples),
        schema.LABEL: [sample.label for sample in samples],
        schema.ACTION_ID: [sample.ids.action_id for sample in samples],
        schema.SETUP_ID: [sample.ids.setup_id for sample in samples],
        schema.CAMERA_ID: [sample.ids.camera_id for sample in samples],
        schema.SUBJECT_ID: [sample.ids.subject_id for sample in samples],
        schema.REPETITION_ID: [sample.ids.repetition_id for sample in samples],
        schema.NUM_FRAMES: [clip.joints.shape[1] for clip in clips],
        schema.NUM_BODIES: [clip.joints.shape[0] for clip in clips],
        schema.IMAGE_WIDTH: [width for width, _ in sizes],
        schema.IMAGE_HEIGHT: [height for _, height in sizes],
        schema.JOINTS: pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), pa.array(joints, pa.float32())
        ),
        schema.CAPTIONS: [
            [
                {
                    schema.PROMPT_ID: caption.prompt_id,
                    schema.TEXT: caption.text,
                    schema.REQUEST_KEY: caption.request_key,
                }
                for caption in sample.captions
            ]
            for sample in samples
        ],
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in ((columns[field.name], field) for field in schema.DATASET_SCHEMA)
    ]
    return pa.Table.from_arrays(arrays, schema=schema.DATASET_SCHEMA)


def _frame_mismatch(sample: PlannedSample, clip: Clip, tolerance: int | None) -> str | None:
    """What is wrong with the number of frames, None when it is right or not compared."""
    ours = clip.num_source_frames
    if tolerance is None or ours is None:
        return None
    furthest = max(sample.video_frames, key=lambda num: abs(num - ours), default=ours)
    if abs(furthest - ours) <= tolerance:
        return None
    return f"the video has {furthest} frames, the skeleton {ours}; they may differ by {tolerance}"
