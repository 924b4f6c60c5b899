"""The console process: the moderators' pages over the database, storage and a decode pool."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import uvicorn

from worker.console.app import build_app
from worker.console.identity import build_identity
from worker.console.pictures import Pictures
from worker.telemetry.start_steps import start_step

if TYPE_CHECKING:
    from worker.settings import Settings


def run_console(settings: Settings) -> None:
    """Serve the console until SIGTERM or SIGINT."""
    console = settings.console
    with ExitStack() as stack:
        with start_step("sign-in"):
            identity = stack.enter_context(closing(build_identity(console, settings.postgres)))
        with start_step("pictures"):
            pictures = stack.enter_context(closing(Pictures.open(settings)))
        with start_step("pages"):
            app = build_app(identity, pictures)
        uvicorn.run(
            app,
            host=console.host,
            port=console.port,
            # No header may change the address that a request came from: it says who is believed.
            proxy_headers=False,
            server_header=False,
            log_config=None,
            access_log=False,
        )
