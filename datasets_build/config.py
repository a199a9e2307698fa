"""What `hoc build-dataset` is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from datasets_build.bodies import BodySettings
from datasets_build.child_processes import available_cores
from datasets_build.settings import Settings

# Why a sample is not in the data set: the `reason` column of left_out.parquet.
LeftOutReason = Literal[
    "listed-missing",  # on the official list of missing skeletons; always left out, never an error
    "no-caption",  # a skeleton without a usable caption, although caption runs were given
    "no-skeleton",  # a caption without a skeleton
    "frame-count",  # video and skeleton differ by more frames than `frame_tolerance`
    "duplicate",  # a second file with the same sample_id
    "bad-name",  # a name without ids, an action that is no class, a zip entry outside its zip
    "unreadable",  # the detail says why
]
# our choice: starting a process takes about as long as reading a thousand clips
SMALL_SET = 2_000

# What sources can hold: FORMATS of formats.py (a file a sample), or packed files (see packed.py).
FormatName = Literal["auto", "ntu", "nw-ucla", "ctrgcn-npz", "pyskl-pkl", "generic"]

ALLOWABLE = tuple(word for word in get_args(LeftOutReason) if word != "listed-missing")


class BuildConfig(Settings):
    """Everything that decides a build; the paths say where, the rest says what.

    Attributes:
        skeletons: folders or zips of `.skeleton` files (NTU) or JSON clips (NW-UCLA), or files that
            hold many samples: CTR-GCN's .npz, PYSKL's .pkl, one's own .parquet or .npz.
        out: folder that the data set is written to.
        name: the data set's name, for reports and its card.
        captions: folders of finished caption runs; none builds a skeleton-only set.
        audits: folders of audits of these runs; captions that they drop do not enter.
        prompts: only captions of these prompts enter, and a sample must have one of each; empty:
            all that there are.
        hold_out: protocols whose test samples' captions are kept out of the rows; they go to
            held-out-captions.parquet instead, and test samples may lack them.
        format: what the sources hold; "auto" looks at the file names.
        layout: the joint layout of packed sources: a built-in name or a TOML file (layouts.py).
        names: a list of sample names for CTR-GCN's arrays, which hold none.
        class_names: a list of class names in label order, for packed sources that hold none.
        protocols: one's own protocols (protocol_files.py); they are copied into the data set.
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
        bodies: denoising and body selection of `.skeleton` files, and the second body.
        shard_rows: samples planned for one part file; bounds the memory of a worker.
        workers: processes; None takes one a CPU, and a single one for a few thousand samples.
            Packed sources are read by one.
    """

    skeletons: tuple[Path, ...] = Field(min_length=1)
    out: Path
    name: str = Field(default="skeletons", min_length=1)
    captions: tuple[Path, ...] = ()
    audits: tuple[Path, ...] = ()
    prompts: tuple[str, ...] = ()
    hold_out: tuple[str, ...] = ()
    format: FormatName = "auto"
    layout: str | None = None
    names: Path | None = None
    class_names: Path | None = None
    protocols: tuple[Path, ...] = ()
    classes: Literal["all", "present"] = "all"
    allow: tuple[str, ...] = ()
    keep_uncaptioned: bool = False
    accept_truncated: bool = False
    frame_tolerance: int | None = Field(default=2, ge=0)  # our choice; NTU's pairs mostly agree
    use_missing_list: bool = True
    bodies: BodySettings = BodySettings()
    shard_rows: int = Field(default=512, ge=1)  # our choice: about 20 MB of NTU skeletons
    workers: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _no_idle_options(self) -> BuildConfig:
        if not self.captions:
            idle = {
                "--audit": self.audits,
                "--prompt": self.prompts,
                "--hold-out": self.hold_out,
                "--keep-uncaptioned": self.keep_uncaptioned,
                "--accept-truncated": self.accept_truncated,
            }
            given = [option for option, value in idle.items() if value]
            if given:
                raise ValueError(f"{given[0]} is about captions; give a run with --captions too")
        return self

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
        if num_samples <= SMALL_SET:
            return 1
        return available_cores()
