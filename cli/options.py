"""Options that several commands share, so that they read and behave alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document on standard output.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one value of the recipe; may be given several times.",
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Folder to write; an interrupted run there goes on.")
]
DataOption = Annotated[Path, typer.Option("--data", help="Folder that hoc build-dataset wrote.")]
OtherDataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Another data set with the same classes and skeleton."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
RunArgument = Annotated[Path, typer.Argument(help="Folder of a training run (runs/NAME).")]
