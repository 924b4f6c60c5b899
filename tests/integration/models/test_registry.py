"""The registry keeps every released model and knows the one in force."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError

from detection.errors import SettingsError
from worker.models.registry import (
    GateNotPassed,
    ModelsRegistry,
    ModelVersion,
    NothingToRollBack,
    UnknownModel,
)


@pytest.fixture
def registry(engine: Engine) -> ModelsRegistry:
    """A registry that holds the models a, b and c; none is champion."""
    registry = ModelsRegistry(engine)
    for digest in ("a", "b", "c"):
        registry.register(
            ModelVersion(digest=digest, name=f"small-{digest}", uri="s3://training/models/small")
        )
    return registry


def champion(registry: ModelsRegistry) -> str | None:
    """Return the digest in force."""
    found = registry.champion()
    return None if found is None else found.digest


def test_a_registered_model_comes_back_whole(registry: ModelsRegistry) -> None:
    """Registering is idempotent, and the first registration stands."""
    model = ModelVersion(
        digest="d", name="n", uri="s3://m/d", manifest={"t": 1}, training_snapshot="s"
    )
    registry.register(model)
    registry.register(ModelVersion(digest="d", name="other", uri="elsewhere"))
    assert registry.find("d") == model
    with pytest.raises(UnknownModel):
        registry.find("unknown")


def test_promotions_roll_back_one_by_one(registry: ModelsRegistry) -> None:
    """Each roll-back returns to the champion before, never to what was rolled back."""
    assert champion(registry) is None
    assert registry.digests_in_use() == set()
    for digest in ("a", "b", "b", "c"):
        registry.promote(digest, actor="t", reason="better", forced=True)
    assert registry.digests_in_use() == {"b", "c"}
    assert registry.roll_back(actor="t", reason="worse") == "b"
    assert registry.digests_in_use() == {"a", "b"}
    assert registry.roll_back(actor="t", reason="worse") == "a"
    with pytest.raises(NothingToRollBack):
        registry.roll_back(actor="t", reason="worse")
    assert champion(registry) == "a"
    registry.promote("c", actor="t", reason="better", forced=True)
    assert registry.roll_back(actor="t", reason="worse") == "a"


def test_only_registered_models_are_promoted(registry: ModelsRegistry) -> None:
    """A digest that nobody released is refused."""
    with pytest.raises(UnknownModel):
        registry.promote("unknown", actor="t", reason="r")


def test_every_promotion_is_in_the_audit(registry: ModelsRegistry, engine: Engine) -> None:
    """Who made which model champion, and whether by force, stays on record."""
    registry.promote("a", actor="ana", reason="first", forced=True)
    with engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT actor, action, to_state, reason, detail->>'forced' FROM app.audit_log "
                "WHERE action = 'promote'"
            )
        ).one()
    assert tuple(row) == ("ana", "promote", "a", "first", "true")


def run(
    engine: Engine,
    digest: str,
    *,
    passed: bool,
    reasons: str = "[]",
    champion: str | None = None,
) -> None:
    """Leave the record of a training run that made a model and met a champion at the gate."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO app.training_runs (slot, trigger, state, reason, stages, lease_until, "
                "ended_at) VALUES (gen_random_uuid(), 'calendar', 'refused', 'r', "
                "jsonb_build_object('register', jsonb_build_object('model_version', "
                "CAST(:digest AS text)), 'train', jsonb_build_object('champion', "
                "CAST(:champion AS text)), 'gate', jsonb_build_object('passed', "
                "CAST(:passed AS boolean), 'reasons', CAST(:reasons AS jsonb))), now(), now())"
            ),
            {"digest": digest, "passed": passed, "reasons": reasons, "champion": champion},
        )


def test_a_model_without_a_passed_gate_needs_force(
    registry: ModelsRegistry, engine: Engine
) -> None:
    """The refusal says which run refused it and why; force is recorded as force."""
    with pytest.raises(GateNotPassed, match=r"a has no passed gate .*\(no training run made"):
        registry.promote("a", actor="t", reason="r")
    run(engine, "b", passed=False, reasons='["recall is not better"]')
    with pytest.raises(GateNotPassed, match="training run 1 refused it: recall is not better"):
        registry.promote("b", actor="t", reason="r")
    assert champion(registry) is None
    registry.promote("b", actor="t", reason="r", forced=True)
    assert champion(registry) == "b"


def test_a_passed_gate_opens_the_way(registry: ModelsRegistry, engine: Engine) -> None:
    """A model that passed is promoted without force, and its record says so."""
    run(engine, "a", passed=True)
    registry.promote("a", actor="t", reason="better")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT forced FROM app.champion")) is False


def test_a_gate_passed_against_another_champion_needs_force(
    registry: ModelsRegistry, engine: Engine
) -> None:
    """Better than the champion before says nothing of this one, until that one is back."""
    registry.promote("a", actor="t", reason="first", forced=True)
    run(engine, "b", passed=True, champion="a")
    registry.promote("c", actor="t", reason="by hand", forced=True)
    with pytest.raises(GateNotPassed, match="run 1 held it against a, champion no more"):
        registry.promote("b", actor="t", reason="better")
    assert champion(registry) == "c"
    registry.roll_back(actor="t", reason="worse")
    registry.promote("b", actor="t", reason="better")
    assert champion(registry) == "b"


def test_one_challenger_at_a_time_is_in_shadow(registry: ModelsRegistry, engine: Engine) -> None:
    """The last one counts until it is ended or becomes champion; each change is in the audit."""
    registry.promote("a", actor="t", reason="first", forced=True)
    registry.put_in_shadow("b", actor="t", reason="passed")
    registry.put_in_shadow("c", actor="t", reason="newer")
    active = registry.active()
    assert active.champion is not None
    assert active.shadow is not None
    assert (active.champion.digest, active.shadow.digest) == ("a", "c")
    assert registry.digests_in_use() == {"a", "c"}
    assert active.shadow_since is not None
    registry.promote("c", actor="t", reason="better", forced=True)
    assert registry.active().shadow is None
    registry.roll_back(actor="t", reason="worse")
    assert registry.active().shadow is None
    registry.put_in_shadow("c", actor="t", reason="again")
    registry.end_shadow(actor="t", reason="enough")
    registry.end_shadow(actor="t", reason="twice")
    assert registry.active().shadow is None
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT action, to_state, reason FROM app.audit_log "
                "WHERE action IN ('shadow', 'end_shadow') ORDER BY id"
            )
        ).all()
    assert [tuple(row) for row in rows] == [
        ("shadow", "b", "passed"),
        ("shadow", "c", "newer"),
        ("end_shadow", None, "became champion"),
        ("shadow", "c", "again"),
        ("end_shadow", None, "enough"),
    ]


def test_the_champion_does_not_shadow_itself(registry: ModelsRegistry) -> None:
    """Only another, registered model can be put beside the champion."""
    registry.promote("a", actor="t", reason="first", forced=True)
    with pytest.raises(SettingsError, match="a is champion"):
        registry.put_in_shadow("a", actor="t", reason="r")
    with pytest.raises(UnknownModel):
        registry.put_in_shadow("unknown", actor="t", reason="r")


def test_the_pointers_cannot_be_rewritten(registry: ModelsRegistry, engine: Engine) -> None:
    """Who was in shadow is history: the service may add to it and nothing else."""
    registry.put_in_shadow("b", actor="t", reason="r")
    for statement in ("UPDATE app.shadow SET actor = 'x'", "DELETE FROM app.drift_readings"):
        with pytest.raises(ProgrammingError, match="permission denied"), engine.begin() as change:
            change.execute(text(statement))
