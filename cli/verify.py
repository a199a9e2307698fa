"""`hoc verify`: re-check what a stage wrote against its own record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import console
from cli.options import JsonOption

if TYPE_CHECKING:
    from captioning.verify import Regenerated

_NUM_SHOWN = 20


def verify(
    folder: Annotated[Path, typer.Argument(help="A caption run or a data set.")],
    regenerate: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Also caption random planned batches anew and compare, e.g. 2% of the clips.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of batches.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="With --regenerate: another device than the run's.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Recompute the hashes of a data set's files, or of a caption run's videos, prompts and shards.

    Exit code 1 when something differs. With --regenerate the model's are compared, too, and it is
    asked again: the share of captions that come out equal to the last bit, and for the others the
    first token that differs.
    """
    share = _parse_share(regenerate) if regenerate else None
    kind, problems = _check(folder)
    again: Regenerated | None = None
    if share is not None:
        if kind != "caption run":
            raise ValueError(f"--regenerate is for caption runs; {folder} is a {kind}")
        from captioning.verify import regenerate as make_again

        with console.progress() as progress:
            again = make_again(folder, share, progress, seed=seed, device=device)
    if json_output:
        result: dict[str, Any] = {"folder": folder, "kind": kind, "problems": problems}
        console.print_json(result | ({"regenerated": asdict(again)} if again else {}))
    else:
        _print(folder, kind, problems)
        if again is not None:
            _print_again(again)
    if problems or (again and (again.differences or again.unreadable)):
        raise typer.Exit(1)


def _check(folder: Path) -> tuple[str, list[str]]:
    """What a folder is, and what is wrong with it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give a caption run or a data set")
    if (folder / "dataset.json").is_file():
        from datasets_build.dataset import open_dataset

        return "data set", open_dataset(folder).problems()
    if (folder / "manifest.json").is_file() or (folder / "plan.json").is_file():
        from captioning.from_text import is_text_run, verify_text
        from captioning.verify import verify as verify_captions

        if is_text_run(folder):
            return "caption run from texts", verify_text(folder)
        return "caption run", verify_captions(folder)
    raise ValueError(
        f"{folder} holds neither manifest.json (a finished caption run) nor dataset.json "
        "(a finished data set); give the folder that hoc caption or hoc build-dataset wrote"
    )


def _parse_share(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"--regenerate {text!r} is no share; give one such as 2%") from None
    return value / 100 if text.strip().endswith("%") else value


def _print(folder: Path, kind: str, problems: list[str]) -> None:
    if not problems:
        console.out.print(f"{folder} ({kind}): every hash is as recorded.", markup=False)
        return
    console.out.print(f"{folder} ({kind}) is not as recorded:", markup=False)
    for problem in problems:
        console.out.print(f"  {problem}", markup=False)


def _print_again(again: Regenerated) -> None:
    share = again.num_equal / again.num_rows if again.num_rows else 0.0
    console.out.print(
        f"{again.num_batches} batches made again: {again.num_equal} of {again.num_rows} captions "
        f"({share:.2%}) are equal to the last bit.",
        markup=False,
    )
    for name, reason in again.unreadable[:_NUM_SHOWN]:
        console.out.print(f"  {name}: its frames can no longer be had: {reason}", markup=False)
    for one in again.differences[:_NUM_SHOWN]:
        console.out.print(
            f"  {one.sample_id} ({one.prompt_id}): token {one.position} was {one.before!r}, "
            f"is {one.now!r}",
            markup=False,
        )
    if len(again.differences) > _NUM_SHOWN:
        console.out.print(f"  ... and {len(again.differences) - _NUM_SHOWN} more", markup=False)
