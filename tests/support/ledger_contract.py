"""What every ledger must do: one suite that runs against the memory and the Postgres versions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby, permutations
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import pytest

from detection.intake.version import INTAKE_VERSION
from detection.score import TileLogit
from worker.ledger.interface import (
    AlreadyDone,
    DeathPolicy,
    HeldElsewhere,
    ImageFacts,
    Lease,
    LeaseOutcome,
    Ledger,
    Removal,
    Role,
    State,
    UnknownImage,
    Upload,
    Verdict,
)

if TYPE_CHECKING:
    from uuid import UUID

LONG = timedelta(minutes=2)
#: A lease of this length has run out when it is granted: the worker died on the spot.
DEAD = timedelta(seconds=-1)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class MakeLedger(Protocol):
    """Builds an empty ledger, or another view of the same one with other limits on deaths."""

    def __call__(self, deaths: DeathPolicy | None = None) -> Ledger:
        """Build."""


def upload(key: str = "a.jpg", **changes: object) -> Upload:
    """Return an upload of an unversioned bucket."""
    return replace(Upload(bucket="uploads", key=key, etag="e1", sequencer="10"), **changes)  # type: ignore[arg-type]  # a test's keywords


def verdict(lease: Lease, **changes: object) -> Verdict:
    """Return a champion's verdict on a leased image."""
    made = Verdict(
        image_id=lease.image_id,
        lease_id=lease.lease_id,
        facts=ImageFacts(
            sha256="ab" * 32, size=7, format="jpeg", width=64, height=65, pdq=b"p" * 32
        ),
        model_version="model-1",
        role=Role.CHAMPION,
        score=0.25,
        label="real",
        branches={"lare": -1.0},
        decided_by="lare",
        operating_point="fpr=0.01",
        prior=0.5,
        device="cpu",
        dtype="float32",
        timings_ms={"forward": 3.5},
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # a test's keywords


def registered(ledger: Ledger, key: str = "a.jpg") -> UUID:
    """Register one upload and return its id."""
    return ledger.register([upload(key)])[0].image_id


def taken(ledger: Ledger, image_id: UUID, duration: timedelta = LONG) -> Lease:
    """Lease an image that must be free."""
    answer = ledger.lease(image_id, worker="w", duration=duration)
    assert isinstance(answer, Lease)
    return answer


def taken_and_released(ledger: Ledger, image_id: UUID, outcome: LeaseOutcome) -> Lease:
    """Take an image and give it back."""
    lease = taken(ledger, image_id)
    ledger.release(lease, outcome=outcome)
    return lease


def reusable(
    ledger: Ledger,
    *,
    sha256: str = "ab" * 32,
    model_version: str = "model-1",
    intake_version: int = INTAKE_VERSION,
) -> Verdict | None:
    """Ask for the verdict of `verdict` again."""
    found = ledger.reusable_verdicts(
        [sha256], model_version=model_version, intake_version=intake_version
    )
    assert found.keys() <= {sha256}
    return found.get(sha256)


def state(ledger: Ledger, image_id: UUID) -> State:
    """Ask for the state by way of a lease."""
    answer = ledger.lease(image_id, worker="asks", duration=LONG)
    if isinstance(answer, AlreadyDone):
        return answer.state
    if isinstance(answer, Lease):
        ledger.release(answer, outcome=LeaseOutcome.RELEASED)
    return State.PENDING


def scored(ledger: Ledger, key: str = "a.jpg") -> UUID:
    """Register and score one upload."""
    image_id = registered(ledger, key)
    ledger.record([verdict(taken(ledger, image_id))])
    return image_id


class LedgerContract:
    """Subclasses give a fixture `make_ledger`; each of its ledgers shares one set of tables."""

    @pytest.fixture
    def ledger(self, make_ledger: MakeLedger) -> Ledger:
        """A ledger with the default limits."""
        return make_ledger()

    # Registration

    def test_a_new_upload_is_created_and_unpublished(self, ledger: Ledger) -> None:
        """A new upload gets a row that waits for its message."""
        (answer,) = ledger.register([upload(priority=True)])
        assert (answer.created, answer.unpublished, answer.priority) == (True, True, True)

    def test_duplicates_change_nothing(self, ledger: Ledger) -> None:
        """The same event three times, in one call and in later calls, is one row."""
        answers = ledger.register([upload(), upload()]) + ledger.register([upload()])
        assert len({answer.image_id for answer in answers}) == 1
        assert [answer.created for answer in answers] == [True, False, False]
        assert ledger.backlog().pending == 1

    def test_a_duplicate_of_a_published_row_is_not_published_again(self, ledger: Ledger) -> None:
        """Only a row that no message was sent for asks for one."""
        image_id = registered(ledger)
        assert ledger.register([upload()])[0].unpublished
        ledger.mark_published([image_id])
        assert not ledger.register([upload()])[0].unpublished

    def test_another_bucket_key_or_content_is_another_upload(self, ledger: Ledger) -> None:
        """Any part that both events name and that differs makes another upload."""
        answers = ledger.register(
            [
                upload(),
                upload(bucket="other"),
                upload(key="b.jpg"),
                upload(etag="e2"),
                upload(version_id="v1", etag="e3"),
                upload(version_id="v2", etag="e3"),
                upload(version_id="v2", etag=None, sequencer="11"),
            ]
        )
        assert [a.created for a in answers] == [True] * 6 + [False]

    def test_a_hook_and_storage_that_name_the_same_object_are_one_upload(
        self, ledger: Ledger
    ) -> None:
        """Etag, version id or both: whichever comes first, in one call or several, it is one row.

        What the hook says of source, uploader and priority stands, and the version is known.
        """
        names: list[dict[str, object]] = [
            {"version_id": "v1"},
            {"sequencer": None, "source": "web", "uploader": "u-1", "priority": True},
            {"version_id": "v1", "sequencer": None, "content_type": "image/jpeg"},
        ]
        for number, order in enumerate(permutations(names)):
            for at_once in (True, False):
                key = f"{number}-{at_once}.jpg"
                ordered = [upload(key, **one) for one in (*order, *order)]
                calls = [ordered] if at_once else [[one] for one in ordered]
                answers = [answer for call in calls for answer in ledger.register(call)]
                assert len({answer.image_id for answer in answers}) == 1, order
                assert [answer.created for answer in answers] == [True] + 5 * [False]
                assert taken(ledger, answers[0].image_id).upload == upload(
                    key,
                    version_id="v1",
                    source="web",
                    uploader="u-1",
                    priority=True,
                    content_type="image/jpeg",
                )

    def test_priority_that_comes_late_sends_another_message(self, ledger: Ledger) -> None:
        """An image that waits in the slower queue is published once more, to the quicker one."""
        image_id = registered(ledger)
        ledger.mark_published([image_id])
        (hurried,) = ledger.register([upload(priority=True)])
        assert (hurried.created, hurried.unpublished, hurried.priority) == (False, True, True)
        ledger.mark_published([image_id])
        assert not ledger.register([upload(priority=True)])[0].unpublished
        ledger.record([verdict(taken(ledger, image_id))])

    def test_a_notification_never_undoes_what_a_hook_said(self, ledger: Ledger) -> None:
        """The first hook's word stands against notifications and against a second hook."""
        told = upload(version_id="v1", source="web", uploader="u-1")
        (first,) = ledger.register([told])
        ledger.register([upload(version_id="v1"), upload(source="app", uploader="u-2")])
        known = taken(ledger, first.image_id).upload
        assert (known.source, known.uploader) == ("web", "u-1")

    def test_two_versions_of_the_same_bytes_are_two_uploads(self, ledger: Ledger) -> None:
        """Each version has its row, and each of two hooks speaks for another one."""
        ledger.register([upload(version_id="v1", sequencer="10")])
        ledger.register([upload(version_id="v2", sequencer="20")])
        hooks = [upload(sequencer=None, source=source) for source in ("web", "app")]
        answers = ledger.register([*hooks, *hooks])
        assert [answer.created for answer in answers] == [False] * 4
        assert len({answer.image_id for answer in answers}) == 2
        assert ledger.backlog().pending == 2

    def test_a_hook_that_came_twice_before_storage_is_split_by_versions(
        self, ledger: Ledger
    ) -> None:
        """One row while nobody can tell; storage that names two versions makes it two."""
        first, again = ledger.register([upload(sequencer=None), upload(sequencer=None)])
        assert first.image_id == again.image_id
        answers = ledger.register([upload(version_id=version) for version in ("v1", "v2")])
        assert [answer.created for answer in answers] == [False, True]
        assert answers[0].image_id == first.image_id

    def test_a_version_that_was_removed_before_anybody_knew_it_ends_its_row(
        self, ledger: Ledger
    ) -> None:
        """A hook's row has no version; when storage names the removed one, the row is withdrawn."""
        (hooked,) = ledger.register([upload(sequencer=None)])
        ledger.withdraw([Removal(bucket="uploads", key="a.jpg", version_id="v1", sequencer="20")])
        assert state(ledger, hooked.image_id) is State.PENDING
        (named,) = ledger.register([upload(version_id="v1", sequencer="10")])
        assert (named.image_id, named.created, named.unpublished) == (hooked.image_id, False, False)
        assert state(ledger, hooked.image_id) is State.WITHDRAWN

    def test_answers_come_in_the_order_of_the_uploads(self, ledger: Ledger) -> None:
        """The caller can zip uploads and answers."""
        keys = ["c.jpg", "a.jpg", "b.jpg"]
        answers = ledger.register([upload(key) for key in keys])
        leases = [taken(ledger, answer.image_id) for answer in answers]
        assert [lease.upload.key for lease in leases] == keys

    def test_an_upload_comes_back_whole(self, ledger: Ledger) -> None:
        """Every field of an upload survives the ledger."""
        whole = Upload(
            bucket="uploads",
            key="dir/ä b.jpg",
            version_id="v",
            etag="e",
            sequencer="0055AED6",
            size=5,
            content_type="image/png",
            sha256="cd" * 32,
            source="web",
            uploader="u-1",
            priority=True,
            uploaded_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
        (answer,) = ledger.register([whole])
        assert taken(ledger, answer.image_id).upload == whole

    def test_more_uploads_than_a_statement_takes(self, ledger: Ledger) -> None:
        """Postgres takes 65,535 parameters, about 4,700 rows; a call may bring more."""
        uploads = [upload(f"{n}.jpg") for n in range(7000)]
        answers = ledger.register(uploads)
        assert sum(answer.created for answer in answers) == len(uploads)
        ledger.mark_published([answer.image_id for answer in answers])
        again = ledger.register(uploads)
        assert [answer.image_id for answer in again] == [answer.image_id for answer in answers]
        assert not any(answer.created or answer.unpublished for answer in again)

    def test_nothing_to_register_is_fine(self, ledger: Ledger) -> None:
        """Empty batches pass through every batch method."""
        assert ledger.register([]) == []
        assert ledger.withdraw([]) == 0
        ledger.mark_published([])
        ledger.record([])

    # Removal

    def test_a_removal_withdraws_and_a_new_upload_is_not_blocked(self, ledger: Ledger) -> None:
        """The same bytes uploaded again after their removal are a new upload."""
        first = registered(ledger)
        assert ledger.withdraw([Removal(bucket="uploads", key="a.jpg", sequencer="20")]) == 1
        assert state(ledger, first) is State.WITHDRAWN
        (second,) = ledger.register([upload(sequencer="30")])
        assert second.created
        assert second.image_id != first

    def test_a_late_duplicate_does_not_reopen_a_removed_object(self, ledger: Ledger) -> None:
        """A created event that orders before the removal stays withdrawn."""
        first = registered(ledger)
        ledger.withdraw([Removal(bucket="uploads", key="a.jpg", sequencer="20")])
        (late,) = ledger.register([upload()])
        assert (late.image_id, late.created, late.unpublished) == (first, False, False)
        assert ledger.backlog().pending == 0

    def test_a_removal_may_come_before_its_creation(self, ledger: Ledger) -> None:
        """Out of order, created and removed still end withdrawn, in one row."""
        assert ledger.withdraw([Removal(bucket="uploads", key="a.jpg", sequencer="20")]) == 0
        first, again = ledger.register([upload()])[0], ledger.register([upload()])[0]
        assert not first.created
        assert first.image_id == again.image_id
        assert state(ledger, first.image_id) is State.WITHDRAWN

    def test_a_removal_older_than_the_upload_changes_nothing(self, ledger: Ledger) -> None:
        """A late removal of an earlier object spares the object that replaced it."""
        image_id = ledger.register([upload(sequencer="0A1")])[0].image_id
        assert ledger.withdraw([Removal(bucket="uploads", key="a.jpg", sequencer="0A")]) == 0
        assert state(ledger, image_id) is State.PENDING

    def test_a_repeated_upload_moves_the_order_on(self, ledger: Ledger) -> None:
        """Same bytes stored again: a removal between the two uploads comes too late to count."""
        image_id = registered(ledger)
        ledger.register([upload(sequencer="30")])
        assert ledger.withdraw([Removal(bucket="uploads", key="a.jpg", sequencer="20")]) == 0
        assert state(ledger, image_id) is State.PENDING

    @pytest.mark.parametrize("etag", ["e1", "e2"])
    def test_the_highest_sequencer_wins_in_any_order(self, ledger: Ledger, etag: str) -> None:
        """Created 01, created 03 and removed 02 leave the upload of 03 live, of whatever bytes.

        A bridge registers neighbours in one call; so does this, and one by one.
        """
        for order in permutations(("01", "03", "-02")):
            for size in (1, 2):
                key = f"{order}{size}.jpg"
                created = {
                    "01": upload(key, sequencer="01"),
                    "03": upload(key, sequencer="03", etag=etag),
                }
                answers = {}
                for removal, run in groupby(order, lambda name: name == "-02"):
                    if removal:
                        ledger.withdraw([Removal(bucket="uploads", key=key, sequencer="02")])
                        continue
                    names = list(run)
                    for at in range(0, len(names), size):
                        call = names[at : at + size]
                        found = ledger.register([created[name] for name in call])
                        answers |= {n: one.image_id for n, one in zip(call, found, strict=True)}
                assert state(ledger, answers["03"]) is State.PENDING, order
                if answers["01"] != answers["03"]:
                    assert state(ledger, answers["01"]) is State.WITHDRAWN, order

    def test_a_removed_version_takes_only_itself(self, ledger: Ledger) -> None:
        """Deleting a version leaves the others, and that version never comes back."""
        one, two = ledger.register([upload(version_id="v1"), upload(version_id="v2")])
        gone = Removal(bucket="uploads", key="a.jpg", version_id="v1")
        assert ledger.withdraw([gone]) == 1
        assert state(ledger, one.image_id) is State.WITHDRAWN
        assert state(ledger, two.image_id) is State.PENDING
        assert not ledger.register([upload(version_id="v1", sequencer="99")])[0].created

    def test_without_sequencers_arrival_decides(self, ledger: Ledger) -> None:
        """A producer that sends no sequencers may upload, remove and upload again."""
        ledger.register([upload(sequencer=None)])
        assert ledger.withdraw([Removal(bucket="uploads", key="a.jpg")]) == 1
        assert ledger.register([upload(sequencer=None)])[0].created

    def test_repeated_removals_change_nothing(self, ledger: Ledger) -> None:
        """A removal counts once, and the later of two removals is remembered."""
        registered(ledger)
        late = Removal(bucket="uploads", key="a.jpg", sequencer="20")
        early = Removal(bucket="uploads", key="a.jpg", sequencer="15")
        assert ledger.withdraw([late, early]) == 1
        assert ledger.withdraw([early, late]) == 0
        assert not ledger.register([upload(sequencer="18")])[0].created

    # Leases

    def test_a_lease_excludes_others(self, ledger: Ledger) -> None:
        """While one worker holds an image the next is told until when."""
        image_id = registered(ledger)
        first = taken(ledger, image_id)
        second = ledger.lease(image_id, worker="other", duration=LONG)
        assert isinstance(second, HeldElsewhere)
        assert second.until == first.until
        assert (first.attempt, first.deaths, first.alone) == (1, 0, False)

    def test_plain_images_are_leased_together(self, ledger: Ledger) -> None:
        """Free images get a lease each, as if asked for alone; for all others the answer is None.

        Others are the unknown, the ended, the held, the suspect, and the second of the same id.
        """
        plain, again, ended, held, died, dying = (
            registered(ledger, f"{name}.jpg") for name in "abcdef"
        )
        taken_and_released(ledger, again, LeaseOutcome.UNREADABLE)
        ledger.end(taken(ledger, ended), state=State.FAILED, reason="truncated", detail="")
        taken(ledger, held)
        taken(ledger, died, DEAD)
        ledger.release(taken(ledger, died), outcome=LeaseOutcome.RELEASED)
        taken(ledger, dying, DEAD)
        asked = [plain, uuid4(), ended, again, held, died, dying, plain]
        answers = ledger.lease_together(asked, worker="w", duration=LONG)
        assert [n for n, answer in enumerate(answers) if answer is not None] == [0, 3]
        first, second = (answer for answer in answers if answer is not None)
        assert (first.image_id, first.upload) == (plain, upload("a.jpg"))
        assert (first.attempt, first.deaths, first.alone, first.unreadable) == (1, 0, False, 0)
        assert (second.attempt, second.unreadable) == (2, 1)
        assert second.retried_for > timedelta(0)
        assert isinstance(ledger.lease(plain, worker="other", duration=LONG), HeldElsewhere)
        ledger.record([verdict(first)])
        assert state(ledger, plain) is State.SCORED

    def test_an_unknown_image_is_an_error_of_its_own(self, ledger: Ledger) -> None:
        """A message for an id that the ledger never saw is refused, not retried."""
        with pytest.raises(UnknownImage):
            ledger.lease(uuid4(), worker="w", duration=LONG)
        with pytest.raises(UnknownImage):
            ledger.lease_for_rescore(uuid4(), model_version="m", worker="w", duration=LONG)

    @pytest.mark.parametrize("outcome", [LeaseOutcome.RETRY, LeaseOutcome.RELEASED])
    def test_retries_are_not_deaths(self, ledger: Ledger, outcome: LeaseOutcome) -> None:
        """However often a lease is given back, the image stays trusted."""
        image_id = registered(ledger)
        for _ in range(5):
            ledger.release(taken(ledger, image_id), outcome=outcome, detail="storage is slow")
        lease = taken(ledger, image_id)
        assert (lease.attempt, lease.deaths, lease.alone) == (6, 0, False)

    def test_a_lease_tells_what_storage_cost_before(self, ledger: Ledger) -> None:
        """Leases closed as unreadable count, retries begin the clock, and reopening forgives."""
        image_id = registered(ledger)
        first = taken(ledger, image_id)
        assert (first.unreadable, first.retried_for) == (0, timedelta(0))
        ledger.release(first, outcome=LeaseOutcome.RELEASED)
        assert taken_and_released(ledger, image_id, LeaseOutcome.RETRY).retried_for == timedelta(0)
        second = taken_and_released(ledger, image_id, LeaseOutcome.UNREADABLE)
        third = taken_and_released(ledger, image_id, LeaseOutcome.UNREADABLE)
        assert (second.unreadable, third.unreadable) == (0, 1)
        assert timedelta(0) < second.retried_for < third.retried_for
        last = taken(ledger, image_id)
        assert (last.unreadable, last.attempt, last.deaths) == (2, 5, 0)
        ledger.end(last, state=State.FAILED, reason="storage_unreadable", detail="")
        ledger.reopen(reason="storage_unreadable", since=LONG_AGO, limit=1)
        again = taken(ledger, image_id)
        assert (again.unreadable, again.retried_for, again.attempt) == (0, timedelta(0), 6)

    def test_a_lease_that_runs_out_is_a_death(self, ledger: Ledger) -> None:
        """The next lease after a death runs alone."""
        image_id = registered(ledger)
        taken(ledger, image_id, DEAD)
        lease = taken(ledger, image_id)
        assert (lease.deaths, lease.alone) == (1, True)

    def test_a_death_counts_once(self, ledger: Ledger) -> None:
        """However often the image is asked for after a death, it is one death."""
        image_id = registered(ledger)
        taken(ledger, image_id, DEAD)
        for _ in range(4):
            lease = taken(ledger, image_id)
            assert lease.deaths == 1
            ledger.release(lease, outcome=LeaseOutcome.RETRY)

    def test_three_deaths_quarantine(self, ledger: Ledger) -> None:
        """The third death ends the image, so that it kills no fourth worker."""
        image_id = registered(ledger)
        for deaths in range(3):
            assert taken(ledger, image_id, DEAD).deaths == deaths
        assert state(ledger, image_id) is State.QUARANTINED
        assert ledger.backlog().pending == 0

    def test_mass_deaths_pause_quarantining(self, make_ledger: MakeLedger) -> None:
        """When many images die together the worker is to blame, and an alert can see it."""
        ledger = make_ledger(DeathPolicy(max_deaths=2, max_in_window=3))
        images = [registered(ledger, f"{n}.jpg") for n in range(4)]
        for _ in range(3):
            for image_id in images:
                taken(ledger, image_id, DEAD)
        assert [state(ledger, image_id) for image_id in images] == [State.PENDING] * 4
        backlog = ledger.backlog()
        assert (backlog.recent_deaths, backlog.quarantine_paused) == (4, True)

    def test_deaths_far_apart_do_not_pause_quarantining(self, make_ledger: MakeLedger) -> None:
        """Deaths of other images outside the window do not protect a killer."""
        ledger = make_ledger(
            DeathPolicy(max_deaths=2, max_in_window=1, window=timedelta(minutes=1))
        )
        for n in range(3):
            taken(ledger, registered(ledger, f"{n}.jpg"), timedelta(hours=-1))
        image_id = registered(ledger, "killer.jpg")
        taken(ledger, image_id, DEAD)
        taken(ledger, image_id, DEAD)
        assert state(ledger, image_id) is State.QUARANTINED
        assert not ledger.backlog().quarantine_paused

    def test_a_late_word_undoes_a_death(self, ledger: Ledger) -> None:
        """A worker that was only slow is not held against the image."""
        image_id = registered(ledger)
        slow = taken(ledger, image_id, DEAD)
        second = taken(ledger, image_id)
        assert second.deaths == 1
        ledger.release(slow, outcome=LeaseOutcome.RETRY, detail="the database was away")
        ledger.release(second, outcome=LeaseOutcome.RETRY)
        assert taken(ledger, image_id).deaths == 0

    # Outcomes

    def test_a_verdict_ends_the_image(self, ledger: Ledger) -> None:
        """Scored images need no more work and hold no lease."""
        image_id = scored(ledger)
        assert state(ledger, image_id) is State.SCORED
        assert ledger.backlog().leased == 0

    def test_the_first_verdict_of_a_model_stands(self, ledger: Ledger) -> None:
        """Twins in a batch and repeats later leave one verdict."""
        image_id = registered(ledger)
        lease = taken(ledger, image_id)
        ledger.record([verdict(lease), verdict(lease, score=0.5)])
        ledger.record([verdict(lease, score=0.75)])
        found = reusable(ledger)
        assert found is not None
        assert found.score == 0.25

    def test_a_batch_with_one_withdrawn_image_is_recorded(self, ledger: Ledger) -> None:
        """An image withdrawn while it was scored keeps its state; its batch mates are scored."""
        leases = [taken(ledger, registered(ledger, key)) for key in ("a.jpg", "b.jpg")]
        ledger.withdraw([Removal(bucket="uploads", key="a.jpg", sequencer="20")])
        ledger.record([verdict(lease) for lease in leases])
        ends = [state(ledger, lease.image_id) for lease in leases]
        assert ends == [State.WITHDRAWN, State.SCORED]

    def test_the_last_upload_that_was_read_is_known(self, ledger: Ledger) -> None:
        """It is the one scored last, until it is withdrawn."""
        assert ledger.last_read() is None
        for key in ("a.jpg", "b.jpg"):
            scored(ledger, key)
        registered(ledger, "c.jpg")
        for key in ("b.jpg", "a.jpg"):
            known = ledger.last_read()
            assert known is not None
            assert (known.bucket, known.key, known.etag) == ("uploads", key, "e1")
            ledger.withdraw([Removal(bucket="uploads", key=key)])
        assert ledger.last_read() is None

    def test_equal_bytes_reuse_the_verdict_of_the_same_versions_only(self, ledger: Ledger) -> None:
        """The whole verdict comes back, by checksum, model version and intake version."""
        lease = taken(ledger, registered(ledger))
        tiles = (TileLogit(top=1, left=2, height=64, width=48, logit=-1.25),)
        said = verdict(
            lease, intake_version=7, thresholds_hold=False, frame=3, distance=-1.5, tiles=tiles
        )
        ledger.record([said])
        assert reusable(ledger, intake_version=7) == said
        assert reusable(ledger, intake_version=7, model_version="model-2") is None
        assert reusable(ledger, intake_version=7, sha256="00" * 32) is None
        assert reusable(ledger, intake_version=8) is None

    def test_why_an_image_cannot_be_judged_is_kept(self, ledger: Ledger) -> None:
        """The reason stands in the verdict's row, and with the verdict that another image takes."""
        lease = taken(ledger, registered(ledger))
        doubted = replace(verdict(lease), label="unsure", outside="too small: 64 pixels")
        ledger.record([doubted])
        assert reusable(ledger) == doubted

    def test_evidence_is_noted_on_its_verdict_only(self, ledger: Ledger) -> None:
        """A verdict's evidence is found again; a model without a verdict gets none."""
        lease = taken(ledger, registered(ledger))
        ledger.record([verdict(lease)])
        uri = "s3://uploads/evidence.png"
        for model, attached in (("model-1", True), ("model-2", False)):
            done = ledger.attach_evidence(lease.image_id, model_version=model, uri=uri)
            assert done is attached
        found = reusable(ledger)
        assert found is not None
        assert found.evidence_uri == uri

    @pytest.mark.parametrize("end", [State.FAILED, State.SUPERSEDED])
    def test_ending_closes_the_lease(self, ledger: Ledger, end: State) -> None:
        """A refused image is terminal, whatever characters its error carries."""
        lease = taken(ledger, registered(ledger))
        ledger.end(lease, state=end, reason="not_an_image", detail="bytes \0 " + "x" * 9999)
        assert state(ledger, lease.image_id) is end
        assert ledger.backlog().leased == 0

    def test_ending_a_scored_image_changes_nothing(self, ledger: Ledger) -> None:
        """A failed rescoring leaves the image scored."""
        image_id = scored(ledger)
        lease = ledger.lease_for_rescore(
            image_id, model_version="model-2", worker="w", duration=LONG
        )
        assert isinstance(lease, Lease)
        ledger.end(lease, state=State.FAILED, reason="object_missing", detail="")
        assert state(ledger, image_id) is State.SCORED

    # Rescoring

    def test_rescoring_adds_a_verdict_once(self, ledger: Ledger) -> None:
        """Each model version is asked once, and the state stays."""
        image_id = scored(ledger)
        assert [
            r.image_id for r in ledger.rescorable(model_version="model-2", since=None, limit=9)
        ] == [image_id]
        lease = ledger.lease_for_rescore(
            image_id, model_version="model-2", worker="w", duration=LONG
        )
        assert isinstance(lease, Lease)
        ledger.record([verdict(lease, model_version="model-2", role=Role.RESCORE)])
        again = ledger.lease_for_rescore(
            image_id, model_version="model-2", worker="w", duration=LONG
        )
        assert again == AlreadyDone(image_id=image_id, state=State.SCORED)
        assert ledger.rescorable(model_version="model-2", since=None, limit=9) == []

    def test_only_scored_images_are_rescored(self, ledger: Ledger) -> None:
        """A pending image is the champion's, not the backfill's."""
        image_id = registered(ledger)
        answer = ledger.lease_for_rescore(image_id, model_version="m", worker="w", duration=LONG)
        assert answer == AlreadyDone(image_id=image_id, state=State.PENDING)
        assert ledger.rescorable(model_version="m", since=LONG_AGO, limit=9) == []

    def test_an_image_that_kills_is_not_rescored_for_ever(self, ledger: Ledger) -> None:
        """Deaths in rescoring stop the rescoring and spare the verdict."""
        image_id = scored(ledger)
        for _ in range(3):
            ledger.lease_for_rescore(image_id, model_version="m", worker="w", duration=DEAD)
        answer = ledger.lease_for_rescore(image_id, model_version="m", worker="w", duration=LONG)
        assert answer == AlreadyDone(image_id=image_id, state=State.SCORED)

    # Sweeping and reopening

    def test_the_sweeper_sees_what_waits_and_nothing_else(self, ledger: Ledger) -> None:
        """Leased, recently published and terminal rows are left alone."""
        waiting, recent, leased = (registered(ledger, f"{n}.jpg") for n in range(3))
        scored(ledger, "done.jpg")
        zero = timedelta(0)
        ledger.mark_published([waiting, leased])
        taken(ledger, leased)
        assert {r.image_id for r in ledger.stale(published_before=zero, limit=9)} == {
            waiting,
            recent,
        }
        assert len(ledger.stale(published_before=zero, limit=1)) == 1
        assert ledger.stale(published_before=timedelta(hours=1), limit=9) == []

    def test_a_dead_lease_does_not_hide_an_image_from_the_sweeper(self, ledger: Ledger) -> None:
        """What a dead worker left behind is published again."""
        image_id = registered(ledger)
        ledger.mark_published([image_id])
        taken(ledger, image_id, DEAD)
        assert [r.image_id for r in ledger.stale(published_before=timedelta(0), limit=9)] == [
            image_id
        ]

    def test_reopening_is_by_reason_and_time(self, ledger: Ledger) -> None:
        """Only rows that failed for that reason since then return, and they ask for a message."""
        failed, other = (taken(ledger, registered(ledger, f"{n}.jpg")) for n in range(2))
        ledger.end(failed, state=State.FAILED, reason="access_denied", detail="")
        ledger.end(other, state=State.FAILED, reason="not_an_image", detail="")
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        assert ledger.reopen(reason="access_denied", since=tomorrow, limit=9) == []
        (again,) = ledger.reopen(reason="access_denied", since=LONG_AGO, limit=9)
        assert (again.image_id, again.unpublished) == (failed.image_id, True)
        assert state(ledger, failed.image_id) is State.PENDING
        assert state(ledger, other.image_id) is State.FAILED

    def test_reopening_forgives_deaths(self, ledger: Ledger) -> None:
        """A reopened image starts with a clean record."""
        image_id = registered(ledger)
        for _ in range(3):
            taken(ledger, image_id, DEAD)
        assert state(ledger, image_id) is State.QUARANTINED
        assert len(ledger.reopen(reason="killed_worker", since=LONG_AGO, limit=9)) == 1
        assert taken(ledger, image_id).deaths == 0

    def test_backlog_counts_waiting_and_leased(self, ledger: Ledger) -> None:
        """Waiting plus in flight is what autoscaling reads."""
        empty = ledger.backlog()
        assert (empty.pending, empty.leased, empty.oldest_pending_age_s) == (0, 0, 0.0)
        taken(ledger, registered(ledger, "a.jpg"))
        registered(ledger, "b.jpg")
        backlog = ledger.backlog()
        assert (backlog.pending, backlog.leased) == (2, 1)
        assert 0 < backlog.oldest_pending_age_s < 60
