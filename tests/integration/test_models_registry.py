"""The registry keeps every released model and knows the one in force."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from worker.models_registry import (
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
        registry.register(ModelVersion(digest=digest, name=f"small-{digest}", uri="builtin:small"))
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
    for digest in ("a", "b", "b", "c"):
        registry.promote(digest, actor="t", reason="better")
    assert registry.roll_back(actor="t", reason="worse") == "b"
    assert registry.roll_back(actor="t", reason="worse") == "a"
    with pytest.raises(NothingToRollBack):
        registry.roll_back(actor="t", reason="worse")
    assert champion(registry) == "a"
    registry.promote("c", actor="t", reason="better")
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
