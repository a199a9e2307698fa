"""`hoc protocols`: the split rules, their sources and counts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import console
from cli.options import JsonOption


def protocols(
    names: Annotated[
        Path | None,
        typer.Option("--names", help="A list of sample names, one a line (.gz too): count them."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """List the evaluation protocols with their sources; with --names, the counts of a list."""
    from datasets_build.protocols import PROTOCOLS, read_names, split_counts

    counts = {c.protocol: c for c in split_counts(read_names(names))} if names else {}
    if json_output:
        answer: list[dict[str, Any]] = []
        for protocol in PROTOCOLS.values():
            entry: dict[str, Any] = {
                "name": protocol.name,
                "num_classes": protocol.num_classes,
                "rule": protocol.rule,
                "source": protocol.source,
            }
            if counts:
                entry["counts"] = asdict(counts[protocol.name])
            answer.append(entry)
        console.print_json(answer)
        return
    if counts:
        columns = ["name", "classes", "train", "test", "exemplar", "listed missing", "not in it"]
        rows = [
            (
                protocol.name,
                protocol.num_classes,
                f"{count.num_train:,}",
                f"{count.num_test:,}",
                f"{count.num_exemplar:,}",
                f"{count.num_listed_missing:,}",
                f"{count.num_outside:,}",
            )
            for protocol, count in ((p, counts[p.name]) for p in PROTOCOLS.values())
        ]
        console.print_table(f"Protocols, counted over {names}", columns, rows, numeric=6)
        return
    console.print_table(
        "Protocols",
        ["name", "classes", "rule", "source"],
        [(p.name, p.num_classes, p.rule, p.source) for p in PROTOCOLS.values()],
    )
