"""Captions of a split as references: what texts are measured by, and what is searched among.

No training and no class score comes by here; training captions have a way of their own
(loading.py), which refuses every other split.
"""

from __future__ import annotations

from collections.abc import Sequence

from datasets_build import schema
from training.evaluate import LoadedRun


def read_references(loaded: LoadedRun, sample_ids: Sequence[str]) -> list[tuple[str, ...]]:
    """The captions of samples of the run's data set, of the prompts that the run learned from.

    Spaces are made single; a caption that a sample has twice is given once.

    Args:
        loaded: the run and the data set.
        sample_ids: whose captions.

    Returns:
        Of each sample in the order given; empty where it has none.
    """
    prompt_ids = loaded.record.config.method.prompt_ids
    wanted = set(sample_ids)
    found: dict[str, tuple[str, ...]] = {}
    for table in loaded.dataset.tables([schema.SAMPLE_ID, schema.CAPTIONS]):
        is_wanted = [name in wanted for name in table[schema.SAMPLE_ID].to_pylist()]
        names, captions = (column.to_pylist() for column in table.filter(is_wanted).columns)
        for name, entries in zip(names, captions, strict=True):
            texts = (
                " ".join(entry[schema.TEXT].split())
                for entry in entries
                if not prompt_ids or entry[schema.PROMPT_ID] in prompt_ids
            )
            found[name] = tuple(dict.fromkeys(filter(None, texts)))
    return [found[name] for name in sample_ids]
