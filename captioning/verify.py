"""Re-checking a finished caption run: shards, prompts and videos against its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captioning.plan import read_planned_videos
from captioning.prompt_files import read_prompt
from captioning.run import INDEX_FILE, MADE_BY, MANIFEST_FILE
from datasets_build.manifest import fingerprint, read_json, sha256_file
from datasets_build.schema import PROMPT_ID, SAMPLE_ID, STATUS, VIDEO_SHA256
from datasets_build.shards import check_shards, read_index, read_shard


def verify(folder: Path) -> list[str]:
    """Recompute every hash of a run.

    Args:
        folder: the output folder of `hoc caption`.

    Returns:
        What is wrong, a sentence each; empty when all is as the manifest says.

    Raises:
        FileNotFoundError: the folder holds no finished run.
    """
    index = read_json(folder / INDEX_FILE, made_by=MADE_BY)
    manifest = read_json(folder / MANIFEST_FILE, made_by=MADE_BY)
    problems = []
    if fingerprint(manifest["parts"]) != manifest["fingerprint"]:
        problems.append("the parts in manifest.json do not give its fingerprint")
    if index["fingerprint"] != manifest["fingerprint"]:
        problems.append("index.json and manifest.json have different fingerprints")
    if index["shards"] != manifest["shards"]:
        problems.append("index.json and manifest.json list different shards")
    problems += _check_prompts(manifest)
    shards = read_index(folder / INDEX_FILE, made_by=MADE_BY)
    shard_problems = check_shards(folder, shards)
    problems += shard_problems
    if not shard_problems:
        problems += _check_rows(folder)
    return problems + _check_videos(folder)


def _check_prompts(manifest: dict[str, Any]) -> list[str]:
    problems = []
    recorded = dict(manifest["parts"]["prompts"])
    for name in manifest["config"]["prompts"]:
        try:
            prompt = read_prompt(name)
        except (FileNotFoundError, ValueError) as error:
            problems.append(f"prompt {name} cannot be read: {error}")
            continue
        if recorded.get(prompt.prompt_id) != prompt.sha256:
            problems.append(f"prompt {name} has other words than the run was made with")
    return problems


def _check_rows(folder: Path) -> list[str]:
    """Every planned clip has one row a prompt, made from the planned video."""
    manifest = read_json(folder / MANIFEST_FILE, made_by=MADE_BY)
    planned = {
        (sample_id, prompt_id): sha256
        for sample_id, _, sha256 in read_planned_videos(folder)
        for prompt_id in manifest["parts"]["prompts"]
    }
    problems = []
    for shard in read_index(folder / INDEX_FILE, made_by=MADE_BY):
        table = read_shard(folder, shard, columns=[SAMPLE_ID, PROMPT_ID, STATUS, VIDEO_SHA256])
        for row in table.to_pylist():
            key = (row[SAMPLE_ID], row[PROMPT_ID])
            if key not in planned:
                problems.append(f"{shard.file}: row {key} was not planned, or is there twice")
                continue
            sha256 = planned.pop(key)
            if row[VIDEO_SHA256] != sha256 and sha256 is not None:
                problems.append(f"{shard.file}: row {key} was made from another video than planned")
    problems += [f"the planned row {key} is missing" for key in planned]
    return problems


def _check_videos(folder: Path) -> list[str]:
    problems = []
    for sample_id, path, sha256 in read_planned_videos(folder):
        if sha256 is None:
            continue  # the probe could not read it; its row says so
        try:
            if sha256_file(path) != sha256:
                problems.append(f"{path} ({sample_id}) has changed since it was captioned")
        except OSError as error:
            problems.append(f"{path} ({sample_id}) cannot be read: {error.strerror}")
    return problems
