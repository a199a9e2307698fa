from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captioning.config import CaptionConfig
from captioning.engines.interface import EngineClip, OutOfMemoryError
from captioning.engines.model_folder import find_model
from captioning.engines.transformers_engine import TransformersEngine
from captioning.frames import evenly_spaced
from captioning.plan import planned_size
from captioning.prompt_files import Prompt, read_prompts
from captioning.run import run
from captioning.tiny.build import (
    build_config,
    build_processor,
    build_tokenizer,
    write_model_folder,
)
from captioning.verify import verify
from datasets_build.progress import SilentProgress
from datasets_build.shards import read_index, read_shard

PROMPTS = read_prompts(("changes", "global"))
SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL of random weights in the sizes of the bundled one."""
    from transformers import Qwen3VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("random") / "random-qwen3-vl"
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["A person stands up.", "A person kicks twice."])
    config = build_config(tokenizer)
    config.text_config.initializer_range = 0.2  # livelier answers than one token for ever
    config.vision_config.initializer_range = 0.2
    model = Qwen3VLForConditionalGeneration(config)
    write_model_folder(model, build_processor(tokenizer), folder)
    return folder


def config_for(model_folder: Path, out: Path, **changes: Any) -> CaptionConfig:
    values = {"max_new_tokens": 12, "device": "cpu", **changes}
    return CaptionConfig(
        **{"videos": ("videos",), "out": out, "model": str(model_folder), **values}
    )


@pytest.fixture(scope="module")
def engine(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    engine = TransformersEngine(config_for(model_folder, tmp_path_factory.mktemp("out")))
    engine.load()
    return engine


def random_clip(number: int, num_source_frames: int, *, num_frames: int = 4) -> EngineClip:
    rng = np.random.default_rng(number)
    return EngineClip(
        sample_id=f"clip-{number}",
        frames=rng.integers(0, 256, (num_frames, 3, 64, 96), dtype=np.uint8),
        frame_indices=evenly_spaced(num_source_frames, num_frames),
        num_source_frames=num_source_frames,
        fps=30.0,
    )


def text_of(engine: TransformersEngine, ids: Sequence[int]) -> str:
    return str(engine._processor.tokenizer.decode(ids, skip_special_tokens=False))


def test_the_prompt_form_is_pinned(engine: TransformersEngine) -> None:
    prompt = Prompt("p", "", "", "What happens?")
    clip = random_clip(1, 103)  # frames 0, 34, 68, 102 at 30 fps
    inputs = engine.model_inputs([clip], prompt)
    pads = "<|video_pad|>" * 6  # 2 x 3 visual tokens of a frame pair of 64 x 96
    assert text_of(engine, inputs["input_ids"][0].tolist()) == (
        "<|im_start|>user\n<|vision_start|>"
        f"<0.6 seconds><|vision_start|>{pads}<|vision_end|>"
        f"<2.8 seconds><|vision_start|>{pads}<|vision_end|>"
        "<|vision_end|>What happens?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_frames_reach_the_model_as_planned_and_in_the_right_range(
    engine: TransformersEngine,
) -> None:
    clip = random_clip(1, 103)
    black = EngineClip("b", np.zeros_like(clip.frames), clip.frame_indices, 103, 30.0)
    white = EngineClip("w", np.full_like(clip.frames, 255), clip.frame_indices, 103, 30.0)
    inputs = engine.model_inputs([black, white], PROMPTS[0])
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 6], [2, 4, 6]]
    pixels = inputs["pixel_values_videos"]
    assert pixels.shape == (2 * 2 * 4 * 6, 3 * 2 * 16 * 16)
    torch.testing.assert_close(pixels[:48], torch.full((48, 1536), -1.0))
    torch.testing.assert_close(pixels[48:], torch.ones(48, 1536))


def test_padding_is_on_the_left_and_visual_tokens_are_marked(engine: TransformersEngine) -> None:
    short, long = random_clip(1, 50), random_clip(2, 9000)  # times of 4 and of 6 characters
    inputs = engine.model_inputs([short, long], PROMPTS[0])
    mask = inputs["attention_mask"].tolist()
    assert mask[0][0] == 0
    assert mask[0][-1] == 1
    assert sum(mask[0]) < sum(mask[1]) == len(mask[1])
    assert (inputs["mm_token_type_ids"] == 2).sum(dim=1).tolist() == [12, 12]


def test_planned_token_counts_are_those_of_the_processor(engine: TransformersEngine) -> None:
    for num_frames, length in ((2, 1), (4, 50), (16, 103), (6, 9000)):
        clip = random_clip(1, length, num_frames=num_frames)
        for prompt in PROMPTS:
            planned = engine.count_prompt_tokens(
                prompt, clip.frame_indices, fps=clip.fps, height=64, width=96
            )
            assert planned == engine.model_inputs([clip], prompt)["input_ids"].shape[1]


def test_answers_carry_their_ids_and_are_the_same_twice(engine: TransformersEngine) -> None:
    clips = [random_clip(number, 20 + 900 * number) for number in range(3)]
    answers = engine.generate(clips, PROMPTS)
    assert {(a.sample_id, a.prompt_id) for a in answers} == {
        (c.sample_id, p.prompt_id) for c in clips for p in PROMPTS
    }
    num_threads = torch.get_num_threads()
    assert engine.generate(clips, PROMPTS) == answers
    assert torch.get_num_threads() == num_threads
    assert all(a.mean_logprob < 0 for a in answers)
    assert all(
        a.num_generated_tokens == 12 if a.finish_reason == "length" else a.num_generated_tokens < 12
        for a in answers
    )


def test_a_clip_gets_its_own_answer_whatever_its_place_in_the_batch(
    engine: TransformersEngine,
) -> None:
    clips = [random_clip(number, 20 + 900 * number) for number in range(4)]
    alone = {clip.sample_id: engine.generate([clip], PROMPTS[:1])[0] for clip in clips}
    assert len({answer.mean_logprob for answer in alone.values()}) == 4
    for answer in engine.generate(clips[::-1], PROMPTS[:1]):
        own = alone[answer.sample_id]
        assert answer.num_prompt_tokens == own.num_prompt_tokens
        # Another batch may change the last bits, not the answer's scale.
        assert answer.mean_logprob == pytest.approx(own.mean_logprob, abs=1e-3)


def test_log_probabilities_are_those_of_the_greedy_tokens(engine: TransformersEngine) -> None:
    clip = random_clip(5, 60)
    (answer,) = engine.generate([clip], PROMPTS[:1])
    inputs = engine.model_inputs([clip], PROMPTS[0])
    with torch.inference_mode():
        logits = engine._model(**inputs).logits[0, -1]  # of the first new token
        new = engine._model.generate(**inputs, do_sample=False, max_new_tokens=1)[0, -1]
    assert int(logits.argmax()) == int(new)
    first = float(logits.log_softmax(-1).max())
    one = TransformersEngine.__new__(TransformersEngine)
    one.__dict__.update(engine.__dict__)
    one._model.generation_config.max_new_tokens = 1
    try:
        (short,) = one.generate([clip], PROMPTS[:1])
    finally:
        one._model.generation_config.max_new_tokens = 12
    assert short.mean_logprob == pytest.approx(first, abs=1e-5)
    assert answer.mean_logprob != short.mean_logprob


def test_memory_errors_of_the_device_become_ours(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(engine, "_answer", fail)
        with pytest.raises(OutOfMemoryError, match="memory"):
            engine.generate([random_clip(1, 9)], PROMPTS)


def test_facts_name_what_decides_a_caption(
    engine: TransformersEngine, model_folder: Path, tmp_path: Path
) -> None:
    facts = engine.facts()
    assert (facts.model_id, facts.side_multiple) == ("random-qwen3-vl", 32)
    assert facts.clip_pixels == 16 * 64 * 114
    assert facts.recipe["dtype"] == "float32"
    assert facts.recipe["generation"]["do_sample"] is False
    assert json.loads(json.dumps(facts.recipe)) == facts.recipe  # comparable with a saved plan
    assert str(model_folder) not in str(facts)
    longer = TransformersEngine(config_for(model_folder, tmp_path, max_new_tokens=13)).facts()
    assert longer.recipe != facts.recipe
    assert (tmp_path / "model-files.json").is_file()


def test_other_models_and_missing_ones_are_refused_in_words(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="neither 'tiny', nor a folder, nor"):
        find_model("./no/such/model")
    with pytest.raises(ValueError, match="only hub models have one"):
        find_model(str(model_folder), revision="main")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match="is a 'qwen3' model; this engine captions with Qwen3-VL"):
        TransformersEngine(config_for(tmp_path, tmp_path))


def test_frame_size_follows_the_rule_of_qwen_vl_utils() -> None:
    from qwen_vl_utils.vision_process import smart_resize

    for height, width in ((1080, 1920), (240, 212), (424, 512), (33, 4000), (480, 640), (31, 31)):
        size = planned_size(height, width, max_pixels=224 * 224, multiple=32)
        expected = smart_resize(height, width, factor=32, min_pixels=1024, max_pixels=224 * 224)
        assert size == tuple(max(32, side) for side in expected)


def test_the_real_processor_plans_and_renders_the_same_form(
    model_folder: Path, engine: TransformersEngine
) -> None:
    """Qwen3-VL's own tokenizer and template instead of the small ones, at NTU's size."""
    from transformers import AutoProcessor

    folder = SHARED / "data/qwen/qwen3-vl-processor"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    real = TransformersEngine.__new__(TransformersEngine)
    real.__dict__.update(engine.__dict__)
    real._processor = AutoProcessor.from_pretrained(folder)
    real._processor.video_processor.cap_pixels_per_frame = False
    real._text_tokens, real._framed_tokens = {}, {}
    indices = evenly_spaced(103, 16)
    clip = EngineClip("a", np.zeros((16, 3, 160, 288), np.uint8), indices, 103, 30.0)
    inputs = real.model_inputs([clip], PROMPTS[1])
    planned = real.count_prompt_tokens(PROMPTS[1], indices, fps=30.0, height=160, width=288)
    assert planned == inputs["input_ids"].shape[1]
    assert int((inputs["mm_token_type_ids"] == 2).sum()) == 360
    text = text_of(real, inputs["input_ids"][0].tolist()).replace("<|video_pad|>", "")
    assert text.startswith(
        "<|im_start|>user\n<|vision_start|><0.1 seconds><|vision_start|><|vision_end|><0.6 seconds>"
    )
    assert text.endswith(
        "<|vision_end|><|vision_end|>Describe the action of the person in this video in one "
        "sentence.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_run_through_the_model_is_the_same_twice(
    model_folder: Path, clips: Path, tmp_path: Path
) -> None:
    results = []
    for name in ("one", "two"):
        config = config_for(model_folder, tmp_path / name, videos=(str(clips),), batch_tokens=700)
        summary = run(config, SilentProgress())
        results.append((tmp_path / name / "captions-00000.arrow").read_bytes())
        (shard,) = read_index(summary.index, made_by="hoc caption")
        rows = read_shard(summary.folder, shard).to_pylist()
        assert {row["sample_id"] for row in rows} == {f"clip-{number}" for number in range(9)}
        assert all(row["status"] in ("success", "truncated", "empty") for row in rows)
        assert all(len(row["frame_indices"]) == 16 for row in rows)
        assert verify(tmp_path / name) == []
    assert results[0] == results[1]
