"""Evaluation protocols: pure functions from ids to "train", "test", "exemplar" or nothing.

A split is never stored: it is asked for here. Sources stand with each protocol; the counts that
they must give are held by tests/datasets_build/test_protocols.py.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from datasets_build import schema
from datasets_build.class_names import manifest_lines, ntu_class_names, nwucla_class_names
from datasets_build.manifest import fingerprint
from datasets_build.ntu_names import parse_ntu_name
from datasets_build.nwucla import ACTION_IDS as NW_UCLA_ACTION_IDS
from datasets_build.nwucla import parse_nwucla_name

NTU = "ntu"
NW_UCLA = "nw-ucla"
GENERIC = "generic"  # anybody's own recordings; action_id is label + 1
MISSING_LISTS = {NTU: "missing-ntu120.txt"}  # its first 302 are the 60-class list

Split = Literal["train", "test", "exemplar"]


@dataclass(frozen=True)
class SampleIds:
    """The ids that protocols look at, 1-based as in file names; None where a set has no such id."""

    dataset: str
    action_id: int
    subject_id: int | None = None
    camera_id: int | None = None
    setup_id: int | None = None
    repetition_id: int | None = None
    sample_id: str | None = field(default=None, compare=False)  # for protocols that list samples

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> SampleIds:
        """The ids of a data set row (see schema.DATASET_SCHEMA)."""
        return cls(
            dataset=row[schema.DATASET],
            action_id=row[schema.ACTION_ID],
            subject_id=row[schema.SUBJECT_ID],
            camera_id=row[schema.CAMERA_ID],
            setup_id=row[schema.SETUP_ID],
            repetition_id=row[schema.REPETITION_ID],
            sample_id=row[schema.SAMPLE_ID],
        )


def ids_of_name(name: str) -> SampleIds | None:
    """The ids in an NTU or NW-UCLA file name or sample_id; None where it is neither."""
    ntu = parse_ntu_name(name)
    if ntu is not None:
        return SampleIds(
            NTU,
            ntu.action_id,
            ntu.subject_id,
            ntu.camera_id,
            ntu.setup_id,
            ntu.repetition_id,
            sample_id=str(ntu),
        )
    ucla = parse_nwucla_name(name)
    if ucla is not None:
        return SampleIds(
            NW_UCLA,
            ucla.action_id,
            ucla.subject_id,
            ucla.camera_id,
            repetition_id=ucla.repetition_id,
            sample_id=str(ucla),
        )
    return None


@dataclass(frozen=True)
class Protocol:
    """One way to part a data set.

    Attributes:
        name: as given to --protocol.
        dataset: the family of samples it is for: "ntu", "nw-ucla" or "generic".
        num_classes: classes that the protocol's samples have.
        source: where the rule was published.
        rule: the rule in one sentence, for people.
        action_ids: actions that belong to the protocol; all others are outside of it. None: all.
        split_by: the id that decides ("subject_id", "camera_id", "setup_id", "repetition_id", or
            "sample_id" where samples are listed); None for one-shot.
        train_values: values of that id that make a training sample.
        test_values: values of that id that make a test sample.
        novel_action_ids: one-shot only: classes seen once; samples of all others are "train".
        exemplars: one-shot only: the one sample of each novel class; the class's others are "test".
    """

    name: str
    dataset: str
    num_classes: int
    source: str
    rule: str
    action_ids: frozenset[int] | None
    split_by: str | None = None
    train_values: frozenset[int | str] = field(default=frozenset(), repr=False)
    test_values: frozenset[int | str] = field(default=frozenset(), repr=False)
    novel_action_ids: frozenset[int] = frozenset()
    exemplars: frozenset[SampleIds] = field(default=frozenset(), repr=False)

    def split(self, ids: SampleIds) -> Split | None:
        """Which part a sample belongs to; None when it is not in the protocol at all."""
        if ids.dataset != self.dataset:
            return None
        if self.action_ids is not None and ids.action_id not in self.action_ids:
            return None
        if self.split_by is None:
            if ids.action_id not in self.novel_action_ids:
                return "train"
            return "exemplar" if ids in self.exemplars else "test"
        value = getattr(ids, self.split_by)
        if value in self.train_values:
            return "train"
        return "test" if value in self.test_values else None

    @property
    def fingerprint(self) -> str:
        """A hash over everything that decides a split; texts for people do not count."""
        rule = {
            "dataset": self.dataset,
            "num_classes": self.num_classes,
            "action_ids": None if self.action_ids is None else sorted(self.action_ids),
            "split_by": self.split_by,
            "train": sorted(map(str, self.train_values)),
            "test": sorted(map(str, self.test_values)),
            "novel": sorted(self.novel_action_ids),
            "exemplars": sorted(str(ids) for ids in self.exemplars),
        }
        return fingerprint({"name": self.name, "rule": rule})

    def split_of_row(self, row: Mapping[str, Any]) -> Split | None:
        """`split` of a data set row."""
        return self.split(SampleIds.of_row(row))


_NTU60_SUBJECTS = frozenset(
    (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
)  # fmt: skip
_NTU120_SUBJECTS = _NTU60_SUBJECTS | frozenset(
    (45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89,
     91, 92, 93, 94, 95, 97, 98, 100, 103)
)  # fmt: skip
_ACTIONS_60 = frozenset(range(1, 61))
_ACTIONS_120 = frozenset(range(1, 121))
_NOVEL_60 = frozenset(range(1, 56, 6))  # A1, A7, ..., A55
_NOVEL_120 = frozenset(range(1, 116, 6))  # A1, A7, ..., A115


def _exemplars(novel: frozenset[int]) -> frozenset[SampleIds]:
    """S001C003P008R001A... up to action 55 and S018C003P008R001A... from 61 on."""
    return frozenset(
        SampleIds(NTU, action, subject_id=8, camera_id=3, setup_id=setup, repetition_id=1)
        for action in novel
        for setup in (1 if action <= 60 else 18,)
    )


_ALL = (
    Protocol(
        name="ntu60-xsub",
        dataset=NTU,
        num_classes=60,
        source="NTU RGB+D (Shahroudy et al., CVPR 2016), cross-subject",
        rule="train: 20 of the subjects 1..40; test: the other 20",
        action_ids=_ACTIONS_60,
        split_by="subject_id",
        train_values=_NTU60_SUBJECTS,
        test_values=frozenset(range(1, 41)) - _NTU60_SUBJECTS,
    ),
    Protocol(
        name="ntu60-xview",
        dataset=NTU,
        num_classes=60,
        source="NTU RGB+D (Shahroudy et al., CVPR 2016), cross-view",
        rule="train: cameras 2 and 3; test: camera 1",
        action_ids=_ACTIONS_60,
        split_by="camera_id",
        train_values=frozenset((2, 3)),
        test_values=frozenset((1,)),
    ),
    Protocol(
        name="ntu120-xsub",
        dataset=NTU,
        num_classes=120,
        source="NTU RGB+D 120 (Liu et al., TPAMI 2019), cross-subject",
        rule="train: 53 of the subjects 1..106; test: the other 53",
        action_ids=_ACTIONS_120,
        split_by="subject_id",
        train_values=_NTU120_SUBJECTS,
        test_values=frozenset(range(1, 107)) - _NTU120_SUBJECTS,
    ),
    Protocol(
        name="ntu120-xset",
        dataset=NTU,
        num_classes=120,
        source="NTU RGB+D 120 (Liu et al., TPAMI 2019), cross-setup",
        rule="train: even setups 2..32; test: odd setups 1..31",
        action_ids=_ACTIONS_120,
        split_by="setup_id",
        train_values=frozenset(range(2, 33, 2)),
        test_values=frozenset(range(1, 33, 2)),
    ),
    Protocol(
        name="ntu60-oneshot",
        dataset=NTU,
        num_classes=60,
        source="SkeletonX (github zzysteve/SkeletonX), one-shot on 60 classes",
        rule="novel: A1, A7, ..., A55 with one exemplar each (S001C003P008R001); test: their other "
        "samples; train: the other 50 classes",
        action_ids=_ACTIONS_60,
        novel_action_ids=_NOVEL_60,
        exemplars=_exemplars(_NOVEL_60),
    ),
    Protocol(
        name="ntu120-oneshot",
        dataset=NTU,
        num_classes=120,
        source="NTU RGB+D 120 (github shahroudy/NTURGB-D, one-shot protocol)",
        rule="novel: A1, A7, ..., A115 with one exemplar each (S001C003P008R001 or "
        "S018C003P008R001); test: their other samples; train: the other 100 classes",
        action_ids=_ACTIONS_120,
        novel_action_ids=_NOVEL_120,
        exemplars=_exemplars(_NOVEL_120),
    ),
    Protocol(
        name="nw-ucla",
        dataset=NW_UCLA,
        num_classes=len(NW_UCLA_ACTION_IDS),
        source="Northwestern-UCLA (Wang et al., CVPR 2014), cross-view as in CTR-GCN",
        rule="train: views 1 and 2; test: view 3",
        action_ids=frozenset(NW_UCLA_ACTION_IDS),
        split_by="camera_id",
        train_values=frozenset((1, 2)),
        test_values=frozenset((3,)),
    ),
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def protocol_named(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: no such protocol; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r} is not known; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def class_list(dataset: str, num_classes: int) -> list[tuple[int, str]]:
    """(action_id, name) of every class in label order, so that label = position.

    Raises:
        ValueError: no such data set family.
    """
    if dataset == NTU:
        return list(enumerate(ntu_class_names()[:num_classes], start=1))
    if dataset == NW_UCLA:
        return list(zip(NW_UCLA_ACTION_IDS, nwucla_class_names(), strict=True))
    raise ValueError(f"data set {dataset!r} is not known; choose {NTU} or {NW_UCLA}")


@cache
def listed_missing(dataset: str) -> frozenset[str]:
    """sample_ids whose skeletons are officially missing or faulty; none for NW-UCLA."""
    file = MISSING_LISTS.get(dataset)
    return frozenset(manifest_lines(file)) if file else frozenset()


@dataclass(frozen=True)
class SplitCounts:
    """What a protocol makes of a list of names."""

    protocol: str
    num_train: int
    num_test: int
    num_exemplar: int
    num_outside: int  # names that are not the protocol's, or no sample names at all
    num_listed_missing: int  # of the protocol, but on the official list of missing skeletons


def split_counts(
    names: Iterable[str],
    *,
    protocols: Iterable[Protocol] | None = None,
    use_missing_list: bool = True,
) -> list[SplitCounts]:
    """Train and test counts of sample names under each protocol, listed-missing samples left out.

    Args:
        names: sample_ids or file names; directories and suffixes are ignored, repeats count once.
        protocols: which ones; all by default.
        use_missing_list: count listed-missing samples apart instead of as train or test.
    """
    ids_of = {name: ids_of_name(name) for name in names}
    samples = {ids for ids in ids_of.values() if ids is not None}
    lists = MISSING_LISTS if use_missing_list else ()
    missing = {name for dataset in lists for name in listed_missing(dataset)}
    return count_splits(
        samples,
        PROTOCOLS.values() if protocols is None else protocols,
        missing=missing,
        num_nameless=sum(ids is None for ids in ids_of.values()),
    )


def count_splits(
    samples: Iterable[SampleIds],
    protocols: Iterable[Protocol],
    *,
    missing: Collection[str] = (),
    num_nameless: int = 0,
) -> list[SplitCounts]:
    """How many samples each protocol puts where.

    Args:
        samples: their ids.
        protocols: which ones.
        missing: sample_ids that are counted apart instead of as train or test.
        num_nameless: counted as outside of every protocol.
    """
    samples = list(samples)
    results = []
    for protocol in protocols:
        tally = {"train": 0, "test": 0, "exemplar": 0, "outside": num_nameless, "missing": 0}
        for ids in samples:
            split = protocol.split(ids)
            is_missing = ids.sample_id in missing
            tally["outside" if split is None else "missing" if is_missing else split] += 1
        results.append(
            SplitCounts(
                protocol.name,
                num_train=tally["train"],
                num_test=tally["test"],
                num_exemplar=tally["exemplar"],
                num_outside=tally["outside"],
                num_listed_missing=tally["missing"],
            )
        )
    return results


def read_names(path: Path) -> list[str]:
    """Sample names, one a line, from a text file or its .gz; blank lines are skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not text, or no line holds an NTU or NW-UCLA name.
    """
    names = read_lines(path, what="sample name")
    if not any(ids_of_name(name) for name in names):
        raise ValueError(
            f"{path}: none of its {len(names)} lines starts with a name such as "
            "S001C001P001R001A001 (NTU) or a01_s01_e00_v01 (NW-UCLA)"
        )
    return names


def read_lines(path: Path, *, what: str) -> list[str]:
    """The lines of a text file or its .gz, stripped, without blank ones.

    Args:
        path: the file.
        what: a line holds, for the error message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not text, or empty.
    """
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(f"{path} is no file; give a text file with one {what} a line")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a text file with one {what} a line ({error})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty; give a text file with one {what} a line")
    return lines
