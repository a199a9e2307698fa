"""The server engine against a small HTTP server in this process that can misbehave in many ways."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioning.config import CaptionConfig, ServerSettings
from captioning.engines import server_client
from captioning.engines.interface import EngineClip, Failed, Generated
from captioning.engines.server_engine import ServerEngine
from captioning.prompt_files import Prompt

MODEL = "Qwen/Qwen3-VL-8B-Instruct"
PROMPTS = (Prompt("body", "", "", "Describe the arms."), Prompt("global", "", "", "What is done?"))
KEY = "sk-a-secret-key"
FPS = 25.0


@dataclass
class Asked:
    """A chat completion that the server was asked for."""

    body: dict[str, Any]
    headers: Any
    clip: int  # the first pixel of the first frame says it
    prompt: str
    number: int  # how often this clip and prompt have been asked for, this time included

    @property
    def is_trial(self) -> bool:
        return self.prompt == "What happens?"


@dataclass
class Reply:
    """What the server does; a text instead of a value is sent as it is."""

    value: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False  # only half of it arrives


def frames_of(body: dict[str, Any]) -> list[np.ndarray]:
    """The frames of a request as the server reads them, (H, W, C) each."""
    frames = []
    for part in body["messages"][0]["content"]:
        url = part.get(part["type"], {}).get("url", "") if part["type"] != "text" else ""
        for data in url.partition("base64,")[2].split(",") if url else []:
            frames.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
    return frames


def completion(asked: Asked, **changes: Any) -> dict[str, Any]:
    """A good answer in vLLM's manner; 32 x 32 pixels are a token, and every word is one."""
    frames = frames_of(asked.body)
    parts = asked.body["messages"][0]["content"]
    words = sum(len(part["text"].split()) for part in parts if part["type"] == "text")
    visual = sum(frame.shape[0] // 32 * (frame.shape[1] // 32) for frame in frames)
    if "media_io_kwargs" in asked.body:
        visual //= 2
        words += len(str(asked.body["media_io_kwargs"]["video"]["frames_indices"]))
    text = f"clip {asked.clip}, asked: {asked.prompt}"
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
    return {
        "id": f"chatcmpl-{asked.headers['X-Request-Id']}",
        "model": asked.body["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": visual + words, "completion_tokens": 9},
    } | changes


class FakeServer(ThreadingHTTPServer):
    """Answers as `script` says; notes what it was asked."""

    daemon_threads = True
    request_queue_size = 64  # more clients at once than this are turned away

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: Callable[[Asked], Reply] = lambda asked: Reply(completion(asked))
        self.pages: dict[str, Reply] = {
            "/v1/models": Reply({"data": [{"id": MODEL, "owned_by": "vllm", "root": MODEL}]}),
            "/version": Reply({"version": "0.99.1"}),
        }
        self.asked: list[Asked] = []
        self.in_flight = self.most_in_flight = 0
        self.counts: Counter[tuple[int, str]] = Counter()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def run_requests(self) -> list[Asked]:
        return [asked for asked in self.asked if not asked.is_trial]

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(self.server.pages.get(self.path, Reply({"detail": "Not Found"}, status=404)))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        clip, prompt = int(frames_of(body)[0][0, 0, 0]), body["messages"][0]["content"][-1]["text"]
        server = self.server
        with server.lock:
            server.counts[clip, prompt] += 1
            asked = Asked(body, self.headers, clip, prompt, server.counts[clip, prompt])
            server.asked.append(asked)
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            reply = server.script(asked)
        finally:
            with server.lock:
                server.in_flight -= 1
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        text = reply.value if isinstance(reply.value, str) else json.dumps(reply.value)
        data = text.encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data[: len(data) // 2] if reply.cut else data)
        except (BrokenPipeError, ConnectionResetError):
            assert not reply.cut  # the engine had waited long enough


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the engine would have waited between tries."""
    seconds: list[float] = []
    monkeypatch.setattr(server_client, "_pause", lambda stop, wait: seconds.append(wait))
    return seconds


MakeEngine = Callable[..., ServerEngine]


@pytest.fixture
def engine_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeEngine]:
    made = []
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

    def make(
        server: FakeServer | str, *, max_new_tokens: int = 64, **settings: Any
    ) -> ServerEngine:
        url = server if isinstance(server, str) else server.url
        engine = ServerEngine(
            CaptionConfig(
                videos=(".",),
                out=tmp_path,
                engine="server",
                server=ServerSettings(url=url, **{"concurrency": 4, **settings}),
                num_frames=4,
                max_new_tokens=max_new_tokens,
            )
        )
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


def clip_of(number: int, *, num_frames: int = 4) -> EngineClip:
    """Noise whose first pixel is the clip's number."""
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 256, (num_frames, 3, 64, 96), dtype=np.uint8)
    frames[:, :, 0, 0] = number
    indices = tuple(range(number, number + 7 * num_frames, 7))
    return EngineClip(f"clip-{number}", frames, indices, 300, FPS)


CLIPS = [clip_of(number) for number in (1, 2, 3, 4, 5)]


def expected(clip: EngineClip, prompt: Prompt) -> str:
    return f"clip {clip.sample_id.removeprefix('clip-')}, asked: {prompt.text}"


def texts_of(outcomes: list[Generated | Failed]) -> dict[tuple[str, str], str]:
    assert all(isinstance(outcome, Generated) for outcome in outcomes), outcomes
    return {(o.sample_id, o.prompt_id): o.text for o in outcomes if isinstance(o, Generated)}


ALL_TEXTS = {(c.sample_id, p.prompt_id): expected(c, p) for c in CLIPS for p in PROMPTS}


def test_each_clip_gets_its_own_answer_whatever_order_they_come_in(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    def late_first(asked: Asked) -> Reply:
        time.sleep(0 if asked.is_trial else 0.02 * (6 - asked.clip))
        return Reply(completion(asked))

    server.script = late_first
    engine = engine_for(server, concurrency=10)
    engine.load()
    assert texts_of(engine.generate(CLIPS, PROMPTS)) == ALL_TEXTS
    assert texts_of(engine.generate(CLIPS[::-1], PROMPTS)) == ALL_TEXTS


def test_frames_travel_exactly_each_after_its_time_and_before_the_prompt(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    clip = clip_of(9)
    engine = engine_for(server)
    (answer,) = engine.generate([clip], PROMPTS[:1])
    (asked,) = server.asked
    for sent, frame in zip(frames_of(asked.body), clip.frames, strict=True):
        np.testing.assert_array_equal(sent, frame.transpose(1, 2, 0))
    parts = asked.body["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"] * 4 + ["text"]
    times = [part["text"] for part in parts if part["type"] == "text"]
    # Frames 9, 16, 23 and 30 at 25 a second.
    assert times == [f"<{t} seconds>" for t in (0.4, 0.6, 0.9, 1.2)] + ["Describe the arms."]
    assert asked.body["temperature"] == 0
    assert asked.body["max_tokens"] == 64
    assert asked.body["seed"] == 0
    assert asked.body["mm_processor_kwargs"] == {"do_resize": False}
    assert isinstance(answer, Generated)
    # 4 frames of 2 x 3 tokens, 4 times of 2 words, 3 words.
    assert answer.num_prompt_tokens == 24 + 8 + 3
    assert answer.num_generated_tokens == 8  # the end token is not counted
    assert (answer.finish_reason, answer.mean_logprob) == ("stop", None)


def test_no_more_requests_are_in_flight_than_allowed(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    def slow(asked: Asked) -> Reply:
        time.sleep(0.03)
        return Reply(completion(asked))

    server.script = slow
    assert texts_of(engine_for(server, concurrency=3).generate(CLIPS, PROMPTS)) == ALL_TEXTS
    assert server.most_in_flight == 3


TROUBLES = {
    "busy": lambda asked: Reply({"error": "busy"}, status=429),
    "fault": lambda asked: Reply({"error": {"message": "CUDA error"}}, status=500),
    "HTML page of a gateway": lambda asked: Reply("<html>Bad\nGateway</html>", status=502),
    "HTML page as an answer": lambda asked: Reply("<html>Welcome</html>"),
    "no JSON object": lambda asked: Reply([1, 2]),
    "half an answer": lambda asked: Reply(completion(asked), cut=True),
    "no choices": lambda asked: Reply(completion(asked, choices=[])),
    "no counts": lambda asked: Reply(completion(asked, usage=None)),
    "given up by the server": lambda asked: Reply(
        completion(asked, choices=[{"message": {"content": ""}, "finish_reason": "abort"}])
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_passing_trouble_is_waited_out(
    server: FakeServer, engine_for: MakeEngine, waits: list[float], trouble: str
) -> None:
    server.script = lambda asked: (
        TROUBLES[trouble](asked)
        if asked.clip == 3 and asked.number < 4
        else Reply(completion(asked))
    )
    assert texts_of(engine_for(server).generate(CLIPS, PROMPTS)) == ALL_TEXTS
    assert sorted(waits) == [1, 1, 2, 2, 4, 4]  # clip 3 with each prompt
    assert server.counts[3, PROMPTS[0].text] == 4
    ids = [asked.headers["X-Request-Id"] for asked in server.asked]
    assert len(set(ids)) == len(ids) == len(CLIPS) * len(PROMPTS) + 6


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_lasting_trouble_of_one_clip_does_not_harm_the_others(
    server: FakeServer, engine_for: MakeEngine, waits: list[float], trouble: str
) -> None:
    server.script = lambda asked: (
        TROUBLES[trouble](asked) if asked.clip == 3 else Reply(completion(asked))
    )
    outcomes = engine_for(server, max_tries=3).generate(CLIPS, PROMPTS)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert {(f.sample_id, f.prompt_id) for f in failed} == {
        ("clip-3", "body"),
        ("clip-3", "global"),
    }
    assert all(f.reason.startswith("3 tries, the last: ") for f in failed)
    assert all("\n" not in f.reason and not f.timed_out for f in failed)
    others = [outcome for outcome in outcomes if isinstance(outcome, Generated)]
    assert texts_of(others) == {key: text for key, text in ALL_TEXTS.items() if key[0] != "clip-3"}


@pytest.mark.parametrize(
    ("asks", "least", "most"),
    [("7", 7, 7), ("0.5", 1, 1), ("date", 25, 31), ("999999", 600, 600), ("soon", 1, 1)],
)
def test_the_server_says_when_to_come_again(
    server: FakeServer, engine_for: MakeEngine, waits: list[float], asks: str, least: int, most: int
) -> None:
    value = formatdate(time.time() + 30, usegmt=True) if asks == "date" else asks
    busy = Reply("", status=429, headers={"Retry-After": value})
    server.script = lambda asked: busy if asked.number == 1 else Reply(completion(asked))
    texts_of(engine_for(server).generate(CLIPS[:1], PROMPTS[:1]))
    assert least <= waits[0] <= most
    assert len(waits) == 1


def test_a_refused_clip_is_not_asked_again_and_does_not_harm_the_others(
    server: FakeServer, engine_for: MakeEngine, waits: list[float]
) -> None:
    words = "This model's maximum context length\nis 4096 tokens. " + "x" * 5000
    server.script = lambda asked: (
        Reply({"error": {"message": words}}, status=400)
        if asked.clip == 2
        else Reply(completion(asked))
    )
    outcomes = engine_for(server).generate(CLIPS, PROMPTS)
    (first, second) = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert first.sample_id == second.sample_id == "clip-2"
    assert first.reason.startswith(
        "the server answered 400: This model's maximum context length is"
    )
    assert len(first.reason) < 300
    assert len([outcome for outcome in outcomes if isinstance(outcome, Generated)]) == 8
    assert waits == []


def test_a_clip_that_takes_too_long_fails_as_timed_out(
    server: FakeServer, engine_for: MakeEngine, waits: list[float]
) -> None:
    def hang(asked: Asked) -> Reply:
        time.sleep(0.6 if asked.clip == 4 else 0)
        return Reply(completion(asked))

    server.script = hang
    engine = engine_for(server, timeout_s=0.2, max_tries=2, concurrency=8)
    outcomes = engine.generate(CLIPS, PROMPTS[:1])
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert (failed.sample_id, failed.timed_out) == ("clip-4", True)
    assert failed.reason == "2 tries, the last: no answer within 0.2 s"
    assert waits == [1]


def test_a_server_that_is_gone_ends_the_run_instead_of_failing_the_clips(
    engine_for: MakeEngine, waits: list[float]
) -> None:
    server = FakeServer()
    engine = engine_for(server)
    engine.load()
    server.stop()
    with pytest.raises(ConnectionError, match=r"is gone \(6 tries, .* what was finished is kept"):
        engine.generate(CLIPS, PROMPTS)
    assert max(waits) == 16


def test_the_end_of_a_batch_does_not_wait_for_requests_that_wait(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    server.script = lambda asked: (
        Reply("", status=401)
        if asked.clip == 1
        else Reply("", status=429, headers={"Retry-After": "300"})
    )
    engine = engine_for(server, concurrency=10)
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="401"):
        engine.generate(CLIPS[::-1], PROMPTS)
    engine._threads.shutdown(wait=True)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("status", [401, 403, 404, 301])
def test_a_server_that_refuses_us_ends_the_run(
    server: FakeServer, engine_for: MakeEngine, waits: list[float], status: int
) -> None:
    server.script = lambda asked: Reply({"error": {"message": "no"}}, status=status)
    with pytest.raises(ConnectionError, match=rf"{server.url}.*{status}"):
        engine_for(server).generate(CLIPS, PROMPTS)
    assert waits == []


def test_an_answer_with_anothers_id_ends_the_run(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    engine = engine_for(server)
    engine.load()
    other = {"id": "chatcmpl-of-somebody-else"}
    server.script = lambda asked: Reply(completion(asked, **(other if asked.clip == 5 else {})))
    with pytest.raises(ConnectionError, match="'chatcmpl-of-somebody-else', which is another's"):
        engine.generate(CLIPS, PROMPTS)


def test_ids_of_a_server_that_makes_its_own_must_differ(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    engine = engine_for(server)
    server.script = lambda asked: Reply(completion(asked, id=f"own-{len(server.asked)}"))
    engine.load()
    for clip in CLIPS:  # one by one, so that the numbers differ
        texts_of(engine.generate([clip], PROMPTS[:1]))
    server.script = lambda asked: Reply(completion(asked, id="own"))
    with pytest.raises(ConnectionError, match="gave one id to several answers"):
        engine.generate(CLIPS, PROMPTS)


def test_an_answer_from_another_model_ends_the_run(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    server.script = lambda asked: Reply(completion(asked, model="Qwen/Qwen3-VL-2B-Instruct"))
    with pytest.raises(ConnectionError, match=f"'{MODEL}' and answered with 'Qwen/Qwen3-VL-2B"):
        engine_for(server).generate(CLIPS, PROMPTS)


def test_log_probabilities_are_averaged_where_the_server_gives_them(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    tokens = {
        1: {"content": [{"token": "A", "logprob": -0.5}, {"token": ".", "logprob": -1.5}]},
        2: {"content": []},
        3: {"content": [{"token": "A", "logprob": float("-inf")}]},
        4: None,
    }

    def answer(asked: Asked) -> Reply:
        value = completion(asked)
        value["choices"][0]["logprobs"] = tokens.get(asked.clip)
        value["choices"][0]["finish_reason"] = "length"
        return Reply(value)

    server.script = answer
    outcomes = engine_for(server).generate(CLIPS[:4], PROMPTS[:1])
    assert [o.mean_logprob for o in outcomes if isinstance(o, Generated)] == [-1.0, *[None] * 3]
    # The limit ended it: there is no end token to take off.
    assert {o.num_generated_tokens for o in outcomes if isinstance(o, Generated)} == {9}


def test_facts_say_what_serves_but_not_where(server: FakeServer, engine_for: MakeEngine) -> None:
    engine = engine_for(server)
    facts = engine.facts()
    assert (facts.model_id, facts.model_revision) == (MODEL, "served by vllm 0.99.1")
    assert (facts.side_multiple, facts.exact_tokens) == (32, False)
    assert facts.recipe["server"] == {"kind": "vllm", "version": "0.99.1"}
    assert facts.recipe["frames"] == "PNG, exact"
    assert json.loads(json.dumps(facts.recipe)) == facts.recipe
    assert str(server.server_port) not in str(facts)
    assert engine.hardware() == {
        "server": server.url,
        "kind": "vllm",
        "version": "0.99.1",
        "model": MODEL,
        "resizes_frames": None,
    }
    again = engine_for(server.url + "/v1/")
    assert again.facts() == facts
    assert engine_for(server, max_new_tokens=65).facts().recipe != facts.recipe
    assert engine_for(server, form="video").facts().recipe["frames"].endswith("not exact")
    server.pages["/version"] = Reply({"version": "0.99.2"})
    assert engine_for(server).facts().recipe != facts.recipe


def test_a_path_on_the_servers_machine_is_not_the_models_name(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    model = "/home/somebody/models/Qwen3-VL-8B/"
    server.pages["/v1/models"] = Reply({"data": [{"id": model, "owned_by": "vllm", "root": model}]})
    engine = engine_for(server)
    assert engine.facts().model_id == "Qwen3-VL-8B"
    assert "somebody" not in str(engine.facts()) + str(engine.hardware())
    assert texts_of(engine.generate(CLIPS, PROMPTS)) == ALL_TEXTS
    assert {asked.body["model"] for asked in server.asked} == {model}


def test_a_served_name_is_told_apart_from_its_origin(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    card = {"id": "captioner", "owned_by": "vllm", "root": MODEL}
    server.pages["/v1/models"] = Reply({"data": [card]})
    facts = engine_for(server).facts()
    assert (facts.model_id, facts.model_revision) == (
        "captioner",
        f"{MODEL}, served by vllm 0.99.1",
    )


def test_which_model_to_ask_must_be_clear(server: FakeServer, engine_for: MakeEngine) -> None:
    two = [{"id": name, "owned_by": "vllm"} for name in ("b/two", "a/one")]
    server.pages["/v1/models"] = Reply({"data": two})
    with pytest.raises(ValueError, match=r"lists 2 models: a/one, b/two; name the one"):
        engine_for(server).facts()
    assert engine_for(server, model="b/two").facts().model_id == "b/two"
    with pytest.raises(ValueError, match=r"has no model 'c/three'; it has a/one, b/two"):
        engine_for(server, model="c/three").facts()
    server.pages["/v1/models"] = Reply({"data": []})
    with pytest.raises(ValueError, match="lists 0 models; name the one to ask"):
        engine_for(server).facts()
    # `transformers serve` answers so on a machine without a hub cache.
    server.pages["/v1/models"] = Reply("Internal Server Error", status=500)
    with pytest.raises(ValueError, match=r"answered 500 and no list of models"):
        engine_for(server).facts()
    assert engine_for(server, model="any/model").facts().model_id == "any/model"


def test_servers_are_told_apart(server: FakeServer, engine_for: MakeEngine) -> None:
    server.pages["/v1/models"] = Reply({"data": [{"id": MODEL, "owned_by": "sglang"}]})
    server.pages["/get_server_info"] = Reply({"version": "0.6.1", "api_key": KEY})
    engine = engine_for(server)
    assert engine.facts().recipe["server"] == {"kind": "sglang", "version": "0.6.1"}
    assert KEY not in str(engine.facts()) + str(engine.hardware())
    texts_of(engine.generate(CLIPS[:1], PROMPTS[:1]))
    assert server.asked[-1].body["rid"] == server.asked[-1].headers["X-Request-Id"]
    server.pages["/v1/models"] = Reply({"data": [{"id": MODEL, "owned_by": "Qwen"}]})
    assert engine_for(server).facts().recipe["server"] == {"kind": "other", "version": None}
    server.pages["/openapi.json"] = Reply({"paths": {"/load_model": {}, "/reset": {}}})
    assert engine_for(server).facts().recipe["server"]["kind"] == "transformers"
    facts = engine_for(server, model=f"{MODEL}@v2").facts()
    assert (facts.model_id, facts.model_revision) == (MODEL, "v2, served by transformers")


def test_a_server_that_is_not_there_is_named(engine_for: MakeEngine) -> None:
    server = FakeServer()
    server.stop()
    with pytest.raises(ConnectionError, match=rf"no server answers at {server.url} .*; start it"):
        engine_for(server).facts()
    for url in ("", "localhost:8000", "ftp://host/v1", "http://", "http://[::1/v1"):
        with pytest.raises(ValueError, match="server"):
            engine_for(url)


def test_a_secret_in_the_address_is_refused_without_being_repeated() -> None:
    for url in (f"http://me:{KEY}@host:8000/v1", f"http://host:8000/v1?key={KEY}"):
        with pytest.raises(ValueError, match=r"server\.url holds a user name") as caught:
            server_client.ServerClient(ServerSettings(url=url))
        assert KEY not in str(caught.value)


def test_the_key_is_sent_and_never_shown(
    server: FakeServer, engine_for: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/v1/models"] = Reply({"error": "who are you"}, status=401)
    with pytest.raises(ConnectionError, match=r"variable CAPTION_KEY \(it is not set"):
        engine_for(server, api_key_env="CAPTION_KEY").facts()
    monkeypatch.setenv("CAPTION_KEY", KEY)
    with pytest.raises(
        ConnectionError, match=r"CAPTION_KEY \(the key there is not accepted"
    ) as bad:
        engine_for(server, api_key_env="CAPTION_KEY").facts()
    assert KEY not in str(bad.value)
    server.pages["/v1/models"] = Reply({"data": [{"id": MODEL, "owned_by": "vllm"}]})
    engine = engine_for(server, api_key_env="CAPTION_KEY")
    server.script = lambda asked: Reply(
        {"error": {"message": f"bad request with {asked.headers['Authorization']}"}}, status=400
    )
    (failed,) = engine.generate(CLIPS[:1], PROMPTS[:1])
    assert isinstance(failed, Failed)
    assert failed.reason == "the server answered 400: bad request with Bearer ***"
    assert KEY not in str(engine.facts()) + str(engine.hardware())


def test_loading_measures_whether_the_server_leaves_sizes_alone(
    server: FakeServer, engine_for: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_for(server)
    engine.load()
    assert engine.hardware()["resizes_frames"] is False
    assert len(server.asked) == 2
    assert not caplog.records
    server.script = lambda asked: Reply(
        completion(asked, usage={"prompt_tokens": 4 * 64 + 12, "completion_tokens": 1})
    )
    engine = engine_for(server)
    engine.load()
    assert engine.hardware()["resizes_frames"] is True
    assert "for 4 frames 32 pixels narrower it counts 0 tokens fewer instead of 28" in caplog.text


def test_a_server_that_refuses_the_form_is_named_before_any_clip(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    words = "At most 1 image(s) may be provided in one prompt."
    server.script = lambda asked: Reply({"error": {"message": words}}, status=400)
    with pytest.raises(
        ValueError, match=r"trial request of 4 frames of 224x224 .* At most 1 image"
    ):
        engine_for(server).load()


def test_the_video_form_sends_jpeg_frames_with_their_numbers(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    engine = engine_for(server, form="video")
    engine.load()
    smooth = np.linspace(0, 255, 96, dtype=np.uint8) * np.ones((4, 3, 64, 1), dtype=np.uint8)
    clip = EngineClip("clip-0", smooth, (0, 1, 1, 2), 3, FPS)
    (answer,) = engine.generate([clip], PROMPTS[:1])
    assert isinstance(answer, Generated)
    body = server.asked[-1].body
    video, text = body["messages"][0]["content"]
    assert video["video_url"]["url"].startswith("data:video/jpeg;base64,")
    assert text == {"type": "text", "text": PROMPTS[0].text}
    for sent, frame in zip(frames_of(body), smooth, strict=True):
        assert np.abs(sent.astype(int) - frame.transpose(1, 2, 0)).max() <= 6
    assert body["media_io_kwargs"]["video"] == {
        "num_frames": -1,
        "fps": FPS,
        "frames_indices": [0, 1, 1, 2],
        "total_num_frames": 4,  # not fewer than are sent
        "do_sample_frames": False,
    }
    counted = engine.count_tokens(PROMPTS, (0, 1, 1, 2), fps=FPS, height=64, width=96)
    images = engine_for(server).count_tokens(PROMPTS, (0, 1, 1, 2), fps=FPS, height=64, width=96)
    assert counted.shared == images.shared == 0
    assert 2 * 6 < counted.each[0] < images.each[0] < 100


def test_the_video_form_is_for_a_vllm_that_reads_frame_numbers(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    server.script = lambda asked: Reply(
        completion(asked, usage={"prompt_tokens": 99, "completion_tokens": 1})
    )
    with pytest.raises(ValueError, match="does not read the frames' numbers"):
        engine_for(server, form="video").load()
    server.pages["/v1/models"] = Reply({"data": [{"id": MODEL, "owned_by": "sglang"}]})
    with pytest.raises(ValueError, match=r"is no vLLM \(it looks like 'sglang'\)"):
        engine_for(server, form="video").facts()


def test_texts_are_cut_into_pieces_that_make_it_up_again(
    server: FakeServer, engine_for: MakeEngine
) -> None:
    engine = engine_for(server)
    text = " A person  is\nwaving. "
    assert engine.tokenize(text) == [" A", " person", "  is", "\nwaving.", " "]
    assert "".join(engine.tokenize(text)) == text
    assert engine.peak_memory_bytes() is None
