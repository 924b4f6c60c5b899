"""A producer that submits uploads pays for SQLAlchemy and redis only."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "numpy", "celery", "kombu", "boto3", "alembic", "pydantic", "PIL")


def test_the_client_imports_nothing_heavy() -> None:
    """In a fresh interpreter the client leaves what the worker needs alone."""
    script = (
        f"import sys, worker.client\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
