"""`hoc protocols`: the split rules, their sources and counts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import console
from cli.options import JsonOption


def protocols(
    files: Annotated[
        list[Path] | None, typer.Argument(help="TOML files of protocols of one's own, to list too.")
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option("--names", help="A list of sample names, one a line (.gz too): count them."),
    ] = None,
    missing_list: Annotated[
        bool, typer.Option(help="Count what NTU's official list says is missing or faulty apart.")
    ] = True,
    json_output: JsonOption = False,
) -> None:
    """List the evaluation protocols with their sources; with --names, the counts of a list."""
    from datasets_build.protocol_files import read_protocol
    from datasets_build.protocols import PROTOCOLS, read_names, split_counts

    listed = [*PROTOCOLS.values(), *(read_protocol(path) for path in files or [])]
    titles = [protocol.name for protocol in listed]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise ValueError(f"two protocols are called {twice[0]!r}; give one of them another name")
    counts = {}
    if names:
        counted = split_counts(read_names(names), protocols=listed, use_missing_list=missing_list)
        counts = {count.protocol: count for count in counted}
    if json_output:
        answer: list[dict[str, Any]] = []
        for protocol in listed:
            entry: dict[str, Any] = {
                "name": protocol.name,
                "dataset": protocol.dataset,
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
            for protocol, count in ((p, counts[p.name]) for p in listed)
        ]
        console.print_table(f"Protocols, counted over {names}", columns, rows, numeric=6)
        return
    console.print_table(
        "Protocols",
        ["name", "classes", "rule", "source"],
        [(p.name, p.num_classes, p.rule, p.source) for p in listed],
    )
