"""Text from skeletons: what a HocSLM run says of samples of its data set or of skeleton files.

The text comes from the skeleton alone: no video and no caption of the sample has a part in it.
Where a whole split is described, its captions are read afterwards, to measure the texts by them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from datasets_build import schema
from datasets_build.manifest import sha256_file, write_bytes_atomic, write_json
from datasets_build.progress import Progress
from training.build import language_model_identity
from training.checkpoint import LANGUAGE_MODEL_KEY, read_request
from training.class_sentences import read_class_sentences
from training.command_config import DescribeConfig
from training.evaluate import LoadedRun, load_run
from training.loading import AnySplit, split_of
from training.methods.hocslm import HocSLMMethod
from training.references import read_references
from training.scores import file_stem
from training.seeding import cpu_threads, deterministic_kernels
from training.skeleton_data import SkeletonBatch, SkeletonStore
from training.skeleton_files import FileClip, joined, read_file_clip
from training.text_quality import ClosestSentence, Named, NamedIn, Naming, class_phrases, judge
from training.text_scores import NEEDS_LIBRARY, TextScores, has_library, text_scores

DESCRIPTION_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("label", pa.int32()),  # 0-based
        pa.field("class_name", pa.string()),
        pa.field("predicted_label", pa.int32(), nullable=False),
        pa.field("predicted_name", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("named_classes", pa.list_(pa.string()), nullable=False),
        pa.field("names_action", pa.bool_()),
        pa.field("references", pa.list_(pa.string()), nullable=False),
    ]
)


@dataclass(frozen=True)
class Description:
    """What the run says of one clip.

    Attributes:
        sample_id: the sample, or the file's name without its suffix.
        label: the true class, 0-based; None where it is not known.
        class_name: its name.
        predicted_label: the class that the head gives.
        predicted_name: its name.
        text: the generated text.
        named_classes: names of all classes that the text names.
        names_action: whether it names the true class, and no other more specifically; None where
            the class is not known.
        references: captions of the sample, read for measuring; of whole splits only.
    """

    sample_id: str
    label: int | None
    class_name: str | None
    predicted_label: int
    predicted_name: str
    text: str
    named_classes: tuple[str, ...]
    names_action: bool | None
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class DescribeSummary:
    """All descriptions of one call.

    Attributes:
        run: the run folder.
        descriptions: in the order asked for.
        naming: how well the texts name the classes; of whole splits only.
        closest: the same, a text taken for the class whose sentence it is closest to; None without
            sentences.
        scores: how close they are to the captions; None where there are none.
        files: the Parquet file and the JSON file of a whole split.
    """

    run: Path
    descriptions: tuple[Description, ...]
    naming: Naming | None = None
    closest: Naming | None = None
    scores: TextScores | None = None
    files: tuple[Path, ...] = ()

    @property
    def share_named(self) -> float | None:
        """Share of the clips of known class whose text names it; None without any."""
        known = [d.names_action for d in self.descriptions if d.names_action is not None]
        return sum(known) / len(known) if known else None

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "run": str(self.run),
            "share_named": self.share_named,
            "naming": None if self.naming is None else self.naming.as_json(),
            "closest": None if self.closest is None else self.closest.as_json(),
            "scores": None if self.scores is None else self.scores.as_json(),
            "descriptions": [asdict(entry) for entry in self.descriptions],
        }


def load_text_run(
    folder: Path, *, dataset: Path | None, device: str
) -> tuple[LoadedRun, HocSLMMethod]:
    """A run that learned text, as load_run gives it, and its method.

    Raises:
        FileNotFoundError, ValueError: see load_run; or the run learned no text.
    """
    loaded = load_run(folder, dataset=dataset, protocol=None, device=device)
    settings = loaded.record.config.method
    if not isinstance(loaded.method, HocSLMMethod):
        raise ValueError(
            f"{folder} was trained with method {settings.name}, which learns no text; train with "
            'method.name = "hocslm" to have text from skeletons'
        )
    if not settings.reads_captions:
        raise ValueError(
            f"{folder} was trained with method.lambda_gen = 0, so that it learned no text; take "
            "the run of the phase before, or train with lambda_gen > 0"
        )
    trained_with = read_request(folder)[1].get(LANGUAGE_MODEL_KEY)
    now = language_model_identity(settings)
    if trained_with not in (None, now):  # None: a run of an earlier version
        raise ValueError(
            f"{folder} was trained with other weights of language model "
            f"{settings.language_model!r} ({trained_with}) than are there now ({now}); bring those "
            "back, or train again"
        )
    return loaded, loaded.method


def run(config: DescribeConfig, progress: Progress) -> DescribeSummary:
    """Describe samples, files or a whole split, in batches.

    Of a whole split describe-SPLIT.parquet and then describe-SPLIT.json are written into the run
    folder.

    Args:
        config: which run and which clips.
        progress: told of every batch.

    Raises:
        FileNotFoundError: the run, the data set, a file or a table is not there.
        ValueError: the run learned no text, a sample is not in the data set, a file is no skeleton
            of the run's layout, a table is no table of synonyms.
    """
    loaded, method = load_text_run(config.run, dataset=config.dataset, device=config.device)
    # Captions of a class are often the same sentence: each is looked at once.
    judges = [cache(class_phrases(loaded.dataset, config.synonyms))]
    if config.sentences:
        sentences = read_class_sentences(config.sentences, loaded.dataset).by_label
        judges.append(cache(ClosestSentence(sentences)))
    stores = _stores(config, loaded)
    files = [read_file_clip(path, loaded) for path in config.skeletons]
    found: list[Description] = []
    progress.start("describe", sum(map(len, stores)) + len(files), unit="clips")
    loop = loaded.record.config.loop
    with cpu_threads(loop.num_threads), deterministic_kernels(loop.deterministic), torch.no_grad():
        for names, labels, batch in _batches(stores, files, config.batch_size):
            texts = method.describe(
                batch, max_new_tokens=config.max_new_tokens, num_beams=config.num_beams
            )
            given = method.predict(batch).argmax(dim=1).tolist()  # (N,)
            for clip in zip(names, labels, given, texts, strict=True):
                found.append(_description(*clip, judges[0](clip[-1]), loaded.record.class_names))
            progress.advance(len(names))
    progress.finish()
    if config.every:
        return _measured(config, loaded, found, judges, progress)
    by_id = {entry.sample_id: entry for entry in found[: sum(map(len, stores))]}
    in_order = [by_id[name] for name in config.sample_ids] + found[len(by_id) :]
    return DescribeSummary(config.run, tuple(in_order))


def _description(
    sample_id: str, label: int | None, given: int, text: str, named: Named, names: Sequence[str]
) -> Description:
    return Description(
        sample_id=sample_id,
        label=label,
        class_name=None if label is None else names[label],
        predicted_label=given,
        predicted_name=names[given],
        text=text,
        named_classes=tuple(names[at] for at in named.labels),
        names_action=None if label is None else label in named.best,
    )


def _batches(
    stores: Sequence[SkeletonStore], files: Sequence[FileClip], size: int
) -> Iterator[tuple[list[str], list[int | None], SkeletonBatch]]:
    """Names, labels where they are known, and skeletons: store by store, then the files."""
    for store in stores:
        everything = store.in_order()
        parts = (everything.part(start, start + size) for start in range(0, len(store), size))
        start = 0
        for batch in store.batches(parts, training=False):
            rows = slice(start, start + len(batch.label))
            yield store.sample_ids[rows], store.labels[rows].tolist(), batch
            start = rows.stop
    for start in range(0, len(files), size):
        part = files[start : start + size]
        yield [file.name for file in part], [file.label for file in part], joined(part)


def _stores(config: DescribeConfig, loaded: LoadedRun) -> list[SkeletonStore]:
    """The samples of the data set that were asked for, one store a split."""
    wanted: Mapping[AnySplit, list[str] | None] = (
        {config.split: None} if config.every else _by_split(loaded, config.sample_ids)
    )
    return [loaded.store(split, sample_ids=names) for split, names in wanted.items()]


def _by_split(loaded: LoadedRun, sample_ids: Sequence[str]) -> dict[AnySplit, list[str]]:
    """Which split each sample is in.

    Raises:
        ValueError: a sample is in none.
    """
    subjects = loaded.record.config.data.validation_subjects
    left = set(sample_ids)
    found: dict[AnySplit, list[str]] = defaultdict(list)
    for table in loaded.dataset.tables(list(schema.ID_COLUMNS)) if left else ():
        for row in table.to_pylist():
            split = split_of(
                row,
                loaded.protocol,
                validation_subjects=subjects,
                unseen=loaded.record.unseen,
            )
            if row[schema.SAMPLE_ID] in left and split is not None:
                found[split].append(row[schema.SAMPLE_ID])
                left.remove(row[schema.SAMPLE_ID])
    if left:
        raise ValueError(
            f"{len(left)} of {len(set(sample_ids))} samples are in no split of "
            f"{loaded.dataset.folder} under protocol {loaded.protocol.name}, for example "
            f"{min(left)}; `sample_id`s look like S001C001P003R001A010 (NTU) or a01_s01_e00_v03 "
            "(NW-UCLA)"
        )
    return found


def _measured(
    config: DescribeConfig,
    loaded: LoadedRun,
    found: Sequence[Description],
    judges: Sequence[NamedIn],
    progress: Progress,
) -> DescribeSummary:
    """The descriptions of a whole split with its captions, measured and written."""
    references = read_references(loaded, [entry.sample_id for entry in found])
    texts = [entry.text for entry in found]
    namings = [
        judge(
            [named_in(text) for text in texts],
            [entry.label for entry in found if entry.label is not None],
            [entry.predicted_label for entry in found],
            references=[[named_in(text) for text in own] for own in references],
            class_names=loaded.record.class_names,
        )
        for named_in in judges
    ]
    scores = None
    if any(references):
        scores = text_scores(texts, references)
        if not has_library():
            progress.message(NEEDS_LIBRARY)
    stem = f"describe-{file_stem(config.split, elsewhere=loaded.elsewhere)}"
    summary = DescribeSummary(
        config.run,
        tuple(replace(entry, references=own) for entry, own in zip(found, references, strict=True)),
        namings[0],
        namings[1] if config.sentences else None,
        scores,
        (config.run / f"{stem}.parquet", config.run / f"{stem}.json"),
    )
    _write(summary, config, loaded)
    return summary


def _write(summary: DescribeSummary, config: DescribeConfig, loaded: LoadedRun) -> None:
    """The descriptions sorted by sample_id, then what vouches for them."""
    table_file, json_file = summary.files
    rows = sorted((asdict(entry) for entry in summary.descriptions), key=lambda r: r["sample_id"])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, DESCRIPTION_SCHEMA), sink, compression="zstd")
    write_bytes_atomic(table_file, sink.getvalue().to_pybytes())
    values = summary.as_json()
    del values["descriptions"]
    write_json(
        json_file,
        {
            **values,
            **loaded.provenance(config.split),
            "settings": {
                "max_new_tokens": config.max_new_tokens,
                "num_beams": config.num_beams,
                "synonyms": {path.name: sha256_file(path) for path in config.synonyms},
                "sentences": {path.name: sha256_file(path) for path in config.sentences},
                "prompt_ids": list(loaded.record.config.method.prompt_ids),
                "max_caption_tokens": loaded.record.config.method.max_caption_tokens,
            },
            "descriptions_sha256": sha256_file(table_file),
        },
    )
