"""One part of a data set: planned samples read, turned into rows and written as one Arrow shard."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
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
from datasets_build.shards import ShardInfo, ShardWriter
from datasets_build.sources import Clip, ClipError, read_clip

PIECE_BYTES = 64 * 2**20  # our choice: more than the 512 clips of a usual NTU part

Row = tuple[PlannedSample, Clip]


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
    packed_sha256: tuple[str, ...] = ()  # of the packed sources

    @property
    def file_name(self) -> str:
        """part-00000.arrow and so on."""
        return f"part-{self.number:05d}.arrow"

    @cached_property
    def stamp(self) -> str:
        """A hash over all that decides the part; of files names, sizes and times stand for it."""
        samples = [
            [
                *(sample.sample_id, sample.label, sample.place.stamp, sample.video_frames),
                *((entry.prompt_id, entry.request_key, entry.text) for entry in sample.captions),
            ]
            for sample in self.samples
        ]
        options = [self.format_name, self.family, self.bodies.model_dump(), self.frame_tolerance]
        given = [schema.DATASET_SCHEMA_VERSION, options, self.packed_sha256, samples]
        text = canonical_json(given)
        return sha256_bytes(text.encode("utf-8", "backslashreplace"))


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
    digest = hashlib.sha256()
    left_out: list[LeftOut] = []
    counts: Counter[str] = Counter()
    with ShardWriter(job.folder / job.file_name, schema.DATASET_SCHEMA) as writer:
        for rows in _in_pieces(_rows(job, packed or {}, digest, left_out)):
            writer.write(rows_table(rows, job.family))
            counts["captions"] += sum(len(sample.captions) for sample, _ in rows)
            counts["frames"] += sum(clip.joints.shape[1] for _, clip in rows)
            counts["two_bodies"] += sum(clip.joints.shape[0] > 1 for _, clip in rows)
    return PartResult(
        job.number,
        job.stamp,
        writer.info,
        tuple(left_out),
        digest.hexdigest(),
        num_captions=counts["captions"],
        num_frames=counts["frames"],
        num_two_bodies=counts["two_bodies"],
    )


def _rows(
    job: PartJob,
    packed: Mapping[Path, PackedSource],
    digest: hashlib._Hash,
    left_out: list[LeftOut],
) -> Iterator[Row]:
    """The samples that can be used, with their clips; the others go to `left_out`."""
    for sample in job.samples:
        try:
            if isinstance(sample.place, PackedRow):
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
        yield sample, clip


def _in_pieces(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in lists of about PIECE_BYTES of joints, so that long clips do not fill the memory."""
    piece: list[Row] = []
    num_bytes = 0
    for row in rows:
        piece.append(row)
        num_bytes += row[1].joints.nbytes
        if num_bytes >= PIECE_BYTES:
            yield piece
            piece, num_bytes = [], 0
    if piece:
        yield piece


def content_sha256(job: PartJob) -> str:
    """What `build_part` gives as `content_sha256`, from files as they are now."""
    digest = hashlib.sha256()
    for sample in job.samples:
        assert not isinstance(sample.place, PackedRow), "packed files have a hash of their own"
        try:
            data = read_clip(sample.place)
        except ClipError:
            continue
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def rows_table(rows: Sequence[Row], dataset: str) -> pa.Table:
    """Samples and their clips as a table of schema.DATASET_SCHEMA, in the order given."""
    samples = [sample for sample, _ in rows]
    clips = [clip for _, clip in rows]
    offsets = np.cumsum([0] + [clip.joints.size for clip in clips])
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
