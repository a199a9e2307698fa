"""Where a frozen language model comes from: a name of ours, a folder, a GGUF file or a hub id."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

# transformers is imported where it is used: it takes seconds, and most runs have no language model

# The bundled model lies with the stage that trains it; only its files are read from here.
TINY_FOLDER = Path(__file__).resolve().parents[2] / "captioning" / "tiny" / "model"

_ODD_HEADS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class LoadedModel:
    """What transformers made of the files.

    Attributes:
        model: with its decoder, embeddings and linear head.
        tokenizer: its tokenizer.
        name: what was asked for.
        revision: commit of a hub model.
        folder: where its files lie.
        gguf: name of the weight file there, where it is a GGUF one or was made from one.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    folder: Path
    gguf: str | None


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | Literal["auto", "8bit", "4bit"] = "auto",
    device: torch.device | str = "cpu",
    device_map: Literal["auto"] | None = None,
) -> LoadedModel:
    """Load a causal language model, or the text decoder's owner of a vision-language model.

    Args:
        name: "tiny" (the bundled model), "smollm2" (`hoc fetch smollm2`), a folder, a .gguf file,
            or a hub id such as "Qwen/Qwen3-4B".
        revision: commit or tag of a hub model.
        dtype: what weights are held and products made in; "auto": as they were saved. "8bit" and
            "4bit" (NF4, products in bf16) need bitsandbytes.
        device: where it lies.
        device_map: "auto" spreads its layers over all devices there are.

    Raises:
        FileNotFoundError: no such folder or file, or a hub model that cannot be reached.
        ValueError: it is no causal language model that we can read.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    source, gguf = _source_of(name)
    options: dict[str, Any] = {"revision": revision} | ({"gguf_file": gguf} if gguf else {})
    weights = dict(options)
    if dtype in ("8bit", "4bit"):
        weights["quantization_config"] = _quantised(str(dtype))
    else:
        weights["dtype"] = dtype
    if device_map is not None or "dtype" not in weights:
        weights["device_map"] = device_map or {"": torch.device(device)}
    with _explained(name):
        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = read_tokenizer(source, config, **options)
        has_vision = hasattr(config, "text_config") and hasattr(config, "vision_config")
        auto = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
        with without_bars():
            model = auto.from_pretrained(source, **weights)
    folder = _folder_of(name, source, gguf, revision=revision)
    _check_head(name, model)
    if "device_map" not in weights:
        model = model.to(torch.device(device))  # type: ignore[arg-type]
    if _is_hub_id(source):
        revision = folder.name
    return LoadedModel(model, tokenizer, name, revision, folder, gguf or _made_from(name, folder))


def read_tokenizer(source: str, config: Any, **options: Any) -> Any:
    """The tokenizer of a model, with the end token of its config where it is a GGUF file.

    transformers 5.17 takes the begin token of such a file for its end token, too.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if "gguf_file" in options and isinstance(config.eos_token_id, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    return tokenizer


def model_width(name: str, *, revision: str | None = None) -> int:
    """D, the width of a model's token embeddings, without its weights; errors as of load_model."""
    from transformers import AutoConfig

    source, gguf = _source_of(name)
    options = {"gguf_file": gguf} if gguf else {}
    with _explained(name):
        config = AutoConfig.from_pretrained(source, revision=revision, **options)
    width: int = config.get_text_config().hidden_size
    return width


def model_identity(name: str, *, revision: str | None = None) -> str:
    """What the weights of a model are: a hub model's commit, else a sha256 over its weight files.

    Raises:
        FileNotFoundError: no such model, or it cannot be reached.
    """
    source, gguf = _source_of(name)
    folder = _folder_of(name, source, gguf, revision=revision)
    if _is_hub_id(source):
        return f"{source}@{folder.name}"
    return weights_sha256(folder, gguf or _made_from(name, folder))


def models_folder() -> Path:
    """Where `hoc fetch` puts models: beside the hub's cache."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "hoc"


def weights_sha256(folder: Path, gguf: str | None = None) -> str:
    """One hash over the names and bytes of the weight files, in name order, or of the GGUF file.

    Raises:
        FileNotFoundError: there are none.
    """
    files = [folder / gguf] if gguf else sorted(folder.glob("*.safetensors"))
    files = files or sorted(folder.glob("*.bin"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weight file (.safetensors, .gguf or .bin)")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _quantised(dtype: str) -> Any:
    """The settings of bitsandbytes.

    Raises:
        ValueError: it is not installed.
    """
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"a language model in {dtype} needs bitsandbytes: pip install 'hocslm[quantised]', "
            "or choose method.language_model_dtype = bf16"
        )
    if dtype == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def _check_head(name: str, model: Any) -> None:
    """Refuse heads that the chunked loss does not compute.

    Raises:
        ValueError: it is such a head.
    """
    for key in _ODD_HEADS:
        if getattr(model.config.get_text_config(), key, None) not in (None, 1, 1.0):
            raise ValueError(
                f"language model {name!r} rescales its logits ({key}), which the chunked caption "
                "loss does not do; choose a model without it, for example a Qwen3"
            )
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise ValueError(
            f"language model {name!r} ({type(model).__name__}) has no linear output head; choose a "
            "causal language model or a vision-language model with a text decoder"
        )
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if any(p.device.type == "meta" for part in (embedding, head) for p in part.parameters()):
        raise ValueError(
            f"language model {name!r} does not fit: its token embedding or output head would lie "
            "outside the devices, where the caption loss cannot use them; choose a smaller model, "
            "method.language_model_dtype = 8bit or 4bit, or more GPUs"
        )
    with torch.no_grad():
        words = torch.arange(4, device=next(embedding.parameters()).device)
        embedded = embedding(words % len(head.weight))[None]  # (1, 4, D)
        logits = model(inputs_embeds=embedded, use_cache=False).logits
        states = model.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
        ours = head(states.to(head.weight.device)).to(logits)
    if not torch.allclose(ours, logits, rtol=0.05, atol=0.05 * float(logits.abs().max())):
        raise ValueError(
            f"language model {name!r} ({type(model).__name__}) makes more of its states than its "
            "output head does, which the chunked caption loss does not; choose another model, for "
            "example a Qwen3"
        )


def _made_from(name: str, folder: Path) -> str | None:
    """The GGUF file that a model of `hoc fetch` was made from, and is known by."""
    return next(folder.glob("*.gguf")).name if name == "smollm2" else None


def _folder_of(name: str, source: str, gguf: str | None, *, revision: str | None) -> Path:
    """Where transformers has the files of a model."""
    from transformers.utils import cached_file

    with _explained(name):
        file = cached_file(source, gguf or "config.json", revision=revision)
    return Path(str(file)).parent


def _is_hub_id(source: str) -> bool:
    """Whether a source is no folder of the user's, whose files could change."""
    return not Path(source).is_dir()


def _source_of(name: str) -> tuple[str, str | None]:
    """What transformers is to load: a folder that exists or a hub id, and a GGUF file in it.

    Raises:
        FileNotFoundError: a model of ours is missing, or a path that is not there.
    """
    if name == "tiny":
        if not (TINY_FOLDER / "config.json").is_file():
            raise FileNotFoundError(
                f"the bundled model is not in {TINY_FOLDER}; restore that folder from the "
                "repository, or train it again with `python -m captioning.tiny.train`"
            )
        return str(TINY_FOLDER), None
    if name == "smollm2":
        folder = models_folder() / name
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"language model 'smollm2' is not in {folder}; fetch it with `hoc fetch smollm2`"
            )
        return str(folder), None
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), path.name
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{path} holds no config.json; give the folder of a model as transformers saves it"
            )
        return str(path), None
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise FileNotFoundError(
            f"language model {name!r} is neither a folder, a .gguf file nor a hub id; give 'tiny', "
            "'smollm2', the path of a model, or an id such as Qwen/Qwen3-4B"
        )
    return name, None


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """transformers' loading errors in a sentence of ours.

    Raises:
        FileNotFoundError: the model or one of its files cannot be reached.
        ValueError: it can, but it is not of a kind that we can use.
    """
    try:
        yield
    except OSError as error:
        from huggingface_hub.constants import HF_HUB_CACHE

        raise FileNotFoundError(
            f"language model {name!r} could not be loaded: {_first_line(error)}. A hub model is "
            f"looked for in {HF_HUB_CACHE} and then on the hub; fetch it beforehand with "
            f"`hf download {name}`"
        ) from error
    except ImportError as error:
        raise ValueError(
            f"language model {name!r} cannot be read: {_first_line(error)}; GGUF files need "
            "pip install 'hocslm[gguf]'"
        ) from error
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"language model {name!r} cannot be used: {_first_line(error)}; choose a causal "
            "language model or a vision-language model with a text decoder"
        ) from error


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """transformers' own bars off: the terminal belongs to the caller."""
    from transformers.utils import logging as hf_logging

    shows_bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows_bars:
            hf_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
