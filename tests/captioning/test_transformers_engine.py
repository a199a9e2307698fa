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
from captioning.engines.qwen_inputs import QwenInputs
from captioning.engines.transformers_engine import TransformersEngine
from captioning.frames import evenly_spaced
from captioning.planning import planned_size
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
    config: Any = build_config(tokenizer)
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
    return str(engine._inputs.tokenizer.decode(ids, skip_special_tokens=False))


def ids_of(engine: TransformersEngine, clip: EngineClip, prompt: Prompt) -> list[int]:
    height, width = clip.frames.shape[2:]
    prefix = engine._inputs.prefix(clip.frame_indices, fps=clip.fps, height=height, width=width)
    return [*prefix.ids.tolist(), *engine._inputs.suffix(prompt)]


def test_the_prompt_form_is_pinned(engine: TransformersEngine) -> None:
    prompt = Prompt("p", "", "", "What happens?")
    clip = random_clip(1, 103)  # frames 0, 34, 68, 102 at 30 fps
    pads = "<|video_pad|>" * 6  # 2 x 3 visual tokens of a frame pair of 64 x 96
    assert text_of(engine, ids_of(engine, clip, prompt)) == (
        "<|im_start|>user\n<|vision_start|>"
        f"<0.6 seconds><|vision_start|>{pads}<|vision_end|>"
        f"<2.8 seconds><|vision_start|>{pads}<|vision_end|>"
        "<|vision_end|>What happens?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "num_source_frames", "fps"),
    [(4, 64, 96, 103, 30.0), (2, 32, 32, 1, 15.0), (16, 96, 64, 9000, 29.97), (3, 64, 64, 7, 0.5)],
)
def test_inputs_equal_those_of_the_processor(
    engine: TransformersEngine,
    num_frames: int,
    height: int,
    width: int,
    num_source_frames: int,
    fps: float,
) -> None:
    inputs = engine._inputs
    rng = np.random.default_rng(0)
    indices = tuple(int(i) for i in np.linspace(0, num_source_frames - 1, num_frames))
    clip = EngineClip(
        "a",
        rng.integers(0, 256, (num_frames, 3, height, width), dtype=np.uint8),
        indices,
        num_source_frames,
        fps,
    )
    prefix = inputs.prefix(indices, fps=fps, height=height, width=width)
    for prompt in (*PROMPTS, Prompt("odd", "", "", "\u00e9\n  <two> |im_end| \u4e00?")):
        theirs = inputs.processor_inputs([clip], prompt)
        ids = torch.tensor([ids_of(engine, clip, prompt)])
        assert torch.equal(ids, theirs["input_ids"])
        assert torch.equal((ids == inputs.pad_id).int() * 2, theirs["mm_token_type_ids"].int())
        positions, delta = engine._model.model.get_rope_index(
            theirs["input_ids"],
            mm_token_type_ids=theirs["mm_token_type_ids"],
            video_grid_thw=theirs["video_grid_thw"],
            attention_mask=theirs["attention_mask"],
        )
        length = len(prefix.ids)
        assert np.array_equal(positions[:, 0, :length], prefix.positions)
        assert prefix.next_position == length + int(delta)
        pixels = inputs.patches(torch.from_numpy(clip.frames[None]))
        assert torch.equal(pixels, theirs["pixel_values_videos"])
        grid = [-(-num_frames // 2), height // 16, width // 16]
        assert theirs["video_grid_thw"].tolist() == [grid]
        count = engine.count_tokens([prompt], indices, fps=fps, height=height, width=width)
        assert count.prompt_tokens == (ids.shape[1],)
        assert count.shared == length


def test_black_and_white_reach_the_model_as_minus_one_and_one(engine: TransformersEngine) -> None:
    frames = torch.zeros((2, 4, 3, 64, 96), dtype=torch.uint8)
    frames[1] = 255
    pixels = engine._inputs.patches(frames)
    assert pixels.shape == (2 * 2 * 4 * 6, 3 * 2 * 16 * 16)
    torch.testing.assert_close(pixels[:48], torch.full((48, 1536), -1.0))
    torch.testing.assert_close(pixels[48:], torch.ones(48, 1536))


def test_another_form_of_the_installed_processor_stops_the_run(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Prompt("new", "", "", "A prompt that was not checked yet.")
    processor = engine._inputs.processor
    monkeypatch.setattr(
        type(processor), "_calculate_timestamps", lambda self, indices, *_: [0.0] * len(indices)
    )
    with pytest.raises(RuntimeError, match="makes other tokens of a video"):
        engine.generate([random_clip(1, 90)], [prompt])
    monkeypatch.undo()
    own = engine._inputs.patches
    monkeypatch.setattr(engine._inputs, "patches", lambda frames: own(frames) + 0.01)
    with pytest.raises(RuntimeError, match="makes other pixels of a video"):
        engine.generate([random_clip(1, 90)], [prompt])
    monkeypatch.undo()
    assert len(engine.generate([random_clip(1, 90)], [prompt])) == 1


def test_answers_carry_their_ids_and_are_the_same_twice(engine: TransformersEngine) -> None:
    clips = [random_clip(number, 20 + 900 * number) for number in range(3)]
    answers = engine.generate(clips, PROMPTS)
    assert {(a.sample_id, a.prompt_id) for a in answers} == {
        (c.sample_id, p.prompt_id) for c in clips for p in PROMPTS
    }
    num_threads = torch.get_num_threads()
    assert engine.generate(clips, PROMPTS) == answers
    assert torch.get_num_threads() == num_threads
    assert all(a.mean_logprob is not None and a.mean_logprob < 0 for a in answers)
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


def test_a_batch_may_mix_sizes_and_lengths(engine: TransformersEngine) -> None:
    rng = np.random.default_rng(3)
    sizes = [(4, 64, 96), (4, 64, 96), (2, 96, 64), (4, 32, 64), (4, 64, 96)]
    clips = [
        EngineClip(
            f"c{number}",
            rng.integers(0, 256, (num_frames, 3, height, width), dtype=np.uint8),
            evenly_spaced(10 + 700 * number, num_frames),
            10 + 700 * number,
            25.0,
        )
        for number, (num_frames, height, width) in enumerate(sizes)
    ]
    together = engine.generate(clips, PROMPTS)
    alone = [answer for clip in clips for answer in engine.generate([clip], PROMPTS)]
    assert [(a.sample_id, a.prompt_id) for a in together] == [
        (a.sample_id, a.prompt_id) for a in alone
    ]
    assert len({a.text for a in alone}) > 5
    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text
        assert one.num_prompt_tokens == other.num_prompt_tokens
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-3)


def test_answers_end_at_the_end_token_or_the_limit(engine: TransformersEngine) -> None:
    spelled = {"num_prompt_tokens": 7}
    end = engine._end_ids[0]
    logprobs = torch.tensor([-1.0, -2.0, -6.0, -100.0])
    (word,) = engine._inputs.tokenizer(" person", add_special_tokens=False)["input_ids"][:1]
    stopped = engine._answer_of("a", "p", [word, word, end, word], logprobs, **spelled)
    assert (stopped.finish_reason, stopped.num_generated_tokens) == ("stop", 2)
    assert stopped.mean_logprob == pytest.approx(-3.0)
    cut = engine._answer_of("a", "p", [word] * 4, logprobs, **spelled)
    assert (cut.finish_reason, cut.num_generated_tokens) == ("length", 4)
    assert cut.mean_logprob == pytest.approx(-27.25)
    assert cut.text == stopped.text * 2


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
    for changes in ({"max_new_tokens": 13}, {"compile": True}, {"attention": "eager"}):
        other = TransformersEngine(config_for(model_folder, tmp_path, **changes)).facts()
        assert other.recipe != facts.recipe
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
    with pytest.raises(ValueError, match="cannot keep several prompts about one clip apart"):
        TransformersEngine(config_for(model_folder, tmp_path, attention="flash_attention_2"))
    with pytest.raises(ValueError, match="compile is asked for together with device_map 'auto'"):
        TransformersEngine(config_for(model_folder, tmp_path, compile=True, device_map="auto"))
    with pytest.raises(ValueError, match=r"device 'cuda:99' .* was asked for, but PyTorch finds"):
        TransformersEngine(config_for(model_folder, tmp_path, device="cuda:99"))


def test_a_spread_model_gives_the_same_answers(
    engine: TransformersEngine, model_folder: Path, tmp_path: Path
) -> None:
    clips = [random_clip(number, 20 + 900 * number) for number in range(2)]
    spread = TransformersEngine(config_for(model_folder, tmp_path, device_map="cpu"))
    spread.load()
    for one, other in zip(
        engine.generate(clips, PROMPTS), spread.generate(clips, PROMPTS), strict=True
    ):
        assert one.text == other.text
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-4)
    spread.close()


def test_half_precision_gives_answers_on_a_cpu_too(model_folder: Path, tmp_path: Path) -> None:
    half = TransformersEngine(config_for(model_folder, tmp_path, dtype="bfloat16"))
    half.load()
    answers = half.generate([random_clip(1, 50)], PROMPTS)
    assert all(a.mean_logprob is not None and a.mean_logprob < 0 for a in answers)
    memory = half.peak_memory_bytes()
    assert memory is not None
    assert 1e8 < memory < 1e11
    half.close()
    half.load()  # closed is not broken
    assert half.generate([random_clip(1, 50)], PROMPTS) == answers


def test_pieces_of_a_text_add_up_to_it(engine: TransformersEngine) -> None:
    text = "A person kicks twice."
    pieces = engine.tokenize(text)
    assert "".join(pieces) == text
    assert len(pieces) > 4


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
    folder = SHARED / "data/qwen/qwen3-vl-processor"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    inputs = QwenInputs(folder, model_id="real")
    indices = evenly_spaced(103, 16)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (16, 3, 160, 288), dtype=np.uint8)
    clip = EngineClip("a", frames, indices, 103, 30.0)
    # The rules of the positions are the model's, not of its weights.
    inputs.check(clip, PROMPTS, engine._model.model.get_rope_index, device=torch.device("cpu"))
    count = inputs.count(PROMPTS, indices, fps=30.0, height=160, width=288)
    theirs = inputs.processor_inputs([clip], PROMPTS[1])
    assert count.prompt_tokens[1] == theirs["input_ids"].shape[1]
    assert int((theirs["mm_token_type_ids"] == 2).sum()) == 360
    text = str(inputs.tokenizer.decode(theirs["input_ids"][0])).replace("<|video_pad|>", "")
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
