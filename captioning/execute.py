"""Executing planned batches: decoded ahead, generated, judged, journaled; nothing is mixed up.

Out of memory: the batch is halved down to single clips. Every clip ends as one row a prompt.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from captioning.checks import classify, clean_caption
from captioning.config import CaptionConfig
from captioning.decode_pool import DecodePool
from captioning.engines.interface import Engine, EngineClip, Generated, OutOfMemoryError
from captioning.frames import read_frames
from captioning.inputs import Video
from captioning.journal import FAILED_STATUSES, Journal, Row
from captioning.plan import Clip, Plan, plan_clip, request_key
from captioning.probe import probe_of, probe_video
from captioning.prompt_files import Prompt
from datasets_build import schema
from datasets_build.progress import Progress

log = logging.getLogger(__name__)

BATCHES_AHEAD = 2  # our choice: batches being decoded while one is generated; bounds the memory
MAX_ERRORS_IN_A_ROW = 3  # our choice: then it is not the clips


@dataclass
class Session:
    """One call of `run` from the plan on: what it works with, and what it counted and measured."""

    config: CaptionConfig
    engine: Engine
    prompts: Sequence[Prompt]
    plan: Plan
    journal: Journal
    pool: DecodePool
    progress: Progress
    is_loaded: bool = False
    num_generated_clips: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    load_s: float = 0.0
    wait_s: float = 0.0  # the engine waited for frames
    generate_s: float = 0.0
    batches_s: float = 0.0
    errors_in_a_row: int = 0
    splits: list[int] = field(default_factory=list)

    def run_batches(self) -> None:
        """Execute the planned batches that the journal does not hold."""
        self.progress.start("caption", self.plan.num_clips, unit="clips")
        batches = self.plan.batches
        done = sum(len(batch) for number, batch in enumerate(batches) if number in self.journal)
        self.progress.advance(done)
        todo = [number for number in range(len(batches)) if number not in self.journal]
        for position, rows in self._execute([batches[number] for number in todo]):
            self.journal.add_batch(todo[position], rows, splits=self.splits)
            self._advance(rows)
        self.progress.finish()

    def retry(self, clips: Sequence[Clip]) -> None:
        """Try failed clips again, each on its own."""
        if not clips:
            return
        self.progress.start("retry", len(clips), unit="clips")
        # A clip that could not be probed may be readable now.
        again = [self._probe_again(c) if c.probe.problem_status else c for c in clips]
        for position, rows in self._execute([(clip,) for clip in again]):
            self.journal.add_retry(again[position].sample_id, rows)
            self._advance(rows)
        self.progress.finish()

    def _probe_again(self, clip: Clip) -> Clip:
        call = partial(probe_video, clip.path, allow_truncated=self.config.allow_truncated)
        probe = probe_of(self.pool.take(self.pool.submit(call)))
        video = Video(clip.sample_id, clip.path)
        return plan_clip(video, probe, self.config, self.engine, self.engine.facts(), self.prompts)

    def _advance(self, rows: Sequence[Row]) -> None:
        failed = {r[schema.SAMPLE_ID] for r in rows if r[schema.STATUS] in FAILED_STATUSES}
        self.progress.advance(len(rows) // len(self.prompts), num_failed=len(failed))
        for row in rows:
            if row[schema.STATUS] in FAILED_STATUSES:
                log.info("%s: %s", row[schema.SAMPLE_ID], row[schema.REASON])

    def _execute(self, batches: Sequence[Sequence[Clip]]) -> Iterator[tuple[int, list[Row]]]:
        """Yield (position, rows) of each batch in turn; later ones are decoded meanwhile."""
        started = time.monotonic()
        decoding: deque[list[int | None]] = deque()
        num_submitted = 0
        for position, batch in enumerate(batches):
            while num_submitted < min(position + 1 + BATCHES_AHEAD, len(batches)):
                decoding.append([self._submit(clip) for clip in batches[num_submitted]])
                num_submitted += 1
            yield position, self._caption(batch, decoding.popleft())
            self.batches_s = time.monotonic() - started - self.load_s

    def _submit(self, clip: Clip) -> int | None:
        """Begin to decode a clip; None where there is nothing to decode."""
        if clip.probe.problem_status is not None:
            return None
        call = partial(
            read_frames,
            clip.path,
            clip.frame_indices,
            height=clip.height,
            width=clip.width,
            reader=self.config.reader,
        )
        return self.pool.submit(call)

    def _caption(self, batch: Sequence[Clip], tickets: Sequence[int | None]) -> list[Row]:
        """The rows of one batch, in plan order."""
        self.splits = []
        failures: dict[str, tuple[str, str]] = {}
        decoded: list[EngineClip] = []
        if any(ticket is not None for ticket in tickets) and not self.is_loaded:
            loading = time.monotonic()
            self.engine.load()
            self.is_loaded = True
            self.load_s = time.monotonic() - loading
        waited = time.monotonic()
        for clip, ticket in zip(batch, tickets, strict=True):
            if ticket is None:
                assert clip.probe.problem_status is not None
                assert clip.probe.problem is not None
                failures[clip.sample_id] = (clip.probe.problem_status, clip.probe.problem)
                continue
            outcome = self.pool.take(ticket)
            if outcome.problem is not None:
                status = schema.STATUS_TIMEOUT if outcome.timed_out else schema.STATUS_DECODE_ERROR
                failures[clip.sample_id] = (status, outcome.problem)
                continue
            assert clip.probe.num_frames is not None
            assert clip.probe.fps is not None
            decoded.append(
                EngineClip(
                    sample_id=clip.sample_id,
                    frames=outcome.value,
                    frame_indices=clip.frame_indices,
                    num_source_frames=clip.probe.num_frames,
                    fps=clip.probe.fps,
                )
            )
        generating = time.monotonic()
        self.wait_s += generating - waited
        answers = self._generate(decoded, failures) if decoded else {}
        self.generate_s += time.monotonic() - generating
        return [
            self._row(clip, number, answers.get((clip.sample_id, prompt.prompt_id)), failures)
            for clip in batch
            for number, prompt in enumerate(self.prompts)
        ]

    def _generate(
        self, clips: Sequence[EngineClip], failures: dict[str, tuple[str, str]]
    ) -> dict[tuple[str, str], Generated]:
        """Answers by (sample_id, prompt_id); clips that get none are entered in `failures`.

        What does not fit into memory is halved down to single clips; the size of the frames is
        never lowered.
        """
        try:
            answers = self.engine.generate(clips, self.prompts)
        except OutOfMemoryError as error:
            if len(clips) == 1:
                reason = f"one clip alone does not fit into memory: {error}"
                failures[clips[0].sample_id] = (schema.STATUS_OOM, reason)
                return {}
            self.splits.append(len(clips))
            self.progress.message(f"out of memory with {len(clips)} clips; trying them in halves")
            middle = (len(clips) + 1) // 2
            first = self._generate(clips[:middle], failures)
            return first | self._generate(clips[middle:], failures)
        except Exception as error:
            self.errors_in_a_row += 1
            if self.errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
                raise RuntimeError(
                    f"{self.errors_in_a_row} batches in a row failed, the last with "
                    f"{type(error).__name__}: {error}; nothing of this batch was written"
                ) from error
            log.exception("a batch of %d clips failed", len(clips))
            reason = f"{type(error).__name__}: {error}"[:300]
            failures.update({clip.sample_id: (schema.STATUS_ERROR, reason) for clip in clips})
            return {}
        self.errors_in_a_row = 0
        self.num_generated_clips += len(clips)
        by_id = {(answer.sample_id, answer.prompt_id): answer for answer in answers}
        planned = {(clip.sample_id, prompt.prompt_id) for clip in clips for prompt in self.prompts}
        if len(answers) != len(planned) or by_id.keys() != planned:
            raise RuntimeError(
                f"the engine was asked {len(planned)} requests and answered others: "
                f"{sorted(planned ^ by_id.keys())[:5]}; nothing of this batch was written"
            )
        return by_id

    def _row(
        self,
        clip: Clip,
        prompt_number: int,
        answer: Generated | None,
        failures: dict[str, tuple[str, str]],
    ) -> Row:
        prompt = self.prompts[prompt_number]
        facts = self.engine.facts()
        caption: str | None = None
        if answer is None:
            status, reason = failures[clip.sample_id]
        else:
            status, reason = classify(answer)  # type: ignore[assignment]
            caption = clean_caption(answer.text)
            if answer.num_prompt_tokens != clip.prompt_tokens[prompt_number]:
                raise RuntimeError(
                    f"{clip.sample_id} was planned with {clip.prompt_tokens[prompt_number]} prompt "
                    f"tokens, the engine made {answer.num_prompt_tokens} of it: this version of "
                    "the engine writes prompts in another form; nothing of this batch was written"
                )
            self.num_prompt_tokens += answer.num_prompt_tokens
            self.num_generated_tokens += answer.num_generated_tokens
        return {
            schema.SAMPLE_ID: clip.sample_id,
            schema.STATUS: status,
            schema.REASON: reason,
            schema.CAPTION: caption,
            schema.CAPTION_RAW: answer.text if answer else None,
            schema.PROMPT_ID: prompt.prompt_id,
            schema.SOURCE: schema.SOURCE_VIDEO,
            schema.FRAME_INDICES: list(clip.frame_indices) or None,
            schema.NUM_FRAMES: clip.probe.num_frames,
            schema.DURATION_S: clip.probe.duration_s,
            schema.PROMPT_TOKENS: answer.num_prompt_tokens if answer else None,
            schema.GENERATED_TOKENS: answer.num_generated_tokens if answer else None,
            schema.FINISH_REASON: answer.finish_reason if answer else None,
            schema.MEAN_LOGPROB: answer.mean_logprob if answer else None,
            schema.ATTEMPTS: self.journal.attempt,
            schema.MODEL_ID: facts.model_id,
            schema.MODEL_REVISION: facts.model_revision,
            schema.VIDEO_SHA256: clip.probe.sha256,
            schema.REQUEST_KEY: request_key(self.plan, clip, prompt),
        }
