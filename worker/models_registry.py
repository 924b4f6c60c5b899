"""The registry of released detectors and the pointer to the one in force."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from detection.errors import PermanentError
from worker.ledger_postgres import transaction
from worker.schema import ChampionEntry
from worker.schema import ModelVersion as ModelVersionRow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection, Engine


class UnknownModel(PermanentError):
    """The registry has no model version of this digest."""

    reason: ClassVar[str] = "unknown_model"


class NothingToRollBack(PermanentError):
    """No other model version was champion before this one."""

    reason: ClassVar[str] = "nothing_to_roll_back"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A released bundle: its digest, where it lies, and its `bundle.json` as the manifest."""

    digest: str
    name: str
    uri: str
    manifest: Mapping[str, Any] = field(default_factory=dict)
    training_snapshot: str | None = None
    code_revision: str | None = None


class ModelsRegistry:
    """Every method is one transaction; all raise `LedgerUnavailable` when the database is away."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, model: ModelVersion) -> None:
        """Add a model version; a digest that is known stays as it was first registered."""
        with transaction(self._engine) as connection:
            connection.execute(
                insert(ModelVersionRow)
                .values(
                    digest=model.digest,
                    name=model.name,
                    uri=model.uri,
                    manifest=dict(model.manifest),
                    training_snapshot=model.training_snapshot,
                    code_revision=model.code_revision,
                )
                .on_conflict_do_nothing(index_elements=["digest"])
            )

    def find(self, digest: str) -> ModelVersion:
        """Return one model version; raises `UnknownModel`."""
        with transaction(self._engine) as connection:
            return _found(connection, digest)

    def champion(self) -> ModelVersion | None:
        """Return the model version in force, or None before the first promotion."""
        with transaction(self._engine) as connection:
            digest = connection.scalar(_LATEST)
            return None if digest is None else _found(connection, digest)

    def promote(self, digest: str, *, actor: str, reason: str, forced: bool = False) -> None:
        """Make a registered model version champion; promoting the champion changes nothing."""
        with transaction(self._engine) as connection:
            _take_turns(connection)
            _found(connection, digest)
            if connection.scalar(_LATEST) != digest:
                _enthrone(connection, digest, "promote", actor, reason, forced=forced)

    def roll_back(self, *, actor: str, reason: str) -> str:
        """Make the champion before this one champion again; return its digest.

        Two roll-backs in a row go back two champions and not to and fro: what was rolled back is
        skipped. Raises `NothingToRollBack`.
        """
        with transaction(self._engine) as connection:
            _take_turns(connection)
            reigns: list[str] = []
            for row in connection.execute(
                select(ChampionEntry.model_version, ChampionEntry.action).order_by(ChampionEntry.id)
            ):
                if row.action == "rollback":
                    reigns.pop()
                else:
                    reigns.append(row.model_version)
            if len(reigns) < 2:
                raise NothingToRollBack
            _enthrone(connection, reigns[-2], "rollback", actor, reason)
            return reigns[-2]


_LATEST = select(ChampionEntry.model_version).order_by(ChampionEntry.id.desc()).limit(1)


def _take_turns(connection: Connection) -> None:
    """Let one promotion finish before the next reads the pointer."""
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('app.champion'))")


def _found(connection: Connection, digest: str) -> ModelVersion:
    row = connection.execute(
        select(ModelVersionRow.__table__).where(ModelVersionRow.digest == digest)
    ).one_or_none()
    if row is None:
        raise UnknownModel(f"the registry has no model version {digest}")
    return ModelVersion(
        digest=row.digest,
        name=row.name,
        uri=row.uri,
        manifest=row.manifest,
        training_snapshot=row.training_snapshot,
        code_revision=row.code_revision,
    )


def _enthrone(
    connection: Connection,
    digest: str,
    action: str,
    actor: str,
    reason: str,
    *,
    forced: bool = False,
) -> None:
    connection.execute(
        insert(ChampionEntry).values(
            model_version=digest, action=action, actor=actor, reason=reason, forced=forced
        )
    )
