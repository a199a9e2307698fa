"""`hoc caption`: videos to Arrow caption shards with a manifest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption, OutOption


def caption(
    videos: Annotated[
        list[Path],
        typer.Option("--videos", help="A folder, a glob pattern or a video file; repeatable."),
    ],
    out: OutOption = Path("captions/run"),
    model: Annotated[
        str,
        typer.Option(
            help="A Qwen3-VL checkpoint: a Hugging Face id such as Qwen/Qwen3-VL-8B-Instruct, a "
            "folder, or 'tiny', the bundled model that only knows the made-up demo set."
        ),
    ] = "tiny",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Prompt id (global, body-parts, changes) or text file; repeatable."),
    ] = None,
    num_frames: Annotated[int, typer.Option(help="Frames a clip, evenly spaced; even.")] = 16,
    max_pixels: Annotated[
        int | None,
        typer.Option(help="Pixels a frame at most; default: what the model's processor says."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Caption length limit in tokens.")] = 64,
    limit: Annotated[int | None, typer.Option(help="Only the first so many videos.")] = None,
    reader: Annotated[str, typer.Option(help="Video reader: pyav or decord.")] = "pyav",
    batch_tokens: Annotated[
        int, typer.Option(help="Token budget a batch (vision + text + new tokens).")
    ] = 16384,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    num_workers: Annotated[int, typer.Option(help="Decoding processes.")] = 2,
    decode_timeout_s: Annotated[
        float, typer.Option(help="Seconds a clip may take to decode before it is given up.")
    ] = 120.0,
    allow_truncated: Annotated[
        bool, typer.Option(help="Caption files that end early from the frames they have.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Caption videos with Qwen3-VL: exact frames, planned batches, nothing lost.

    Writes OUT/captions-00000.arrow ..., index.json and manifest.json. Every clip ends as one row a
    prompt, with a status and a reason; a stopped run goes on with the same command, and the bytes
    of the shards do not depend on stops or order.
    """
    from captioning.config import CaptionConfig
    from captioning.run import run
    from datasets_build.settings import resolve

    config = resolve(
        CaptionConfig,
        {},
        flags={
            "videos": tuple(str(path) for path in videos),
            "out": out,
            "model": model,
            "revision": revision,
            "prompts": tuple(prompt) if prompt else None,
            "num_frames": num_frames,
            "max_pixels": max_pixels,
            "max_new_tokens": max_new_tokens,
            "reader": reader,
            "batch_tokens": batch_tokens,
            "dtype": dtype,
            "device": device,
            "num_workers": num_workers,
            "decode_timeout_s": decode_timeout_s,
            "allow_truncated": allow_truncated,
            "limit": limit,
        },
        source="the command line",
    )
    with console.progress() as progress:
        summary = run(config, progress)
    if json_output:
        console.print_json(asdict(summary))
        return
    rows = [(status, count) for status, count in summary.counts.items()]
    console.print_table("Captions", ["status", "rows"], rows, numeric=1)
    for sample_id, status, reason in summary.failures:
        console.out.print(f"  {sample_id}: {status}: {reason}", markup=False)
    console.print_paths(
        {"captions": summary.folder, "index": summary.index, "manifest": summary.manifest}
    )
