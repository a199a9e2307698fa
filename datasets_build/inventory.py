"""What the sources of a build hold: every sample's name, ids and place, whatever their format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets_build.bodies import BodySettings
from datasets_build.config import BuildConfig
from datasets_build.ctrgcn import open_ctrgcn
from datasets_build.dataset import CTRGCN_NPZ
from datasets_build.formats import FORMATS, find_clips
from datasets_build.generic import open_generic
from datasets_build.joints import Skeleton
from datasets_build.layouts import layout_named
from datasets_build.manifest import canonical_json, sha256_bytes, sha256_file
from datasets_build.npz_files import member_names
from datasets_build.packed import ListedSplit, PackedRow, PackedSource
from datasets_build.protocols import NTU, SampleIds, ids_of_name, read_lines, read_names
from datasets_build.pyskl import open_pyskl
from datasets_build.sources import ClipFile

PYSKL_PKL, GENERIC_FILE = "pyskl-pkl", "generic"
PACKED_FORMATS = (CTRGCN_NPZ, PYSKL_PKL, GENERIC_FILE)

Place = ClipFile | PackedRow


@dataclass(frozen=True)
class FoundSample:
    """One sample of the sources: its name, its ids and where its joints lie."""

    sample_id: str
    ids: SampleIds
    place: Place


@dataclass(frozen=True)
class Inventory:
    """What was found.

    Attributes:
        format: a key of FORMATS or one of PACKED_FORMATS.
        family: of the samples, see protocols.py.
        skeleton: the joint layout.
        class_names: in order of action_id - 1; None takes the family's class list.
        samples: files sorted by path, or the rows of packed sources in their order.
        nameless: files whose names carry no ids.
        splits: that packed sources bring along.
        sources: their provenance for dataset.json: names, counts and hashes, no absolute paths.
        packed: the opened packed sources.
    """

    format: str
    family: str
    skeleton: Skeleton
    class_names: tuple[str, ...] | None
    samples: list[FoundSample]
    nameless: list[ClipFile]
    splits: tuple[ListedSplit, ...]
    sources: list[dict[str, Any]]
    packed: Mapping[Path, PackedSource] = field(default_factory=dict)


@contextmanager
def taken_inventory(config: BuildConfig) -> Iterator[Inventory]:
    """Look through the sources; packed ones stay open until the context ends.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a source without samples, sources of several formats, families or layouts, or an
            option that the format does not take.
    """
    packed_format = _packed_format(config)
    _check_options(config, packed_format)
    if packed_format is None:
        yield _inventory_of_files(config)
        return
    _check_denoising(config, packed_format)
    opened: dict[Path, PackedSource] = {}
    try:
        for path in config.skeletons:
            if path in opened:
                raise ValueError(f"{path} is given twice with --skeletons")
            opened[path] = _open_packed(path, packed_format, config)
        yield _inventory_of_packed(packed_format, opened)
    finally:
        for source in opened.values():
            source.close()


def _packed_format(config: BuildConfig) -> str | None:
    """Which packed format the sources have, None where they are folders or zips of clips.

    Raises:
        FileNotFoundError, ValueError: see taken_inventory.
    """
    found = {_packed_format_of(path, config.format) for path in config.skeletons}
    if len(found) > 1:
        names = sorted(name or "folders or zips of clips" for name in found)
        raise ValueError(
            f"the sources are of {len(found)} kinds ({', '.join(names)}); build one data set of "
            "each"
        )
    return found.pop()


def _packed_format_of(path: Path, wanted: str) -> str | None:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a folder or zip of skeleton files, a .npz, .pkl or "
            ".parquet file"
        )
    if wanted in FORMATS:
        return None
    if wanted != "auto":
        if path.is_dir():
            raise ValueError(f"{path} is a folder; --format {wanted} reads single files")
        return wanted
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in (".npz", ".pkl", ".pickle", ".parquet"):
        return None
    if suffix == ".npz":
        return CTRGCN_NPZ if "x_train" in member_names(path) else GENERIC_FILE
    return GENERIC_FILE if suffix == ".parquet" else PYSKL_PKL


def _check_options(config: BuildConfig, packed_format: str | None) -> None:
    """Refuse an option that would do nothing.

    Raises:
        ValueError: there is one, or a layout is wanting.
    """
    kind = packed_format or "folders and zips of clips"
    takers = {
        "--layout": (config.layout, (PYSKL_PKL, GENERIC_FILE)),
        "--names": (config.names, (CTRGCN_NPZ,)),
        "--class-names": (config.class_names, (CTRGCN_NPZ, PYSKL_PKL)),
    }
    for option, (value, formats) in takers.items():
        if value is not None and packed_format not in formats:
            raise ValueError(f"{option} is for {' and '.join(formats)} sources, not for {kind}")
    if packed_format == GENERIC_FILE and config.layout is None:
        raise ValueError(
            f"{config.skeletons[0]} holds one's own recordings: tell their joints with --layout, "
            "a built-in layout (ntu-25, ucla-20, coco-17) or a TOML file (docs/own-recordings.md)"
        )


def _check_denoising(config: BuildConfig, format_name: str) -> None:
    """Refuse settings of a denoising that is not done.

    Raises:
        ValueError: there is one.
    """
    given, usual = config.bodies.model_dump(), BodySettings().model_dump()
    changed = [name for name in usual if name != "second_body" and given[name] != usual[name]]
    if changed and format_name != NTU:
        option = "--" + changed[0].replace("_", "-")
        raise ValueError(f"{option} is for NTU's .skeleton files, not for {format_name}")


def _inventory_of_files(config: BuildConfig) -> Inventory:
    skeleton_format, files = find_clips(config.skeletons, config.format)
    _check_denoising(config, skeleton_format.name)
    samples, nameless = [], []
    for file in files:
        sample_id = skeleton_format.sample_id(file.name)
        ids = None if sample_id is None else ids_of_name(sample_id)
        if sample_id is None or ids is None:
            nameless.append(file)
        else:
            samples.append(FoundSample(sample_id, ids, file))
    return Inventory(
        skeleton_format.name,
        skeleton_format.name,
        skeleton_format.skeleton,
        None,
        samples,
        nameless,
        (),
        [_describe_files(path, files) for path in config.skeletons],
    )


def _describe_files(path: Path, files: Sequence[ClipFile]) -> dict[str, Any]:
    """Name, number of files and a hash over names, sizes and zip checksums."""
    own = [file for file in files if file.container == path]
    listing = canonical_json([[file.member, file.num_bytes, file.crc32] for file in own])
    return {
        "name": path.resolve().name,
        "num_files": len(own),
        "num_bytes": sum(file.num_bytes for file in own),
        "listing_sha256": sha256_bytes(listing.encode("utf-8", "backslashreplace")),
    }


def _open_packed(path: Path, packed_format: str, config: BuildConfig) -> PackedSource:
    layout = None if config.layout is None else layout_named(config.layout)
    class_names = None
    if config.class_names is not None:
        class_names = tuple(read_lines(config.class_names, what="class name"))
    if packed_format == CTRGCN_NPZ:
        names = None if config.names is None else read_names(config.names)
        return open_ctrgcn(path, names=names, class_names=class_names)
    if packed_format == PYSKL_PKL:
        return open_pyskl(
            path,
            layout=None if layout is None else layout.skeleton,
            class_names=class_names or (None if layout is None else layout.class_names),
        )
    assert layout is not None, "_check_options asks for it"
    return open_generic(path, layout=layout)


def _inventory_of_packed(packed_format: str, opened: Mapping[Path, PackedSource]) -> Inventory:
    first_path, first = next(iter(opened.items()))
    for path, source in opened.items():
        for what in ("dataset", "skeleton", "class_names"):
            ours, theirs = getattr(first, what), getattr(source, what)
            if ours != theirs:
                raise ValueError(
                    f"{first_path.name} and {path.name} differ in their {what.replace('_', ' ')}; "
                    "build one data set of each"
                )
    rows: list[PackedRow] = []
    sources = []
    for path, source in opened.items():
        own = source.rows()
        rows += own
        sources.append(
            {
                "name": path.resolve().name,
                "num_samples": len(own),
                "num_bytes": path.stat().st_size,
                "listing_sha256": sha256_file(path),
            }
        )
    return Inventory(
        packed_format,
        first.dataset,
        first.skeleton,
        first.class_names,
        [FoundSample(row.sample_id, row.ids, row) for row in rows],
        [],
        tuple(split for source in opened.values() for split in source.splits),
        sources,
        packed=opened,
    )
