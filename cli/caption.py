"""`hoc caption`: videos, drawn skeletons or texts to Arrow caption shards with a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import console
from cli.options import JsonOption, SetOption

if TYPE_CHECKING:
    from captioning.config import CaptionConfig
    from captioning.estimate import Estimate
    from captioning.run import CaptionSummary, Distribute

_INPUTS = "What to caption"
_MODEL = "Model and prompts"
_FRAMES = "Frames"
_RUN = "Running"
_DEFAULT_OUT = Path("captions/run")


def caption(
    videos: Annotated[
        list[str] | None,
        typer.Option(
            "--videos",
            help="A folder, a glob, a video, a list (.txt, .csv, .parquet, .jsonl) or a caption "
            "run's manifest.json; repeatable.",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    render: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of videos: skeletons (folder or zip), whose drawings are captioned.",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    from_text: Annotated[
        list[Path] | None,
        typer.Option(
            help="No model: texts a class or a sample (.txt, .csv, .tsv, .jsonl, .parquet).",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(
            help="With --from-text: whose samples get the texts: a list of names, skeletons "
            "(folder or zip), a data set or a caption run.",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    text_source: Annotated[
        str | None,
        typer.Option(
            help="With --from-text: where the texts are from (recorded).", rich_help_panel=_INPUTS
        ),
    ] = None,
    filter_by: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="action=1-60, subject=, camera=, setup=, repetition=, or "
            "split=ntu60-xsub/train; repeatable, all must hold.",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    pilot: Annotated[
        int | None,
        typer.Option(
            help="Only a sample of so many, balanced over classes, subjects and cameras.",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first so many.", rich_help_panel=_INPUTS)
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Column of a list with the sample_id.", rich_help_panel=_INPUTS),
    ] = None,
    path_column: Annotated[
        str | None, typer.Option(help="Column of a list with the path.", rich_help_panel=_INPUTS)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder to write; an interrupted run there goes on; captions/run."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A caption recipe such as ntu60-8b (see hoc recipes), or a .toml file.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="Repeat the run of this manifest.json exactly, or say why that is not possible.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    assignments: SetOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            help="Print counts, tokens and an estimate from two timed batches, and stop.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Probe and plan, and stop: before an array job.", rich_help_panel=_RUN
        ),
    ] = False,
    devices: Annotated[
        str | None,
        typer.Option(
            help="A process each on: all (GPUs), 0,1,3 (these), cpu:2 (two on the CPU).",
            rich_help_panel=_RUN,
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            help="i/n: only every n-th shard from the i-th on, i from 0; for SLURM arrays.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="ray: work on a Ray cluster (RAY_ADDRESS, else on this machine); an address such "
            "as ray://head:10001 names one.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="transformers: in this process; server: an OpenAI-compatible server.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    server_url: Annotated[
        str | None,
        typer.Option(
            help="The server, e.g. http://localhost:8000/v1 (implies --engine server); more with "
            "--set server.KEY=VALUE.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A Qwen3-VL checkpoint: a Hugging Face id such as Qwen/Qwen3-VL-8B-Instruct, a "
            "folder, or tiny (default), the bundled model that knows the made-up demo set only.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Revision of a hub model.", rich_help_panel=_MODEL)
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="global (default), body-parts, changes, or a prompt file; repeatable: several "
            "share one pass over the video.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Caption length limit in tokens; 64.", rich_help_panel=_MODEL),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Token budget a batch (video + prompts + answers); 16384.", rich_help_panel=_MODEL
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="auto (default), float32 or bfloat16.", rich_help_panel=_MODEL),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto (default), cpu, cuda or cuda:N.", rich_help_panel=_MODEL),
    ] = None,
    device_map: Annotated[
        str | None,
        typer.Option(help="auto: spread one model over the GPUs.", rich_help_panel=_MODEL),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="sdpa (default) or eager.", rich_help_panel=_MODEL),
    ] = None,
    compile_steps: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Compile the decoding step.", rich_help_panel=_MODEL
        ),
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(help="Frames a clip, evenly spaced; even; 16.", rich_help_panel=_FRAMES),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            help="Pixels a frame at most; default: 224 x 224, or less where the model's processor "
            "says so.",
            rich_help_panel=_FRAMES,
        ),
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(help="Video reader: pyav (default) or decord.", rich_help_panel=_FRAMES),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(help="Decoding processes; default: one a core.", rich_help_panel=_FRAMES),
    ] = None,
    decode_timeout_s: Annotated[
        float | None,
        typer.Option(
            help="Seconds a clip may take to decode before it is given up; 120.",
            rich_help_panel=_FRAMES,
        ),
    ] = None,
    allow_truncated: Annotated[
        bool | None,
        typer.Option(
            "--allow-truncated/--no-truncated",
            help="Caption files that end early from the frames they have.",
            rich_help_panel=_FRAMES,
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Caption videos with Qwen3-VL: exact frames, planned batches, nothing lost.

    Writes OUT/captions-00000.arrow ..., index.json and manifest.json. Every clip ends as one row a
    prompt, with a status and a reason; a stopped run goes on with the same command, and the bytes
    of the shards do not depend on stops, order, or how many processes share the work.
    """
    if from_text:
        _refuse_both(
            "--from-text",
            {"--videos": videos, "--render": render, "--recipe": recipe, "--manifest": manifest,
             "--pilot": pilot, "--limit": limit, "--set": assignments, "--dry-run": dry_run,
             "--plan": plan, "--devices": devices, "--shards": shards, "--cluster": cluster,
             "--engine": engine, "--server-url": server_url, "--model": model, "--prompt": prompt},
        )  # fmt: skip
        _caption_from_text(
            from_text,
            samples,
            out or _DEFAULT_OUT,
            source=text_source,
            filters=filter_by,
            json_output=json_output,
        )
        return
    for option, value in (("--samples", samples), ("--text-source", text_source)):
        if value:
            raise ValueError(f"{option} belongs to --from-text, which was not given")
    if render:
        _refuse_both("--render", {"--videos": videos})
    if dry_run:
        others = {"--plan": plan, "--devices": devices, "--shards": shards, "--cluster": cluster}
        _refuse_both("--dry-run", others)
    from captioning.config import CaptionConfig
    from captioning.recipes import read_caption_recipe
    from captioning.repeat import read_manifest, settings_to_repeat
    from datasets_build.settings import resolve

    repeats = read_manifest(manifest) if manifest else None
    values: dict[str, Any] = settings_to_repeat(repeats) if repeats else {}
    if recipe:
        _refuse_both("--recipe", {"--manifest": manifest})
        values = read_caption_recipe(recipe)
    values = {
        "out": _DEFAULT_OUT,
        **{k: v for k, v in values.items() if not (repeats and k == "out")},
    }
    asks_server = bool(server_url) or (engine or values.get("engine")) == "server"
    if asks_server:
        _refuse_both(
            "a server",
            {"--revision": revision, "--dtype": dtype, "--device": device, "--devices": devices,
             "--device-map": device_map, "--attention": attention, "--compile": compile_steps},
        )  # fmt: skip
    flags = {
        "videos": tuple(render or videos or ()) or None,
        "render": True if render else None,
        "filters": tuple(filter_by) if filter_by else None,
        "pilot": pilot,
        "limit": limit,
        "id_column": id_column,
        "path_column": path_column,
        "out": out,
        "engine": engine or ("server" if server_url else None),
        "server": {"url": server_url, "model": model if asks_server else None},
        "model": None if asks_server else model,
        "revision": revision,
        "prompts": tuple(prompt) if prompt else None,
        "num_frames": num_frames,
        "max_pixels": max_pixels,
        "max_new_tokens": max_new_tokens,
        "batch_tokens": batch_tokens,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "attention": attention,
        "compile": compile_steps,
        "reader": reader,
        "num_workers": num_workers,
        "decode_timeout_s": decode_timeout_s,
        "allow_truncated": allow_truncated,
    }
    if not (videos or render or "videos" in values):
        raise ValueError(
            "nothing to caption was given; give --videos (a folder, a glob, a list), --render "
            "(skeletons) or --from-text (a table of texts)"
        )
    config = resolve(
        CaptionConfig,
        values,
        assignments=assignments or (),
        flags=flags,
        source="the settings",
    )
    if dry_run:
        _dry_run(config, repeats=repeats, json_output=json_output)
        return
    summary = _run(
        config, repeats=repeats, devices=devices, shards=shards, cluster=cluster, plan_only=plan
    )
    if json_output:
        console.print_json(summary.as_json())
    else:
        _print_summary(summary, plan_only=plan)
    if summary.num_rows and summary.num_failed == summary.num_rows:
        console.err.print("hoc: nothing was captioned; every row says why")
        raise typer.Exit(1)


def _refuse_both(option: str, others: Mapping[str, object]) -> None:
    for name, value in others.items():
        if value:
            raise ValueError(f"{option} and {name} exclude each other; give one of them")


def _run(
    config: CaptionConfig,
    *,
    repeats: dict[str, Any] | None,
    devices: str | None,
    shards: str | None,
    cluster: str | None,
    plan_only: bool,
) -> CaptionSummary:
    from captioning.run import run

    distribute: Distribute | None = None
    if devices and cluster:
        raise ValueError("--devices and --cluster exclude each other; give one of them")
    if devices:
        from captioning.devices import on_devices, parse_devices

        if config.device_map:
            raise ValueError("--devices gives each process one GPU; it excludes --device-map")
        names = parse_devices(devices)
        config = config.model_copy(update={"device": names[0].partition(":")[0]})
        distribute = on_devices(names)
    if cluster:
        from captioning.ray_cluster import on_ray

        if cluster != "ray" and not cluster.startswith("ray://"):
            raise ValueError(f"--cluster {cluster!r} is not known; give ray, or ray://HOST:PORT")
        distribute = on_ray(address=None if cluster == "ray" else cluster)
    share = _parse_share(shards) if shards else None
    with console.progress() as progress:
        return run(
            config,
            progress,
            share=share,
            distribute=distribute,
            repeats=repeats,
            plan_only=plan_only,
        )


def _parse_share(text: str) -> tuple[int, int]:
    """(i, n) of "i/n"."""
    first, slash, second = text.partition("/")
    if slash and first.strip().isdigit() and second.strip().isdigit():
        number, count = int(first), int(second)
        if number < count:
            return number, count
    raise ValueError(
        f"--shards {text!r} is not of the form i/n with 0 <= i < n; in a SLURM array of n jobs "
        "numbered from 0: --shards $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
    )


def _caption_from_text(
    tables: list[Path],
    samples: list[str] | None,
    out: Path,
    *,
    source: str | None,
    filters: list[str] | None,
    json_output: bool,
) -> None:
    from captioning.from_text import caption_from_text

    with console.progress() as progress:
        summary = caption_from_text(
            tables,
            samples or (),
            out,
            source_note=source,
            filters=tuple(filters or ()),
            progress=progress,
        )
    if json_output:
        console.print_json(summary.as_json())
        return
    _print_summary(summary, plan_only=False)


def _print_summary(summary: CaptionSummary, *, plan_only: bool) -> None:
    if plan_only:
        console.out.print(
            f"Planned: clips {summary.num_videos}, of them unusable {summary.num_unusable}, "
            f"shards {summary.num_shards}.",
            markup=False,
        )
    elif summary.missing_shards:
        console.out.print(
            f"{summary.num_shards - len(summary.missing_shards)} of {summary.num_shards} shards "
            "are finished; the others are left to other jobs. "
            f"When all have ended: hoc captions merge {summary.folder}",
            markup=False,
        )
    if plan_only or summary.missing_shards:
        console.print_paths({"captions": summary.folder})
        return
    rows = list(summary.counts.items())
    console.print_table("Captions", ["status", "rows"], rows, numeric=1)
    for sample_id, status, reason in summary.failures:
        console.out.print(f"  {sample_id}: {status}: {reason}", markup=False)
    if summary.num_failed > len(summary.failures):
        console.out.print(
            f"  ... and {summary.num_failed - len(summary.failures)} more", markup=False
        )
    if summary.was_finished:
        console.out.print("There was nothing left to do.")
    elif summary.clips_per_s:
        console.out.print(
            f"{summary.clips_per_s:.2f} clips/s once the model was loaded; it waited for frames "
            f"{summary.waited_share or 0:.1%} of the time."
        )
    console.print_paths(summary.paths)


def _dry_run(config: CaptionConfig, *, repeats: dict[str, Any] | None, json_output: bool) -> None:
    from dataclasses import asdict

    from captioning.estimate import estimate

    with console.progress() as progress:
        result = estimate(config, progress, repeats=repeats)
    if json_output:
        console.print_json(asdict(result))
        return
    console.print_table("Dry run", ["what", "number"], _estimate_rows(result), numeric=1)
    if result.clips_per_s is None:
        console.out.print("No clip can be captioned, so nothing was timed.")
        return
    console.out.print(
        "Nothing was captioned; the same command without --dry-run runs it, and need not probe "
        f"again ({config.out}/probe.jsonl).",
        markup=False,
    )


def _estimate_rows(result: Estimate) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("clips", result.num_videos),
        *((f"of them {status}", count) for status, count in result.problems.items()),
        ("requests (clips x prompts)", result.num_requests),
        ("batches", result.num_batches),
        ("shards", result.num_shards),
        ("tokens in", result.prompt_tokens),
        ("tokens out, at most", result.max_new_tokens),
    ]
    for number, batch in enumerate(result.batches, start=1):
        text = f"{batch.decode_s:.2f} s + {batch.generate_s:.2f} s"
        rows.append((f"timed batch {number}, {batch.num_clips} clips: decode + generate", text))
    if result.clips_per_s and result.hours is not None:
        rows += [("clips/s", f"{result.clips_per_s:.2f}"), ("hours", f"{result.hours:.2f}")]
    if result.peak_memory_bytes:
        rows.append(("peak memory of the device, GB", f"{result.peak_memory_bytes / 1e9:.2f}"))
    if result.disk_bytes:
        rows.append(("disk, MB", f"{result.disk_bytes / 1e6:.1f}"))
    return rows
