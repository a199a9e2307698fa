"""What a Qwen3-VL folder says of its inputs: tokenizer, chat template, how frames become patches.

Read from the files, because the processor class would import torchvision and with it some 250 MB
and seconds, for a plan that looks at no pixel. `QwenInputs.check` compares what is made of it with
the processor itself, before the first answer of a run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
ATTENTIONS = ("sdpa", "eager")  # the implementations that can take our masks


@dataclass(frozen=True)
class PixelSettings:
    """How frames become patches; the defaults are those of transformers' Qwen3VLVideoProcessor.

    Attributes:
        patch_size: pixels of a patch's side.
        merge_size: patches of a visual token's side.
        temporal_patch_size: frames that are merged into one.
        do_rescale: bytes are multiplied with `rescale_factor`.
        do_normalize: the mean is subtracted and the result divided by the standard deviation.
        image_mean: of each colour, after rescaling.
        image_std: of each colour, after rescaling.
    """

    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    do_convert_rgb: bool = True


def read_tokenizer(folder: Path) -> tuple[Any, str]:
    """The tokenizer, and the chat template that the processor would use.

    Raises:
        ValueError: there is no chat template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    template: str | None = tokenizer.chat_template
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    elif (folder / "chat_template.json").is_file():
        template = _read_json(folder / "chat_template.json")["chat_template"]
    if not template:
        raise ValueError(f"{folder} holds no chat template; give an instruction-tuned checkpoint")
    return tokenizer, template


def read_pixel_settings(folder: Path) -> tuple[PixelSettings, int]:
    """How frames become patches, and the largest clip (T * H * W) that the processor would make.

    Raises:
        ValueError: the folder does not say.
    """
    values: dict[str, Any] = {}
    if (folder / "processor_config.json").is_file():
        values = _read_json(folder / "processor_config.json").get("video_processor", {})
    if not values and (folder / "video_preprocessor_config.json").is_file():
        values = _read_json(folder / "video_preprocessor_config.json")
    if "size" not in values:
        raise ValueError(
            f"{folder} holds neither a processor_config.json with a video processor nor a "
            "video_preprocessor_config.json; give a folder with the whole Qwen3-VL checkpoint"
        )
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in PixelSettings.__dataclass_fields__ and value is not None
    }
    return PixelSettings(**chosen), int(values["size"]["longest_edge"])


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
