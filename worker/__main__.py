"""`unlatent`, also as `python -m worker`."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line."""
    # Until there is something to close, Ctrl-C ends the process at once.
    signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))

    from worker import cli
    from worker.cli.context import ending

    signal.signal(signal.SIGINT, ending)
    cli.main()


if __name__ == "__main__":
    main()
