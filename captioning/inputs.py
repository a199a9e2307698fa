"""Which videos a run is about, and the sample_id of each."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, islice, pairwise
from operator import attrgetter, ne
from typing import NoReturn

from captioning.selection import ID_KEYS, Ids, IdValue, choose, ids_from_names, parse_filters
from captioning.video_lists import (
    LIST_EXTENSIONS,
    TABLE_EXTENSIONS,
    Listed,
    extension_of,
    place_of,
    read_list,
    read_plan,
)
from datasets_build.ntu_names import parse_ntu_name
from datasets_build.nwucla import parse_nwucla_name
from datasets_build.sources import VIDEO_SUFFIXES

PLAN_TABLE = "plan.arrow"
RUN_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Video:
    """One input file.

    Attributes:
        sample_id: what its captions are joined by; always valid UTF-8.
        path: absolute; bytes that are no UTF-8 are surrogate escapes, as os.fsdecode gives them.
    """

    sample_id: str
    path: str


def collect_videos(
    sources: Sequence[str],
    *,
    filters: Sequence[str] = (),
    pilot: int | None = None,
    limit: int | None = None,
    id_column: str | None = None,
    path_column: str | None = None,
) -> list[Video]:
    """Find the videos of folders, globs, files, lists and earlier caption runs.

    The sample_id of `S001C001P001R001A001_rgb.avi` is the NTU name, that of `a01_s02_e00_v03.avi`
    the NW-UCLA name; that of any other file is its path below the folder given (of a list: below
    the list's folder, or else as written), without the extension. One file named twice counts once.

    A folder is searched to the bottom; hidden files and links to folders are left out. A list
    (video_lists.read_list) may name files that do not exist: they become rows with a reason. Of a
    caption run's folder, or its manifest.json, the videos of its plan are taken.

    Args:
        sources: folders, globs, videos, lists, runs.
        filters: conditions that must all hold, such as "action=1,50-60", "camera=2" or
            "split=ntu60-xsub/train"; the ids come from the names or from columns of a list
            (action_id or action, ...). Videos without the id are left out, and logged.
        pilot: take a sample of so many, balanced over classes, subjects and cameras
            (selection.choose).
        limit: of all that, keep only the first so many.
        id_column: the column of sample_ids in tables; see video_lists.read_list.
        path_column: the column of paths in tables.

    Returns:
        At least one video, sorted by sample_id.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a source holds no video, a list is faulty, two files have one sample_id, or
            no video passes the filters.
    """
    parse_filters(filters)  # a slip is noticed before a million files are listed
    _check_column_names(sources, id_column, path_column)
    with_ids = bool(filters) or pilot is not None

    def found(source: str) -> Iterator[tuple[Video, Listed | None]]:
        return _found(source, path_column=path_column, id_column=id_column, with_ids=with_ids)

    def origin(video: Video) -> str:
        for source in sources:
            for other, row in found(source):
                if other == video and row is not None:
                    return f"{video.path} ({place_of(source, row.number)})"
        return video.path

    videos: list[Video] = []
    column_ids: dict[str, tuple[IdValue, ...]] = {}
    for source in sources:
        num_before = len(videos)
        for video, row in found(source):
            videos.append(video)
            if row is not None and any(value is not None for value in row.ids):
                column_ids[video.sample_id] = row.ids
        if len(videos) == num_before:
            raise ValueError(
                f"{source} holds no video; looked for files ending in {', '.join(VIDEO_SUFFIXES)}, "
                "in subfolders too"
            )
    videos = one_of_each(videos, origin=origin)
    return select_videos(videos, filters=filters, pilot=pilot, limit=limit, column_ids=column_ids)


def one_of_each(
    videos: list[Video], *, origin: Callable[[Video], str] = attrgetter("path")
) -> list[Video]:
    """The videos sorted by sample_id, each once; `videos` is sorted too.

    Args:
        videos: in any order.
        origin: what to call a video in the message.

    Raises:
        ValueError: two paths have the same sample_id.
    """
    videos.sort(key=attrgetter("sample_id"))
    unlike = [True, *map(ne, videos, islice(videos, 1, None))]
    kept = list(compress(videos, unlike))
    for one, other in pairwise(kept):
        if one.sample_id == other.sample_id:
            raise ValueError(
                f"{origin(one)} and {origin(other)} both have the sample_id {one.sample_id!r}; "
                "captions join to samples by that id, so rename or leave out one of them"
            )
    return kept


def select_videos(
    videos: list[Video],
    *,
    filters: Sequence[str],
    pilot: int | None,
    limit: int | None,
    column_ids: Mapping[str, tuple[IdValue, ...]] | None = None,
) -> list[Video]:
    """Those of the videos that a run is about, in the same order; see collect_videos.

    Args:
        videos: each sample_id once.
        filters: texts as for collect_videos.
        pilot: the size of the balanced sample.
        limit: the most to keep in the end.
        column_ids: values in the order of ID_KEYS by sample_id; they go before those of the names.
    """
    if filters or pilot is not None:
        known = column_ids or {}
        kept = choose(
            [video.sample_id for video in videos],
            (_ids_of(video, known.get(video.sample_id, ())) for video in videos),
            filters=parse_filters(filters),
            pilot=pilot,
        )
        videos = [videos[position] for position in kept]
    return videos[:limit]


def _ids_of(video: Video, column_ids: Sequence[IdValue]) -> Ids:
    ids = ids_from_names(video.sample_id, video.path)
    if not column_ids:
        return ids
    of_name = (getattr(ids, key) for key in ID_KEYS)
    both = zip(column_ids, of_name, strict=True)
    return Ids(ids.dataset, *(first if first is not None else second for first, second in both))


def _check_column_names(
    sources: Sequence[str], id_column: str | None, path_column: str | None
) -> None:
    named = path_column or id_column
    if named and not any(extension_of(source) in TABLE_EXTENSIONS for source in sources):
        raise ValueError(
            f"the column {named!r} is named, but no source is a table; "
            f"tables end in {', '.join(TABLE_EXTENSIONS)}"
        )


def _found(
    source: str, *, path_column: str | None, id_column: str | None, with_ids: bool
) -> Iterator[tuple[Video, Listed | None]]:
    """Every video of a source, with its row where that is a list."""
    name = os.path.expanduser(source)
    plan = _plan_of(name)
    if plan is not None:
        for row in read_plan(plan):
            yield Video(str(row.sample_id), row.path), row
    elif extension_of(name) in LIST_EXTENSIONS and os.path.isfile(name):
        folder = _with_slash(os.path.dirname(os.path.abspath(name)))
        rows = read_list(name, path_column=path_column, id_column=id_column, with_ids=with_ids)
        for row in rows:
            path = os.path.normpath(os.path.join(folder, row.path))
            if row.sample_id is None:
                sample_id = _sample_id_of(path, root=folder, written=row.path)
            else:
                sample_id = _as_utf8(row.sample_id)
            yield Video(sample_id, path), row
    else:
        for path, root in _files_of(source, name):
            yield Video(_sample_id_of(path, root=root, written=path), path), None


def _plan_of(name: str) -> str | None:
    """The plan of a caption run, given its folder or manifest; None for any other source.

    Raises:
        ValueError: a manifest.json that is not of a caption run, or a run without a plan.
    """
    is_folder = os.path.isdir(name)
    folder, file = (name, RUN_MANIFEST) if is_folder else os.path.split(name)
    plan, manifest = os.path.join(folder, PLAN_TABLE), os.path.join(folder, file)
    if is_folder and os.path.isfile(plan):
        return plan
    if extension_of(file) != ".json" or not os.path.isfile(manifest):
        return None
    try:
        with open(manifest, encoding="utf-8") as stream:
            value = json.load(stream)
        is_run = {"fingerprint", "parts", "shards"} <= value.keys()
    except (ValueError, AttributeError):
        is_run = False
    if is_run and os.path.isfile(plan):
        return plan
    if is_run:
        raise ValueError(f"{plan} is missing, so the videos of this caption run are not known")
    if is_folder:
        return None
    raise ValueError(
        f"{name} is not the manifest of a caption run; give the {RUN_MANIFEST} that "
        f"`hoc caption` wrote, or a list ending in {', '.join(LIST_EXTENSIONS)}"
    )


def _sample_id_of(path: str, *, root: str, written: str) -> str:
    """The sample_id of a video.

    Args:
        path: absolute.
        root: the folder that ids are relative to, with a slash at its end.
        written: names a path that does not lie below it.
    """
    below = path.removeprefix(root) if path.startswith(root) else os.path.normpath(written)
    stem = os.path.splitext(below)[0]
    base = os.path.basename(stem).removesuffix("_rgb")
    name = parse_ntu_name(base) or parse_nwucla_name(base)
    return _as_utf8(stem) if name is None or str(name) != base else base


def _as_utf8(text: str) -> str:
    """Bytes that are no UTF-8 cannot stand in a table; they are spelled out."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _files_of(source: str, name: str) -> Iterator[tuple[str, str]]:
    """The absolute path of every video of a folder, file or glob, and the root of its id."""
    if os.path.isdir(name):
        root = _with_slash(os.path.abspath(name))
        for folder, folders, names in os.walk(root, onerror=_raise):
            folders[:] = (name for name in folders if not name.startswith("."))
            yield from ((os.path.join(folder, name), root) for name in names if _is_video(name))
    elif os.path.lexists(name):
        if not name.lower().endswith(VIDEO_SUFFIXES):
            raise ValueError(
                f"{source} is not a video or a list; videos end in {', '.join(VIDEO_SUFFIXES)}, "
                f"lists in {', '.join(LIST_EXTENSIONS)}"
            )
        path = os.path.abspath(name)
        yield path, _with_slash(os.path.dirname(path))
    elif glob.has_magic(name):
        root = name
        while glob.has_magic(root):
            root = os.path.dirname(root)
        root = _with_slash(os.path.abspath(root))
        for match in glob.iglob(name, recursive=True):
            if _is_video(os.path.basename(match)) and not os.path.isdir(match):
                yield os.path.abspath(match), root
    else:
        raise FileNotFoundError(
            f"{source} does not exist; give a folder of videos, a glob such as 'clips/*.mp4', a "
            f"file ending in {', '.join(VIDEO_SUFFIXES)}, or a list of paths ending in "
            f"{', '.join(LIST_EXTENSIONS)}"
        )


def _with_slash(folder: str) -> str:
    return os.path.join(folder, "")


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".")


def _raise(error: OSError) -> NoReturn:
    raise error
