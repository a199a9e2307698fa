"""`hoc captions`: merge what several jobs made, and compare two runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cli import console
from cli.options import JsonOption

if TYPE_CHECKING:
    from captioning.compare import Edit, RunDifference


_STYLES = {"same": "", "removed": "red strike", "added": "green"}
_MARKS = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}  # as `git diff --word-diff`


def merge(
    folder: Annotated[Path, typer.Argument(help="Folder of a planned caption run.")],
    others: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of the same run from machines that share no disk."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Finish a run whose shards several jobs made, or list what is missing (exit code 1)."""
    from captioning.merge import merge as merge_shards

    report = merge_shards(folder, others or ())
    if json_output:
        console.print_json(asdict(report))
    elif report.missing:
        rows = [(gap.shard, gap.num_done, gap.num_clips) for gap in report.missing]
        title = f"{len(rows)} of {report.num_shards} shards are not finished"
        console.print_table(title, ["shard", "clips done", "clips"], rows, numeric=3)
        console.out.print(
            "Run the same hoc caption command again (with --shards i/n: every job whose shards "
            "are listed, that is i = shard modulo n); what is done is kept.",
            markup=False,
        )
    else:
        console.out.print(f"All {report.num_shards} shards are there.", markup=False)
        console.print_paths({"captions": report.folder, "index": report.index})
    if report.missing:
        raise typer.Exit(1)


def diff(
    a: Annotated[Path, typer.Argument(help="Folder of the older run.")],
    b: Annotated[Path, typer.Argument(help="Folder of the newer run.")],
    limit: Annotated[
        int, typer.Option(min=0, help="Examples, classes and words to show, at most.")
    ] = 20,
    json_output: JsonOption = False,
) -> None:
    """Compare two finished runs caption by caption: what changed, was added, was lost.

    Rows meet by sample_id and prompt_id. Shown are counts by class, changes of status, the words
    that went and came, changed captions word by word, and the parts of the recipe that differ.
    """
    from captioning.compare import compare

    found = compare(a, b, limit=limit)
    if json_output:
        console.print_json({"a": a, "b": b, **found.as_json()})
        return
    _print_counts(found, limit)
    _print_examples(found)
    _print_recipe(found)


def _print_counts(found: RunDifference, limit: int) -> None:
    kinds = list(found.counts)
    differing = {
        name: counts
        for name, counts in found.by_class.items()
        if counts["changed"] + counts["added"] + counts["lost"]
    }
    most = sorted(
        differing,
        key=lambda n: (differing[n]["same"] / sum(differing[n].values()), n),
    )
    title = f"Captions of {found.num_rows[0]:,} and {found.num_rows[1]:,} rows"
    if len(most) > limit:
        title += f"; the {limit} classes that differ most, of {len(most)}"
    rows = [(name, *(f"{differing[name][kind]:,}" for kind in kinds)) for name in most[:limit]]
    rows.append(("all", *(f"{found.counts[kind]:,}" for kind in kinds)))
    console.print_table(title, ["class", *kinds], rows, numeric=len(kinds))
    if found.statuses:
        rows = [(*pair, f"{num:,}") for pair, num in found.statuses.items()]
        console.print_table("Changes of status", ["A", "B", "rows"], rows, numeric=1)
    for what, words in (("gone", found.words_removed), ("new", found.words_added)):
        if words:
            listed = ", ".join(f"{word} {num:,}" for word, num in words)
            console.out.print(f"Words {what}: {listed}", markup=False)


def _print_examples(found: RunDifference) -> None:
    if found.examples:
        console.out.print(
            f"\n{len(found.examples)} of {found.counts['changed']:,} changed captions"
        )
    for example in found.examples:
        line = Text(f"  {example.sample_id} {example.prompt_id}: ", style="dim")
        line.append_text(Text(" ").join(_edit(edit) for edit in example.edits))
        console.out.print(line)


def _edit(edit: Edit) -> Text:
    kind, words = edit
    if console.out.is_terminal:
        return Text(words, style=_STYLES[kind])
    return Text(_MARKS[kind].format(words))


def _print_recipe(found: RunDifference) -> None:
    if found.recipe is None:
        console.out.print("\nThe recipes were not compared: a run has no manifest.json.")
    elif found.recipe:
        rows = [(name, *map(_short, values)) for name, values in found.recipe.items()]
        console.print_table("\nDiffering parts of the recipe", ["part", "A", "B"], rows)
    else:
        console.out.print("\nThe recipes are equal.")


def _short(value: object) -> str:
    """A part of a recipe for a table: hashes cut, "-" where there is none."""
    text = str(value)
    if value is None or text in ("None", "null"):
        return "-"
    is_hash = len(text) > 40 and set(text.removeprefix("sha256:")) <= set("0123456789abcdef.")
    return text[:12] if is_hash else text
