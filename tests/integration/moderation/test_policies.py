"""Policies, the circuit breaker, the random audit and the recall that is estimated from it."""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import text

from detection.score import Label, distance_words
from tests.integration.moderation.conftest import flat
from worker.ledger.postgres import PostgresLedger
from worker.moderation import policies
from worker.moderation.flagging_breaker import check_breakers, resume_flagging
from worker.moderation.intervals import wilson
from worker.moderation.policies import PolicyDraft, TooFewDecisions

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    import psycopg
    from sqlalchemy import Engine

#: Puts scored images with given truth into the ledger; `share` of each kind scores that high.
POPULATE = """
    WITH i AS (
        INSERT INTO app.images (bucket, key, etag, source, state)
        SELECT 'uploads', gen_random_uuid(), 'e', :source, 'scored'
        FROM generate_series(1, :images) n RETURNING id
    ), l AS (
        INSERT INTO app.leases (image_id, worker, purpose, until, closed_at, outcome)
        SELECT id, 'w', 'score', now(), now(), 'scored' FROM i RETURNING id, image_id
    )
    INSERT INTO app.verdicts (image_id, lease_id, model_version, role, score, label, branches,
        decided_by, operating_point, prior, device, dtype)
    SELECT image_id, id, 'model-1', 'champion', s, CASE WHEN s >= 0.9 THEN 'generated'
        ELSE 'real' END, '{}', 'lare', 'fpr=0.01', 0.1, 'cpu', 'float32'
    FROM (SELECT *, CAST(:scores AS float8[]) AS all_scores, row_number() OVER () AS n FROM l) l,
         LATERAL (SELECT all_scores[n]) x (s)
    RETURNING image_id, score
"""


def populate(engine: Engine, scores: list[float], source: str = "web") -> list[tuple[UUID, float]]:
    """Score images in one transaction; return (id, score) of each."""
    with engine.begin() as connection:
        rows = connection.execute(
            text(POPULATE), {"source": source, "images": len(scores), "scores": scores}
        ).all()
    return [(row.image_id, row.score) for row in rows]


def test_the_policy_in_force_sets_the_tier(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine
) -> None:
    """A source's own policy beats the general one, past verdicts keep theirs, labels are heeded."""
    before = scored(0.95, source="forum")
    policies.activate(
        engine,
        PolicyDraft(source="forum", review=0.2, flag=0.97, flag_high=0.99),
        reason="stricter",
    )
    after = scored(0.95, source="forum", label="real")
    let_through = scored(0.1, source="forum", label="unsure")
    elsewhere = scored(0.99)
    someone = desk()
    tiers = dict(someone.rows("SELECT image_id, tier FROM moderation.verdicts"))
    assert tiers == {before: "flag", after: "review", let_through: "review", elsewhere: "flag_high"}
    told = someone.value(
        "SELECT explanation FROM moderation.verdicts WHERE image_id = %s", let_through
    )
    assert "the label alone asks for a person" in told
    history = someone.rows("SELECT source, reason, in_force FROM moderation.policies ORDER BY 1")
    assert ("forum", "stricter", True) in history


def test_a_verdict_without_measured_thresholds_says_so(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine
) -> None:
    """The explanation that a person can be told claims no rate that nobody measured."""
    measured, not_measured = scored(0.95), scored(0.95)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE app.verdicts SET thresholds_hold = false WHERE image_id = :image"),
            {"image": not_measured},
        )
    told = dict(desk().rows("SELECT image_id, explanation FROM moderation.verdicts"))
    assert "rate of false accusations is not known" in told[not_measured]
    assert "not known" not in told[measured]


def test_a_preview_counts_changes_and_expects_a_precision(
    desk: Callable[..., Any], engine: Engine
) -> None:
    """The dry run agrees with a count in Python and writes nothing."""
    scores = [0.1] * 40 + [0.6] * 30 + [0.93] * 20 + [0.99] * 10
    made = populate(engine, scores)
    someone = desk()
    for image, score in made:
        if score >= 0.6:
            said = "generated" if score >= 0.99 else "real"
            reason = "generated_declared" if said == "generated" else "real_original"
            someone.value("SELECT moderation.decide(%s, %s, %s)", image, said, reason)
    draft = PolicyDraft(review=0.5, flag=0.95, flag_high=0.98)
    seen = policies.preview(engine, draft)
    assert seen.verdicts == 100
    assert [(c.before, c.after, c.images) for c in seen.changes] == [("flag", "review", 20)]
    assert set(seen.changes[0].examples) <= {image for image, score in made if score == 0.93}
    assert len(seen.changes[0].examples) == 5
    # Nothing that passed was audited: 50 decided reals none of which reaches 0.95, 10 fakes all do.
    assert seen.false_positives is not None
    assert seen.false_positives.share == 0
    assert seen.false_positives.high == pytest.approx(wilson(0, 50)[1])
    assert seen.recall is not None
    assert seen.recall.share == 1
    expected, at_least = seen.precision[0.01]
    low = wilson(1, 10)[0]
    assert expected == 1
    assert at_least == pytest.approx(0.01 * low / (0.01 * low + 0.99 * wilson(0, 50)[1]))
    assert someone.value("SELECT count(*) FROM moderation.policies") == 1


#: What a preview counts, read from the verdicts themselves.
COUNTED = """
    SELECT i.source, v.tier, v.score, v.label,
        (SELECT d.decision FROM app.decisions d WHERE d.image_id = v.image_id
            AND (v.tier <> 'allow' OR EXISTS (SELECT FROM app.reviews r
                WHERE r.image_id = v.image_id AND r.audit_share IS NOT NULL))
        ORDER BY d.id DESC LIMIT 1)
    FROM app.verdicts v JOIN app.images i ON i.id = v.image_id WHERE i.source = 'forum'
"""


def decide_some(someone: Any) -> None:
    """Decide two of three images that wait, and overturn a few."""
    waiting = flat(someone.rows("SELECT image_id FROM moderation.review_queue ORDER BY image_id"))
    for n, image in enumerate(waiting):
        if n % 3:
            said = ("real", "real_original") if n % 5 else ("generated", "generated_declared")
            someone.value("SELECT moderation.decide(%s, %s, %s)", image, *said)
        if n % 12 == 1:
            decided = "SELECT moderation.overturn(%s, 'unsure', 'unsure_quality')"
            someone.value(decided, image)


def test_a_preview_counts_what_is_there(
    desk: Callable[..., Any], engine: Engine, superuser: psycopg.Connection
) -> None:
    """Of one source among two, tiers and weights are those of the verdicts themselves."""
    rng = np.random.default_rng(3)
    audited = PolicyDraft(review=0.5, flag=0.9, flag_high=0.98, audit_share=0.3)
    policies.activate(engine, audited, reason="a test")
    for source in ("web", "forum"):
        populate(engine, rng.uniform(size=300).tolist(), source)
    decide_some(desk(lead=True))
    draft = PolicyDraft(source="forum", review=0.4, flag=0.7, flag_high=0.95)
    seen = policies.preview(engine, draft)
    rows = superuser.execute(COUNTED).fetchall()

    def becomes(score: float, label: str) -> str:
        reached = [
            name for name in ("flag_high", "flag", "review") if score >= getattr(draft, name)
        ]
        return reached[0] if reached else "allow" if label == "real" else "review"

    moves = Counter((tier, becomes(score, label)) for _, tier, score, label, _ in rows)
    changed = {(c.before, c.after): c.images for c in seen.changes}
    assert changed == {move: n for move, n in moves.items() if move[0] != move[1]}
    assert seen.verdicts == seen.looked_at == 300
    tiers = Counter(tier for _, tier, *_ in rows)
    known = Counter(tier for _, tier, _, _, said in rows if said is not None)
    assert seen.decided == seen.weighed == known.total()
    for said, rate in (("real", seen.false_positives), ("generated", seen.recall)):
        of_kind = [(score, tiers[t] / known[t]) for _, t, score, _, found in rows if found == said]
        total = sum(weight for _, weight in of_kind)
        assert rate is not None
        assert rate.decided == len(of_kind)
        share = sum(weight for score, weight in of_kind if score >= 0.7) / total
        assert rate.share == pytest.approx(share)
        size = total**2 / sum(weight**2 for _, weight in of_kind)
        assert (rate.low, rate.high) == pytest.approx(wilson(share, size))


def test_a_preview_of_many_looks_at_a_sample(
    desk: Callable[..., Any], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says of how many, is the same each time, spread, and keeps the weights of whole cells."""
    made = populate(engine, [n / 1000 for n in range(1000)])
    someone = desk()
    for image, score in made:
        if score >= 0.9:
            someone.value("SELECT moderation.decide(%s, 'real', 'real_original')", image)
    monkeypatch.setattr(policies, "MOST_VERDICTS", 100)
    monkeypatch.setattr(policies, "MOST_DECISIONS", 40)
    draft = PolicyDraft(review=0.0, flag=0.9, flag_high=0.98)
    seen = policies.preview(engine, draft)
    assert seen == policies.preview(engine, draft)
    assert (seen.verdicts, seen.looked_at) == (1000, 100)
    assert (seen.decided, seen.weighed) == (100, 40)
    # Of ten verdicts in a row one is looked at: half of all pass today.
    (change,) = seen.changes
    assert (change.before, change.after, change.images) == ("allow", "review", 50)
    assert seen.false_positives is not None
    assert seen.false_positives.decided == 40
    stricter = policies.preview(engine, PolicyDraft(review=0.5, flag=0.98, flag_high=0.98))
    assert stricter.false_positives is not None
    # The 40 newest decisions are 20 of each cell; one cell has 80 verdicts, the other 20.
    assert stricter.false_positives.share == pytest.approx(0.2)


def test_a_threshold_keeps_its_false_positive_budget(
    desk: Callable[..., Any], engine: Engine
) -> None:
    """The chosen score is the lowest whose upper bound fits; too few reals are refused in words."""
    scores = [0.90 + 0.0001 * n for n in range(400)]
    made = populate(engine, scores)
    someone = desk()
    with pytest.raises(TooFewDecisions, match="at least 30 images"):
        policies.threshold_for(engine, false_positives=0.1)
    with pytest.raises(TooFewDecisions, match="30000 images decided real, and at most 10000"):
        policies.threshold_for(engine, false_positives=0.0001)
    for image, _ in made:
        someone.value("SELECT moderation.decide(%s, 'real', 'real_original')", image)
    threshold = policies.threshold_for(engine, false_positives=0.1)
    over = sum(score >= threshold for score in scores)
    assert wilson(over / 400, 400)[1] <= 0.1 < wilson((over + 1) / 400, 400)[1]


def test_the_breaker_stops_flagging_and_a_person_resumes_it(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine
) -> None:
    """A flood of flags trips one source only; held flags are reviewed; resuming starts anew."""
    for source in ("web", "forum"):
        policies.activate(
            engine,
            PolicyDraft(
                source=source,
                review=0.5,
                flag=0.9,
                flag_high=0.98,
                max_flag_share=0.3,
                breaker_images=20,
            ),
            reason="band",
        )
    populate(engine, [0.1] * 15 + [0.95] * 4, "web")
    populate(engine, [0.1] * 18 + [0.95] * 4, "forum")
    assert check_breakers(engine) == []
    populate(engine, [0.95] * 11, "web")
    (trip,) = check_breakers(engine)
    assert (trip.source, trip.images, trip.flag_share) == ("web", 30, 0.5)
    assert check_breakers(engine) == []
    held, free = scored(0.99), scored(0.99, source="forum")
    someone = desk()
    tiers = {
        row[0]: row[1:]
        for row in someone.rows("SELECT image_id, tier, held FROM moderation.verdicts")
    }
    assert tiers[held] == ("review", True)
    assert tiers[free] == ("flag_high", False)
    assert (
        someone.value("SELECT queue FROM moderation.review_queue WHERE image_id = %s", held)
        == "flagged"
    )
    stopped = "SELECT flagging_stopped_since IS NOT NULL FROM moderation.source_summary"
    assert flat(someone.rows(f"{stopped} ORDER BY source")) == [False, True]
    assert resume_flagging(engine, "web", reason="a campaign, all generated", by="kim")
    assert not resume_flagging(engine, "web", reason="again", by="kim")
    again = scored(0.99)
    assert (
        someone.value("SELECT tier FROM moderation.verdicts WHERE image_id = %s", again)
        == "flag_high"
    )
    assert check_breakers(engine) == []


def test_the_breaker_trips_when_flags_vanish(engine: Engine) -> None:
    """A share under the band, for example of a broken model, is an alert as well."""
    policies.activate(
        engine,
        PolicyDraft(review=0.5, flag=0.9, flag_high=0.98, min_flag_share=0.05, breaker_images=50),
        reason="band",
    )
    populate(engine, [0.1] * 60)
    (trip,) = check_breakers(engine)
    assert trip.flag_share == 0


def test_the_audit_draws_its_share_of_unflagged_images_per_source(
    desk: Callable[..., Any], engine: Engine
) -> None:
    """About `audit_share` of each source's unflagged images queue for audit, and none flagged."""
    policies.activate(
        engine,
        PolicyDraft(source="forum", review=0.5, flag=0.9, flag_high=0.98, audit_share=0.5),
        reason="look closer",
    )
    populate(engine, [0.1] * 2000, "web")
    populate(engine, [0.1] * 600, "forum")
    populate(engine, [0.95] * 50, "forum")
    drawn = dict(
        desk().rows(
            "SELECT source, count(*) FROM moderation.review_queue WHERE queue = 'audit' GROUP BY 1"
        )
    )
    # 0.5 % of 2000 and 50 % of 600: five standard deviations either side.
    assert 0 <= drawn.get("web", 0) <= 27
    assert 238 <= drawn["forum"] <= 362
    assert (
        desk().value("SELECT max(uncertainty) FROM moderation.review_queue WHERE queue = 'audit'")
        == 0
    )
    with engine.connect() as connection:
        beside = connection.scalar(
            text("SELECT count(*) FROM app.reviews WHERE queue <> 'audit' AND audit_share > 0")
        )
    assert beside == 0


def test_workers_know_what_waits_for_a_person(
    desk: Callable[..., Any], scored: Callable[..., UUID], engine: Engine
) -> None:
    """A drawn photograph and a doubtful image wait until they are decided; others never do."""
    for source, share in (("web", 1.0), ("forum", 0.0)):
        draft = PolicyDraft(source=source, review=0.5, flag=0.9, flag_high=0.98, audit_share=share)
        policies.activate(engine, draft, reason="a test")
    ledger = PostgresLedger(engine)
    drawn, passed, doubtful = scored(0.1), scored(0.1, source="forum"), scored(0.6, source="forum")
    assert [ledger.in_review(image) for image in (drawn, passed, doubtful)] == [True, False, True]
    desk().value("SELECT moderation.decide(%s, 'real', 'real_plausible')", drawn)
    assert not ledger.in_review(drawn)


def test_recall_is_estimated_within_its_interval(
    desk: Callable[..., Any], engine: Engine, superuser: psycopg.Connection
) -> None:
    """Over a known truth, both the view's cells and the stratified function tell the recall."""
    rng = np.random.default_rng(7)
    truth: dict[UUID, bool] = {}
    share = {"web": 0.3, "forum": 0.5}
    for source, misses in (("web", 0.02), ("forum", 0.10)):
        policies.activate(
            engine,
            PolicyDraft(
                source=source, review=0.5, flag=0.9, flag_high=0.98, audit_share=share[source]
            ),
            reason="audit",
        )
        made = populate(engine, [0.1] * 1500 + [0.95] * 300, source)
        for image, score in made:
            truth[image] = bool(rng.random() < (0.9 if score > 0.5 else misses))
    flagged = {
        image
        for (image,) in superuser.execute("SELECT image_id FROM app.verdicts WHERE tier <> 'allow'")
    }
    someone = desk()
    for image in flat(someone.rows("SELECT image_id FROM moderation.review_queue")):
        said = ("generated", "generated_declared") if truth[image] else ("real", "real_original")
        someone.value("SELECT moderation.decide(%s, %s, %s)", image, *said)
    generated = {image for image, fake in truth.items() if fake}
    true_recall = len(generated & flagged) / len(generated)
    estimate = (
        "SELECT recall, recall_low, recall_high, flagged, unflagged, uncovered "
        "FROM moderation.recall('model-1')"
    )
    total = someone.rows(estimate)
    assert len(total) == 1
    waiting = (
        generated - flagged - set(flat(someone.rows("SELECT image_id FROM moderation.decisions")))
    )
    for image in list(waiting)[:20]:
        someone.value("SELECT moderation.request_review(%s, 'report')", image)
        someone.value("SELECT moderation.decide(%s, 'generated', 'generated_declared')", image)
    assert someone.rows(estimate) == total, "what readers report is no random sample"
    recall, low, high, n_flagged, n_unflagged, uncovered = total[0]
    assert (n_flagged, n_unflagged, uncovered) == (600, 3000, 0)
    assert low < recall < high
    assert low <= true_recall <= high
    assert high - low < 0.15
    for source, cell_low, cell, cell_high in someone.rows(
        "SELECT source, recall_low, recall, recall_high FROM moderation.model_quality"
    ):
        assert cell_low < cell < cell_high
        assert share[source] in {0.3, 0.5}


def test_the_interval_covers_the_truth_as_often_as_it_says(
    superuser: psycopg.Connection,
) -> None:
    """Over 2,000 simulated audits, at least 93 % of the 95 % intervals hold the true recall."""
    rng = np.random.default_rng(11)
    runs = 2000
    unflagged, fakes_let_through, audited = 20_000, 400, 600
    flagged, fakes_flagged, decided = 1_000, 900, 300
    true_recall = fakes_flagged / (fakes_flagged + fakes_let_through)
    missed = rng.hypergeometric(fakes_let_through, unflagged - fakes_let_through, audited, runs)
    confirmed = rng.hypergeometric(fakes_flagged, flagged - fakes_flagged, decided, runs)
    covered = superuser.execute(
        "SELECT avg((%s BETWEEN e.low AND e.high)::int) "
        "FROM unnest(%s::float8[], %s::float8[]) s (confirmed, missed), "
        "LATERAL moderation.recall_interval("
        "  %s, s.confirmed / %s, moderation.effective_size(%s, %s),"
        "  %s, s.missed / %s, moderation.effective_size(%s, %s)) e",
        [
            true_recall, confirmed.astype(float).tolist(), missed.astype(float).tolist(),
            flagged, decided, decided, flagged, unflagged, audited, audited, unflagged,
        ],
    ).fetchone()  # fmt: skip
    assert covered is not None
    assert 0.93 <= covered[0] <= 0.99


def test_wilson_in_sql_is_wilson_in_python(superuser: psycopg.Connection) -> None:
    """The two implementations agree, also with no image at all."""
    for share, n in ((0.0, 0.0), (0.0, 50.0), (0.5, 10.0), (1.0, 7.0), (0.02, 1234.5)):
        row = superuser.execute(
            "SELECT low, high FROM moderation.wilson(%s, %s)", [share, n]
        ).fetchone()
        assert row == pytest.approx(wilson(share, n))


def test_a_draft_that_falls_is_refused() -> None:
    """Thresholds in the wrong order never reach the database."""
    with pytest.raises(policies.SettingsError, match="must rise"):
        PolicyDraft(review=0.9, flag=0.5, flag_high=0.98, breaker_window=timedelta(hours=1))


#: Score, label, distance, why it was not judged; then tier, words and what the history says.
CASES = [
    (0.74, "real", -1.84, None, "review", "below", "real: below, -1.8 (review)"),
    (0.865, "real", -1.03, None, "review", "below", "real: below, -1.0 (review)"),
    (0.5, "unsure", None, "too small: 9", "review", "not judged", "unsure: not judged (review)"),
    (
        0.925,
        "unsure",
        -0.38,
        None,
        "flag",
        "not surely beyond",
        "unsure: not surely beyond, -0.4 (flag by score alone)",
    ),
    (0.95, "generated", 0.1, None, "flag", "just beyond", "generated: just beyond, +0.1 (flag)"),
    (0.95, "generated", None, None, "flag", None, "generated (flag)"),  # of an earlier release
]


@pytest.mark.parametrize(
    ("score", "label", "distance", "outside", "tier", "words", "summary"), CASES
)
def test_views_and_explanation_say_label_words_and_distance(
    score: float,
    label: str,
    distance: float | None,
    outside: str | None,
    tier: str,
    words: str | None,
    summary: str,
    *,
    desk: Callable[..., Any],
    scored: Callable[..., UUID],
) -> None:
    """Score and tier stay in their columns; no sentence gives a probability."""
    image = scored(score, label=label, distance=distance, outside=outside)
    someone = desk()
    for view in ("verdicts", "review_queue"):
        query = f"SELECT label, score, distance, distance_words, tier FROM moderation.{view}"  # noqa: S608
        assert someone.rows(query) == [(label, score, distance, words, tier)]
    told = someone.value("SELECT explanation FROM moderation.verdicts")
    assert told.startswith(f'The detector says "{label}"')
    assert "%" not in told
    assert re.search(r"\b0\.\d{2,}|\d{2}\.\d", told) is None
    if distance is not None:
        assert f"{words} the point of accusation" in told
        assert f"(distance {distance:+.1f})" in told
    assert ("makes its tier flag by score alone" in told) == (label == "unsure" and tier == "flag")
    history = (
        "SELECT summary FROM moderation.image_history WHERE image_id = %s AND event = 'verdict'"
    )
    assert someone.value(history, image) == summary


def test_postgres_and_python_use_the_same_words(desk: Callable[..., Any]) -> None:
    """At, below and above every bound."""
    someone = desk()
    for label in Label:
        for distance in (None, -9.0, -3.0, -2.9, -1.0, -0.9, 0.0, 0.9, 1.0, 2.9, 3.0, 9.0):
            for outside in (None, "too small: 9"):
                found = someone.value(
                    "SELECT moderation.distance_words(%s, %s::float8, %s)",
                    label.value,
                    distance,
                    outside,
                )
                assert found == distance_words(label, distance, outside)
