"""Prompts are text files: front matter (id, purpose, expected form), then the words to ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets_build.manifest import sha256_bytes

PROMPT_FOLDER = Path(__file__).parent / "prompts"
_KEYS = ("id", "purpose", "expected_form")


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        prompt_id: its name in the caption shards.
        purpose: what it is for, for people.
        expected_form: what a good answer looks like, for people and audits.
        text: what the model reads, without surrounding white space.
    """

    prompt_id: str
    purpose: str
    expected_form: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the words that the model reads; the front matter may change freely."""
        return sha256_bytes(self.text.encode())


def bundled_prompt_ids() -> list[str]:
    """The ids that `read_prompt` knows without a path, sorted."""
    return sorted(path.stem for path in PROMPT_FOLDER.glob("*.txt"))


def read_prompt(name: str) -> Prompt:
    """Read a bundled prompt by its id, or any prompt file by its path.

    Raises:
        FileNotFoundError: neither an id nor a file; the message lists the ids.
        ValueError: the file has no proper front matter or no text.
    """
    bundled = PROMPT_FOLDER / f"{name}.txt"
    path = bundled if name in bundled_prompt_ids() else Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"prompt {name!r} is neither a bundled prompt ({', '.join(bundled_prompt_ids())}) "
            "nor the path of a prompt file"
        )
    return parse_prompt(path.read_text(encoding="utf-8"), source=str(path))


def read_prompts(names: Sequence[str]) -> tuple[Prompt, ...]:
    """Read several prompts; they come back sorted by id, whatever order they were given in.

    Raises:
        FileNotFoundError: see `read_prompt`.
        ValueError: see `read_prompt`; or two files carry the same id.
    """
    prompts = tuple(read_prompt(name) for name in names)
    by_id: dict[str, str] = {}
    for name, prompt in zip(names, prompts, strict=True):
        other = by_id.setdefault(prompt.prompt_id, name)
        if other != name:
            raise ValueError(
                f"prompts {other} and {name} both have the id {prompt.prompt_id!r}; "
                "give one of them another id in its front matter"
            )
    return tuple(sorted(prompts, key=lambda prompt: prompt.prompt_id))


def parse_prompt(text: str, *, source: str) -> Prompt:
    """A prompt from the text of its file: `---`, lines of `key: value`, `---`, the words.

    Args:
        text: the whole file.
        source: what to call it in a message.

    Raises:
        ValueError: a key is missing, unknown or empty, or there are no words.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[0].strip() != "---" or "---" not in [line.strip() for line in lines[1:]]:
        raise ValueError(
            f"{source} has no front matter; it must begin with a line ---, the lines "
            f"{', '.join(key + ': ...' for key in _KEYS)}, and another line ---"
        )
    end = 1 + [line.strip() for line in lines[1:]].index("---")
    values: dict[str, str] = {}
    for line in lines[1:end]:
        key, colon, value = line.partition(":")
        if not colon or key.strip() not in _KEYS:
            raise ValueError(
                f"{source}: front matter line {line!r} is not understood; "
                f"the keys are {', '.join(_KEYS)}"
            )
        values[key.strip()] = value.strip()
    missing = [key for key in _KEYS if not values.get(key)]
    if missing:
        raise ValueError(f"{source}: the front matter lacks {', '.join(missing)}")
    words = "\n".join(lines[end + 1 :]).strip()
    if not words:
        raise ValueError(f"{source} has no text after its front matter")
    return Prompt(
        prompt_id=values["id"],
        purpose=values["purpose"],
        expected_form=values["expected_form"],
        text=words,
    )
