"""Who may sign in to a local stack: its roles, its secrets, and the file that keeps them."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from worker.localstack.processes import LocalStackError

if TYPE_CHECKING:
    from pathlib import Path

DATABASE = "unlatent"
OWNER = "unlatent_owner"
APP = "unlatent_app"
OPERATOR = "unlatent_operator"
MODERATOR = "local_moderator"


def _secret() -> str:
    return secrets.token_hex(20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a stack keeps over restarts: its secrets and, where they stay free, its ports."""

    superuser_password: str = field(default_factory=_secret)
    owner_password: str = field(default_factory=_secret)
    app_password: str = field(default_factory=_secret)
    redis_password: str = field(default_factory=_secret)
    s3_access_key_id: str = field(default_factory=_secret)
    s3_secret_access_key: str = field(default_factory=_secret)
    ports: dict[str, int] = field(default_factory=dict)

    def password(self, role: str) -> str:
        """Return the password of a role of the database."""
        kept = {OWNER: self.owner_password, APP: self.app_password}
        if role in kept:
            return kept[role]
        # Derived and not kept, so that a stack of an earlier release has one, too.
        key = self.superuser_password.encode()
        return hmac.new(key, role.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class IdentityFile:
    """The file in a stack's folder that keeps its identity, readable by its user only."""

    path: Path

    def load(self) -> Identity:
        """Return the identity that the file holds; raise `LocalStackError` when it is damaged."""
        try:
            return Identity(**json.loads(self.path.read_text()))
        except (ValueError, TypeError) as error:
            message = f"{self.path} is damaged; remove {self.path.parent} to start again"
            raise LocalStackError(message) from error

    def save(self, identity: Identity) -> None:
        """Write the identity in place of the one before."""
        write_private(self.path, json.dumps(asdict(identity)))

    def compare(self, identity: Identity) -> None:
        """Raise `LocalStackError` when the file holds other secrets: those of another stack."""
        if replace(self.load(), ports={}) != replace(identity, ports={}):
            folder = self.path.parent
            raise LocalStackError(f"another process has made a stack in {folder}: try again")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its user can read, whole or not at all."""
    partial = partial_of(path)
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(path)


def partial_of(path: Path) -> Path:
    """Return the path of a private file while it is written."""
    return path.with_name(f".{path.name}.partial")
