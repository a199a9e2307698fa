"""The server engine against a real `transformers serve` process with the tiny model, over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.import_utils import is_serve_available

from captioning.config import CaptionConfig, ServerSettings
from captioning.engines.interface import EngineClip, Generated
from captioning.engines.server_engine import ServerEngine
from captioning.prompt_files import Prompt, read_prompts
from captioning.run import run
from captioning.tiny.build import MODEL_FOLDER
from captioning.tiny.stream import draw_performance, frame_indices, render_small
from datasets_build.progress import SilentProgress
from datasets_build.shards import read_index, read_shard
from datasets_build.synthetic_motion import FPS

START_TIMEOUT_S = 90
# The server ends with its standard input, so it does not outlive the tests however they end.
PROGRAM = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from transformers.cli.transformers import main
main()
"""
NUM_FRAMES = 16
MAX_NEW_TOKENS = 40
HELD_OUT_SEED = 78  # of clips that training did not draw


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server; it is ended in any case."""
    if not is_serve_available():
        pytest.skip("needs the packages of `pip install transformers[serving]`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "serve", str(MODEL_FOLDER), *options],
            stdin=subprocess.PIPE,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(address, process, log)
        yield address
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with opener.open(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"`transformers serve` did not start:\n{log.read_text()[-3000:]}")


def config_for(url: str, out: Path, **changes: Any) -> CaptionConfig:
    return CaptionConfig(
        **{
            "videos": (".",),
            "out": out,
            "engine": "server",
            # Named by its path, as it was to the server, which lists only what lies in the hub's
            # cache.
            "server": ServerSettings(url=url, model=str(MODEL_FOLDER), concurrency=4),
            "num_frames": NUM_FRAMES,
            "max_new_tokens": MAX_NEW_TOKENS,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def engine(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerEngine]:
    made = ServerEngine(config_for(url, tmp_path_factory.mktemp("out")))
    made.load()
    yield made
    made.close()


@pytest.fixture(scope="module")
def drawn_clips() -> list[EngineClip]:
    """Three clips that the tiny model was not trained on, as a run would hand them over."""
    clips = []
    for number in range(3):
        performance = draw_performance(HELD_OUT_SEED, number, held_out=True)
        length = performance.bodies.shape[1]
        frames = render_small(performance, frame_indices(length))  # (T, H, W, C)
        clips.append(
            EngineClip(
                sample_id=f"clip-{number}",
                frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)),
                frame_indices=tuple(frame_indices(length)),
                num_source_frames=length,
                fps=float(FPS),
            )
        )
    return clips


def caption_here(clip: EngineClip, prompt: Prompt, model: Any, processor: Any) -> tuple[str, int]:
    """What the model says, in this process, to the pictures and times of a clip; prompt tokens."""
    content: list[dict[str, Any]] = []
    for index, frame in zip(clip.frame_indices, clip.frames, strict=True):
        content.append({"type": "text", "text": f"<{index / clip.fps:.1f} seconds>"})
        content.append({"type": "image", "image": Image.fromarray(frame.transpose(1, 2, 0))})
    content.append({"type": "text", "text": prompt.text})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"do_resize": False},
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    length = inputs["input_ids"].shape[1]
    return processor.decode(ids[0, length:], skip_special_tokens=True), length


def test_captions_are_those_of_the_model_for_the_same_pictures(
    engine: ServerEngine, drawn_clips: list[EngineClip]
) -> None:
    processor = AutoProcessor.from_pretrained(MODEL_FOLDER)
    model = AutoModelForImageTextToText.from_pretrained(MODEL_FOLDER).eval()
    prompts = read_prompts(("global", "body-parts"))
    outcomes = engine.generate(drawn_clips, prompts)
    answers = {(o.sample_id, o.prompt_id): o for o in outcomes if isinstance(o, Generated)}
    assert len(answers) == len(outcomes) == 6
    for clip in drawn_clips:
        for prompt in prompts:
            answer = answers[clip.sample_id, prompt.prompt_id]
            text, num_prompt_tokens = caption_here(clip, prompt, model, processor)
            assert answer.text == text
            assert answer.num_prompt_tokens == num_prompt_tokens
            assert answer.num_generated_tokens == len(processor.tokenizer(text)["input_ids"])
            assert (answer.finish_reason, answer.mean_logprob) == ("stop", None)
            height, width = clip.frames.shape[2:]
            (estimate,) = engine.count_tokens(
                [prompt], clip.frame_indices, fps=clip.fps, height=height, width=width
            ).each
            assert 0.8 < estimate / num_prompt_tokens < 1.25
    assert len({answer.text for answer in answers.values()}) >= 3
    assert all(answer.text.split()[0] in ("A", "Two", "The") for answer in answers.values())


def test_the_server_is_recognised_and_leaves_the_frames_alone(
    engine: ServerEngine, url: str
) -> None:
    assert engine.hardware() == {
        "server": url,
        "kind": "transformers",
        "version": None,
        "model": "model",
        "resizes_frames": False,
    }
    facts = engine.facts()
    assert (facts.model_id, facts.model_revision) == ("model", "served by transformers")
    assert str(MODEL_FOLDER) not in str(facts)


def test_a_model_that_the_server_does_not_serve_is_refused_in_its_words(
    url: str, tmp_path: Path
) -> None:
    engine = ServerEngine(config_for(url, tmp_path, server=ServerSettings(url=url, model="x/y")))
    with pytest.raises(ValueError, match=r"trial request .* 400: Server is pinned to"):
        engine.load()
    engine.close()


def test_a_run_through_the_server_makes_the_same_shards_twice(
    url: str, clips: Path, tmp_path: Path
) -> None:
    shards = []
    for name in ("one", "two"):
        config = config_for(
            url,
            tmp_path / name,
            videos=(str(clips),),
            limit=3,
            num_workers=1,
            num_frames=4,
            max_pixels=64 * 96,
        )
        summary = run(config, SilentProgress())
        shards.append((tmp_path / name / "captions-00000.arrow").read_bytes())
    (shard,) = read_index(summary.index, made_by="hoc caption")
    rows = read_shard(summary.folder, shard).to_pylist()
    assert [row["sample_id"] for row in rows] == ["clip-0", "clip-1", "clip-2"]
    assert all(row["status"] in ("success", "truncated") and row["caption"] for row in rows)
    assert all(row["model_revision"] == "served by transformers" for row in rows)
    assert shards[0] == shards[1]
