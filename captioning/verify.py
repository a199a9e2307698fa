"""Re-checking a finished caption run against its manifest, and making a part of it again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from captioning.config import CaptionConfig
from captioning.decode_pool import DecodePool
from captioning.engines.interface import Engine, EngineClip, Generated
from captioning.execute import Session, halves, probe_function
from captioning.journal import Journal, Row
from captioning.plan import (
    MADE_BY,
    PLAN_FILE,
    TABLE_FILE,
    Plan,
    load_plan,
    planned_files,
    table_parts,
)
from captioning.prompt_files import read_prompt
from captioning.results import INDEX_FILE, MANIFEST_FILE, check_finished, journal_path
from captioning.run import join_run
from datasets_build.manifest import differing_parts, fingerprint, read_json, sha256_file
from datasets_build.progress import Progress
from datasets_build.schema import (
    CAPTION_RAW,
    PROMPT_ID,
    SAMPLE_ID,
    STATUS,
    STATUS_DECODE_ERROR,
    STATUS_TIMEOUT,
    VIDEO_SHA256,
)
from datasets_build.shards import check_shards, iterate_shards, read_index

MAX_PROBLEMS = 100  # our choice: more of one kind say nothing new


def verify(folder: Path) -> list[str]:
    """Recompute every hash of a run.

    Args:
        folder: the output folder of `hoc caption`.

    Returns:
        What is wrong, a sentence each; empty when all is as the manifest says.

    Raises:
        FileNotFoundError: the folder holds no finished run.
    """
    check_finished(folder)
    index = read_json(folder / INDEX_FILE, made_by=MADE_BY)
    manifest = read_json(folder / MANIFEST_FILE, made_by=MADE_BY)
    needed = {"config", "fingerprint", "parts", "plan", "result", "shards"}
    if missing := sorted(needed - manifest.keys()):
        return [f"{MANIFEST_FILE} lacks {', '.join(missing)}"]
    problems = []
    if fingerprint(manifest["parts"]) != manifest["fingerprint"]:
        problems.append("the parts in manifest.json do not give its fingerprint")
    if index["fingerprint"] != manifest["fingerprint"]:
        problems.append("index.json and manifest.json have different fingerprints")
    if index["shards"] != manifest["shards"]:
        problems.append("index.json and manifest.json list different shards")
    problems += _check_prompts(manifest)
    problems += check_shards(folder, read_index(folder / INDEX_FILE, made_by=MADE_BY))
    if not (folder / PLAN_FILE).is_file():
        return [*problems, f"{PLAN_FILE} is missing"]
    try:
        plan = load_plan(folder)
    except (FileNotFoundError, ValueError) as error:
        return [*problems, str(error)]
    if sha256_file(folder / TABLE_FILE) != manifest["plan"]["sha256"]:
        problems.append(f"{TABLE_FILE} has another sha256 than the manifest says")
    names = differing_parts(table_parts(plan.table), _picked(manifest["parts"], "videos batches"))
    problems += [f"{TABLE_FILE} does not give the fingerprint's part {name}" for name in names]
    if not problems:
        problems += _check_rows(folder, plan, manifest["result"])
    return problems + _check_videos(plan, CaptionConfig.model_validate(manifest["config"]))


def _picked(values: dict[str, Any], names: str) -> dict[str, Any]:
    return {name: values.get(name) for name in names.split()}


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


def _check_rows(folder: Path, plan: Plan, result: dict[str, Any]) -> list[str]:
    """The rows are the planned clips in the planned order, a row a prompt, made of those videos."""
    prompt_ids = sorted(plan.parts["prompts"])
    planned = (
        (sample_id, prompt_id, sha256)
        for sample_id, _, sha256 in planned_files(plan)
        for prompt_id in prompt_ids
    )
    tables = iterate_shards(
        folder,
        read_index(folder / INDEX_FILE, made_by=MADE_BY),
        columns=[SAMPLE_ID, PROMPT_ID, STATUS, VIDEO_SHA256],
    )
    rows = chain.from_iterable(table.to_pylist() for table in tables)
    number = -1
    counts: Counter[str] = Counter()
    for number, (row, (sample_id, prompt_id, sha256)) in enumerate(
        zip(rows, planned, strict=False)
    ):
        if (row[SAMPLE_ID], row[PROMPT_ID]) != (sample_id, prompt_id):
            return [
                f"row {number} is ({row[SAMPLE_ID]}, {row[PROMPT_ID]}), but ({sample_id}, "
                f"{prompt_id}) was planned there"
            ]
        counts[row[STATUS]] += 1
        # A file that could not be read at first may have been captioned by a later try.
        if row[VIDEO_SHA256] != sha256 and sha256 is not None:
            return [f"row {number} ({sample_id}) was made from another video than planned"]
    expected = plan.num_clips * len(prompt_ids)
    if number + 1 != expected or next(rows, None) is not None:
        return [f"the shards do not hold the {expected} planned rows"]
    if counts != result["counts"]:
        return [f"the rows have the statuses {dict(counts)}, {MANIFEST_FILE} says otherwise"]
    return []


def _check_videos(plan: Plan, config: CaptionConfig) -> list[str]:
    problems: list[str] = []
    for sample_id, path, sha256 in planned_files(plan):
        if sha256 is None:
            continue  # the probe could not read it; its row says so
        try:
            found = _sha256_of_input(path, config)
        except OSError as error:
            problems.append(f"{path} ({sample_id}) cannot be read: {error.strerror}")
            continue
        if found != sha256:
            problems.append(f"{path} ({sample_id}) has changed since it was captioned")
        if len(problems) >= MAX_PROBLEMS:
            return [*problems, "and perhaps more; only so many are listed"]
    return problems


def _sha256_of_input(path: str, config: CaptionConfig) -> str | None:
    if config.render:  # it may lie in a zip
        sha256: str | None = probe_function(config)(path, allow_truncated=True).sha256
        return sha256
    return sha256_file(Path(path))


@dataclass(frozen=True)
class Difference:
    """A caption that came out differently.

    Attributes:
        position: number of the first token that differs, from 0.
        before: that token in the run; "" where the text had ended.
        now: that token in the new text.
    """

    sample_id: str
    prompt_id: str
    position: int
    before: str
    now: str


@dataclass
class Regenerated:
    """What making planned batches again gave.

    Attributes:
        num_batches: made again.
        num_rows: captions compared.
        num_equal: equal to the last bit.
        differences: the others.
        unreadable: clips whose frames are no longer to be had, as (sample_id, reason).
    """

    num_batches: int = 0
    num_rows: int = 0
    num_equal: int = 0
    differences: list[Difference] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def regenerate(
    folder: Path,
    share: float,
    progress: Progress,
    *,
    seed: int = 0,
    device: str | None = None,
    engine: Engine | None = None,
) -> Regenerated:
    """Run random planned batches again, with the members that they had, and compare the captions.

    Args:
        folder: a finished run.
        share: of the clips that were put through the model, 0 < share <= 1; whole batches are
            taken until there are so many.
        progress: is told a stage "regenerate".
        seed: of the choice.
        device: other than the run's.
        engine: None makes the run's own.

    Raises:
        FileNotFoundError: the folder holds no finished run, or its model is gone.
        ValueError: `share` is out of range, or this machine would caption in another way.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share to regenerate is {share:.1%}; give more than 0 and up to 100%")
    manifest = read_json(folder / MANIFEST_FILE, made_by=MADE_BY)
    changes = {"out": folder} | ({"device": device} if device else {})
    config = CaptionConfig.model_validate({**manifest["config"], **changes})
    result = Regenerated()
    with ExitStack() as stack:
        pool = stack.enter_context(
            DecodePool(config.num_decoders, timeout_s=config.decode_timeout_s)
        )
        session = join_run(config, progress, pool, engine=engine)
        if engine is None:
            stack.callback(session.engine.close)
        plan = session.plan
        shard_of = {batch: s for s in range(plan.num_shards) for batch in plan.batches_of(s)}
        usable = [number for number in shard_of if plan.batch(number)[0].problem_status is None]
        num_wanted = share * sum(plan.num_clips_in(number) for number in usable)
        random.Random(seed).shuffle(usable)
        ends = np.cumsum([plan.num_clips_in(number) for number in usable])
        chosen = usable[: int(np.searchsorted(ends, num_wanted)) + 1]
        progress.start("regenerate", sum(map(plan.num_clips_in, chosen)), unit="clips")
        session.engine.load()
        for number in chosen:
            record = _first_record(folder, plan, shard_of[number], number)
            _compare_batch(session, number, record, result)
            progress.advance(plan.num_clips_in(number))
        progress.finish()
    return result


def _first_record(folder: Path, plan: Plan, shard: int, batch: int) -> dict[str, Any]:
    """What the journal wrote when the batch was done first, before any retry."""
    path = journal_path(folder, shard)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; it tells which clips of a batch were generated together"
        )
    journal = Journal(path, fingerprint=plan.fingerprint, wait=True)
    try:
        return journal.record_of(batch, with_retries=False)
    finally:
        journal.close()


def _compare_batch(
    session: Session, number: int, record: dict[str, Any], result: Regenerated
) -> None:
    """Generate one batch as it was generated."""
    rows: dict[tuple[str, str], Row] = {
        (row[SAMPLE_ID], row[PROMPT_ID]): row for row in record["rows"]
    }
    had_no_frames = {
        name for (name, _), row in rows.items()
        if row[STATUS] in (STATUS_DECODE_ERROR, STATUS_TIMEOUT)
    }  # fmt: skip
    clips = [clip for clip in session.plan.batch(number) if clip.sample_id not in had_no_frames]
    decoded, problems = session.decode(clips)
    result.unreadable += [(name, reason) for name, (_, reason) in problems.items()]
    result.num_batches += 1
    answers = _generate_again(session, decoded, list(record["splits"]))
    for answer in answers:
        row = rows[answer.sample_id, answer.prompt_id]
        if row[CAPTION_RAW] is None:
            continue
        result.num_rows += 1
        if row[CAPTION_RAW] == answer.text:
            result.num_equal += 1
        else:
            result.differences.append(_difference(session.engine, row, answer))


def _generate_again(
    session: Session, clips: Sequence[EngineClip], splits: list[int]
) -> list[Generated]:
    """The answers of a group; it is halved where it was halved for want of memory."""
    if splits and splits[0] == len(clips):
        splits.pop(0)
        first, second = halves(clips)
        return [
            *_generate_again(session, first, splits),
            *_generate_again(session, second, splits),
        ]
    answers = session.engine.generate(clips, session.prompts) if clips else []
    return [answer for answer in answers if isinstance(answer, Generated)]


def _difference(engine: Engine, row: Row, answer: Generated) -> Difference:
    before, now = engine.tokenize(row[CAPTION_RAW]), engine.tokenize(answer.text)
    shorter = min(len(before), len(now))
    place = next((i for i in range(shorter) if before[i] != now[i]), shorter)
    return Difference(
        answer.sample_id,
        answer.prompt_id,
        place,
        before[place] if place < len(before) else "",
        now[place] if place < len(now) else "",
    )
