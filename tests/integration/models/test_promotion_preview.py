"""Before a promotion a person hears how many recent images would change tier under the model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from worker.cli import build_app
from worker.cli.context import Context
from worker.models.promotion_preview import preview_promotion
from worker.models.registry import ModelsRegistry, ModelVersion
from worker.moderation import policies
from worker.moderation.policies import PolicyDraft
from worker.settings import PREFIX, child_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result
    from sqlalchemy import Engine

    from worker.settings import Settings

#: Adds an image with a champion's verdict, and a challenger's so many days old.
JUDGE = text("""
    WITH image AS (
        INSERT INTO app.images (bucket, key, etag, source, state)
        VALUES ('b', gen_random_uuid(), 'e', :source, 'scored') RETURNING id
    ), lease AS (
        INSERT INTO app.leases (image_id, worker, purpose, until, closed_at, outcome)
        SELECT id, 'w', 'score', now(), now(), 'scored' FROM image RETURNING id, image_id
    )
    INSERT INTO app.verdicts (image_id, lease_id, model_version, role, score, label, branches,
        decided_by, operating_point, prior, device, dtype, scored_at)
    SELECT image_id, id, v.version, v.role, v.score, v.label, '{}', 'b', 'fpr=0.01', 0.5, 'cpu',
        'float32', now() - v.age
    FROM lease, (VALUES
        (:champion, 'champion', CAST(:before AS float8), CAST(:before_label AS text), interval '0'),
        ('m2', 'shadow', :after, :after_label, CAST(:age AS interval))
    ) v (version, role, score, label, age)
    RETURNING image_id
""")

#: Source, and score and label of champion and challenger.
JUDGED = [
    *[("web", (0.10, "real"), (0.12, "real"))] * 5,
    *[("web", (0.10, "real"), (0.95, "generated"))] * 3,
    *[("web", (0.97, "generated"), (0.20, "unsure"))] * 2,
    # What is a flag elsewhere is a matter of review for a source with a laxer policy.
    *[("forum", (0.10, "real"), (0.95, "generated"))] * 4,
]
MOVED = {("allow", "flag"): 3, ("flag", "review"): 2, ("allow", "review"): 4}


@pytest.fixture
def judge(engine: Engine) -> Callable[..., None]:
    """Put both verdicts of images into the ledger."""

    def insert(
        rows: list[tuple[str, tuple[float, str], tuple[float, str]]],
        age: str,
        champion: str = "m1",
    ) -> None:
        with engine.begin() as connection:
            for source, before, after in rows:
                values = {"source": source, "age": age, "before": before[0], "after": after[0]}
                values |= {"champion": champion}
                labels = {"before_label": before[1], "after_label": after[1]}
                connection.execute(JUDGE, values | labels)

    return insert


@pytest.fixture
def models(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`unlatent models …` where m1 is champion, m2 is registered, and policies are known."""
    for name, value in child_environment(settings).items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)
    registry = ModelsRegistry(engine)
    for digest in ("m1", "m2"):
        registry.register(ModelVersion(digest=digest, name=digest, uri="s3://training/models/x"))
    registry.promote("m1", actor="t", reason="first", forced=True)
    for draft in (
        PolicyDraft(review=0.5, flag=0.9, flag_high=0.99, audit_share=0),
        PolicyDraft(source="forum", review=0.5, flag=0.98, flag_high=0.99, audit_share=0),
    ):
        policies.activate(engine, draft, reason="known")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(build_app(), ["models", *arguments], obj=Context())

    return run


def test_a_preview_counts_the_tiers_that_would_change(
    models: Callable[..., Result], judge: Callable[..., None], engine: Engine
) -> None:
    """Both verdicts count under the policy of the source; the promotion says it, too."""
    judge(JUDGED, "1 day")
    judge([("web", (0.1, "real"), (0.95, "generated"))], "40 days")  # no recent past
    judge([("web", (0.1, "real"), (0.95, "generated"))], "1 day", champion="m0")  # not in force
    seen = preview_promotion(engine, "m2")
    assert seen.images == len(JUDGED)
    assert {(one.before, one.after): one.images for one in seen.changes} == MOVED
    shown = models("preview", "m2")
    first, *lines = shown.stdout.splitlines()
    assert first == "9 of 14 images that both judged would change tier (64.3%)"
    found = Counter({tuple(line.split(":")[0].split(" → ")): 1 for line in lines})
    assert found.keys() == MOVED.keys()
    assert ModelsRegistry(engine).active().champion == ModelsRegistry(engine).find("m1")
    promoted = models("promote", "m2", "--reason", "seen", "--force")
    assert promoted.stdout == "champion m2\n"
    assert promoted.stderr == shown.stdout


def test_without_shadow_verdicts_nothing_is_claimed(models: Callable[..., Result]) -> None:
    """A model that judged nothing says so, with the command that lets it judge."""
    assert models("preview", "m2").stdout == (
        "change of tiers: not known, it has judged no image in shadow in the last 30 days"
        " (unlatent models challenge m2 --reason …)\n"
    )
