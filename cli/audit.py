"""`hoc audit`: check the captions of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import console
from cli.options import JsonOption

NUM_WORST = 20


def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a finished caption run.")],
    skeletons: Annotated[
        list[Path] | None,
        typer.Option(
            "--skeletons",
            help="A data set, or a folder or zip of skeleton files, to hold the captions against; "
            "repeatable.",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="CSV or Parquet with the columns sample_id and class; for names that carry none."
        ),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Drop the captions that this rule flags; all: any rule; repeatable.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Take a rule out of --drop: --drop all --keep label-leak drops by all others.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; default: RUN/audit.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes for reading skeletons; default: one a CPU.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Check every caption: label words, refusals, boilerplate, the three cameras, the skeletons.

    The captions stay as they are. OUT/audit.parquet has the flags of every caption, audit.json the
    rules, thresholds and counts; `hoc build-dataset --audit OUT` leaves out what --drop marked. A
    rule that cannot tell (no class, no skeleton, too few captions) gives no flag. The rules:

    * **status-failed**: there is no caption
    * **label-missing**: nothing in it names its class; **label-leak**: has the label word for word
    * **refusal**, **first-person**, **meta-talk** ("in this video"), **language** (not English)
    * **boilerplate**: has a phrase that many classes share; **length-outlier**
    * **camera-disagreement**: unlike the other two views of its NTU take
    * **people**, **moving-limb**, **still-or-moving**: not what the skeletons show
    """
    from captioning.audit import AuditConfig
    from captioning.audit import run as run_audit
    from datasets_build.settings import resolve

    config = resolve(
        AuditConfig,
        {},
        flags={
            "run": run,
            "out": out,
            "skeletons": tuple(skeletons or ()),
            "classes": classes,
            "drop": tuple(drop or ()),
            "keep": tuple(keep or ()),
            "num_workers": workers,
        },
        source="the command line",
    )
    with console.progress() as progress:
        summary = run_audit(config, progress)
    if json_output:
        console.print_json({**summary.record, "folder": summary.folder})
        return
    _print_rules(summary.record)
    _print_classes(summary.record)
    console.print_paths(summary.paths)


def _print_rules(record: Mapping[str, Any]) -> None:
    num_rows = record["total"]["rows"]
    rows = []
    for name, rule in record["rules"].items():
        num_judged = num_rows - rule["cannot_tell"]
        share = f"{rule['flagged'] / num_judged:.1%}" if num_judged else "-"
        drops = "yes" if name in record["drop_rules"] else ""
        rows.append((name, drops, f"{num_judged:,}", f"{rule['flagged']:,}", share))
    console.print_table(
        f"Rules, {num_rows:,} rows of {record['run']['name']}",
        ["rule", "drops", "could judge", "flagged", "share"],
        rows,
        numeric=3,
    )
    for name, rule in record["rules"].items():
        if rule["note"]:
            console.out.print(f"  {name}: {rule['note']}", markup=False)


def _print_classes(record: Mapping[str, Any]) -> None:
    has_drops = bool(record["drop_rules"])

    def cells(name: str, counts: Mapping[str, Any]) -> tuple[str, ...]:
        num_rows = counts["rows"]
        by_rule = sorted(counts["flags"].items(), key=lambda item: (-item[1], item[0]))
        return (
            name,
            ", ".join(f"{rule} {num / num_rows:.1%}" for rule, num in by_rule),
            f"{num_rows:,}",
            f"{counts['captioned']:,}",
            f"{counts['flagged'] / num_rows:.1%}",
            *([f"{counts['dropped']:,}"] if has_drops else []),
        )

    by_class = record["by_class"]
    shares = {name: counts["flagged"] / counts["rows"] for name, counts in by_class.items()}
    worst = sorted(by_class, key=lambda name: (-shares[name], name))
    title = "Classes"
    if len(worst) > NUM_WORST:
        title = f"The worst {NUM_WORST} of {len(worst)} classes; all are in audit.json"
    console.print_table(
        title,
        ["class", "flagged by", "rows", "texts", "flagged", *(["dropped"] if has_drops else [])],
        [*(cells(n, by_class[n]) for n in worst[:NUM_WORST]), cells("all", record["total"])],
        numeric=3 + has_drops,
    )
