"""What `hoc build-dataset` is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, field_validator

from datasets_build.bodies import BodySettings
from datasets_build.settings import Settings

# Why a sample is not in the data set: the `reason` column of left_out.parquet.
LeftOutReason = Literal[
    "listed-missing",  # on the official list of missing skeletons; always left out, never an error
    "no-caption",  # a skeleton without a usable caption, although caption runs were given
    "no-skeleton",  # a caption without a skeleton
    "frame-count",  # video and skeleton differ by more frames than `frame_tolerance`
    "duplicate",  # a second file with the same sample_id
    "bad-name",  # a skeleton file whose name carries no ids, or a zip entry outside its zip
    "unreadable",  # the detail says why
]
# our choice: starting a process takes about as long as reading a thousand clips
SMALL_SET = 2_000

ALLOWABLE = tuple(word for word in get_args(LeftOutReason) if word != "listed-missing")


class BuildConfig(Settings):
    """Everything that decides a build; the paths say where, the rest says what.

    Attributes:
        skeletons: folders or zip files of `.skeleton` files (NTU) or JSON clips (NW-UCLA).
        out: folder that the data set is written to.
        name: the data set's name, for reports and its card.
        captions: folders of finished caption runs; none builds a skeleton-only set.
        audits: folders of audits of these runs; captions that they drop do not enter.
        format: what the sources hold; "auto" looks at the file names.
        classes: "all" keeps the benchmark's class list (NTU: label = action_id - 1); "present"
            numbers only the classes that have a sample, in order of action_id.
        allow: reasons for which samples may be left out; any other one stops the build.
        keep_uncaptioned: samples without a caption enter with an empty list instead of being left
            out, for sets of which only the training part was captioned.
        accept_truncated: captions that the token limit cut off enter too.
        frame_tolerance: how many frames video and skeleton may differ by; None does not compare.
            NW-UCLA is never compared: its JSON clips hold chosen frames of the recordings.
        use_missing_list: leave out the samples on the official list of missing skeletons; False is
            for sets that only borrow NTU's names, such as the synthetic one.
        bodies: denoising and body selection (NTU).
        shard_rows: samples planned for one part file; bounds the memory of a worker.
        workers: processes; None takes one a CPU, and a single one for a few thousand samples.
    """

    skeletons: tuple[Path, ...] = Field(min_length=1)
    out: Path
    name: str = Field(default="skeletons", min_length=1)
    captions: tuple[Path, ...] = ()
    audits: tuple[Path, ...] = ()
    format: Literal["auto", "ntu", "nw-ucla"] = "auto"
    classes: Literal["all", "present"] = "all"
    allow: tuple[str, ...] = ()
    keep_uncaptioned: bool = False
    accept_truncated: bool = False
    frame_tolerance: int | None = Field(default=2, ge=0)  # our choice; NTU's pairs mostly agree
    use_missing_list: bool = True
    bodies: BodySettings = BodySettings()
    shard_rows: int = Field(default=512, ge=1)  # our choice: about 20 MB of NTU skeletons
    workers: int | None = Field(default=None, ge=1)

    @field_validator("allow")
    @classmethod
    def _known_reasons(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if word not in ALLOWABLE:
                raise ValueError(f"{word!r} cannot be allowed; choose from {', '.join(ALLOWABLE)}")
        return words

    def num_workers(self, num_samples: int) -> int:
        """The number of processes for that many samples."""
        if self.workers is not None:
            return self.workers
        return 1 if num_samples <= SMALL_SET else os.cpu_count() or 1
