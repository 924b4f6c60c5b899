"""The registry of released detectors and the pointers to those in force: champion and shadow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert

from detection.errors import PermanentError, SettingsError
from detection.intake.version import threshold_warning
from worker.database.engine import transaction
from worker.ledger.tables import ChampionEntry, ModelVersionRow, ShadowEntry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Engine, Row


class UnknownModel(PermanentError):
    """The registry has no model version of this digest."""

    reason: ClassVar[str] = "unknown_model"


class NothingToRollBack(PermanentError):
    """No other model version was champion before this one."""

    reason: ClassVar[str] = "nothing_to_roll_back"


class GateNotPassed(PermanentError):
    """No training run recorded that this model version passed the gate against the champion."""

    reason: ClassVar[str] = "gate_not_passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A released bundle: its digest, where it lies, and its `bundle.json` as the manifest."""

    digest: str
    name: str
    uri: str
    manifest: Mapping[str, Any] = field(default_factory=dict)
    training_snapshot: str | None = None
    code_revision: str | None = None

    @property
    def threshold_warning(self) -> str | None:
        """Why the bundle's thresholds may not hold in this release, if so."""
        return threshold_warning(self.manifest.get("intake_versions", (1,)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveModels:
    """The model versions that workers run; None where there is none."""

    champion: ModelVersion | None = None
    shadow: ModelVersion | None = None
    shadow_since: datetime | None = None


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

    def find_by_prefix(self, beginning: str) -> ModelVersion:
        """Return the one model version whose digest begins so.

        Raises `UnknownModel`, and `SettingsError` when there are several.
        """
        row = ModelVersionRow.__table__
        with transaction(self._engine) as connection:
            found = connection.execute(
                select(row).where(row.c.digest.startswith(beginning, autoescape=True)).limit(2)
            ).all()
        if not found:
            raise UnknownModel(f"the registry has no model version {beginning}")
        if len(found) > 1:
            raise SettingsError(f"several model versions begin with {beginning}: write more of it")
        return _model(found[0])

    def versions(self) -> Sequence[ModelVersion]:
        """Return every model version, the oldest first."""
        with transaction(self._engine) as connection:
            rows = connection.execute(
                select(ModelVersionRow.__table__).order_by(ModelVersionRow.registered_at)
            )
            return [_model(row) for row in rows]

    def active(self) -> ActiveModels:
        """Return champion and shadow as they are now."""
        with transaction(self._engine) as connection:
            champion = connection.scalar(_LATEST)
            shadow, since = _in_shadow(connection)
            return ActiveModels(
                champion=None if champion is None else _found(connection, champion),
                shadow=None if shadow is None else _found(connection, shadow),
                shadow_since=since,
            )

    def champion(self) -> ModelVersion | None:
        """Return the model version in force, or None before the first promotion."""
        return self.active().champion

    def promote(self, digest: str, *, actor: str, reason: str, forced: bool = False) -> None:
        """Make a registered model version champion; promoting the champion changes nothing.

        Raises `GateNotPassed` unless a training run recorded that it passed against the model
        version that is champion now, or `forced`.
        """
        with transaction(self._engine) as connection:
            _lock_registry(connection)
            _found(connection, digest)
            champion = connection.scalar(_LATEST)
            if champion == digest:
                return
            if not forced:
                _check_gate(connection, digest, champion)
            _set_champion(connection, digest, "promote", actor, reason, forced=forced)

    def put_in_shadow(self, digest: str, *, actor: str, reason: str) -> None:
        """Have workers score with a registered model version beside the champion.

        It takes the place of whichever was in shadow; the champion cannot shadow itself.
        """
        with transaction(self._engine) as connection:
            _lock_registry(connection)
            _found(connection, digest)
            if connection.scalar(_LATEST) == digest:
                raise SettingsError(f"{digest} is champion: only another model can shadow it")
            _set_shadow(connection, digest, actor, reason)

    def end_shadow(self, *, actor: str, reason: str) -> None:
        """Have no model beside the champion any more."""
        with transaction(self._engine) as connection:
            _lock_registry(connection)
            _set_shadow(connection, None, actor, reason)

    def roll_back(self, *, actor: str, reason: str) -> str:
        """Make the champion before this one champion again; return its digest.

        Two roll-backs in a row go back two champions, not back and forth: what was rolled back is
        skipped. Raises `NothingToRollBack`.
        """
        with transaction(self._engine) as connection:
            _lock_registry(connection)
            reigns = _champion_history(connection)
            if len(reigns) < 2:
                raise NothingToRollBack
            _set_champion(connection, reigns[-2], "rollback", actor, reason)
            return reigns[-2]

    def digests_in_use(self) -> set[str]:
        """Return the digests that serve or that one roll-back would bring: at most three."""
        with transaction(self._engine) as connection:
            shadow, _ = _in_shadow(connection)
            return {*_champion_history(connection)[-2:], *([] if shadow is None else [shadow])}


def _champion_history(connection: Connection) -> list[str]:
    """Return the champions, the oldest first, without those that were rolled back."""
    reigns: list[str] = []
    for row in connection.execute(
        select(ChampionEntry.model_version, ChampionEntry.action).order_by(ChampionEntry.id)
    ):
        if row.action == "rollback":
            reigns.pop()
        else:
            reigns.append(row.model_version)
    return reigns


_LATEST = select(ChampionEntry.model_version).order_by(ChampionEntry.id.desc()).limit(1)
_SHADOW = (
    select(ShadowEntry.model_version, ShadowEntry.since).order_by(ShadowEntry.id.desc()).limit(1)
)
_GATES = text("""
    SELECT id, coalesce((stages #>> '{gate,passed}')::boolean, false) AS passed,
        stages #> '{gate,reasons}' AS reasons, stages #>> '{train,champion}' AS rival
    FROM app.training_runs WHERE stages #>> '{register,model_version}' = :digest ORDER BY id DESC
""")


def _lock_registry(connection: Connection) -> None:
    """Let one promotion finish before the next reads the pointer."""
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('app.champion'))")


def _found(connection: Connection, digest: str) -> ModelVersion:
    row = connection.execute(
        select(ModelVersionRow.__table__).where(ModelVersionRow.digest == digest)
    ).one_or_none()
    if row is None:
        raise UnknownModel(f"the registry has no model version {digest}")
    return _model(row)


def _model(row: Row[Any]) -> ModelVersion:
    return ModelVersion(
        digest=row.digest,
        name=row.name,
        uri=row.uri,
        manifest=row.manifest,
        training_snapshot=row.training_snapshot,
        code_revision=row.code_revision,
    )


def _check_gate(connection: Connection, digest: str, champion: str | None) -> None:
    runs = connection.execute(_GATES, {"digest": digest}).all()
    passed = [run for run in runs if run.passed]
    if any(run.rival == champion for run in passed):
        return
    if passed:
        why = f"training run {passed[0].id} held it against {passed[0].rival}, champion no more"
    elif runs:
        why = f"training run {runs[0].id} refused it: {'; '.join(runs[0].reasons or ['no gate'])}"
    else:
        why = "no training run made it"
    raise GateNotPassed(
        f"{digest} has no passed gate against the champion ({why}); promoting it all the same takes"
        " force, and says so in the audit"
    )


def _in_shadow(connection: Connection) -> tuple[str | None, datetime | None]:
    newest = connection.execute(_SHADOW).one_or_none()
    if newest is None or newest.model_version is None:
        return None, None
    return newest.model_version, newest.since


def _set_shadow(connection: Connection, digest: str | None, actor: str, reason: str) -> None:
    if _in_shadow(connection)[0] != digest:
        connection.execute(
            insert(ShadowEntry).values(model_version=digest, actor=actor, reason=reason)
        )


def _set_champion(
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
    if _in_shadow(connection)[0] == digest:
        _set_shadow(connection, None, actor, "became champion")
