"""The command line: one module a group of commands.

A new group is one module with `commands = typer.Typer()` and one line in `MODULES`. Modules import
what is heavy (torch, Celery, SQLAlchemy, boto3) inside their commands, so that help stays quick.
"""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from detection.errors import UnlatentError
from worker.cli.context import DEFAULT_STACK, Context, ending
from worker.text import escape_controls, mask, shorten

#: Modules that only training imports; an installation of the service alone has none of them.
_OF_TRAINING = frozenset(
    {"accelerate", "matplotlib", "scipy", "sklearn", "tensorboard", "transformers"}
)

#: Modules of this package whose `commands` become commands of `unlatent`.
MODULES = (
    "stack",
    "config",
    "ingest",
    "processes",
    "stress",
    "capacity",
    "check",
    "demo",
    "models",
    "presets",
    "training",
    "moderation",
    "retention",
)

_EPILOG = (
    "Addresses come from the environment (UNLATENT_…, see `unlatent config`); when it names none "
    "of them, from the local stack that `unlatent up` started, if it runs."
)


def build_app() -> typer.Typer:
    """Build the command tree."""
    app = typer.Typer(
        name="unlatent",
        callback=_root,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        epilog=_EPILOG,
    )
    for name in MODULES:
        app.add_typer(importlib.import_module(f"{__name__}.{name}").commands)
    return app


def main() -> None:
    """Run the command line; every error is one line: exit code 1, or 2 for a wrong usage."""
    # Process 1 of a container ignores SIGTERM until it asks for it. Services that end more gently
    # replace this once they are up.
    signal.signal(signal.SIGTERM, ending)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, ending)
    context = Context()
    try:
        build_app()(obj=context)
    except UnlatentError as error:
        _fail(context, str(error))
    except ModuleNotFoundError as error:
        _fail(context, _not_installed(error))
    except Exception as error:  # noqa: BLE001 - the last line of defence of a command line
        _fail(context, f"unexpected {type(error).__name__}: {error} (--traceback shows where)")


def _not_installed(error: ModuleNotFoundError) -> str:
    package = (error.name or "").partition(".")[0]
    extra = "training" if package in _OF_TRAINING else "service"
    return f"package {package} is not installed: pip install 'unlatent[{extra}]' brings it"


def _root(
    context: typer.Context,
    stack: Annotated[
        Path | None,
        typer.Option(help="Folder of the local stack.", show_default=str(DEFAULT_STACK)),
    ] = None,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    """Tell photographs from images made by latent diffusion."""
    context.obj.stack_option = stack
    context.obj.traceback = traceback


def _fail(context: Context, message: str) -> None:
    ending.insist()  # an extension module may have made another error of it
    if context.traceback:
        for line in mask(traceback.format_exc()).splitlines():
            typer.echo(shorten(escape_controls(line)), err=True)
    typer.echo(f"unlatent: {shorten(escape_controls(mask(message)))}", err=True)
    sys.exit(1)
