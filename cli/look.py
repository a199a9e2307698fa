"""`hoc inspect`: what a data set holds, and what one of its samples looks like.

The module is not called inspect, because Python's own library has a module of that name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import console
from cli.options import JsonOption

if TYPE_CHECKING:
    from datasets_build.dataset import SkeletonDataset
    from datasets_build.overview import ClassCounts, Overview, Sample, Spread

MOST_CLASSES = 20
_NUM_ENDS = 5  # classes shown from either end of a longer list


def inspect(
    data: Annotated[Path, typer.Argument(help="A data set (what hoc build-dataset wrote).")],
    sample: Annotated[
        str | None,
        typer.Option(metavar="ID", help="One sample: its ids, captions and a strip of poses."),
    ] = None,
    animate: Annotated[
        str | None, typer.Option(metavar="ID", help="One sample as a film, at its own speed.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="With --sample a .png, with --animate a .gif or .mp4, or a folder for them; "
            "default: ID.png or ID.gif here.",
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="With --animate: frames a second; default: NTU 30, NW-UCLA 10."),
    ] = None,
    classes: Annotated[bool, typer.Option("--classes", help="List every class.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Look at a data set: classes, clip lengths, bodies, captions, what was left out.

    With --sample or --animate, at one clip: orange is the person's left, blue the right; bodies
    after the first are lighter. x runs to the right and y up as the sensor gave them, so that an
    NTU clip looks like its video (which the Kinect mirrors).
    """
    from datasets_build.dataset import open_dataset

    _check_options(sample, animate, out=out, fps=fps, classes=classes)
    dataset = open_dataset(data)
    if sample is None and animate is None:
        _show_overview(dataset, every_class=classes, json_output=json_output)
    elif sample is not None:
        _show_sample(dataset, sample, out=out, json_output=json_output)
    else:
        assert animate is not None
        _show_film(dataset, animate, out=out, fps=fps, json_output=json_output)


def _check_options(
    sample: str | None, animate: str | None, *, out: Path | None, fps: float | None, classes: bool
) -> None:
    """Refuse options that do not belong together."""
    if sample is not None and animate is not None:
        raise ValueError("--sample and --animate exclude each other; give the command twice")
    if fps is not None and animate is None:
        raise ValueError("--fps is for --animate ID")
    if out is not None and sample is None and animate is None:
        raise ValueError("--out names a picture: it is for --sample ID or --animate ID")
    if classes and (sample is not None or animate is not None):
        raise ValueError("--classes is for the whole data set, without --sample and --animate")


# ---- one sample ----


def _show_sample(
    dataset: SkeletonDataset, sample_id: str, *, out: Path | None, json_output: bool
) -> None:
    from io import BytesIO

    from datasets_build.manifest import write_bytes_atomic
    from datasets_build.overview import read_sample
    from datasets_build.pictures import draw_strip

    path = _picture_path(dataset, sample_id, out, suffixes=(".png",))
    found = read_sample(dataset, sample_id)
    title = f"{sample_id}   {found.class_name}   ({found.row['num_frames']} frames)"
    buffer = BytesIO()
    draw_strip(found.joints, dataset.skeleton, title=title).save(buffer, "PNG")
    write_bytes_atomic(path, buffer.getvalue())
    if json_output:
        facts = {"class_name": found.class_name, "splits": found.splits, "picture": path}
        console.print_json({**found.row, **facts})
        return
    _print_sample(found)
    console.print_paths({"picture": path})


def _print_sample(found: Sample) -> None:
    row = found.row
    ids = ("action_id", "setup_id", "camera_id", "subject_id", "repetition_id")
    console.print_table(
        f"Sample {row['sample_id']}",
        ["what", "value"],
        [
            ("class", f"{found.class_name} (label {row['label']})"),
            *((name, row[name]) for name in ids if row[name] is not None),
            *((f"split under {name}", split or "-") for name, split in found.splits.items()),
            ("frames", row["num_frames"]),
            ("bodies", row["num_bodies"]),
            *([("picture size", _size(row))] if row["image_width"] is not None else []),
            ("captions", len(row["captions"])),
        ],
    )
    for caption in row["captions"]:
        console.out.print(f"  {caption['prompt_id']}: {caption['text']}", markup=False)
    tests = [name for name, split in found.splits.items() if split == "test"]
    if tests and row["captions"]:
        console.out.print(
            f"A test sample under {', '.join(tests)}: there its captions train nothing and score "
            "nothing.",
            markup=False,
        )


def _size(row: dict[str, Any]) -> str:
    return f"{row['image_width']} x {row['image_height']} pixels"


def _show_film(
    dataset: SkeletonDataset,
    sample_id: str,
    *,
    out: Path | None,
    fps: float | None,
    json_output: bool,
) -> None:
    from datasets_build.overview import read_sample
    from datasets_build.pictures import ANIMATION_SUFFIXES, OTHER_FPS, PLAYED_FPS, write_animation

    path = _picture_path(dataset, sample_id, out, suffixes=ANIMATION_SUFFIXES)
    found = read_sample(dataset, sample_id)
    shown_fps = PLAYED_FPS.get(dataset.family, OTHER_FPS) if fps is None else fps
    write_animation(
        path,
        found.joints,
        dataset.skeleton,
        title=sample_id,
        caption=found.class_name,
        fps=shown_fps,
    )
    if fps is None and dataset.family not in PLAYED_FPS:
        console.err.print(
            f"The rate of these recordings is not known; shown at {OTHER_FPS:g} frames a second. "
            "--fps changes it."
        )
    if json_output:
        console.print_json({"sample_id": sample_id, "fps": shown_fps, "film": path})
        return
    console.print_paths({"film": path})


def _picture_path(
    dataset: SkeletonDataset, sample_id: str, out: Path | None, *, suffixes: Sequence[str]
) -> Path:
    """Where a picture goes.

    Raises:
        FileNotFoundError: its folder does not exist.
        ValueError: another suffix, or a place inside the data set, which stays as it was built.
    """
    name = re.sub(r"[^\w.-]+", "_", sample_id) + suffixes[0]
    path = Path(name) if out is None else out / name if out.is_dir() else out
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--out {out} must end in {' or '.join(suffixes)}, or be a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: the folder {path.parent} does not exist; make it")
    if path.parent.resolve().is_relative_to(dataset.folder.resolve()):
        raise ValueError(
            f"{path.resolve()} would lie inside the data set, which stays as it was built; "
            "give another place with --out"
        )
    return path


# ---- the whole data set ----


def _show_overview(dataset: SkeletonDataset, *, every_class: bool, json_output: bool) -> None:
    from datasets_build.overview import overview

    found = overview(dataset)
    if json_output:
        console.print_json({"folder": dataset.folder, **asdict(found)})
        return
    _print_facts(found)
    _print_lengths(found)
    if found.protocols:
        console.print_table(
            "Protocols",
            ["name", "train", "test", "exemplar", "not in it"],
            [
                (
                    c.protocol,
                    *map(_number, (c.num_train, c.num_test, c.num_exemplar, c.num_outside)),
                )
                for c in found.protocols
            ],
            numeric=4,
        )
    if found.left_out:
        rows = [(reason, _number(num)) for reason, num in found.left_out.items()]
        console.print_table("Left out", ["reason", "samples"], rows, numeric=1)
    _print_classes(found.classes, every_class=every_class)
    files = {"data set": dataset.folder}
    if found.left_out:
        files["left out"] = dataset.folder / "left_out.parquet"
    console.print_paths(files)


def _print_facts(found: Overview) -> None:
    bodies = ", ".join(
        f"{num} in {_number(samples)} ({samples / found.num_samples:.1%})"
        for num, samples in found.bodies.items()
    )
    rows: list[tuple[str, object]] = [
        ("built from", f"{found.format} files ({found.family} samples)"),
        ("layout", f"{found.skeleton}: {found.num_joints} joints of {found.num_channels} numbers"),
        ("samples", f"{_number(found.num_samples)} ({_number(found.num_frames)} frames)"),
        ("bodies", bodies),
        ("captions", _number(found.num_captions)),
        ("samples without a caption", _number(found.num_samples_without_caption)),
    ]
    if found.num_held_out_captions:
        rows.append(("captions of test samples, kept apart", _number(found.num_held_out_captions)))
    rows += [
        ("size", f"{found.num_bytes / 1e6:,.1f} MB"),
        ("fingerprint", found.fingerprint[:12]),
    ]
    console.print_table(f"Data set {found.name}", ["what", "value"], rows)


def _print_lengths(found: Overview) -> None:
    def cells(what: str, spread: Spread, *, each: float = 1.0, digits: int = 0) -> tuple[str, ...]:
        return (what, *(f"{value / each:,.{digits}f}" for value in asdict(spread).values()))

    rows = [cells("frames", found.frames)]
    if found.fps is not None:
        rows.append(
            cells(f"seconds at {found.fps:g} a second", found.frames, each=found.fps, digits=1)
        )
    rows += [cells(f"words of captions, {p.prompt_id}", p.words) for p in found.prompts]
    console.print_table(
        "Lengths", ["of", "least", "25 %", "median", "75 %", "most"], rows, numeric=5
    )
    if found.prompts:
        console.print_table(
            "Captions by prompt",
            ["prompt", "captions", "samples without"],
            [
                (p.prompt_id, _number(p.num_captions), _number(p.num_samples_without))
                for p in found.prompts
            ],
            numeric=2,
        )


def _print_classes(classes: list[ClassCounts], *, every_class: bool) -> None:
    seen = [entry for entry in classes if entry.num_samples]
    shown, title = seen, f"Classes: {len(seen)} of {len(classes)} have samples"
    if len(seen) > MOST_CLASSES and not every_class:
        by_size = sorted(seen, key=lambda entry: (entry.num_samples, entry.label))
        shown = by_size[:_NUM_ENDS] + by_size[-_NUM_ENDS:]
        title += f"; the {_NUM_ENDS} smallest and largest (--classes lists all)"
    console.print_table(
        title,
        ["class", "label", "action", "samples", "captions"],
        [
            (c.name, c.label, c.action_id, _number(c.num_samples), _number(c.num_captions))
            for c in shown
        ],
        numeric=4,
    )
    empty = [entry.name for entry in classes if not entry.num_samples]
    if empty:
        console.out.print(f"Without a sample ({len(empty)}): {', '.join(empty)}.", markup=False)


def _number(value: int) -> str:
    return f"{value:,}"
