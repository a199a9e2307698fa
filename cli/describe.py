"""`hoc describe` and `hoc retrieve`: text from skeletons, and texts and skeletons that belong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import console
from cli.options import DeviceOption, JsonOption, OtherDataOption, RunArgument

NUM_SHOWN = 10  # confused pairs in the table; the JSON file has them all


def describe(
    run: RunArgument,
    sample: Annotated[
        list[str] | None, typer.Option("--sample", help="sample_id of the data set; repeatable.")
    ] = None,
    skeleton: Annotated[
        list[Path] | None,
        typer.Option(
            "--skeleton", help="A .skeleton file (NTU) or a .json file (NW-UCLA); repeatable."
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="The whole split, measured and written.")
    ] = False,
    data: OtherDataOption = None,
    split: Annotated[str, typer.Option(help="With --all: test, train or validation.")] = "test",
    synonyms: Annotated[
        list[Path] | None,
        typer.Option(
            "--synonyms",
            help="Table of synonyms of the classes, `name,synonym, synonym` a line; repeatable.",
        ),
    ] = None,
    sentences: Annotated[
        list[Path] | None,
        typer.Option(
            "--sentences",
            help="With --all: table of class sentences, as hoc caption --from-text reads it; texts "
            "are also judged by the closest. Repeatable.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit in tokens.")] = 64,
    num_beams: Annotated[int, typer.Option(help="Beams; 1 is greedy.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Clips described at once.")] = 32,
    device: DeviceOption = "auto",
    per_class: Annotated[
        bool, typer.Option("--per-class", help="With --all: also a line for each class.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Let a HocSLM run say in words what a skeleton does. No video is read.

    With `--all` the texts of a split go to describe-SPLIT.parquet in the run folder, and to
    describe-SPLIT.json how well they name the right action, agree with the class head, and match
    the captions of the split (BLEU, chrF, ROUGE-L, CIDEr-D; `pip install 'hocslm[text]'`). Captions
    of test samples are read for this, after all texts are written.
    """
    if per_class and not every:
        raise ValueError("--per-class belongs to --all, which was not given")
    from datasets_build.settings import resolve
    from training.command_config import DescribeConfig
    from training.describe import run as run_describe

    config = resolve(
        DescribeConfig,
        {},
        flags={
            "run": run,
            "sample_ids": tuple(sample or ()),
            "skeletons": tuple(skeleton or ()),
            "every": every,
            "dataset": data,
            "split": split,
            "synonyms": tuple(synonyms or ()),
            "sentences": tuple(sentences or ()),
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "batch_size": batch_size,
            "device": device,
        },
        source="the command line",
    )
    with console.progress() as progress:
        summary = run_describe(config, progress)
    if json_output:
        console.print_json(summary.as_json())
    elif summary.naming is None:
        rows = [
            (d.sample_id, d.class_name or "not known", d.predicted_name, d.text)
            for d in summary.descriptions
        ]
        columns = ["sample", "action", "head", "text"]
        console.print_table("Described from the skeleton", columns, rows)
    else:
        judged = {"classes by name": summary.naming, "classes by sentence": summary.closest}
        for how, naming in judged.items():
            if naming is not None:
                _print_naming(f"{run}, {split} split, {how}", naming)
                if per_class:
                    _print_classes(naming)
        if summary.scores is not None:
            _print_scores(summary.scores)
        console.print_paths({path.name: path for path in summary.files})


def retrieve(
    run: RunArgument,
    data: OtherDataOption = None,
    split: Annotated[str, typer.Option(help="test, train or validation.")] = "test",
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            "--texts",
            help="Table of class sentences to search, as hoc caption --from-text reads it; "
            "repeatable. Default: the split's captions.",
        ),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(help="So many samples of the split, drawn by --seed.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of that draw.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Pairs scored at once.")] = 256,
    device: DeviceOption = "auto",
    json_output: JsonOption = False,
) -> None:
    """Find the text of a skeleton, and the skeleton of a text, by the likelihoods of a HocSLM run.

    Every text is scored with every skeleton: the mean log-likelihood a token of the text, given the
    skeleton. "Calibrated" takes off what the text scores under the mean of all skeletons, since
    likely sentences score high whatever is seen. Written to retrieval-SPLIT.json in the run folder.
    """
    from datasets_build.settings import resolve
    from training.command_config import RetrieveConfig
    from training.retrieval import run as run_retrieve

    config = resolve(
        RetrieveConfig,
        {},
        flags={
            "run": run,
            "dataset": data,
            "split": split,
            "texts": tuple(texts or ()),
            "num_samples": num_samples,
            "seed": seed,
            "batch_size": batch_size,
            "device": device,
        },
        source="the command line",
    )
    with console.progress() as progress:
        summary = run_retrieve(config, progress)
    if json_output:
        console.print_json(summary.as_json())
        return
    rows = []
    for found in summary.recalls:
        shares = f"{found.r1:.1%}", f"{found.r5:.1%}", f"{found.mean_rank:.1f}"
        chances = (
            f"{found.chance_r1:.1%}",
            f"{found.chance_r5:.1%}",
            f"{found.chance_mean_rank:.1f}",
        )
        both = [f"{own} ({chance})" for own, chance in zip(shares, chances, strict=True)]
        rows.append((found.direction, f"{found.queries} in {found.candidates}", *both))
    console.print_table(
        f"{run}, {split} split; in brackets: chance",
        ["what by what", "queries", "R@1", "R@5", "mean rank"],
        rows,
        numeric=4,
    )
    console.print_paths({summary.file.name: summary.file})


def _print_naming(title: str, naming: Any) -> None:
    """The shares and the most frequent confusions."""
    rows = [
        ("texts", naming.samples),
        ("name the right action", f"{naming.right:.1%}"),
        ("name it and no other", f"{naming.only:.1%}"),
        ("name several actions", f"{naming.several:.1%}"),
        ("name no action", f"{naming.none:.1%}"),
        ("name what the head predicts", f"{naming.agrees_with_head:.1%}"),
        ("head is right", f"{naming.head_right:.1%}"),
    ]
    if naming.references_right is not None:
        rows.append(("captions that name the right action", f"{naming.references_right:.1%}"))
        rows.append(("captions that name it and no other", f"{naming.references_only:.1%}"))
    rows += [
        (f"{pair.truth}, called {pair.taken_for}", pair.num_samples)
        for pair in naming.confused[:NUM_SHOWN]
    ]
    console.print_table(title, ["what", "value"], rows, numeric=1)


def _print_scores(scores: Any) -> None:
    rows = [
        ("BLEU", _number(scores.bleu)),
        ("chrF", _number(scores.chrf)),
        ("ROUGE-L", f"{scores.rouge_l:.3f}"),
        ("CIDEr-D", f"{scores.cider_d:.3f}"),
    ]
    title = f"{scores.samples} texts against {scores.references} captions"
    console.print_table(title, ["what", "value"], rows, numeric=1)


def _print_classes(naming: Any) -> None:
    """What the texts of each class name, the worst first."""
    rows = [
        (c.name, c.samples, f"{c.right / c.samples:.1%}", c.only, c.several, c.none)
        for c in sorted(naming.per_class, key=lambda c: c.right / c.samples)
    ]
    columns = ["class", "texts", "right", "no other", "several", "none"]
    console.print_table("Classes", columns, rows, numeric=5)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
