"""Any model behind a server that speaks OpenAI's chat-completions protocol (vLLM, SGLang, ...).

A request is one clip and one prompt (server_content says how), greedy, and many are in flight. The
prompt stands after the frames, so a server with a prefix cache reads a clip once for all prompts.

Sizes: left alone, a server resizes pictures to its own liking (Qwen3-VL: at least 65,536 pixels a
picture, while our default is 50,176 at most). vLLM and `transformers serve` are told not to; SGLang
has no such field. `load` measures what the server does, and `hardware` says it.

Tested against `transformers serve` of transformers 5.23. For vLLM and SGLang the fields follow
their source text; nobody has run them here. Frame numbers in the form "video" need a vLLM with pull
request 40133 (April 2026), and `load` notices one without.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from captioning.config import CaptionConfig
from captioning.engines.interface import EngineClip, EngineFacts, Failed, Generated, TokenCount
from captioning.engines.server_client import RefusedError, ServerClient, ServerIdentity
from captioning.engines.server_content import (
    FORM_RECIPES,
    Completion,
    Part,
    estimate_tokens,
    frame_parts,
    video_facts,
    visual_tokens,
)
from captioning.prompt_files import Prompt

log = logging.getLogger(__name__)

SEED = 0  # greedy decoding draws nothing; sent for servers that want one
CLIP_PIXELS = 25_165_824  # Qwen3-VL's video_preprocessor_config.json, size.longest_edge
DEFAULT_SIDE = 224  # of the trial's frames where no max_pixels is given

# Fields that only one kind of server knows, and where it wants the request's id.
_FIELDS: dict[str, dict[str, Any]] = {
    "vllm": {"repetition_penalty": 1.0, "mm_processor_kwargs": {"do_resize": False}},
    "sglang": {"repetition_penalty": 1.0},
    # Of the chat template's arguments this one reaches the image processor.
    "transformers": {"chat_template_kwargs": {"processor_kwargs": {"do_resize": False}}},
}
_ID_FIELDS = {"vllm": "request_id", "sglang": "rid"}


class ServerEngine:
    """A model behind a server.

    Args:
        config: server, num_frames, max_pixels and max_new_tokens are used; model, revision, device
            and their like are the server's matter.

    Raises:
        ValueError: the server's address is none, or holds a secret.
    """

    def __init__(self, config: CaptionConfig) -> None:
        self._settings = config.server
        self._num_frames = config.num_frames
        self._max_new_tokens = config.max_new_tokens
        self._trial_side = math.isqrt(config.max_pixels) if config.max_pixels else DEFAULT_SIDE
        self._client = ServerClient(config.server)
        self._threads = ThreadPoolExecutor(
            config.server.concurrency, thread_name_prefix="server-engine"
        )
        self._identity: ServerIdentity | None = None
        self._expects_echo = False
        self._resizes: bool | None = None

    def facts(self) -> EngineFacts:
        """See Engine.facts; asks the server what it is, without making it work.

        Raises:
            ConnectionError: no server there, or it refuses us.
            ValueError: which model to ask is not clear, or the form is not the server's.
        """
        server = self._server()
        name, revision = _public_name(server.model), _revision(server)
        recipe = {
            "id": name,
            "revision": revision,
            "engine": "server",
            "server": {"kind": server.kind, "version": server.version},
            "form": self._settings.form,
            **FORM_RECIPES[self._settings.form],
            "side_multiple": self._settings.side_multiple,
            "request": self._request(self._max_new_tokens),
        }
        return EngineFacts(
            model_id=name,
            model_revision=revision,
            side_multiple=self._settings.side_multiple,
            clip_pixels=CLIP_PIXELS,
            recipe=recipe,
            exact_tokens=False,
        )

    def count_tokens(
        self,
        prompts: Sequence[Prompt],
        frame_indices: Sequence[int],
        *,
        fps: float,
        height: int,
        width: int,
    ) -> TokenCount:
        """See Engine.count_tokens; an estimate, exact for the visual tokens only."""
        visual = self._visual_tokens(len(frame_indices), height, width)
        return estimate_tokens(
            prompts, frame_indices, self._settings.form, fps=fps, num_visual=visual
        )

    def tokenize(self, text: str) -> list[str]:
        """See Engine.tokenize; words with the space before them, for the tokenizer is far away."""
        return re.findall(r"\s*\S+|\s+", text)

    def load(self) -> None:
        """See Engine.load; sends trial requests, after which a server has its weights loaded.

        They tell whether the server takes requests of this form, names answers after requests,
        leaves the frames' sizes alone and, in the form "video", reads the frames' numbers.

        Raises:
            ConnectionError: no server there, or it refuses us.
            ValueError: it refuses requests of this form.
        """
        multiple = self._settings.side_multiple
        side = max(self._trial_side // multiple, 2) * multiple
        first = self._try_out(side, side)
        self._expects_echo = first.is_echo
        narrower = self._try_out(side, side - multiple)
        fewer = first.prompt_tokens - narrower.prompt_tokens
        planned = self._visual_tokens(self._num_frames, side, multiple)
        self._resizes = fewer != planned
        if self._resizes:
            log.warning(
                "the server at %s resizes frames: for %d frames %d pixels narrower it counts %d "
                "tokens fewer instead of %d. Its captions are of other pixels than planned; give "
                "the server wider limits for the size of a picture, or change max_pixels (or "
                "server.side_multiple, if the model's visual tokens are not %d pixels wide)",
                *(self._client.url, self._num_frames, multiple, fewer, planned, multiple),
            )
        if self._settings.form == "video":
            late = self._try_out(side, side, first_frame=100_000)
            if late.prompt_tokens <= first.prompt_tokens:
                raise ValueError(
                    f"the server at {self._client.url} does not read the frames' numbers, so "
                    "the model would be told wrong times; use a vLLM of May 2026 or later, or "
                    "server.form 'images'"
                )

    def generate(
        self, clips: Sequence[EngineClip], prompts: Sequence[Prompt]
    ) -> list[Generated | Failed]:
        """See Engine.generate.

        Raises:
            ConnectionError: the server is gone or not to be trusted; nothing is wrong with the
                clips.
        """
        stop = threading.Event()
        asked: list[Future[tuple[Generated | Failed, str | None]]] = []
        for clip in clips:
            # Queued before the requests that wait for it, so a thread has taken it by then.
            frames = self._threads.submit(frame_parts, clip, self._settings.form)
            asked += [
                self._threads.submit(self._answer, clip, prompt, frames, stop) for prompt in prompts
            ]
        try:
            done, _ = wait(asked, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()  # the error that ended the waiting comes out here
        finally:
            # Left early: what has not begun is dropped, what waits for its next try gives up.
            stop.set()
            for future in asked:
                future.cancel()
        outcomes = [future.result() for future in asked]
        ids = [answer_id for _, answer_id in outcomes if answer_id is not None]
        if len(set(ids)) < len(ids):
            raise ConnectionError(
                f"the server at {self._client.url} gave one id to several answers of a "
                "batch; nothing of it was written. Does something between here and the server "
                "repeat answers?"
            )
        return [outcome for outcome, _ in outcomes]

    def hardware(self) -> dict[str, Any]:
        """See Engine.hardware; `resizes_frames` is None before `load`."""
        server = self._server()
        return {
            "server": self._client.url,
            "kind": server.kind,
            "version": server.version,
            "model": _public_name(server.model),
            "resizes_frames": self._resizes,
        }

    def peak_memory_bytes(self) -> int | None:
        """See Engine.peak_memory_bytes; None, the server does not say."""
        return None

    def close(self) -> None:
        """See Engine.close."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _server(self) -> ServerIdentity:
        if self._identity is None:
            identity = self._client.identify(self._settings.model)
            if self._settings.form == "video" and identity.kind != "vllm":
                raise ValueError(
                    f"the server at {self._client.url} is no vLLM (it looks like "
                    f"{identity.kind!r}), and only vLLM takes server.form 'video'; use 'images'"
                )
            self._identity = identity
        return self._identity

    def _request(self, max_tokens: int) -> dict[str, Any]:
        """A request without model, id and content: greedy, the checkpoint's own penalties off."""
        return {
            "temperature": 0.0,
            "max_tokens": max_tokens,
            "seed": SEED,
            "logprobs": True,
            # `transformers serve` makes its repetition penalty of it; 0 is none.
            "frequency_penalty": 0.0,
            **_FIELDS.get(self._server().kind, {}),
        }

    def _ask(
        self,
        clip: EngineClip,
        parts: list[Part],
        text: str,
        *,
        max_tokens: int,
        stop: threading.Event,
    ) -> Completion:
        server = self._server()
        content = [*parts, {"type": "text", "text": text}]
        body = {
            "model": server.model,
            "messages": [{"role": "user", "content": content}],
            **self._request(max_tokens),
        }
        if self._settings.form == "video":
            body["media_io_kwargs"] = {"video": video_facts(clip)}
        id_field = _ID_FIELDS.get(server.kind)
        return self._client.complete(
            body, id_field=id_field, expects_echo=self._expects_echo, stop=stop
        )

    def _answer(
        self, clip: EngineClip, prompt: Prompt, frames: Future[list[Part]], stop: threading.Event
    ) -> tuple[Generated | Failed, str | None]:
        """The outcome of one request, and the id of its answer."""
        parts, limit = frames.result(), self._max_new_tokens
        try:
            found = self._ask(clip, parts, prompt.text, max_tokens=limit, stop=stop)
        except RefusedError as error:
            failed = Failed(clip.sample_id, prompt.prompt_id, str(error), timed_out=error.timed_out)
            return failed, None
        # vLLM, SGLang and `transformers serve` count the end token too.
        has_end = found.finish_reason == "stop" and found.completion_tokens > 0
        answer = Generated(
            sample_id=clip.sample_id,
            prompt_id=prompt.prompt_id,
            text=found.text,
            num_prompt_tokens=found.prompt_tokens,
            num_generated_tokens=found.completion_tokens - has_end,
            finish_reason=found.finish_reason,
            mean_logprob=found.mean_logprob,
        )
        return answer, found.answer_id

    def _try_out(self, height: int, width: int, *, first_frame: int = 0) -> Completion:
        """The answer to a request like the run's own, of black frames and for one token."""
        indices = tuple(range(first_frame, first_frame + self._num_frames))
        frames = np.zeros((self._num_frames, 3, height, width), dtype=np.uint8)
        clip = EngineClip("trial", frames, indices, indices[-1] + 1, fps=1.0)
        parts, never = frame_parts(clip, self._settings.form), threading.Event()
        try:
            return self._ask(clip, parts, "What happens?", max_tokens=1, stop=never)
        except RefusedError as error:
            raise ValueError(
                f"the server at {self._client.url} does not answer a trial request of "
                f"{self._num_frames} frames of {width}x{height} in the form "
                f"{self._settings.form!r}: {error}"
            ) from error

    def _visual_tokens(self, num_frames: int, height: int, width: int) -> int:
        side = self._settings.side_multiple
        return visual_tokens(num_frames, self._settings.form, height=height, width=width, side=side)


def _public_name(model: str) -> str:
    """A server's name for a model, without the path on the server's machine that it may be."""
    name = model.partition("@")[0].replace("\\", "/")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return name.rstrip("/").rpartition("/")[2]
    return name


def _revision(server: ServerIdentity) -> str:
    """All that a server tells of which weights it serves; it gives no commit and no hash."""
    name, _, revision = server.model.partition("@")  # as `transformers serve` takes it
    if not revision and server.root and server.root != name:
        revision = _public_name(server.root)
    by = f"served by {server.kind}" + (f" {server.version}" if server.version else "")
    return f"{revision}, {by}" if revision else by
