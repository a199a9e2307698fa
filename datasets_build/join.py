"""Which skeletons meet which captions: the plan of a build, and a list of what does not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets_build.audits import read_audit
from datasets_build.caption_runs import (
    Caption,
    SampleCaptions,
    describe_audit,
    describe_captions,
    read_captions,
    why_uncaptioned,
)
from datasets_build.config import BuildConfig, LeftOutReason
from datasets_build.dataset import ClassEntry
from datasets_build.inventory import FoundSample, Inventory, Place
from datasets_build.packed import ListedSplit
from datasets_build.protocol_files import listed_protocol, read_protocol
from datasets_build.protocols import (
    NTU,
    PROTOCOLS,
    Protocol,
    SampleIds,
    class_list,
    listed_missing,
)
from datasets_build.sources import ClipFile, leaves_its_folder, printable

_LISTED = "on the official list of missing or faulty skeletons"


@dataclass(frozen=True)
class LeftOut:
    """A sample that does not enter the data set."""

    sample_id: str
    reason: LeftOutReason
    detail: str


@dataclass(frozen=True)
class PlannedSample:
    """A skeleton that should become a row."""

    sample_id: str
    place: Place
    ids: SampleIds
    label: int
    captions: tuple[Caption, ...]
    video_frames: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What a build will do, before any skeleton is opened.

    Attributes:
        inventory: what the sources hold.
        samples: what to read; files sorted by sample_id, packed rows in the order of their file.
        left_out: what is known not to enter, sorted.
        classes: in label order.
        protocols: all that are made for such samples, one's own included.
        held_out: (sample_id, caption) of the captions that `hold_out` keeps out of the rows.
        num_uncaptioned: planned samples without a caption, although caption runs were given.
        caption_sources: provenance of captions and audits for dataset.json.
    """

    inventory: Inventory
    samples: list[PlannedSample]
    left_out: list[LeftOut]
    classes: list[ClassEntry]
    protocols: list[Protocol]
    held_out: list[tuple[str, Caption]]
    num_uncaptioned: int
    caption_sources: list[dict[str, Any]]


def make_plan(config: BuildConfig, inventory: Inventory) -> Plan:
    """Read the captions and join them with the samples of the sources by sample_id.

    Raises:
        FileNotFoundError: a caption run or a protocol file is not there.
        ValueError: a caption run cannot be read, an audit is not of one of the caption runs, or a
            protocol is not made for these samples.
    """
    protocols = _protocols(config, inventory)
    held_out_by = [_protocol_named(name, protocols) for name in config.hold_out]
    audits = [read_audit(folder) for folder in config.audits]
    captions = read_captions(
        config.captions,
        accept_truncated=config.accept_truncated,
        audits=audits,
        prompts=config.prompts,
    )
    left_out: list[LeftOut] = []
    found = _named_once(inventory, left_out)
    missing = listed_missing(inventory.family) if config.use_missing_list else frozenset()
    for name in sorted(captions.keys() - found.keys()):
        if name in missing:
            left_out.append(LeftOut(name, "listed-missing", _LISTED))
        else:
            left_out.append(LeftOut(name, "no-skeleton", "captioned, but there is no skeleton"))
    is_held_out = {
        name: any(protocol.split(sample.ids) == "test" for protocol in held_out_by)
        for name, sample in found.items()
    }
    wanted: list[FoundSample] = []
    for name, sample in found.items():
        may_lack = not config.captions or config.keep_uncaptioned or is_held_out[name]
        why = None if may_lack else why_uncaptioned(captions, name, config.prompts)
        if name in missing:
            left_out.append(LeftOut(name, "listed-missing", _LISTED))
        elif why is not None:
            left_out.append(LeftOut(name, "no-caption", why))
        else:
            wanted.append(sample)
    classes = _classes(inventory, {sample.ids.action_id for sample in wanted}, config.classes)
    samples: list[PlannedSample] = []
    held_out: list[tuple[str, Caption]] = []
    num_uncaptioned = 0
    for sample, label in _labelled(wanted, classes, left_out):
        own = captions.get(sample.sample_id, SampleCaptions())
        taken = tuple(sorted(own.captions))
        num_uncaptioned += bool(config.captions) and not taken
        if is_held_out[sample.sample_id]:
            held_out += [(sample.sample_id, caption) for caption in taken]
            taken = ()
        frames = tuple(sorted(own.frame_counts))
        samples.append(
            PlannedSample(sample.sample_id, sample.place, sample.ids, label, taken, frames)
        )
    return Plan(
        inventory,
        samples,
        sorted(left_out, key=lambda entry: (entry.sample_id, entry.reason, entry.detail)),
        classes,
        protocols,
        held_out,
        num_uncaptioned,
        caption_sources=[
            *(describe_captions(folder) for folder in config.captions),
            *(describe_audit(audit) for audit in audits),
        ],
    )


def _protocols(config: BuildConfig, inventory: Inventory) -> list[Protocol]:
    """Published protocols of the family, one's own, and those that the sources bring along.

    Raises:
        ValueError: one's own is for another family, or two have one name.
    """
    protocols = [p for p in PROTOCOLS.values() if p.dataset == inventory.family]
    for path in config.protocols:
        own = read_protocol(path)
        if own.dataset != inventory.family:
            raise ValueError(
                f"{path}: protocol {own.name} is for {own.dataset} samples, but the sources hold "
                f"{inventory.family} samples"
            )
        protocols.append(own)
    num_classes = len(_named_classes(inventory, {s.ids.action_id for s in inventory.samples}))
    names = [protocol.name for protocol in protocols]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two protocols are called {twice[0]!r}; give one of them another name")
    for split in inventory.splits:
        own = listed_protocol(
            _renamed(split, taken=names),
            dataset=inventory.family,
            num_classes=num_classes,
            source="the lists in the source file",
        )
        protocols.append(own)
        names.append(own.name)
    return protocols


def _renamed(split: ListedSplit, *, taken: Collection[str]) -> ListedSplit:
    """The split under a name that is still free: its own, or with a number behind it."""
    name, number = split.name, 1
    while name in taken or name in PROTOCOLS:
        number += 1
        name = f"{split.name}-{number}"
    return replace(split, name=name)


def _protocol_named(name: str, protocols: Sequence[Protocol]) -> Protocol:
    for protocol in protocols:
        if protocol.name == name:
            return protocol
    known = ", ".join(protocol.name for protocol in protocols)
    raise ValueError(
        f"--hold-out {name}: no such protocol for these samples; choose one of {known}"
    )


def _named_once(inventory: Inventory, left_out: list[LeftOut]) -> dict[str, FoundSample]:
    """sample_id to its first place; bad names and second places go to `left_out`.

    Files come out sorted by sample_id, rows of packed sources in their order.
    """
    for file in inventory.nameless:
        detail = f"{_where(file)} is not named as {inventory.format} files are"
        left_out.append(LeftOut(printable(file.stem), "bad-name", detail))
    found: dict[str, FoundSample] = {}
    for sample in inventory.samples:
        name, where = sample.sample_id, _where(sample.place)
        if _leaves_its_zip(sample.place):
            left_out.append(LeftOut(name, "bad-name", f"{where} points outside the zip"))
        elif name in found:
            first = _where(found[name].place)
            left_out.append(LeftOut(name, "duplicate", f"{where} comes after {first}"))
        else:
            found[name] = sample
    return found if inventory.packed else dict(sorted(found.items()))


def _where(place: Place) -> str:
    if isinstance(place, ClipFile):
        return printable(f"{place.container.name}: {place.member}")
    return str(place)


def _leaves_its_zip(place: Place) -> bool:
    return isinstance(place, ClipFile) and place.is_zipped and leaves_its_folder(place.member)


def _classes(inventory: Inventory, present: set[int], which: str) -> list[ClassEntry]:
    """The class list: the benchmark's (or the source's own), or of the actions that are present."""
    named = _named_classes(inventory, present)
    if which == "present":
        named = [(action_id, name) for action_id, name in named if action_id in present]
    return [ClassEntry(label, action_id, name) for label, (action_id, name) in enumerate(named)]


def _named_classes(inventory: Inventory, present: set[int]) -> list[tuple[int, str]]:
    """(action_id, name) of all classes; NTU has 60 unless one of the further 60 is present."""
    if inventory.class_names is not None:
        return list(enumerate(inventory.class_names, start=1))
    is_ntu60 = not any(60 < action_id <= 120 for action_id in present)
    return class_list(inventory.family, 60 if inventory.family == NTU and is_ntu60 else 120)


def _labelled(
    samples: Sequence[FoundSample], classes: Sequence[ClassEntry], left_out: list[LeftOut]
) -> Iterator[tuple[FoundSample, int]]:
    """Each sample with its label; those of no class go to `left_out`."""
    label_of: Mapping[int, int] = {entry.action_id: entry.label for entry in classes}
    for sample in samples:
        label = label_of.get(sample.ids.action_id)
        if label is None:
            detail = f"action {sample.ids.action_id} is not one of the {len(classes)} classes"
            left_out.append(LeftOut(sample.sample_id, "bad-name", detail))
        else:
            yield sample, label
