"""Each role works with what its extra installs, and loads no more of it than it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from packaging.utils import canonicalize_name

from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.extras import declared, only
from tests.support.faults.process_crew import Crew, changed
from tests.support.upload_site import Site, png
from worker.ingest.events import own_event
from worker.ledger.interface import Upload

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis
    from sqlalchemy import Engine

    from worker.settings import Settings

#: Role → its extra, the modules that a process of it imports before it does anything, and what of
#: the packages that pyproject.toml names these load. Whoever makes a role heavier changes a line.
ROLES = {
    "producer": ("client", ["worker.client"], {"psycopg", "redis", "sqlalchemy"}),
    "command line": ("service", ["worker.cli"], {"typer"}),
    "worker": (
        "service",
        ["worker.cli", "worker.processes.worker", "worker.queue.tasks", "worker.retraining.tasks"],
        {
            "boto3", "celery", "kombu", "numpy", "opentelemetry-api", "pillow",
            "prometheus-client", "psycopg", "pydantic-settings", "redis", "rich", "sqlalchemy",
            "structlog", "typer",
        },
    ),
    "bridge": (
        "service",
        ["worker.cli", "worker.processes.bridge"],
        {
            "boto3", "celery", "kombu", "opentelemetry-api", "prometheus-client", "psycopg",
            "redis", "rich", "sqlalchemy", "structlog", "typer",
        },
    ),
    "beat": (
        "service",
        ["worker.cli", "worker.processes.beat"],
        {"celery", "kombu", "rich", "structlog", "typer"},
    ),
    "console": (
        "console",
        ["worker.cli", "worker.processes.console"],
        {
            "boto3", "fastapi", "jinja2", "numpy", "pillow", "psycopg",
            "python-multipart", "sqlalchemy", "structlog", "typer", "uvicorn",
        },
    ),
    "up --all": (
        "local",
        [
            "worker.cli", "worker.localstack.stack", "worker.processes.serve",
            "worker.processes.console",
        ],
        {
            "boto3", "fastapi", "jinja2", "numpy", "opentelemetry-api", "pillow",
            "prometheus-client", "psycopg", "pydantic-settings", "python-multipart", "rich",
            "sqlalchemy", "structlog", "typer", "uvicorn",
        },
    ),
    "detector": ("service", ["detection.detector"], {"numpy", "pillow", "safetensors", "torch"}),
    "trainer": (
        "training",
        ["worker.cli", "worker.processes.trainer", "worker.retraining.wiring"],
        {
            "boto3", "celery", "kombu", "matplotlib", "numpy", "pillow", "psycopg",
            "pydantic-settings", "rich", "safetensors", "scikit-learn", "scipy", "sqlalchemy",
            "structlog", "torch", "typer",
        },
    ),
}  # fmt: skip

_LOADED = """
import importlib, json, sys
from importlib import metadata
for name in sys.argv[1:]:
    importlib.import_module(name)
tops = {name.partition(".")[0] for name in sys.modules}
known = metadata.packages_distributions()
print(json.dumps([found for top in tops for found in known.get(top, ())]))
"""


@pytest.mark.parametrize("role", ROLES)
def test_a_role_imports_what_its_extra_installs(role: str) -> None:
    """With nothing else installed it starts, and it loads what is listed here."""
    extra, modules, expected = ROLES[role]
    said = subprocess.run(
        [sys.executable, "-c", _LOADED, *modules],
        env=os.environ | only(extra),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert set(map(canonicalize_name, json.loads(said))) & declared(extra) == expected


def test_the_service_needs_the_packages_of_its_extra_only(
    settings: Settings, engine: Engine, redis_client: Redis, tmp_path: Path
) -> None:
    """From the event to the verdict of every kind of branch, nothing of training is imported."""
    branches = ("lare", "aligned", "backbone")
    bundle = build_tiny_bundle(tmp_path / "bundle", branches=branches)
    settings = changed(settings, "scoring", bundle=str(bundle.folder))
    environment = only("service")
    site = Site(settings, engine)
    ingest = settings.redis.key_prefix + settings.redis.ingest_key
    facts = site.storage.put(site.bucket, "a.png", png(side=100), content_type="image/png")
    redis_client.rpush(ingest, own_event(Upload(bucket=site.bucket, key="a.png", etag=facts.etag)))
    with Crew(settings) as crew:
        crew.service("bridge", environment=environment)
        crew.service("beat", environment=environment)
        crew.service("worker", environment=environment).wait_until_ready()
        image_id = site.wait_for_registration("a.png")
        site.wait_for(image_id)
    (verdict,) = site.verdicts(image_id)
    assert set(verdict.branches) == set(branches)


def test_a_file_is_checked_with_the_packages_of_the_service(tmp_path: Path) -> None:
    """`unlatent check` needs no package of training."""
    (tmp_path / "a.png").write_bytes(png(90, side=100))
    done = subprocess.run(
        [sys.executable, "-m", "worker", "check", str(tmp_path / "a.png")],
        env=os.environ | only("service"),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    """A command of training on a worker's installation says what to install."""
    done = subprocess.run(
        [sys.executable, "-m", "worker", "bundle", "--data", "."],
        env=os.environ | only("service"),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "pip install 'unlatent[training]'" in done.stderr
    assert "Traceback" not in done.stderr
