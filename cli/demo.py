"""`hoc demo`: the whole chain on the demo set, each step with the command it stands for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import console
from cli.options import JsonOption
from datasets_build.child_processes import available_cores

if TYPE_CHECKING:
    from datasets_build.progress import Progress

STREAMS = ("joint", "bone")
PROTOCOL = "ntu60-xsub"
NUM_SHOWN = 3  # described clips in the closing table
ACTION_IDS = (8, 9, 10, 23, 24, 26, 27, 31, 55)
REPETITIONS = 2  # takes of each subject and action; with one, pointing is learned from five takes


@dataclass
class _Demo:
    """What the steps hand on, and what the closing table shows."""

    folder: Path
    seed: int
    workers: int
    progress: Progress
    truth: dict[str, dict[str, Any]] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> list[Path]:
        return [self.folder / "runs" / stream for stream in STREAMS]


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of the made-up clips and of the training.")] = 0,
    workers: Annotated[
        int, typer.Option(help="Processes for rendering, decoding and reading.")
    ] = min(8, available_cores()),
    json_output: JsonOption = False,
) -> None:
    """Run the whole chain on a made-up NTU-like set: offline, without a GPU, in minutes.

    Renders 432 clips of 9 actions with their skeletons, captions them with the bundled tiny
    Qwen3-VL, builds the data set, trains HGLNet + SSF on two streams, evaluates, ensembles, and
    lets the model describe test clips from their skeletons. Called again it finds its work done.
    """
    steps: tuple[tuple[str, str, Callable[[_Demo], str]], ...] = (
        ("make the demo set", "", _make_set),
        (
            "caption",
            "hoc caption --videos {out}/videos --model tiny --out {out}/captions",
            _caption,
        ),
        (
            "build-dataset",
            "hoc build-dataset --skeletons {out}/skeletons --captions {out}/captions "
            "--classes present --no-missing-list --out {out}/data",
            _build,
        ),
        (
            "train",
            "hoc train --recipe demo --data {out}/data --stream joint|bone "
            "--out {out}/runs/joint|bone",
            _train,
        ),
        ("evaluate", "hoc evaluate {out}/runs/joint|bone", _evaluate),
        (
            "ensemble",
            "hoc ensemble {out}/runs/joint {out}/runs/bone --out {out}/runs/ensemble",
            _ensemble,
        ),
        (
            "describe",
            "hoc describe {out}/runs/joint --all --synonyms {out}/synonyms.csv",
            _describe,
        ),
    )
    timings: list[tuple[str, float, str]] = []
    with console.progress() as progress:
        state = _Demo(out, seed, workers, progress)
        for number, (name, command, step) in enumerate(steps, start=1):
            progress.message(f"[{number}/{len(steps)}] {command.format(out=out) or name}")
            started = time.monotonic()
            outcome = step(state)
            timings.append((name, time.monotonic() - started, outcome))
    seconds = sum(duration for _, duration, _ in timings)
    if json_output:
        console.print_json({"seconds": seconds, "seed": seed, **state.result})
        return
    console.print_table(
        f"The chain, {seconds:.0f} s",
        ["step", "outcome", "seconds"],
        [(name, outcome, f"{duration:.1f}") for name, duration, outcome in timings],
        numeric=1,
    )
    console.print_table(
        "Said from the skeleton alone (test subjects)",
        ["sample", "truth", "described"],
        [(s["sample_id"], s["truth"], s["text"]) for s in state.result["described"]],
    )
    console.print_paths(
        {
            "videos, skeletons": out,
            "captions": out / "captions",
            "data set": out / "data",
            "runs": out / "runs",
            "confusion matrix": out / "runs" / "ensemble" / "confusion-test.png",
        }
    )
    console.out.print(
        f"\nLook further: hoc describe {out}/runs/joint --skeleton FILE, "
        f"hoc verify {out}/captions, hoc doctor",
        markup=False,
    )


def _make_set(demo: _Demo) -> str:
    from datasets_build.synthetic import TRUTH_NAME, write_demo_set

    done = write_demo_set(
        demo.folder,
        repetitions=REPETITIONS,
        seed=demo.seed,
        workers=demo.workers,
        action_ids=ACTION_IDS,
        progress=demo.progress,
    )
    lines = (demo.folder / TRUTH_NAME).read_text(encoding="utf-8").splitlines()
    demo.truth = {row["sample_id"]: row for row in map(json.loads, lines)}
    return f"{done.num_clips} clips, {done.num_frames:,} frames"


def _caption(demo: _Demo) -> str:
    from captioning.config import CaptionConfig
    from captioning.run import run
    from datasets_build import schema
    from datasets_build.shards import iterate_shards, read_index
    from datasets_build.synthetic import action_of_caption, side_of_caption

    folder = demo.folder / "captions"
    summary = run(
        CaptionConfig(
            videos=(str(demo.folder / "videos"),),
            out=folder,
            model="tiny",
            device="cpu",  # the same bytes on every machine of one kind
            num_workers=demo.workers,
        ),
        demo.progress,
    )
    right_action, right_side, num_sided = 0, 0, 0
    shards = read_index(summary.index, made_by="hoc caption")
    for table in iterate_shards(folder, shards, columns=[schema.SAMPLE_ID, schema.CAPTION]):
        for row in table.to_pylist():
            truth, text = demo.truth[row[schema.SAMPLE_ID]], row[schema.CAPTION] or ""
            right_action += action_of_caption(text) == truth["action_id"]
            if truth["side"] is not None:
                num_sided += 1
                right_side += side_of_caption(text) == truth["side"]
    demo.result["captions"] = {
        "rows": summary.num_rows,
        "by_status": summary.counts,
        "right_action": right_action / summary.num_rows,
        "right_side": right_side / num_sided,
    }
    return (
        f"{summary.num_rows} captions: right action in {right_action / summary.num_rows:.1%}, "
        f"right side in {right_side / num_sided:.1%} of the one-sided"
    )


def _build(demo: _Demo) -> str:
    from datasets_build.build import run
    from datasets_build.config import BuildConfig

    summary = run(
        BuildConfig(
            skeletons=(demo.folder / "skeletons",),
            captions=(demo.folder / "captions",),
            out=demo.folder / "data",
            name="demo",
            format="ntu",
            classes="present",
            use_missing_list=False,  # it lists real recordings, whose names the made-up ones share
            workers=demo.workers,
        ),
        demo.progress,
    )
    demo.result["dataset"] = {"rows": summary.num_rows, "captions": summary.num_captions}
    return f"{summary.num_rows} samples, {summary.num_classes} classes"


def _train(demo: _Demo) -> str:
    from training.recipe_files import load_recipe
    from training.side_by_side import train_side_by_side

    configs = []
    for stream, folder in zip(STREAMS, demo.runs, strict=True):
        data = {"dataset": demo.folder / "data", "stream": stream}
        flags = {"out": folder, "data": data, "loop": {"seed": demo.seed}}
        configs.append(load_recipe("demo", (), flags))
    summaries = train_side_by_side(configs, demo.progress)
    rate = sum(summary.samples_per_s for summary in summaries)
    return f"{' and '.join(STREAMS)}: {summaries[0].epochs} epochs, {rate:.0f} samples/s"


def _evaluate(demo: _Demo) -> str:
    from training.command_config import EvaluateConfig
    from training.evaluate import run

    found = {
        stream: run(EvaluateConfig(run=folder, device="cpu"), demo.progress).accuracy.top1
        for stream, folder in zip(STREAMS, demo.runs, strict=True)
    }
    demo.result["top1"] = found
    return ", ".join(f"{stream} {top1:.1%}" for stream, top1 in found.items())


def _ensemble(demo: _Demo) -> str:
    from training.command_config import EnsembleConfig
    from training.ensemble import run

    config = EnsembleConfig(runs=tuple(demo.runs), out=demo.folder / "runs" / "ensemble")
    top1 = run(config, demo.progress).accuracy.top1
    demo.result["top1"]["ensemble"] = top1
    return f"{top1:.1%} of the test subjects' clips ({PROTOCOL})"


def _describe(demo: _Demo) -> str:
    from datasets_build.synthetic import SYNONYMS_NAME
    from training.command_config import DescribeConfig
    from training.describe import run

    synonyms = (demo.folder / SYNONYMS_NAME,)
    config = DescribeConfig(run=demo.runs[0], every=True, synonyms=synonyms, device="cpu")
    summary = run(config, demo.progress)
    by_action = sorted(
        summary.descriptions, key=lambda d: (demo.truth[d.sample_id]["action_id"], d.sample_id)
    )
    num_clips, step = len(by_action), max(1, len(by_action) // NUM_SHOWN)
    demo.result["describe"] = {"clips": num_clips, "right_action": summary.share_named}
    demo.result["described"] = [
        {"sample_id": d.sample_id, "truth": demo.truth[d.sample_id]["caption"], "text": d.text}
        for d in by_action[step // 2 :: step][:NUM_SHOWN]
    ]
    return f"{summary.share_named:.1%} of {num_clips} test clips name the right action"
