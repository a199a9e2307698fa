"""`hoc push`: a data set, or the model of a run, to the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.options import JsonOption

_NUM_FILES_SHOWN = 20


def push(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA|RUN", help="A finished data set, or a training run's folder."),
    ],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; made if it is new.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list the files; send nothing.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Everybody may see it; default: only the owner.")
    ] = False,
    i_may_publish: Annotated[
        bool,
        typer.Option(
            "--i-may-publish",
            help="With --public, for NTU and NW-UCLA samples and models: the owners allow it.",
        ),
    ] = False,
    revision: Annotated[
        str, typer.Option(metavar="BRANCH", help="Made if it does not exist.")
    ] = "main",
    message: Annotated[
        str | None,
        typer.Option(help="Of the commit; default: what it is, with its fingerprint."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Upload a data set or the model of a run to the Hugging Face Hub, private by default.

    **A data set**: every hash is checked first. Only the parts, dataset.json, the card, the list of
    what was left out and the set's own protocols are sent. **A run**: its last weights, what they
    want as input, and a card with the accuracies of hoc evaluate; SkeletonModel.from_pretrained
    loads them. A stopped upload goes on with the same command: what the Hub already has is not sent
    again.
    """
    from datasets_build.dataset import DATASET_FILE
    from datasets_build.push import PushConfig
    from datasets_build.push import run as push_dataset

    config = PushConfig(
        data=data,
        repo_id=repo_id,
        is_public=public,
        may_publish=i_may_publish,
        revision=revision,
        message=message,
        is_dry_run=dry_run,
    )
    with console.progress() as progress:
        if (data / "config.json").is_file() and not (data / DATASET_FILE).exists():
            from training.push_model import run as push_model

            summary = push_model(config, progress)
        else:
            summary = push_dataset(config, progress)
    if json_output:
        console.print_json(asdict(summary))
        return
    files = list(summary.files.items())
    rows = [(name, f"{num_bytes:,}") for name, num_bytes in files[:_NUM_FILES_SHOWN]]
    if len(files) > _NUM_FILES_SHOWN:
        rest = files[_NUM_FILES_SHOWN:]
        rows.append((f"... and {len(rest)} more", f"{sum(size for _, size in rest):,}"))
    rows.append(("all", f"{summary.num_bytes:,}"))
    title = "Would be sent" if summary.is_dry_run else "On the Hub"
    console.print_table(title, ["file", "bytes"], rows, numeric=1)
    seen_by = "its owner" if summary.is_private else "everybody"
    console.out.print(
        f"{summary.url or summary.repo_id}, branch {summary.revision}, seen by {seen_by}.",
        markup=False,
        soft_wrap=True,
    )
