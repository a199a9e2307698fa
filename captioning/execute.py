"""Executing planned batches: decoded ahead, generated, judged, journaled; nothing is mixed up.

Out of memory: the batch is halved down to single clips. Every clip ends as one row a prompt.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from captioning.checks import classify, clean_caption
from captioning.config import CaptionConfig
from captioning.decode_pool import DecodePool
from captioning.engines.interface import Engine, EngineClip, Failed, Generated, OutOfMemoryError
from captioning.frames import read_frames
from captioning.journal import FAILED_STATUSES, Journal, Row
from captioning.plan import Clip, Plan, request_key
from captioning.planning import Planner
from captioning.probe import Probe, probe_of, probe_video
from captioning.prompt_files import Prompt
from captioning.results import journal_path, read_result, write_result, writing
from datasets_build import schema
from datasets_build.locks import BusyError
from datasets_build.progress import Progress

log = logging.getLogger(__name__)

BATCHES_AHEAD = 2  # our choice: batches being decoded while one is generated; bounds the memory
MAX_ERRORS_IN_A_ROW = 3  # our choice: then it is not the clips


Problems = dict[str, tuple[str, str]]  # sample_id: (status, reason)
Failures = dict[tuple[str, str], tuple[str, str]]  # (sample_id, prompt_id): (status, reason)


@dataclass
class Work:
    """One batch on its way.

    Attributes:
        shard: the number of its shard.
        journal: of the shard.
        number: of the batch in the plan; None for a clip that is tried again on its own.
        clips: what to caption; none where only the shard is to be written.
        ends_shard: after it the shard is written.
        tickets: the calls that decode the clips; None where there is nothing to decode.
    """

    shard: int
    journal: Journal
    number: int | None
    clips: tuple[Clip, ...]
    ends_shard: bool = False
    tickets: list[int | None] = field(default_factory=list)


@dataclass
class Session:
    """One process's part of a run: what it works with, and what it counted and measured.

    With `is_sharing`, other processes work on the same shards and tell of them themselves.
    """

    config: CaptionConfig
    folder: Path
    engine: Engine
    prompts: Sequence[Prompt]
    plan: Plan
    planner: Planner
    pool: DecodePool
    progress: Progress
    attempt: int = 1  # the round of tries; the same for all that share a run
    is_sharing: bool = False
    is_loaded: bool = False
    num_generated_clips: int = 0
    wait_s: float = 0.0  # the engine waited for frames
    busy_s: float = 0.0  # from the first batch to the last, without loading the model
    errors_in_a_row: int = 0
    splits: list[int] = field(default_factory=list)

    def run_shards(self, shards: Sequence[int], *, wait: bool = True) -> None:
        """Work on the unfinished ones of these shards until they are written.

        A shard that another process works on comes last, after waiting for that process; it may
        have died. With `wait` False it is left to that process.
        """
        busy: list[int] = []
        self._run(self._work(shards, busy=busy))
        if wait and busy:
            self._run(self._work(busy, busy=None))

    def _run(self, works: Generator[Work, None, None]) -> None:
        """Caption each piece of work in turn; later ones are decoded meanwhile."""
        ahead: deque[Work] = deque()
        started = time.monotonic()
        loaded_s = 0.0
        try:
            while True:
                while sum(bool(work.clips) for work in ahead) <= BATCHES_AHEAD:
                    work = next(works, None)
                    if work is None:
                        break
                    work.tickets = [self._submit(clip) for clip in work.clips]
                    ahead.append(work)
                if not ahead:
                    break
                if ahead[0].clips:
                    loaded_s += self._load(ahead[0])
                    self._caption(ahead[0])
                if ahead[0].ends_shard:
                    self._end(ahead[0])
                ahead.popleft()
        finally:
            self.busy_s += time.monotonic() - started - loaded_s
            for work in ahead:
                work.journal.close()
            works.close()

    def _work(
        self, shards: Sequence[int], *, busy: list[int] | None
    ) -> Generator[Work, None, None]:
        """The open work of each shard in turn; shards in use are entered in `busy`, or awaited."""
        for shard in shards:
            path = journal_path(self.folder, shard)
            with writing(path):
                path.parent.mkdir(exist_ok=True)
                try:
                    journal = Journal(path, fingerprint=self.plan.fingerprint, wait=busy is None)
                except BusyError:
                    assert busy is not None
                    busy.append(shard)
                    continue
            try:
                yield from self._work_of(shard, journal)
            except BaseException:
                journal.close()
                raise

    def _work_of(self, shard: int, journal: Journal) -> Iterator[Work]:
        """The open work of one shard; whoever ends the last piece closes the journal."""
        if not self.is_due(shard):
            journal.close()
            if not self.is_sharing:
                self.progress.advance(self.plan.num_clips_of(shard))
            return
        record = read_result(self.folder, self.plan, shard)
        if record is not None and record.attempt == journal.attempt:
            journal.begin_attempt(journal.attempt + 1)  # failed clips get another try
        todo = [batch for batch in self.plan.batches_of(shard) if batch not in journal]
        missing = sum(self.plan.num_clips_in(batch) for batch in todo)
        self.progress.advance(self.plan.num_clips_of(shard) - missing)
        for batch in todo:
            yield Work(shard, journal, batch, self.plan.batch(batch))
        for clip in [] if todo else self._clips_to_retry(shard, journal):
            yield Work(shard, journal, None, (clip,))
        yield Work(shard, journal, None, (), ends_shard=True)

    def is_due(self, shard: int) -> bool:
        """Whether a shard is unfinished, or has failed clips that may be tried again."""
        record = read_result(self.folder, self.plan, shard)
        if record is None:
            return True
        may_retry = any(tries < self.config.max_attempts for tries in record.failed.values())
        return may_retry and record.attempt < self.attempt

    def _clips_to_retry(self, shard: int, journal: Journal) -> list[Clip]:
        """Failed clips that this round has not tried yet, in plan order, probed again."""
        last = min(journal.attempt, self.config.max_attempts)
        due = {name for name, attempt in journal.failed.items() if attempt < last}
        if not due:
            return []
        clips = [clip for batch in self.plan.batches_of(shard) for clip in self.plan.batch(batch)]
        chosen = [clip for clip in clips if clip.sample_id in due]
        # A clip that could not be probed may be readable now.
        probe = partial(probe_function(self.config), allow_truncated=self.config.allow_truncated)
        calls = [(c.sample_id, partial(probe, c.path)) for c in chosen if c.problem_status]
        probes = {name: probe_of(outcome) for name, outcome in self.pool.outcomes(calls)}
        return [
            self.planner.clip(clip.sample_id, clip.path, probes[clip.sample_id])
            if clip.sample_id in probes
            else clip
            for clip in chosen
        ]

    def _submit(self, clip: Clip) -> int | None:
        """Begin to decode a clip; None where there is nothing to decode."""
        if clip.problem_status is not None:
            return None
        size = {"height": clip.height, "width": clip.width}
        if self.config.render:
            from captioning.drawing import draw_frames

            return self.pool.submit(partial(draw_frames, clip.path, clip.frame_indices, **size))
        return self.pool.submit(
            partial(read_frames, clip.path, clip.frame_indices, **size, reader=self.config.reader)
        )

    def _load(self, work: Work) -> float:
        """Load the model before the first batch that needs it; the seconds that it took."""
        if self.is_loaded or all(ticket is None for ticket in work.tickets):
            return 0.0
        started = time.monotonic()
        self.engine.load()
        self.is_loaded = True
        return time.monotonic() - started

    def _caption(self, work: Work) -> None:
        """Caption one batch and write its rows down."""
        if work.number is None:
            self.errors_in_a_row = 0  # these clips have failed before: it may well be the clips
        waiting = time.monotonic()
        decoded, problems = self._taken(work.clips, work.tickets)
        generating = time.monotonic()
        rows = self.answer(work.clips, decoded, problems, attempt=work.journal.attempt)
        ended = time.monotonic()
        if work.number is None:
            work.journal.add_retry(work.clips[0].sample_id, rows)
        else:
            work.journal.add_batch(
                work.number,
                rows,
                splits=self.splits,
                generate_s=ended - generating,
                wait_s=generating - waiting,
            )
        self.wait_s += generating - waiting
        failed = [row for row in rows if row[schema.STATUS] in FAILED_STATUSES]
        for row in failed:
            log.info("%s: %s", row[schema.SAMPLE_ID], row[schema.REASON])
        num_failed = len({row[schema.SAMPLE_ID] for row in failed})
        # A clip tried again was counted as done before.
        self.progress.advance(len(work.clips) * (work.number is not None), num_failed=num_failed)

    def decode(self, clips: Sequence[Clip]) -> tuple[list[EngineClip], Problems]:
        """The frames of clips, and why the others have none."""
        return self._taken(clips, [self._submit(clip) for clip in clips])

    def _taken(
        self, clips: Sequence[Clip], tickets: Sequence[int | None]
    ) -> tuple[list[EngineClip], Problems]:
        decoded: list[EngineClip] = []
        problems: Problems = {}
        for clip, ticket in zip(clips, tickets, strict=True):
            if ticket is None:
                assert clip.problem_status is not None
                assert clip.problem is not None
                problems[clip.sample_id] = (clip.problem_status, clip.problem)
                continue
            outcome = self.pool.take(ticket)
            if outcome.problem is not None:
                status = schema.STATUS_TIMEOUT if outcome.timed_out else schema.STATUS_DECODE_ERROR
                problems[clip.sample_id] = (status, outcome.problem)
                continue
            assert clip.num_frames is not None
            assert clip.fps is not None
            decoded.append(
                EngineClip(
                    sample_id=clip.sample_id,
                    frames=outcome.value,
                    frame_indices=clip.frame_indices,
                    num_source_frames=clip.num_frames,
                    fps=clip.fps,
                )
            )
        return decoded, problems

    def answer(
        self,
        clips: Sequence[Clip],
        decoded: Sequence[EngineClip],
        problems: Problems,
        *,
        attempt: int,
    ) -> list[Row]:
        """The rows of one batch: a row for each clip and prompt, in plan order.

        Args:
            clips: of the batch.
            decoded: those of them that have frames; they are generated together.
            problems: what is wrong with the others.
            attempt: the number of the try, for the rows.

        Raises:
            RuntimeError: the engine mixes up its answers, or fails on batch after batch.
        """
        self.splits = []
        failures = {
            (name, prompt.prompt_id): problem
            for name, problem in problems.items()
            for prompt in self.prompts
        }
        answers = self._generate(decoded, failures) if decoded else {}
        return [
            self._row(clip, number, answers.get((clip.sample_id, prompt.prompt_id)), failures)
            | {schema.ATTEMPTS: attempt}
            for clip in clips
            for number, prompt in enumerate(self.prompts)
        ]

    def _fail(
        self, clips: Sequence[EngineClip], failures: Failures, *, status: str, reason: str
    ) -> None:
        for clip in clips:
            for prompt in self.prompts:
                failures[clip.sample_id, prompt.prompt_id] = (status, reason)

    def _generate(
        self, clips: Sequence[EngineClip], failures: Failures
    ) -> dict[tuple[str, str], Generated]:
        """Answers by (sample_id, prompt_id); requests that get none are entered in `failures`.

        What does not fit into memory is halved down to single clips; the size of the frames is
        never lowered.
        """
        try:
            answers = self.engine.generate(clips, self.prompts)
        except OutOfMemoryError as error:
            if len(clips) == 1:
                reason = f"one clip alone does not fit into memory: {error}"
                self._fail(clips, failures, status=schema.STATUS_OOM, reason=reason)
                return {}
            self.splits.append(len(clips))
            self.progress.message(f"out of memory with {len(clips)} clips; trying them in halves")
            first, second = halves(clips)
            return self._generate(first, failures) | self._generate(second, failures)
        except ConnectionError:
            raise  # the server is gone; nothing is wrong with the clips
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:300]
            self._count_error(reason, error)
            log.exception("a batch of %d clips failed", len(clips))
            self._fail(clips, failures, status=schema.STATUS_ERROR, reason=reason)
            return {}
        self.num_generated_clips += len(clips)
        by_id = {(answer.sample_id, answer.prompt_id): answer for answer in answers}
        planned = {(clip.sample_id, prompt.prompt_id) for clip in clips for prompt in self.prompts}
        if len(answers) != len(planned) or by_id.keys() != planned:
            raise RuntimeError(
                f"the engine was asked {len(planned)} requests and answered others: "
                f"{sorted(planned ^ by_id.keys())[:5]}; nothing of this batch was written"
            )
        refused = [answer for answer in answers if isinstance(answer, Failed)]
        if len(refused) == len(answers):
            self._count_error(refused[0].reason)
        else:
            self.errors_in_a_row = 0
        for one in refused:
            status = schema.STATUS_TIMEOUT if one.timed_out else schema.STATUS_ERROR
            failures[one.sample_id, one.prompt_id] = (status, one.reason)
        return {key: answer for key, answer in by_id.items() if isinstance(answer, Generated)}

    def _count_error(self, reason: str, error: Exception | None = None) -> None:
        """A whole batch failed; after several in a row it is not the clips."""
        self.errors_in_a_row += 1
        if self.errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
            raise RuntimeError(
                f"{self.errors_in_a_row} batches in a row failed, the last with {reason}; "
                "nothing of this batch was written"
            ) from error

    def _row(
        self, clip: Clip, prompt_number: int, answer: Generated | None, failures: Failures
    ) -> Row:
        prompt = self.prompts[prompt_number]
        facts = self.engine.facts()
        caption: str | None = None
        reason: str | None
        if answer is None:
            status, reason = failures[clip.sample_id, prompt.prompt_id]
        else:
            status, reason = classify(answer)
            caption = clean_caption(storable(answer.text))
            planned = clip.prompt_tokens[prompt_number]
            if facts.exact_tokens and answer.num_prompt_tokens != planned:
                raise RuntimeError(
                    f"{clip.sample_id} was planned with {planned} prompt tokens, the engine made "
                    f"{answer.num_prompt_tokens} of it: this version of the engine writes prompts "
                    "in another form; nothing of this batch was written"
                )
        return {
            schema.SAMPLE_ID: clip.sample_id,
            schema.STATUS: status,
            schema.REASON: storable(reason) if reason else None,
            schema.CAPTION: caption,
            schema.CAPTION_RAW: storable(answer.text) if answer else None,
            schema.PROMPT_ID: prompt.prompt_id,
            schema.SOURCE: schema.SOURCE_RENDER if self.config.render else schema.SOURCE_VIDEO,
            schema.FRAME_INDICES: list(clip.frame_indices) or None,
            schema.NUM_FRAMES: clip.num_frames,
            schema.DURATION_S: clip.duration_s,
            schema.PROMPT_TOKENS: answer.num_prompt_tokens if answer else None,
            schema.GENERATED_TOKENS: answer.num_generated_tokens if answer else None,
            schema.FINISH_REASON: answer.finish_reason if answer else None,
            schema.MEAN_LOGPROB: _finite(answer.mean_logprob) if answer else None,
            schema.MODEL_ID: facts.model_id,
            schema.MODEL_REVISION: facts.model_revision,
            schema.VIDEO_SHA256: clip.video_sha256,
            schema.REQUEST_KEY: request_key(self.plan, clip, prompt),
        }

    def _end(self, work: Work) -> None:
        """Write a finished shard and let go of it."""
        write_result(
            self.folder,
            self.plan,
            work.shard,
            journal=work.journal,
            hardware=self.engine.hardware(),
        )
        work.journal.close()


def storable(text: str) -> str:
    """A text without what cannot be written as UTF-8: half a surrogate pair is spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: float | None) -> float | None:
    """A number that JSON can hold, or None."""
    return value if value is not None and math.isfinite(value) else None


def halves(clips: Sequence[EngineClip]) -> tuple[Sequence[EngineClip], Sequence[EngineClip]]:
    """The two groups that clips which do not fit into memory are tried in."""
    middle = (len(clips) + 1) // 2
    return clips[:middle], clips[middle:]


def probe_function(config: CaptionConfig) -> Callable[..., Probe]:
    """What probes an input of this run in a decoding process."""
    if config.render:
        from captioning.drawing import probe_skeleton

        return probe_skeleton
    return probe_video
