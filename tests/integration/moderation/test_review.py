"""From a verdict to a decision, an appeal and the regression corpus, through the database alone."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import text

from tests.integration.moderation.conftest import flat, verdict_of
from tests.support.waiting import eventually
from worker.ledger.interface import Lease, Removal, Role
from worker.ledger.postgres import PostgresLedger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


def test_a_wrong_verdict_can_be_followed_to_the_regression_corpus(
    desk: Callable[..., Any], scored: Callable[..., Any]
) -> None:
    """Upload, verdict, claim, decision, appeal, overturn and corpus entry stand in one view."""
    image = scored(0.97)
    hasty, lead, reader = desk("web"), desk("web", lead=True), desk("web")
    assert hasty.rows("SELECT image_id, label FROM moderation.claim_next(3, 'flagged')") == [
        (image, "generated")
    ]
    hasty.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)
    appeal = reader.value("SELECT moderation.open_appeal(%s, 'I took this myself')", image)
    with pytest.raises(errors.InsufficientPrivilege, match="somebody other"):
        hasty.value("SELECT moderation.close_appeal(%s, 'upheld')", appeal)
    assert lead.value("SELECT image_id FROM moderation.claim_next(1, 'appeal')") == image
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="claimed by"):
        reader.value("SELECT moderation.close_appeal(%s, 'upheld')", appeal)
    lead.value(
        "SELECT moderation.close_appeal(%s, 'overturned', 'real_original', 'raw file seen')", appeal
    )
    history = reader.rows(
        "SELECT event, actor, summary FROM moderation.image_history WHERE image_id = %s", image
    )
    assert [row[0] for row in history if row[0] not in {"state", "claim closed"}] == [
        "upload",
        "verdict",
        "claim",
        "decision",
        "appeal opened",
        "claim",
        "overturn",
        "regression corpus",
        "appeal overturned",
    ]
    assert ("overturn", lead.name, "real: real_original") in history
    seen = reader.rows(
        "SELECT decision, decision_by, decision_reason FROM moderation.verdicts "
        "WHERE image_id = %s",
        image,
    )
    assert seen == [("real", lead.name, "real_original")]
    assert reader.rows("SELECT status, closed_by FROM moderation.appeals") == [
        ("overturned", lead.name)
    ]
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="is closed"):
        lead.value("SELECT moderation.close_appeal(%s, 'upheld')", appeal)


def test_the_audit_says_who_did_what_and_saw_what(
    desk: Callable[..., Any], scored: Callable[..., Any]
) -> None:
    """Every call leaves a row with the caller's login and the verdict before their eyes."""
    image = scored(0.95)
    one, lead = desk(), desk(lead=True)
    one.rows("SELECT * FROM moderation.claim_next()")
    one.value("SELECT moderation.release(%s)", image)
    one.value("SELECT moderation.decide(%s, 'unsure', 'unsure_mixed')", image)
    one.rows("SELECT * FROM moderation.similar_images(%s)", image)
    lead.value("SELECT moderation.overturn(%s, 'generated', 'generated_declared')", image)
    lead.value("SELECT moderation.request_review(%s, 'report', 'a reader wrote')", image)
    done = lead.rows(
        "SELECT action, actor, detail #>> '{saw,score}' FROM moderation.audit_trail ORDER BY at"
    )
    assert done == [
        ("claim", one.name, "0.95"),
        ("release", one.name, None),
        ("decide", one.name, "0.95"),
        ("similar_images", one.name, None),
        ("overturn", lead.name, "0.95"),
        ("request_review", lead.name, None),
    ]
    assert {row[0] for row in one.rows("SELECT actor FROM moderation.audit_trail")} == {one.name}


def test_who_may_decide_again(desk: Callable[..., Any], scored: Callable[..., Any]) -> None:
    """A second person confirms; contradicting somebody needs a lead, oneself an overturn."""
    image = scored()
    first, second, lead = desk(), desk(), desk(lead=True)
    first.value("SELECT moderation.decide(%s, 'real', 'real_edited')", image)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="already"):
        first.value("SELECT moderation.decide(%s, 'real', 'real_edited')", image)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="was decided real"):
        second.value("SELECT moderation.decide(%s, 'generated', 'generated_declared')", image)
    second.value("SELECT moderation.decide(%s, 'real', 'real_plausible')", image)
    with pytest.raises(errors.InsufficientPrivilege, match="lead"):
        first.value("SELECT moderation.overturn(%s, 'generated', 'generated_declared')", image)
    second.value("SELECT moderation.overturn(%s, 'unsure', 'unsure_mixed')", image)
    lead.value("SELECT moderation.overturn(%s, 'generated', 'generated_declared')", image)
    told = lead.rows("SELECT decision, overturns IS NOT NULL FROM moderation.decisions ORDER BY 1")
    assert sorted(told) == [
        ("generated", True),
        ("real", False),
        ("real", False),
        ("unsure", True),
    ]


def test_an_expired_claim_returns_and_the_time_to_decision_runs_from_the_claim(
    desk: Callable[..., Any], scored: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """A claim that ran out goes to the next moderator; the first one's decision comes too late."""
    image = scored()
    slow, quick = desk(), desk()
    slow.rows("SELECT * FROM moderation.claim_next()")
    assert quick.rows("SELECT * FROM moderation.claim_next()") == []
    superuser.execute("UPDATE app.claims SET since = now() - interval '2 hours', until = now()")
    superuser.execute("UPDATE app.reviews SET claimed_until = now()")
    assert quick.value("SELECT image_id FROM moderation.claim_next()") == image
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="claimed by"):
        slow.value("SELECT moderation.decide(%s, 'real', 'real_edited')", image)
    superuser.execute(
        "UPDATE app.claims SET since = now() - interval '90 seconds' WHERE closed_at IS NULL"
    )
    quick.value("SELECT moderation.decide(%s, 'real', 'real_edited')", image)
    assert quick.value("SELECT seconds_to_decision FROM moderation.decisions") == pytest.approx(
        90, abs=20
    )
    outcomes = superuser.execute("SELECT outcome FROM app.claims ORDER BY id").fetchall()
    assert flat(outcomes) == ["expired", "decided"]


def test_a_claim_under_way_makes_nobody_wait(
    desk: Callable[..., Any], scored: Callable[..., Any]
) -> None:
    """While one moderator's claim is not committed, another's takes the next image."""
    images = {scored(), scored()}
    slow, quick = desk(), desk()
    quick.connection.execute("SET lock_timeout = '5s'")
    with slow.connection.transaction():
        first = slow.value("SELECT image_id FROM moderation.claim_next()")
        second = quick.value("SELECT image_id FROM moderation.claim_next()")
    assert {first, second} == images


def test_the_current_verdict_is_the_last_champions(
    desk: Callable[..., Any], scored: Callable[..., Any], engine: Engine
) -> None:
    """A later champion's verdict takes the place of the first; what others say is history only."""
    image, ledger = scored(0.97), PostgresLedger(engine)
    for version, role, probability in (
        ("model-2", Role.CHAMPION, 0.2),
        ("model-3", Role.RESCORE, 0.6),
    ):
        lease = ledger.lease_for_rescore(
            image, model_version=version, worker="w", duration=timedelta(minutes=2)
        )
        assert isinstance(lease, Lease)
        said = verdict_of(
            lease, probability, "real", None, None, None, model_version=version, role=role
        )
        ledger.record([said])
    someone = desk()
    assert someone.rows("SELECT model_version, score FROM moderation.verdicts") == [
        ("model-2", 0.2)
    ]
    history = someone.rows("SELECT actor FROM moderation.image_history WHERE event = 'verdict'")
    assert flat(history) == ["model-1", "model-2", "model-3"]


def test_the_queue_orders_by_uncertainty_reach_and_age(
    desk: Callable[..., Any], scored: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """Near the threshold, uploaded often, or waiting long: each comes before its plain twin."""
    plain = scored(0.995)
    uncertain = scored(0.9)
    viral = scored(0.995, sha256="ab" * 32)
    copies = [scored(0.995, sha256="ab" * 32) for _ in range(20)]
    old = scored(0.995)
    superuser.execute(
        "UPDATE app.reviews SET queued_at = queued_at - interval '9 hours', "
        "rank_at = rank_at - interval '9 hours' WHERE image_id = %s",
        [old],
    )
    order = flat(desk().rows("SELECT image_id FROM moderation.review_queue"))
    assert set(order) == {plain, uncertain, viral, old, *copies}
    assert order[0] == old
    assert order.index(copies[-1]) < order.index(uncertain) < order.index(plain)
    reach = desk().value(
        "SELECT reach FROM moderation.review_queue WHERE image_id = %s", copies[-1]
    )
    assert reach == 21


def test_a_removed_image_leaves_the_queue(
    desk: Callable[..., Any], scored: Callable[..., Any], engine: Engine, bucket: str
) -> None:
    """Nobody is shown an image that its owner took away."""
    scored(key="gone.jpg")
    someone = desk()
    assert someone.value("SELECT count(*) FROM moderation.review_queue") == 1
    PostgresLedger(engine).withdraw([Removal(bucket=bucket, key="gone.jpg")])
    assert someone.value("SELECT count(*) FROM moderation.review_queue") == 0


def test_similar_images_are_found_by_bits(
    desk: Callable[..., Any], scored: Callable[..., Any]
) -> None:
    """Hashes 31 bits apart are neighbours, 32 apart are not; checked by counting in Python."""
    base = int.from_bytes(bytes(range(32)), "big")
    near = base ^ sum(1 << (8 * place) for place in range(31))
    far = near ^ (1 << 255)
    assert ((base ^ near).bit_count(), (base ^ far).bit_count()) == (31, 32)
    image = scored(pdq=base.to_bytes(32, "big"))
    neighbour = scored(pdq=near.to_bytes(32, "big"))
    scored(pdq=far.to_bytes(32, "big"))
    someone = desk()
    found = someone.rows("SELECT image_id, distance FROM moderation.similar_images(%s)", image)
    assert found == [(neighbour, 31)]
    assert someone.rows("SELECT * FROM moderation.similar_images(%s, 30)", image) == []


def test_a_quick_search_finds_what_leaves_a_sixteenth_of_the_hash_as_it_is(
    desk: Callable[..., Any], scored: Callable[..., Any]
) -> None:
    """Fifteen bits, and thirty-one in fifteen chunks, are found at once; one bit in each is not."""
    base = int.from_bytes(bytes(range(32)), "big")

    def changed(chunks: int, *, bits: int) -> bytes:
        places = [16 * (bit % chunks) + bit // chunks for bit in range(bits)]
        return (base ^ sum(1 << place for place in places)).to_bytes(32, "big")

    image = scored(pdq=base.to_bytes(32, "big"))
    close, scattered = scored(pdq=changed(15, bits=15)), scored(pdq=changed(16, bits=16))
    packed = scored(pdq=changed(15, bits=31))
    search = "SELECT image_id, distance FROM moderation.similar_images(%s, 31, 50, %s)"
    someone = desk()
    assert someone.rows(search, image, True) == [(close, 15), (packed, 31)]
    assert someone.rows(search, image, False) == [(close, 15), (scattered, 16), (packed, 31)]


def test_a_near_duplicate_of_a_closed_report_joins_its_group(
    desk: Callable[..., Any], scored: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """The corpus is pinned or trained on by groups, so look-alikes are never parted.

    A group's hash decides: below 128 of 256 it is pinned, half of all.
    """
    lead = desk(lead=True)
    for changed in (0, 1):
        image = scored(pdq=bytes([changed, *range(1, 32)]))
        appeal = lead.value("SELECT moderation.open_appeal(%s)", image)
        lead.value("SELECT moderation.close_appeal(%s, 'overturned', 'real_original')", appeal)
    groups = superuser.execute("SELECT group_key, pinned, label FROM app.regression_items")
    first, second = groups.fetchall()
    assert first == second
    assert first[2] == "real"
    drawn = hashlib.md5(f"pinned {first[0]}".encode(), usedforsecurity=False).digest()[0]
    assert first[1] is (drawn < 128)


def test_the_corpus_follows_whoever_decides_last(
    desk: Callable[..., Any], scored: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """An overturn that is overturned leaves no entry that asks later models for the error."""
    image, lead = scored(0.97), desk(lead=True)
    lead.value("SELECT moderation.decide(%s, 'generated', 'generated_artefacts')", image)

    def corpus_after(decision: str, reason: str) -> list[Any]:
        lead.value("SELECT moderation.overturn(%s, %s, %s)", image, decision, reason)
        # The history tells it at the time of the decision that it rests on, in the same words.
        told = lead.rows(
            "SELECT h.summary FROM moderation.image_history h JOIN moderation.decisions d "
            "ON (h.detail ->> 'decision_id')::bigint = d.decision_id AND h.at = d.created_at "
            "WHERE h.event = 'regression corpus'"
        )
        held = superuser.execute("SELECT label FROM app.regression_items").fetchall()
        assert [row[0].split(",")[0] for row in told] == [f"must score as {x}" for (x,) in held]
        return flat(held)

    assert corpus_after("real", "real_original") == ["real"]
    assert corpus_after("generated", "generated_declared") == ["generated"]
    assert corpus_after("unsure", "unsure_mixed") == []
    assert corpus_after("generated", "generated_declared") == []
    assert corpus_after("real", "real_original") == ["real"]


def crowd(
    engine: Engine, desk: Callable[..., Any], *, people: int, images: int, batch: int
) -> list[tuple[str, Any]]:
    """Let `people` claim and decide until nothing is left; return who decided what."""
    generate(engine, images)
    desks = [desk() for _ in range(people)]
    decided: list[tuple[str, Any]] = []
    lock = threading.Lock()
    start = threading.Barrier(people)

    def work(someone: Any) -> None:
        start.wait()
        while taken := flat(someone.rows("SELECT image_id FROM moderation.claim_next(%s)", batch)):
            for image in taken:
                someone.value("SELECT moderation.decide(%s, 'real', 'real_plausible')", image)
            with lock:
                decided.extend((someone.name, image) for image in taken)

    with ThreadPoolExecutor(people) as pool:
        list(pool.map(work, desks))
    return decided


def generate(engine: Engine, images: int) -> None:
    """Put flagged images into the ledger at once; triggers queue them."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "WITH i AS (INSERT INTO app.images (bucket, key, etag, source, state, sha256) "
                "SELECT 'uploads', n || '.jpg', 'e', 'web', 'scored', lpad(to_hex(n), 64, '0') "
                "FROM generate_series(1, :images) n RETURNING id), "
                "l AS (INSERT INTO app.leases "
                "(image_id, worker, purpose, until, closed_at, outcome) "
                "SELECT id, 'w', 'score', now(), now(), 'scored' FROM i RETURNING id, image_id) "
                "INSERT INTO app.verdicts (image_id, lease_id, model_version, role, score, label, "
                "branches, decided_by, operating_point, prior, device, dtype) "
                "SELECT image_id, id, 'model-1', 'champion', 0.95, 'generated', '{}', 'lare', "
                "'fpr=0.01', 0.1, 'cpu', 'float32' FROM l"
            ),
            {"images": images},
        )


@pytest.mark.parametrize(
    ("people", "images"),
    [(12, 240), pytest.param(50, 5000, marks=[pytest.mark.full, pytest.mark.timeout(600)])],
)
def test_a_crowd_decides_every_image_once(
    engine: Engine,
    desk: Callable[..., Any],
    superuser: psycopg.Connection,
    people: int,
    images: int,
) -> None:
    """Real connections claim and decide at once: no image twice, none lost, claims all closed."""
    decided = crowd(engine, desk, people=people, images=images, batch=7)
    assert len(decided) == len({image for _, image in decided}) == images
    stored = superuser.execute("SELECT image_id, moderator FROM app.decisions").fetchall()
    assert {(name, image) for image, name in stored} == set(decided)
    assert len(stored) == images
    claims = superuser.execute(
        "SELECT count(*), count(DISTINCT image_id), count(*) FILTER (WHERE outcome = 'decided') "
        "FROM app.claims"
    ).fetchone()
    assert claims == (images, images, images)
    assert superuser.execute(
        "SELECT count(*) FROM app.reviews WHERE closed_at IS NULL"
    ).fetchone() == (0,)


def test_nobody_loses_what_a_vanished_moderator_held(
    engine: Engine, desk: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """Claims of a connection that died return when they run out, and a crowd finishes the rest."""
    generate(engine, 30)
    gone = desk()
    held = flat(gone.rows("SELECT image_id FROM moderation.claim_next(10)"))
    gone.connection.close()
    others = [desk(), desk()]
    free = [flat(one.rows("SELECT image_id FROM moderation.claim_next(15)")) for one in others]
    assert sum(map(len, free)) == 20
    assert not set(held) & {image for taken in free for image in taken}
    superuser.execute(
        "UPDATE app.reviews SET claimed_until = now() WHERE image_id = ANY (%s)", [held]
    )
    back = flat(others[0].rows("SELECT image_id FROM moderation.claim_next(30)"))
    assert set(back) == set(held)


def test_a_claim_ends_at_the_configured_time(
    desk: Callable[..., Any], scored: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """`claim_minutes` in the configuration sets how long a claim lasts."""
    superuser.execute("INSERT INTO app.config VALUES ('claim_minutes', '45')")
    scored()
    until = desk().value("SELECT claimed_until FROM moderation.claim_next()")
    assert until - datetime.now(UTC) == pytest.approx(
        timedelta(minutes=45), abs=timedelta(minutes=1)
    )


def test_of_two_who_decide_at_once_the_second_sees_the_first(
    desk: Callable[..., Any], scored: Callable[..., Any], superuser: psycopg.Connection
) -> None:
    """Also an image that nobody had queued or claimed is decided by one, and then by another."""
    image = scored(0.1)
    first, second = desk(), desk()
    decide = "SELECT moderation.decide(%s, %s, %s)"

    def somebody_waits() -> bool:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return superuser.execute(waiting).fetchone() != (0,)

    with ThreadPoolExecutor(1) as pool:
        with first.connection.transaction():
            first.value(decide, image, "real", "real_original")
            late = pool.submit(second.value, decide, image, "generated", "generated_artefacts")
            eventually(somebody_waits, what="the second moderator")
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="was decided real by"):
            late.result()
