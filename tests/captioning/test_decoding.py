from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captioning.engines.branches import BranchCache, Branches
from captioning.engines.decoding import BranchDecoder
from captioning.engines.interface import EngineClip
from captioning.engines.qwen_inputs import QwenInputs
from captioning.engines.qwen_model import load_model, read_clips
from captioning.frames import evenly_spaced
from captioning.prompt_files import Prompt
from captioning.tiny.build import (
    build_config,
    build_processor,
    build_tokenizer,
    write_model_folder,
)

NUM_NEW = 12
PROMPTS = [
    Prompt("short", "", "", "A person?"),
    Prompt("long", "", "", "A person kicks twice. A person stands up. A person kicks."),
    Prompt("middle", "", "", "What stands up twice?"),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL of random weights whose answers vary."""
    from transformers import Qwen3VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("random") / "random-qwen3-vl"
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["A person stands up.", "A person kicks twice."])
    config: Any = build_config(tokenizer)
    config.text_config.initializer_range = 0.2
    config.vision_config.initializer_range = 0.2
    config.text_config.num_hidden_layers = 2  # compiling takes its time
    model = Qwen3VLForConditionalGeneration(config)
    write_model_folder(model, build_processor(tokenizer), folder)
    return folder


@pytest.fixture(scope="module")
def inputs(folder: Path) -> QwenInputs:

    return QwenInputs(folder, model_id="random")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """The same weights, all of it transformers'."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(folder, dtype=torch.float32, attention="sdpa", device=CPU)


def random_clip(number: int) -> EngineClip:
    """A clip whose times take 4 to 6 characters each, so prefixes differ in length."""
    rng = np.random.default_rng(number)
    length = 20 * 40**number  # frames of the source
    frames = rng.integers(0, 256, (4, 3, 64, 96), dtype=np.uint8)
    return EngineClip(f"clip-{number}", frames, evenly_spaced(length, 4), length, 30.0)


CLIPS = [random_clip(number) for number in range(4)]


def decoder_of(model: Any, end_ids: Sequence[int] = (), **changes: Any) -> BranchDecoder:
    values = {"max_new_tokens": NUM_NEW, "end_ids": list(end_ids), "pad_id": 0, **changes}
    return BranchDecoder(model, **values)


def answers(
    decoder: BranchDecoder,
    model: Any,
    inputs: QwenInputs,
    clips: Sequence[EngineClip],
    prompts: Sequence[Prompt],
) -> tuple[Tensor, Tensor]:
    prefixes = [inputs.prefix(c.frame_indices, fps=c.fps, height=64, width=96) for c in clips]
    return decoder.answer(
        read_clips(model, inputs, clips, prefixes),
        [inputs.suffix(prompt) for prompt in prompts],
        lengths=[len(prefix.ids) for prefix in prefixes],
        next_positions=[prefix.next_position for prefix in prefixes],
    )


def generated(
    reference: Any, inputs: QwenInputs, prompt: Prompt, end_ids: Sequence[int] = (-1,)
) -> Tensor:
    """What transformers' processor and `generate` make of CLIPS, (B, N), padded on the left."""
    request = inputs.processor_inputs(CLIPS, prompt)
    assert request["attention_mask"][0, 0] == 0  # the lengths do differ
    with torch.no_grad():
        out: Tensor = reference.generate(
            **request,
            do_sample=False,
            max_new_tokens=NUM_NEW,
            eos_token_id=list(end_ids),
            pad_token_id=0,
        )
    return out[:, request["input_ids"].shape[1] :]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_prompt_gives_the_tokens_of_transformers_generate(
    folder: Path, reference: Any, inputs: QwenInputs, attention: str
) -> None:
    model = load_model(folder, dtype=torch.float32, attention=attention, device=CPU)
    expected = generated(reference, inputs, PROMPTS[1])
    tokens, _ = answers(decoder_of(model), model, inputs, CLIPS, PROMPTS[1:2])
    assert tokens.shape == (4, 1, NUM_NEW)
    assert len({tuple(row) for row in expected.tolist()}) == 4
    assert torch.equal(tokens[:, 0], expected)


def test_three_prompts_in_one_pass_are_answered_as_if_alone(model: Any, inputs: QwenInputs) -> None:
    decoder = decoder_of(model)
    tokens, logprobs = answers(decoder, model, inputs, CLIPS, PROMPTS)
    assert tokens.shape == logprobs.shape == (4, 3, NUM_NEW)
    assert len({tuple(ids) for row in tokens.tolist() for ids in row}) == 12
    for branch, prompt in enumerate(PROMPTS):
        alone, alone_logprobs = answers(decoder, model, inputs, CLIPS, [prompt])
        assert torch.equal(tokens[:, branch], alone[:, 0])
        torch.testing.assert_close(logprobs[:, branch], alone_logprobs[:, 0], atol=1e-4, rtol=0)


def test_each_branch_ends_by_itself_as_in_transformers(
    model: Any, reference: Any, inputs: QwenInputs
) -> None:
    free = torch.stack([generated(reference, inputs, prompt) for prompt in PROMPTS], dim=1)
    # Two tokens as ends, so that some answers end early, at different steps, and others never.
    ends = [int(free[0, 0, 2]), int(free[3, 1, 5])]
    tokens, _ = answers(decoder_of(model, ends), model, inputs, CLIPS, PROMPTS)
    lengths = set()
    for branch, prompt in enumerate(PROMPTS):
        for row, ids in enumerate(generated(reference, inputs, prompt, ends).tolist()):
            stop = next((place + 1 for place, i in enumerate(ids) if i in ends), len(ids))
            assert tokens[row, branch].tolist()[:stop] == ids[:stop]
            lengths.add(stop)
    assert len(lengths) > 2


def test_decoding_stops_when_all_branches_have_ended(model: Any, inputs: QwenInputs) -> None:
    free, _ = answers(decoder_of(model), model, inputs, CLIPS[:2], PROMPTS[:1])
    early, late = int(free[0, 0, 1]), int(free[1, 0, 3])
    assert early not in free[1, 0, :4]  # the branches end one after the other
    tokens, _ = answers(decoder_of(model, [early, late]), model, inputs, CLIPS[:2], PROMPTS[:1])
    assert tokens.shape[2] == 4


def test_log_probabilities_are_those_of_one_pass_over_the_whole_text(
    model: Any, reference: Any, inputs: QwenInputs
) -> None:
    tokens, logprobs = answers(decoder_of(model), model, inputs, CLIPS, PROMPTS)
    for branch, prompt in enumerate(PROMPTS):
        request = inputs.processor_inputs([CLIPS[2]], prompt)
        answer = tokens[2:3, branch]
        ids = torch.cat([request["input_ids"], answer], dim=1)
        kinds = torch.nn.functional.pad(request["mm_token_type_ids"], (0, NUM_NEW))
        with torch.no_grad():
            logits = reference(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=kinds,
                pixel_values_videos=request["pixel_values_videos"],
                video_grid_thw=request["video_grid_thw"],
            ).logits[:, -NUM_NEW - 1 : -1]  # (1, N, vocabulary)
        expected = logits.log_softmax(-1).gather(-1, answer[..., None])[..., 0]
        torch.testing.assert_close(logprobs[2:3, branch], expected, atol=1e-4, rtol=0)


def test_a_clip_is_answered_the_same_beside_other_clips(model: Any, inputs: QwenInputs) -> None:
    decoder = decoder_of(model)
    together, _ = answers(decoder, model, inputs, CLIPS, PROMPTS)
    for row, clip in enumerate(CLIPS):
        alone, _ = answers(decoder, model, inputs, [clip], PROMPTS)
        assert torch.equal(together[row], alone[0])


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_a_compiled_step_gives_the_same_tokens(model: Any, inputs: QwenInputs) -> None:
    plain, compiled = decoder_of(model), decoder_of(model, is_compiled=True)
    try:
        for clips in (CLIPS, CLIPS[:3]):  # the second reuses what the first compiled
            expected, expected_logprobs = answers(plain, model, inputs, clips, PROMPTS)
            tokens, logprobs = answers(compiled, model, inputs, clips, PROMPTS)
            assert torch.equal(tokens, expected)
            torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-4, rtol=0)
    finally:
        torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_gpu_gives_the_tokens_of_the_cpu(
    folder: Path, model: Any, inputs: QwenInputs, is_compiled: bool
) -> None:
    device = torch.device("cuda")
    on_gpu = load_model(folder, dtype=torch.float32, attention="sdpa", device=device)
    decoder = decoder_of(on_gpu, is_compiled=is_compiled)
    for clips in (CLIPS, CLIPS[:3]):
        expected, expected_logprobs = answers(decoder_of(model), model, inputs, clips, PROMPTS)
        tokens, logprobs = answers(decoder, on_gpu, inputs, clips, PROMPTS)
        assert torch.equal(tokens, expected)
        torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-2, rtol=0)


def test_branches_see_their_prefix_and_themselves_only() -> None:
    # Prefixes of 2 and 1 tokens, suffixes of 1 and 2, two steps.
    branches = Branches([2, 1], [7, 9], [[5], [6, 7]], num_columns=9, device=CPU)
    assert branches.ids.tolist() == [[5, 6, 7]]
    assert branches.first_column == 5
    assert branches.ends.tolist() == [0, 2]
    assert branches.suffix_positions()[0].tolist() == [[7, 7, 8], [9, 9, 10]]
    assert branches.step_positions(1)[2].tolist() == [[8, 9], [10, 11]]
    assert branches.suffix_sight().int().tolist() == [
        [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]],
        [[1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]],
    ]
    assert branches.step_sight().int().tolist() == [
        [[1, 1, 1, 0, 0, 1, 0, 1, 0], [1, 1, 0, 1, 1, 0, 1, 0, 1]],
        [[1, 0, 1, 0, 0, 1, 0, 1, 0], [1, 0, 0, 1, 1, 0, 1, 0, 1]],
    ]


def test_the_cache_holds_a_prefix_once_and_never_moves() -> None:
    cache = BranchCache(num_rows=2, num_columns=8)
    prefix = torch.randn(1, 3, 4, 5)
    for row in range(2):
        cache.rows = slice(row, row + 1)
        seen, _ = cache.update(prefix + row, prefix, 0)
        assert torch.equal(seen, prefix + row)
    cache.rows, cache.length = slice(0, 2), 4
    suffix = torch.randn(2, 3, 2, 5)
    seen, values = cache.update(suffix, suffix, 0)
    assert seen.shape == values.shape == (2, 3, 6, 5)
    assert torch.equal(seen[1, :, :4], prefix[0] + 1)
    assert torch.equal(seen[:, :, 4:], suffix)
    cache.length, cache.places = 6, torch.tensor([6, 7])
    everything, _ = cache.update(suffix, suffix, 0)
    assert everything.shape == (2, 3, 8, 5)
    assert torch.equal(everything[:, :, 6:], suffix)
    assert everything.data_ptr() == seen.data_ptr()
