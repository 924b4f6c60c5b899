"""What every command shares: which settings are in force and where the local stack is."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from detection.errors import PermanentError, SettingsError, TransientError

if TYPE_CHECKING:
    from types import FrameType

    from detection.errors import UnlatentError
    from worker.localstack import LocalStack
    from worker.settings import Settings

DEFAULT_STACK = Path("var/stack")
#: What `unlatent up` sets beside addresses; the environment may say otherwise.
BUCKETS = "UNLATENT_S3__BUCKETS"
EVIDENCE_BUCKET = "UNLATENT_MODERATION__EVIDENCE_BUCKET"
#: What says where services are.
ADDRESSES = frozenset(
    {"UNLATENT_POSTGRES__URL", "UNLATENT_REDIS__URL", "UNLATENT_S3__ENDPOINT_URL"}
    | {"UNLATENT_S3__ACCESS_KEY_ID"}
)


@dataclass(slots=True)
class Context:
    """The global options of one invocation."""

    stack_option: Path | None = None
    traceback: bool = False
    #: Neither the environment names an address nor a local stack runs.
    _unaddressed: bool = False
    _settings: Settings | None = None

    @property
    def stack_folder(self) -> Path:
        """The folder of the local stack."""
        return self.stack_option or DEFAULT_STACK

    def local_stack(self) -> LocalStack:
        """Return the local stack of that folder, running or not."""
        from worker.localstack import LocalStack

        return LocalStack(self.stack_folder)

    def settings(self) -> Settings:
        """Return the settings in force.

        The environment decides. When it names none of the addresses that a local stack would
        provide, and the stack runs, the stack's addresses are used, and standard error says so,
        once.
        """
        from worker.settings import load_settings

        if self._settings is None:
            env_file = self._stack_in_use()
            if env_file is not None:
                typer.echo(f"using the local stack in {self.stack_folder}", err=True)
            self._settings = load_settings(env_file)
            if env_file is not None:
                self._settings = _without_hidden_evidence(self._settings)
        return self._settings

    def hint(self, error: UnlatentError) -> str:
        """Say what to do about a service that was looked for where nobody said that it is."""
        if not self._unaddressed or not isinstance(error, TransientError | PermanentError):
            return ""
        return " (no address is set and no local stack runs: `unlatent up`, or `unlatent config`)"

    def _stack_in_use(self) -> Path | None:
        from worker.settings import environment_names

        self._unaddressed = not environment_names() & ADDRESSES

        env_file = self.stack_folder / "stack.env"
        if not env_file.exists():
            if self.stack_option is not None:
                raise SettingsError(f"no local stack in {self.stack_folder}: `unlatent up` first")
            return None
        provided = {line.partition("=")[0] for line in env_file.read_text().splitlines()}
        named = sorted((provided - {BUCKETS, EVIDENCE_BUCKET}) & environment_names())
        if named:
            if self.stack_option is not None:
                message = f"--stack and {named[0]} name different services; use one of them"
                raise SettingsError(message)
            return None
        if not self.local_stack().running:
            if self.stack_option is not None:
                message = f"the local stack in {self.stack_folder} is down: `unlatent up` first"
                raise SettingsError(message)
            return None
        self._unaddressed = False
        return env_file


class Ending:
    """Handler of signals: closes what is open, shows nothing; exit code 128 + signal."""

    def __init__(self) -> None:
        self._number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise `SystemExit`; the second time, and in the middle of an import, end at once.

        Modules of C show or swallow what is raised while they are imported.
        """
        # Of a terminal that is closed the kernel tells, and the shell once more.
        if self._number and number == signal.SIGHUP:
            return
        if self._number or _is_importing(frame):
            os._exit(128 + number)
        self._number = number
        # Where an exception cannot go on, as in a finalizer, Python would show it.
        sys.unraisablehook = lambda _: None
        sys.exit(128 + number)

    def insist(self) -> None:
        """Raise `SystemExit` again when a library swallowed it."""
        if self._number:
            sys.exit(128 + self._number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


#: Of this process.
ending = Ending()


def _without_hidden_evidence(settings: Settings) -> Settings:
    """Keep no evidence where the environment names buckets, and the stack's is none of them."""
    from worker.settings import environment_names

    bucket = settings.moderation.evidence_bucket
    if EVIDENCE_BUCKET in environment_names() or bucket in settings.s3.buckets:
        return settings
    moderation = settings.moderation.model_copy(update={"evidence_bucket": None})
    return settings.model_copy(update={"moderation": moderation})


def of(context: typer.Context) -> Context:
    """Return our part of typer's context."""
    return cast("Context", context.obj)
