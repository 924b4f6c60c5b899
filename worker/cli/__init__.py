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

#: Modules that the extra `service` does not bring either.
_EXTRAS = {
    "fastapi": "http",
    "jinja2": "console",
    "multipart": "http",
    "python_multipart": "http",
    "uvicorn": "http",
}

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
    "operator.policy",
    "operator.webhooks",
    "operator.moderators",
    "retention",
)

#: What each exit code means; docs/cli.md shows it.
EXIT_CODES = {
    0: "The command did what was asked; a process of the service ended on SIGTERM.",
    1: "It failed, and one line on standard error says why. Or the answer is no: a file could not"
    " be scored, a local service does not run, a gate or an audit refuses, a limit is broken.",
    2: "The usage was wrong: an unknown command or option, or a value out of range.",
    70: "The worker lost its device.",
    71: "A forward pass of the worker hung.",
    128 + signal.SIGHUP: "SIGHUP ended it: its terminal was closed.",
    128 + signal.SIGINT: "SIGINT ended it: Ctrl-C.",
    128 + signal.SIGTERM: "SIGTERM ended it; of the service, a process that was not up yet.",
}

_EPILOG = (
    "Addresses come from the environment (UNLATENT_…, see `unlatent config`); when it names none "
    "of them, from the local stack that `unlatent up` started, if it runs. Exit codes: 0 done, 1 "
    "failed or refused, 2 wrong usage."
)


def build_app() -> typer.Typer:
    """Build the command tree."""
    app = typer.Typer(
        name="unlatent",
        callback=_root,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=_EPILOG,
    )
    for name in MODULES:
        app.add_typer(importlib.import_module(f"{__name__}.{name}").commands)
    return app


def main() -> None:
    """Run the command line; every error is one line, and the exit code is one of `EXIT_CODES`."""
    # Process 1 of a container ignores SIGTERM until it asks for it. Services that end more gently
    # replace this once they are up.
    signal.signal(signal.SIGTERM, ending)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, ending)
    context = Context()
    try:
        build_app()(obj=context)
    except UnlatentError as error:
        _fail(context, f"{error}{context.hint(error)}")
    except ModuleNotFoundError as error:
        _fail(context, _not_installed(error))
    except Exception as error:  # noqa: BLE001 - the last line of defence of a command line
        _fail(context, f"unexpected {type(error).__name__}: {error} (--traceback shows where)")


def _not_installed(error: ModuleNotFoundError) -> str:
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package, "training" if package in _OF_TRAINING else "service")
    return f"package {package} is not installed: pip install 'unlatent[{extra}]' brings it"


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the value
    if wanted:
        from importlib.metadata import version

        typer.echo(f"unlatent {version('unlatent')}")
        raise typer.Exit


def _root(
    context: typer.Context,
    stack: Annotated[
        Path | None,
        typer.Option(help="Folder of the local stack.", show_default=str(DEFAULT_STACK)),
    ] = None,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
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
