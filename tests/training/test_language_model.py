"""training.models.language_model: loss, scores and texts of a frozen model, against plain forms."""

import copy
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F  # noqa: N812 - the name torch's users know
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from training.models import caption_loss, language_model_files
from training.models.language_model import FrozenLanguageModel
from training.models.language_model_files import model_identity, model_width
from training.models.ssf import SSF

WORDS = [
    *("a", "person", "waves", "kicks", "claps", "with", "the"),
    *("left", "right", "hand", "foot", "twice", "slowly", "."),
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def save_tokenizer(folder, *, with_pad=True, with_eos=True):
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>"}
    if with_pad:
        special["pad_token"] = "<pad>"
    if with_eos:
        special["eos_token"] = "<eos>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(folder))
    return len(vocabulary)


def save_text_model(folder, **tokenizer):
    num_words = save_tokenizer(folder, **tokenizer)
    torch.manual_seed(0)
    # A wide initialisation: with 0.02 all words are about as likely and nothing would be tested.
    config = Qwen3Config(vocab_size=num_words, initializer_range=0.3, **SIZES)
    Qwen3ForCausalLM(config).save_pretrained(str(folder))
    return folder


def save_vision_model(folder):
    num_words = save_tokenizer(folder)
    torch.manual_seed(0)
    text = {"vocab_size": num_words, "initializer_range": 0.3, **SIZES}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    Qwen3VLForConditionalGeneration(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"text": save_text_model(root / "text"), "vision": save_vision_model(root / "vision")}


@pytest.fixture(scope="module", params=["text", "vision"])
def frozen(request, folders):
    return FrozenLanguageModel.load(str(folders[request.param]), dtype=torch.float32)


def prefixes(frozen, num=3, length=4, seed=0):
    return torch.randn(num, length, frozen.width, generator=torch.Generator().manual_seed(seed))


CAPTIONS = ["a person waves with the left hand .", "a person kicks .", "claps twice slowly"]


def plain_losses(frozen, prefix, tokens, mask):
    """Each caption alone, all logits at once: token losses, one list a sample."""
    decoder, embedding, head = frozen.modules_and_head()
    losses = []
    for n in range(len(prefix)):
        row = tokens[n][mask[n]]
        sequence = torch.cat((prefix[n], embedding(row)))[None]
        logits = head(decoder(inputs_embeds=sequence).last_hidden_state)[0]
        first = prefix.shape[1] - 1
        losses.append(F.cross_entropy(logits[first : first + len(row)], row, reduction="none"))
    return losses


def test_captions_become_padded_tokens_that_end(frozen):
    tokens, mask = frozen.tokenize([*CAPTIONS, ""], 32)
    assert tokens.shape == mask.shape == (4, 9)
    assert mask.sum(1).tolist() == [9, 5, 4, 1]
    for row, real in zip(tokens, mask, strict=True):
        assert row[real][-1] == frozen.eos_id
        assert (row[~real] == frozen.pad_id).all()
    assert frozen.detokenize(tokens) == [*CAPTIONS, ""]


def test_long_captions_are_cut_with_a_warning_and_still_end(frozen, caplog):
    tokens, mask = frozen.tokenize(CAPTIONS, 4)
    assert mask.sum(1).tolist() == [4, 4, 4]
    assert (tokens[:, -1] == frozen.eos_id).all()
    assert "2 of 3 captions have more than 3 tokens" in caplog.text


@pytest.mark.parametrize("words_a_chunk", [1, 3, 100])
def test_the_caption_loss_equals_the_plain_one_with_its_gradient(
    frozen, monkeypatch, words_a_chunk
):
    monkeypatch.setattr(caption_loss, "CHUNK_LOGITS", words_a_chunk * (len(WORDS) + 3))
    tokens, mask = frozen.tokenize(CAPTIONS, 32)
    prefix = prefixes(frozen).requires_grad_()
    loss = frozen.caption_loss(prefix, tokens, mask)
    loss.backward()
    twin = prefix.detach().clone().requires_grad_()
    want = torch.stack([part.mean() for part in plain_losses(frozen, twin, tokens, mask)]).mean()
    want.backward()
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prefix.grad, twin.grad, rtol=1e-4, atol=1e-6)
    assert torch.count_nonzero(prefix.grad) > 0


def test_scores_are_log_likelihoods_a_sample(frozen, monkeypatch):
    monkeypatch.setattr(caption_loss, "CHUNK_LOGITS", 4 * (len(WORDS) + 3))
    tokens, mask = frozen.tokenize(CAPTIONS, 32)
    prefix = prefixes(frozen)
    want = [-losses.sum() for losses in plain_losses(frozen, prefix, tokens, mask)]
    got = frozen.score(prefix, tokens, mask)
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-4, atol=1e-4)


def many_captions(frozen, num=40, seed=1):
    """Tokens and mask of captions of 1 to 11 words, an empty one among them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (num,), generator=generator).tolist()
    words = [torch.randint(len(WORDS), (n,), generator=generator).tolist() for n in lengths]
    texts = ["", *(" ".join(WORDS[i] for i in row) for row in words[1:])]
    return frozen.tokenize(texts, 32)


def test_sequences_that_share_rows_have_the_loss_of_rows_of_their_own(frozen):
    tokens, mask = many_captions(frozen)
    found = []
    assert frozen.shares_rows
    for shares_rows in (True, False):
        frozen.__dict__["shares_rows"] = shares_rows
        prefix = prefixes(frozen, num=len(tokens)).requires_grad_()
        loss = frozen.caption_loss(prefix, tokens, mask)
        loss.backward()
        found.append((loss.detach(), prefix.grad, frozen.score(prefix, tokens, mask)))
    frozen.__dict__["shares_rows"] = True
    for shared, own in zip(*found, strict=True):
        torch.testing.assert_close(shared, own, rtol=1e-4, atol=1e-6)


def test_a_recurrent_model_reads_a_sequence_a_row(tmp_path):
    num_words = save_tokenizer(tmp_path)
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=num_words, hidden_size=16, state_size=4, num_hidden_layers=2, expand=2
    )
    MambaForCausalLM(config).save_pretrained(str(tmp_path))
    frozen = FrozenLanguageModel.load(str(tmp_path), dtype=torch.float32)
    assert not frozen.shares_rows
    tokens, mask = frozen.tokenize(CAPTIONS, 32)
    prefix = prefixes(frozen)
    losses = torch.stack([part.mean() for part in plain_losses(frozen, prefix, tokens, mask)])
    loss = frozen.caption_loss(prefix, tokens, mask)
    torch.testing.assert_close(loss, losses.mean(), rtol=1e-5, atol=1e-5)


def test_a_model_that_mixes_sequences_of_a_row_gets_a_row_each(folders, monkeypatch, caplog):
    frozen = FrozenLanguageModel.load(str(folders["text"]), dtype=torch.float32)
    read = frozen._read
    # positions that run on: attention then sees the sequence before
    monkeypatch.setattr(frozen, "_read", lambda embedded, position: read(embedded, None))
    assert not frozen.shares_rows
    assert "mixes sequences of one row" in caplog.text


def test_layers_computed_again_give_the_same_gradient(folders, monkeypatch):
    plain = FrozenLanguageModel.load(str(folders["text"]), dtype=torch.float32)
    again = FrozenLanguageModel.load(
        str(folders["text"]), dtype=torch.float32, gradient_checkpointing=True
    )
    counts = {"plain": 0, "again": 0}
    for name, model in (("plain", plain), ("again", again)):
        for layer in model.modules_and_head()[0].layers:
            layer.mlp.register_forward_pre_hook(
                lambda *_, name=name: counts.update({name: counts[name] + 1})
            )
    tokens, mask = plain.tokenize(CAPTIONS, 32)
    gradients = []
    for model in (plain, again):
        prefix = prefixes(model).requires_grad_()
        model.caption_loss(prefix, tokens, mask).backward()
        gradients.append(prefix.grad)
    assert torch.equal(*gradients)
    assert counts["again"] - counts["plain"] == SIZES["num_hidden_layers"]


def test_a_caption_does_not_depend_on_the_length_of_its_neighbours(frozen):
    tokens, mask = frozen.tokenize(CAPTIONS, 32)
    prefix = prefixes(frozen)
    together = frozen.score(prefix, tokens, mask)
    alone = frozen.score(prefix[1:2], tokens[1:2, :5], mask[1:2, :5])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_no_weight_moves_and_none_gets_a_gradient_in_a_training_step(frozen):
    weights = [list(m.parameters()) for m in frozen.modules_and_head()]
    before = copy.deepcopy(weights)
    ssf = SSF(16, frozen.width, hidden=8, prompt_length=2)
    model = torch.nn.Module()
    model.ssf = ssf
    model.language_model = frozen
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    prompt = ssf.prompt.detach().clone()
    tokens, mask = frozen.tokenize(CAPTIONS, 32)
    for _ in range(2):
        optimiser.zero_grad()
        frozen.caption_loss(model.ssf(torch.randn(3, 16)), tokens, mask).backward()
        optimiser.step()
    assert not torch.equal(ssf.prompt, prompt)
    for module_weights, old_weights in zip(weights, before, strict=True):
        for weight, old in zip(module_weights, old_weights, strict=True):
            assert torch.equal(weight, old)
            assert weight.grad is None
            assert not weight.requires_grad
    assert not any(m.training for m in frozen.modules_and_head())
    assert not any("language_model" in name for name in model.state_dict())
    assert not any("language_model" in name for name, _ in model.named_parameters())


def test_training_the_prefix_teaches_it_to_be_written(frozen):
    """A prefix alone makes a frozen random model say a given caption: loss, cache, text agree."""
    tokens, mask = frozen.tokenize(["a person waves ."], 16)
    prefix = prefixes(frozen, num=1, length=6).requires_grad_()
    optimiser = torch.optim.Adam([prefix], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        loss = frozen.caption_loss(prefix, tokens, mask)
        loss.backward()
        optimiser.step()
        if float(loss.detach()) < 0.05:
            break
    assert float(loss.detach()) < 0.3
    assert frozen.generate(prefix, max_new_tokens=16) == ["a person waves ."]
    assert frozen.generate(prefix, max_new_tokens=16, num_beams=3) == ["a person waves ."]
    assert frozen.generate(prefix, max_new_tokens=2) == ["a person"]


def test_greedy_texts_take_the_likeliest_word_each_time(frozen):
    decoder, embedding, head = frozen.modules_and_head()
    prefix = prefixes(frozen, num=4)
    with torch.no_grad():
        for n, text in enumerate(frozen.generate(prefix, max_new_tokens=6)):
            sequence, row = prefix[n : n + 1], []
            while len(row) < 6 and (not row or row[-1] != frozen.eos_id):
                logits = head(decoder(inputs_embeds=sequence).last_hidden_state[:, -1])
                row.append(int(logits.argmax()))
                sequence = torch.cat((sequence, embedding(torch.tensor([[row[-1]]]))), dim=1)
            assert text == frozen.detokenize(torch.tensor([row]))[0]


def test_wide_beams_find_the_best_of_all_short_texts(frozen):
    """With a beam for every sequence the search is exhaustive."""
    decoder, embedding, head = frozen.modules_and_head()
    num_words = head.out_features
    prefix = prefixes(frozen, num=2, seed=3)
    got = frozen.generate(prefix, max_new_tokens=2, num_beams=num_words * num_words)
    for n in range(2):
        with torch.no_grad():
            first = head(decoder(inputs_embeds=prefix[n : n + 1]).last_hidden_state[0, -1])
            best, best_row = -torch.inf, []
            words = embedding(torch.arange(num_words))[:, None]
            sequences = torch.cat((prefix[n : n + 1].expand(num_words, -1, -1), words), dim=1)
            second = head(decoder(inputs_embeds=sequences).last_hidden_state[:, -1])
            for a, log_a in enumerate(first.log_softmax(-1).tolist()):
                if a == frozen.eos_id:
                    rows = [([a], log_a)]
                else:
                    steps = second[a].log_softmax(-1).tolist()
                    rows = [([a, b], (log_a + log_b) / 2) for b, log_b in enumerate(steps)]
                for row, value in rows:
                    if value > best:
                        best, best_row = value, row
        assert got[n] == frozen.detokenize(torch.tensor([best_row]))[0]


def test_the_loss_keeps_its_own_precision_under_autocast(frozen):
    tokens, mask = frozen.tokenize(CAPTIONS, 32)
    prefix = prefixes(frozen)
    want = frozen.caption_loss(prefix, tokens, mask)
    with torch.autocast("cpu", torch.bfloat16):
        got = frozen.caption_loss(prefix, tokens, mask)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_bf16_model_takes_float32_prefixes(folders):
    frozen = FrozenLanguageModel.load(str(folders["text"]), dtype=torch.bfloat16)
    tokens, mask = frozen.tokenize(CAPTIONS, 32)
    prefix = prefixes(frozen).requires_grad_()
    loss = frozen.caption_loss(prefix, tokens, mask)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(prefix.grad).all()
    assert len(frozen.generate(prefix, max_new_tokens=3)) == 3


def test_attention_below_float32_on_the_cpu_has_the_gradient_of_float32(folders):
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        frozen = FrozenLanguageModel.load(str(folders["text"]), dtype=dtype)
        decoder, _, _ = frozen.modules_and_head()
        want = "sdpa" if dtype == torch.float32 else "eager"
        assert decoder.config._attn_implementation == want
        prefix = prefixes(frozen).requires_grad_()
        frozen.caption_loss(prefix, *frozen.tokenize(CAPTIONS, 32)).backward()
        gradients[dtype] = prefix.grad.flatten()
    assert torch.cosine_similarity(*gradients.values(), dim=0) > 0.999


def test_captions_without_a_real_token_cost_nothing(frozen):
    tokens = torch.zeros(3, 2, dtype=torch.long)
    loss = frozen.caption_loss(prefixes(frozen), tokens, torch.zeros(3, 2, dtype=torch.bool))
    assert float(loss) == 0.0


def test_a_head_with_more_behind_it_is_refused(tmp_path, monkeypatch):
    num_words = save_tokenizer(tmp_path)
    config = GraniteConfig(vocab_size=num_words, logits_scaling=8.0, **SIZES)
    GraniteForCausalLM(config).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"rescales its logits \(logits_scaling\)"):
        FrozenLanguageModel.load(str(tmp_path))
    monkeypatch.setattr(language_model_files, "_ODD_HEADS", ())  # one that the list lacks
    with pytest.raises(ValueError, match="makes more of its states than its output head"):
        FrozenLanguageModel.load(str(tmp_path))


def test_width_and_identity_are_told_without_loading_a_weight(folders, tmp_path, monkeypatch):
    name = str(folders["text"])
    model = FrozenLanguageModel.load(name)
    monkeypatch.setattr(language_model_files, "load_model", None)
    assert model_width(name) == model.width
    assert model_identity(name) == model.identity["sha256"]
    snapshot = tmp_path / "snapshots" / "0123abcd"
    monkeypatch.setattr(language_model_files, "_folder_of", lambda *_, **__: snapshot)
    assert model_identity("some/model") == "some/model@0123abcd"


def test_a_models_folder_is_known_by_its_weights_wherever_it_lies(folders, tmp_path):
    plain = model_identity(str(folders["text"]))
    copy = tmp_path / "snapshots" / "0123abcd"
    shutil.copytree(folders["text"], copy)
    assert model_identity(str(copy)) == plain
    (weights,) = copy.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert model_identity(str(copy)) != plain


def test_the_embedding_scale_is_their_root_mean_square(folders):
    model = FrozenLanguageModel.load(str(folders["text"]), dtype=torch.float32)
    weight = model.modules_and_head()[1].weight
    assert model.embedding_scale == pytest.approx(float(weight.square().mean().sqrt()))


def test_the_embedding_scale_counts_what_a_model_scales_itself(tmp_path):
    num_words = save_tokenizer(tmp_path)
    config = Gemma3TextConfig(vocab_size=num_words, **SIZES)
    Gemma3ForCausalLM(config).save_pretrained(str(tmp_path))
    model = FrozenLanguageModel.load(str(tmp_path), dtype=torch.float32)
    embedded = model.modules_and_head()[1](torch.arange(num_words))
    assert model.embedding_scale == pytest.approx(float(embedded.square().mean().sqrt()), rel=1e-4)


def test_a_head_outside_the_devices_is_refused(folders):
    model = AutoModelForCausalLM.from_pretrained(str(folders["text"]))
    model.get_output_embeddings().to("meta")
    with pytest.raises(ValueError, match=r"does not fit: .* choose a smaller model"):
        language_model_files._check_head("big", model)


def test_the_identity_follows_the_weights(folders, tmp_path):
    first = FrozenLanguageModel.load(str(folders["text"])).identity
    assert first["id"] == str(folders["text"])
    assert len(first["sha256"]) == 64
    assert FrozenLanguageModel.load(str(folders["text"])).identity == first
    other = FrozenLanguageModel.load(str(folders["vision"])).identity
    assert other["sha256"] != first["sha256"]


def test_a_tokenizer_without_padding_borrows_the_end_token(tmp_path):
    frozen = FrozenLanguageModel.load(str(save_text_model(tmp_path / "m", with_pad=False)))
    assert frozen.pad_id == frozen.eos_id
    tokens, mask = frozen.tokenize(CAPTIONS, 32)
    assert torch.isfinite(frozen.caption_loss(prefixes(frozen), tokens, mask))
    assert len(frozen.generate(prefixes(frozen), max_new_tokens=4, num_beams=2)) == 3


def test_what_cannot_be_loaded_is_explained(tmp_path, monkeypatch, folders):
    with pytest.raises(FileNotFoundError, match=r"neither a folder, a \.gguf file nor a hub id"):
        FrozenLanguageModel.load("./no-such-folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        FrozenLanguageModel.load(str(tmp_path / "empty"))
    save_text_model(tmp_path / "endless", with_eos=False)
    with pytest.raises(ValueError, match="no end-of-text token"):
        FrozenLanguageModel.load(str(tmp_path / "endless"))
    monkeypatch.setattr(language_model_files, "TINY_FOLDER", tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="bundled model is not in"):
        FrozenLanguageModel.load("tiny")
    monkeypatch.setattr(language_model_files, "TINY_FOLDER", folders["vision"])
    assert FrozenLanguageModel.load("tiny").identity["id"] == "tiny"


def test_a_hub_model_that_cannot_be_reached_names_the_command_to_fetch_it(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("We couldn't connect to the hub.\nmore lines")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(FileNotFoundError, match=r"connect to the hub\. .*hf download a/b"):
        FrozenLanguageModel.load("a/b")


def test_requests_that_make_no_sense_are_refused(frozen):
    with pytest.raises(ValueError, match="max_tokens is 1"):
        frozen.tokenize(CAPTIONS, 1)
    with pytest.raises(ValueError, match="num_beams 0"):
        frozen.generate(prefixes(frozen), max_new_tokens=4, num_beams=0)
    assert frozen.generate(prefixes(frozen, num=0), max_new_tokens=4) == []
