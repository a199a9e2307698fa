"""The `hoc` command: every subcommand in one table; here errors become sentences.

Exit codes: 0 done, 1 our failure (or the machine's, such as a full disk), 2 the user's mistake,
130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cli import (
    audit,
    build_dataset,
    caption,
    captions,
    console,
    demo,
    describe,
    doctor,
    ensemble,
    evaluate,
    export,
    fetch,
    look,
    probe,
    protocols,
    push,
    recipes,
    replay,
    sweep,
    train,
    verify,
    zero_shot,
)

# In the order of the data's way.
COMMANDS: dict[str, Callable[..., None]] = {
    "probe": probe.probe,
    "caption": caption.caption,
    "audit": audit.audit,
    "build-dataset": build_dataset.build_dataset,
    "inspect": look.inspect,
    "export": export.export,
    "push": push.push,
    "fetch": fetch.fetch,
    "train": train.train,
    "replay": replay.replay,
    "sweep": sweep.sweep,
    "evaluate": evaluate.evaluate,
    "ensemble": ensemble.ensemble,
    "describe": describe.describe,
    "retrieve": describe.retrieve,
    "zero-shot": zero_shot.zero_shot,
    "zero-shot-sweep": zero_shot.zero_shot_sweep,
    "demo": demo.demo,
    "doctor": doctor.doctor,
    "protocols": protocols.protocols,
    "recipes": recipes.recipes,
    "verify": verify.verify,
}
# Commands with a word more: `hoc captions diff`.
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "captions": (
        "Merge what several jobs made, or compare two caption runs.",
        {"merge": captions.merge, "diff": captions.diff},
    ),
}

app = typer.Typer(
    name="hoc",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    here = Path(__file__).resolve().parent.parent
    typer.echo(f"hoc {metadata.version('hocslm')} from {here} (Python {sys.version.split()[0]})")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print version and place."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line."),
    ] = False,
) -> None:
    """Action videos to skeleton-language data, and skeleton-language models trained on it.

    The chain: **hoc caption** (videos to caption shards), **hoc build-dataset** (skeletons and
    captions to one data set), **hoc train**, **hoc evaluate**, **hoc ensemble**, **hoc describe**.
    Start with **hoc demo**: it runs all of it, offline, on a made-up data set, in a few minutes.
    """


def _fail(message: str, *, exit_code: int) -> NoReturn:
    console.err.print(f"[bold red]hoc:[/] {_escape(message)}")
    if "--debug" in sys.argv:
        traceback.print_exc()
    raise typer.Exit(exit_code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its errors turned into a sentence and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise  # an exit code that the command chose
        except KeyboardInterrupt:
            _fail(
                "stopped by Ctrl-C. The same command again goes on from what was finished.",
                exit_code=130,
            )
        except (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            _fail(str(error), exit_code=2)
        except FloatingPointError as error:  # a training run that diverged
            _fail(str(error), exit_code=1)
        except PermissionError as error:
            _fail(f"{error}. Give a place that you may read and write.", exit_code=2)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                _fail(
                    f"no space left on the disk ({error}). Nothing half-written is counted as "
                    "finished: make room and give the same command again.",
                    exit_code=1,
                )
            _fail(f"{error}", exit_code=1)
        except Exception as error:
            _fail(
                f"{type(error).__name__}: {error}. This is a fault of hoc, not yours; "
                "`--debug` shows where.",
                exit_code=1,
            )

    return run


for _name, _command in COMMANDS.items():
    app.command(_name)(guarded(_command))
for _name, (_help, _commands) in GROUPS.items():
    _group = typer.Typer(no_args_is_help=True, help=_help, rich_markup_mode="markdown")
    for _word, _command in _commands.items():
        _group.command(_word)(guarded(_command))
    app.add_typer(_group, name=_name)


def main() -> None:
    """Entry point of the `hoc` script."""
    # --debug may stand anywhere: typer sees it only where it declared it.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    app(args=arguments)


if __name__ == "__main__":
    main()
