"""How well the tiny captioner does on clips it has never seen, through the product's own path.

    python benchmarks/tiny_captioner.py

It performs clips with seeds, subjects, rooms and clothes that neither training nor the demo set
draws, writes them as H.264 AVI files, captions the files with `captioning.run.run` (decode, resize,
prompt, generate, shards) and compares the sentences with what was performed. Exit code 1 if fewer
captions than asked name the right action, or the right side.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from captioning.config import CaptionConfig
from captioning.run import run
from captioning.tiny.stream import draw_performance
from datasets_build import schema
from datasets_build.progress import SilentProgress
from datasets_build.shards import iterate_shards, read_index
from datasets_build.synthetic import Performance
from datasets_build.synthetic_actions import (
    ACTIONS,
    action_of_caption,
    describe,
    repetitions_of_caption,
    side_of_caption,
)
from datasets_build.synthetic_motion import FPS
from datasets_build.synthetic_render import render, write_video

SEED = 2_000_003  # training uses 1 and 2, the demo set its own generator and subjects 1 to 40
WIDTH, HEIGHT = 480, 270  # as the demo set


def write_clips(folder: Path, num_clips: int, seed: int) -> dict[str, Performance]:
    """Perform clips and write their videos; the performances by sample_id."""
    performances = {}
    for index in range(num_clips):
        performance = draw_performance(seed, index, held_out=True)
        frames = render(performance, range(performance.num_frames), width=WIDTH, height=HEIGHT)
        sample_id = f"clip{index:05d}"
        write_video(folder / f"{sample_id}.avi", frames, fps=FPS)
        performances[sample_id] = performance
    return performances


def caption_clips(videos: Path, out: Path, model: str) -> dict[str, str]:
    """The caption of every clip by sample_id; a row without a caption gives an empty string."""
    config = CaptionConfig(videos=(str(videos),), out=out, model=model)
    summary = run(config, SilentProgress())
    captions: dict[str, str] = {}
    shards = read_index(summary.index, made_by="hoc caption")
    for table in iterate_shards(summary.folder, shards):
        for row in table.select([schema.SAMPLE_ID, schema.CAPTION]).to_pylist():
            captions[row[schema.SAMPLE_ID]] = row[schema.CAPTION] or ""
    return captions


def speed_of_caption(text: str) -> str | None:
    """ "slowly", "quickly" or None."""
    found = re.search(r"\b(slowly|quickly)\b", text)
    return found[1] if found else None


def direction_of_caption(text: str) -> str | None:
    """The direction of a kick or of a pointing hand, or None."""
    found = re.search(r"(?:kicks|points) (forward|sideways|up|to the left|to the right) with", text)
    return found[1] if found else None


# For each attribute: of which clips it is asked, what is true, what the caption says.
Question = tuple[
    Callable[[Performance], bool], Callable[[Performance], object], Callable[[str], object]
]
QUESTIONS: dict[str, Question] = {
    "action": (lambda p: True, lambda p: p.action_id, action_of_caption),
    "side": (lambda p: p.side is not None, lambda p: p.side, side_of_caption),
    "repetitions": (
        lambda p: ACTIONS[p.action_id].max_repetitions is not None,
        lambda p: p.repetitions,
        repetitions_of_caption,
    ),
    "speed": (lambda p: True, lambda p: p.speed, speed_of_caption),
    "direction": (lambda p: p.direction is not None, lambda p: p.direction, direction_of_caption),
}


def score(
    performances: dict[str, Performance], captions: dict[str, str], action_id: int | None = None
) -> dict[str, tuple[int, int]]:
    """Right answers and questions of each attribute, and whole sentences that are right.

    Args:
        performances: the truth by sample_id.
        captions: the sentences by sample_id.
        action_id: count only the clips of this action.
    """
    chosen = {
        sample_id: performance
        for sample_id, performance in performances.items()
        if action_id in (None, performance.action_id)
    }
    result = {}
    for name, (is_asked, truth, answer) in QUESTIONS.items():
        asked = {sample_id: p for sample_id, p in chosen.items() if is_asked(p)}
        right = sum(truth(p) == answer(captions[sample_id]) for sample_id, p in asked.items())
        result[name] = (right, len(asked))
    right = sum(describe(p) == captions[sample_id] for sample_id, p in chosen.items())
    return {**result, "sentence": (right, len(chosen))}


def _percent(pair: tuple[int, int]) -> str:
    return f"{100 * pair[0] / pair[1]:.1f}" if pair[1] else "-"


def main() -> int:
    """Measure, print two tables and compare with the bars."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=400, help="held-out clips (default 400)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--model", default="tiny", help="any model that `hoc caption` takes")
    parser.add_argument("--least-action", type=float, default=90.0, help="percent, default 90")
    parser.add_argument("--least-side", type=float, default=80.0, help="percent, default 80")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong captions")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        videos, out = Path(temporary) / "videos", Path(temporary) / "captions"
        videos.mkdir()
        started = time.monotonic()
        performances = write_clips(videos, args.clips, args.seed)
        written = time.monotonic()
        captions = caption_clips(videos, out, args.model)
        print(
            f"{args.clips} clips of seed {args.seed}: written in {written - started:.0f} s, "
            f"captioned by {args.model} in {time.monotonic() - written:.0f} s"
        )
    total = score(performances, captions)
    names = list(total)
    print(f"{'percent right':34}" + "".join(f"{name:>13}" for name in names))
    for action_id, action in ACTIONS.items():
        row = score(performances, captions, action_id)
        label = f"A{action_id:03d} {action.name}, {row['action'][1]} clips"
        print(f"{label[:33]:34}" + "".join(f"{_percent(row[name]):>13}" for name in names))
    print(f"{'all':34}" + "".join(f"{_percent(total[name]):>13}" for name in names))
    wrong = [i for i, p in performances.items() if describe(p) != captions[i]]
    for sample_id in wrong[: args.show]:
        print(f"{sample_id}  true: {describe(performances[sample_id])}")
        print(f"{'':10} said: {captions[sample_id]}")
    bars = {"action": args.least_action, "side": args.least_side}
    failed = [
        f"{name} {_percent(total[name])} % right, at least {least:g} % wanted"
        for name, least in bars.items()
        if total[name][1] and 100 * total[name][0] / total[name][1] < least
    ]
    print("; ".join(failed) if failed else "both bars are held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
