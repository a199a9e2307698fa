"""The bundled tiny captioner: an ordinary Qwen3-VL folder that describes rendered clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2Tokenizer,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from captioning.tiny.build import (
    MODEL_FOLDER,
    PROMPTS,
    SPECIAL_TOKENS,
    build_config,
    build_processor,
    build_tokenizer,
    write_model_folder,
)
from captioning.tiny.inputs import (
    TokenRows,
    answer_logits,
    decode,
    patchify,
    recolour,
    visual_tokens,
)
from captioning.tiny.stream import (
    ATTRIBUTES,
    Pool,
    draw_performance,
    frame_indices,
    render_small,
    swap_sides,
)
from captioning.tiny.train import Heads, pose_loss, rate_at
from datasets_build.synthetic_actions import ACTIONS, action_of_caption, describe, side_of_caption
from datasets_build.synthetic_motion import FPS

MAX_BYTES = 12_000_000
FIRST_HELD_OUT = 100  # clips of seed 77; neither training nor the benchmark draws them
HELD_OUT_SEED = 77


@pytest.fixture(scope="module")
def processor() -> Qwen3VLProcessor:
    return AutoProcessor.from_pretrained(MODEL_FOLDER)


@pytest.fixture(scope="module")
def model() -> Qwen3VLForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()


def render_prompt(processor: Qwen3VLProcessor, prompt: str) -> str:
    content = [{"type": "video"}, {"type": "text", "text": prompt}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def process(processor: Qwen3VLProcessor, clips, lengths, prompts):
    """The processor's inputs as the caption engine asks for them."""
    return processor(
        text=[render_prompt(processor, prompt) for prompt in prompts],
        videos=[torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips],
        video_metadata=[
            {"fps": float(FPS), "total_num_frames": n, "frames_indices": frame_indices(n)}
            for n in lengths
        ],
        do_resize=False,
        do_sample_frames=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def caption(processor, model, clips, lengths, prompts):
    inputs = process(processor, clips, lengths, prompts)
    inputs.pop("video_metadata", None)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    new = ids[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)


@pytest.fixture(scope="module")
def random_clips():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 16, 64, 96, 3), dtype=np.uint8), [48, 333]


def test_the_folder_holds_at_most_12_megabytes():
    size = sum(path.stat().st_size for path in MODEL_FOLDER.rglob("*") if path.is_file())
    assert 0 < size <= MAX_BYTES


def test_the_folder_loads_as_qwen3_vl_in_bfloat16(processor):
    model = AutoModelForImageTextToText.from_pretrained(MODEL_FOLDER)
    assert type(model) is Qwen3VLForConditionalGeneration
    assert type(processor) is Qwen3VLProcessor
    assert type(processor.tokenizer) is Qwen2Tokenizer
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_no_file_of_the_folder_names_a_path_of_the_machine_that_made_it():
    for path in MODEL_FOLDER.glob("*.json"):
        assert not any(f in path.read_text() for f in ("/work", "/tmp", "/home")), path.name


def test_every_special_token_id_in_the_config_is_the_tokenizers(processor, model):
    id_of = processor.tokenizer.convert_tokens_to_ids
    config = model.config
    assert config.video_token_id == id_of("<|video_pad|>") == processor.video_token_id
    assert config.image_token_id == id_of("<|image_pad|>") == processor.image_token_id
    assert config.vision_start_token_id == id_of("<|vision_start|>")
    assert config.vision_end_token_id == id_of("<|vision_end|>")
    assert config.text_config.eos_token_id == id_of("<|im_end|>")
    assert config.text_config.pad_token_id == id_of("<|endoftext|>")
    assert config.text_config.vocab_size == len(processor.tokenizer)
    assert sorted(map(id_of, SPECIAL_TOKENS)) == list(
        range(len(processor.tokenizer) - len(SPECIAL_TOKENS), len(processor.tokenizer))
    )
    generation = model.generation_config
    assert generation.do_sample is False
    assert generation.eos_token_id == [id_of("<|im_end|>"), id_of("<|endoftext|>")]
    assert generation.pad_token_id == id_of("<|endoftext|>")


@pytest.mark.parametrize(
    "text",
    [
        "Describe the arms.",
        "  two  spaces\n\ttabs, 12345 and caf\u00e9",
        "\u4f60\u597d \u0645\u0631\u062d\u0628\u0627 \U0001f938\u200d\u2642\ufe0f \x00\x7f",
        "",
    ],
)
def test_any_text_survives_encoding_and_decoding(processor, text):
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids) == text


def test_the_words_of_the_captions_are_single_tokens(processor):
    for text in ("A person claps the hands four times, quickly.", *(f" {s}" for s in ("left",))):
        assert len(processor.tokenizer(text)["input_ids"]) <= len(text.split()) + 2


def test_the_chat_template_renders_qwens_form(processor):
    assert render_prompt(processor, "Say it.") == (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Say it.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A clap."},
    ]
    assert processor.apply_chat_template(turns, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\nA clap.<|im_end|>\n"
    )


def test_the_processors_budget_makes_16_frames_of_a_16_to_9_video_64_by_96(processor):
    video = torch.zeros(16, 3, 270, 480, dtype=torch.uint8)
    grid = processor.video_processor(video, do_sample_frames=False)["video_grid_thw"]
    assert grid.tolist() == [[8, 4, 6]]


def test_training_inputs_equal_the_processors(processor, model, random_clips):
    clips, lengths = random_clips
    inputs = process(processor, clips, lengths, PROMPTS[:2])
    rows = TokenRows(processor.tokenizer)
    prompts = [
        rows.prompt(prompt, frame_indices(n), FPS)
        for prompt, n in zip(PROMPTS[:2], lengths, strict=True)
    ]
    assert inputs["mm_token_type_ids"].shape == inputs["input_ids"].shape
    assert set(inputs["mm_token_type_ids"].unique().tolist()) == {0, 2}
    for row, prompt in enumerate(prompts):
        kept = inputs["attention_mask"][row].bool()
        assert inputs["input_ids"][row][kept].tolist() == prompt
    patches = patchify(torch.from_numpy(clips))
    torch.testing.assert_close(
        patches.flatten(0, 1), inputs["pixel_values_videos"], rtol=0, atol=1e-6
    )
    same = recolour(patches, torch.ones(2, 3), torch.zeros(2, 3))
    assert torch.equal(same, patches)


@torch.inference_mode()
def test_the_training_forward_equals_the_models(processor, model, random_clips):
    clips, lengths = random_clips
    inputs = process(processor, clips, lengths, PROMPTS[:2])
    rows = TokenRows(processor.tokenizer)
    prompts = [
        rows.prompt(prompt, frame_indices(n), FPS)
        for prompt, n in zip(PROMPTS[:2], lengths, strict=True)
    ]
    tokens = rows.batch(prompts, ["A person jumps up once.", "Two people hug."])
    visual, deepstack = visual_tokens(model.model.visual, patchify(torch.from_numpy(clips)))
    hidden = decode(model, tokens, visual, deepstack)
    expected = model.model(
        input_ids=tokens.input_ids,
        mm_token_type_ids=tokens.is_visual.int() * 2,
        pixel_values_videos=inputs["pixel_values_videos"],
        video_grid_thw=inputs["video_grid_thw"],
    ).last_hidden_state
    torch.testing.assert_close(hidden, expected, rtol=1e-3, atol=1e-3)
    logits, target = answer_logits(model, hidden, tokens.labels)
    caption_ids = processor.tokenizer("A person jumps up once.<|im_end|>")["input_ids"]
    assert target[: len(caption_ids)].tolist() == caption_ids
    assert logits.shape == (len(target), len(processor.tokenizer))
    assert tokens.answer_start.tolist() == [len(prompt) for prompt in prompts]


def test_captions_of_rendered_clips_name_the_right_action(processor, model):
    chosen, index = [], FIRST_HELD_OUT
    for action_id in ACTIONS:  # one clip of each action
        while draw_performance(HELD_OUT_SEED, index, held_out=True).action_id != action_id:
            index += 1
        chosen.append(draw_performance(HELD_OUT_SEED, index, held_out=True))
    lengths = [performance.num_frames for performance in chosen]
    clips = [render_small(p, frame_indices(p.num_frames)) for p in chosen]
    said = caption(processor, model, clips, lengths, [PROMPTS[0]] * len(clips))
    right = sum(
        action_of_caption(text) == p.action_id for text, p in zip(said, chosen, strict=True)
    )
    sided = [
        (side_of_caption(text), p.side) for text, p in zip(said, chosen, strict=True) if p.side
    ]
    assert right >= 8, said
    assert sum(a == b for a, b in sided) >= len(sided) - 1, said


def test_another_prompt_still_gives_a_caption(processor, model):
    performance = draw_performance(HELD_OUT_SEED, 0, held_out=True)
    clip = render_small(performance, frame_indices(performance.num_frames))
    prompts = ["Tell me what the feet do, please!", PROMPTS[1]]
    said = caption(processor, model, [clip] * 2, [performance.num_frames] * 2, prompts)
    assert all(action_of_caption(text) is not None for text in said), said


def test_swapping_sides_twice_changes_nothing():
    for text in ("waves the left hand", "points to the right with the left hand, slowly"):
        assert swap_sides(swap_sides(text)) == text != swap_sides(text)
    assert swap_sides("points to the right with the left hand") == (
        "points to the left with the right hand"
    )


def test_a_clip_of_the_pool_depends_on_seed_and_number_only(tmp_path: Path):
    first = Pool(tmp_path / "a", 3, seed=5)
    first.fill()
    second = Pool(tmp_path / "b", 2, seed=5)
    second.fill()
    assert len(first) == 3
    assert np.array_equal(first.frames[:2], second.frames)
    assert np.array_equal(first.facts[:2], second.facts)
    truth = draw_performance(5, 1)
    assert first.facts["caption"][1].decode() == describe(truth)
    plain = first.batch(np.arange(2), None)
    assert [plain.labels[name][1] for name in ATTRIBUTES] == [
        values.index(getattr(truth, name)) for name, values in ATTRIBUTES.items()
    ]


def test_a_mirrored_clip_mirrors_picture_joints_words_and_labels_together(tmp_path: Path):
    pool = Pool(tmp_path, 12, seed=6)
    pool.fill()
    clips = np.arange(12)
    plain, mixed = pool.batch(clips, None), pool.batch(clips, np.random.default_rng(3))
    num_mirrored = 0
    for row in range(12):
        if torch.equal(mixed.frames[row], plain.frames[row]):
            assert mixed.captions[row] == plain.captions[row]
            continue
        num_mirrored += 1
        assert torch.equal(mixed.frames[row], plain.frames[row].flip(2))
        assert mixed.captions[row] == swap_sides(plain.captions[row])
        side = ATTRIBUTES["side"][mixed.labels["side"][row]]
        assert side == side_of_caption(mixed.captions[row])
        # Left wrist (6) and right wrist (10) of the first body trade places.
        if not plain.has_second[row]:
            torch.testing.assert_close(
                mixed.joints[row, :, :, 0, 6, 0], 1 - plain.joints[row, :, :, 0, 10, 0]
            )
    assert 0 < num_mirrored < 12


def test_a_fresh_model_is_written_and_loads_again(tmp_path: Path):
    tokenizer = build_tokenizer(["A person claps the hands twice."])
    torch.manual_seed(0)
    fresh = Qwen3VLForConditionalGeneration(build_config(tokenizer))
    write_model_folder(fresh, build_processor(tokenizer), tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    for name, value in fresh.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.to(torch.bfloat16)), name
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert config["text_config"]["vocab_size"] == len(tokenizer)


def test_pose_loss_ignores_the_place_of_a_body_that_is_not_there():
    torch.manual_seed(0)
    heads = Heads(8)
    tokens, joints = torch.randn(3, 6, 8), torch.rand(3, 2, 2, 25, 2)
    moved = joints.clone()
    moved[:, :, 1] += 0.3
    alone, both = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    assert pose_loss(heads, tokens, joints, alone) == pose_loss(heads, tokens, moved, alone)
    assert pose_loss(heads, tokens, joints, both) != pose_loss(heads, tokens, moved, both)


def test_the_learning_rate_warms_up_and_falls():
    rates = [rate_at(update, 1000, 1e-3) for update in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(2e-5, rel=0.01)
