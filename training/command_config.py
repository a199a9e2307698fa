"""What the commands beside training are told: evaluation, ensembles, texts, sweeps; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from datasets_build.nearest import did_you_mean
from datasets_build.settings import Settings
from training.config import Device, Split, Stream, Weights

Rule = Literal["equal", "position-motion"]


class EvaluateConfig(Settings):
    """Scoring of a finished run.

    Attributes:
        run: the run folder.
        dataset: another data set with the same classes and skeleton; None: the one trained on.
        protocol: another protocol; None: the one trained with.
        split: which side of the protocol, or the recipe's validation subjects.
        weights: those of the last epoch, or of the "best" one that the run kept; results of the
            latter have file names of their own and say how it was chosen.
        batch_size: samples scored at once.
        device: "auto", "cpu", "cuda" or "mps".
    """

    run: Path
    dataset: Path | None = None
    protocol: str | None = None
    split: Split = "test"
    weights: Weights = "last"
    batch_size: int = Field(default=64, ge=1)
    device: Device = "auto"


class EnsembleConfig(Settings):
    """A weighted sum of the scores of several evaluated runs.

    Attributes:
        runs: run folders that `hoc evaluate` has scored.
        rule: stated weights: "equal", or "position-motion": 1.5 for streams of positions and 1 for
            streams of motions (InfoGCN's).
        weights: one a run, fixed beforehand, instead of a rule.
        search_weights: weights searched on the validation split of the runs, instead of a rule.
        combine: what is summed: "logits" (CTR-GCN) or "probabilities" (PYSKL).
        out: folder of the joined scores and of ensemble.json (ensemble-SPLIT.json but for test).
        split: which split's scores.
    """

    runs: tuple[Path, ...] = Field(min_length=1)
    rule: Rule = "equal"
    weights: tuple[float, ...] | None = None
    search_weights: bool = False
    combine: Literal["logits", "probabilities"] = "logits"
    out: Path
    split: Split = "test"

    @model_validator(mode="after")
    def _fits(self) -> EnsembleConfig:
        if (self.rule != "equal") + (self.weights is not None) + self.search_weights > 1:
            raise ValueError("give one of weights, rule and search_weights, not several")
        if self.search_weights and self.split == "validation":
            raise ValueError(
                "weights searched on the validation split say nothing about the validation split; "
                "give another split"
            )
        if self.weights is not None and len(self.weights) != len(self.runs):
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.runs)} runs; give one each"
            )
        if len({run.resolve() for run in self.runs}) != len(self.runs):
            raise ValueError("a run is named twice; give each run once, with a weight if needed")
        return self


class DescribeConfig(Settings):
    """Text from skeletons.

    Attributes:
        run: run folder of method "hocslm".
        sample_ids: samples of the data set to describe.
        skeletons: `.skeleton` files (NTU) or `.json` files (NW-UCLA) to describe.
        every: describe the whole split.
        dataset: another data set with the same classes and skeleton; None: the one trained on.
        split: the split of `every`, and of nothing else.
        max_new_tokens: longest text.
        num_beams: 1 is greedy.
        synonyms: tables of synonyms of the classes (training/text_quality.py); none: a class is
            named by its name alone.
        sentences: tables of class sentences; of `every`, texts are also judged by the closest, and
            nothing else is.
        batch_size: samples described at once.
        device: "auto", "cpu", "cuda" or "mps".
    """

    run: Path
    sample_ids: tuple[str, ...] = ()
    skeletons: tuple[Path, ...] = ()
    every: bool = False
    dataset: Path | None = None
    split: Split = "test"
    max_new_tokens: int = Field(default=64, ge=1)
    num_beams: int = Field(default=1, ge=1)
    synonyms: tuple[Path, ...] = ()
    sentences: tuple[Path, ...] = ()
    batch_size: int = Field(default=32, ge=1)
    device: Device = "auto"

    @model_validator(mode="after")
    def _fits(self) -> DescribeConfig:
        if not (self.sample_ids or self.skeletons or self.every):
            raise ValueError(
                "nothing to describe: give samples (--sample), skeleton files (--skeleton), or the "
                "whole split (--all)"
            )
        if self.every and (self.sample_ids or self.skeletons):
            raise ValueError("give sample ids and files, or every = true, not both")
        if not self.every and (self.split != "test" or self.sentences):
            name = "sentences" if self.sentences else "split"
            raise ValueError(
                f"{name}: samples and files are described wherever they are from and not measured, "
                f"so that it would do nothing; give it with every = true (--all), or leave it out"
            )
        return self


class RetrieveConfig(Settings):
    """Skeletons found by texts and texts by skeletons.

    Attributes:
        run: run folder of method "hocslm".
        dataset: another data set with the same classes and skeleton; None: the one trained on.
        split: whose samples.
        texts: tables of class sentences, the candidates; none: the distinct captions of the split.
        num_samples: so many samples of the split, drawn by `seed`; None: all.
        seed: of that draw.
        batch_size: pairs of a skeleton and a text scored at once.
        device: "auto", "cpu", "cuda" or "mps".
    """

    run: Path
    dataset: Path | None = None
    split: Split = "test"
    texts: tuple[Path, ...] = ()
    num_samples: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=256, ge=1)  # our choice
    device: Device = "auto"


class ZeroShotConfig(Settings):
    """Scores of classes that a run was never trained on, by sentences that name them.

    Attributes:
        run: run folder of method "hocslm" whose recipe has data.unseen_classes.
        texts: tables of class texts; none: a sentence made of each class name.
        dataset: another data set with the same classes and skeleton; None: the one trained on.
        batch_size: pairs of a sample and a sentence scored at once.
        device: "auto", "cpu", "cuda" or "mps".
    """

    run: Path
    texts: tuple[Path, ...] = ()
    dataset: Path | None = None
    batch_size: int = Field(default=256, ge=1)
    device: Device = "auto"


class ZeroShotSweepConfig(Settings):
    """Zero-shot runs over many choices of unseen classes.

    Attributes:
        dataset: folder that `hoc build-dataset` wrote.
        out: folder of all runs and of the table.
        stage_zero: recipe of the encoder.
        stage_one: recipe of method "hocslm" that starts from it.
        num_unseen: classes that a split leaves out.
        splits: such splits, each of action ids or names; None: all there are.
        num_splits: only so many of all, in a seeded order; None: all.
        texts: see ZeroShotConfig.
        assignments: `section.key=value` texts laid over both recipes; `stage-zero:` or `stage-one:`
            before one lays it over that recipe alone.
        device: "auto", "cpu", "cuda" or "mps"; None for the recipes'.
        jobs: splits at a time, each in a process of its own where there are several.
    """

    dataset: Path
    out: Path
    stage_zero: str = "nw-ucla-zero-shot-stage-zero"
    stage_one: str = "nw-ucla-zero-shot"
    num_unseen: int = Field(default=2, ge=2)
    splits: tuple[tuple[int | str, ...], ...] | None = Field(default=None, min_length=1)
    num_splits: int | None = Field(default=None, ge=1)
    texts: tuple[Path, ...] = ()
    assignments: tuple[str, ...] = ()
    device: Device | None = None
    jobs: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> ZeroShotSweepConfig:
        for split in self.splits or ():
            if len(split) != self.num_unseen:
                raise ValueError(
                    f"split {'+'.join(map(str, split))} has {len(split)} classes, num_unseen is "
                    f"{self.num_unseen}; join so many action ids or names by +"
                )
        if self.splits is not None and self.num_splits is not None:
            raise ValueError("give splits or num_splits, not both")
        return self


class SweepConfig(Settings):
    """A table of runs: every row of a sweep x stream x seed.

    Attributes:
        sweep: name of a shipped sweep or recipe, or the path of a .toml file that is one; a recipe
            is a sweep of one row.
        dataset: folder that `hoc build-dataset` wrote.
        out: folder of all runs and of the table.
        streams: inputs to train; ("all",) for the six, None for the recipe's own.
        seeds: seeds to train; None for the recipe's own.
        protocol: another split rule than the recipes'.
        assignments: `section.key=value` texts laid over every row's recipe; with `ROW,ROW:` before
            it over those rows' alone, where `*` and `?` stand for letters.
        device: "auto", "cpu", "cuda" or "mps"; None for the recipe's.
        jobs: runs at a time, each in a process of its own where there are several.
    """

    sweep: str = Field(min_length=1)
    dataset: Path
    out: Path
    streams: tuple[Stream, ...] | None = Field(default=None, min_length=1)
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    protocol: str | None = None
    assignments: tuple[str, ...] = ()
    device: Device | None = None
    jobs: int = Field(default=1, ge=1)

    @field_validator("streams", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        names = get_args(Stream)
        if value is None:
            return None
        if tuple(value) == ("all",):
            return names
        for stream in value:
            if stream not in names:
                hint = did_you_mean(str(stream), names)
                raise ValueError(
                    f"stream {stream!r} is not known; {hint}there are {', '.join(names)}, and all"
                )
        return value

    @field_validator("seeds", "streams")
    @classmethod
    def _once(cls, value: Any) -> Any:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("one is named twice; name each once")
        return value
