"""C2PA manifests: whether files fit them, what is known of their signers, and what went in."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import c2pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.errors import SettingsError
from detection.intake.metadata.c2pa_manifest import (
    C2pa,
    Ingredient,
    ManifestState,
    SignerState,
    TrustLists,
    read_c2pa,
)
from detection.intake.provenance import ProvenanceRecord, read_provenance
from tests.support.faults.process_crew import clock_off
from tests.support.images.bad_files import encoded, picture
from tests.support.images.signed_files import DAY, Authority, created, sign, signed

if TYPE_CHECKING:
    from pathlib import Path

_TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_TRAINED = _TERMS + "trainedAlgorithmicMedia"
_CAPTURE = _TERMS + "digitalCapture"
_JPEG = encoded(picture(), "JPEG")
_NOW = dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """Two roots: one of a signer, one of an authority for time stamps; and a stranger's."""

    signers: Authority
    clocks: Authority
    strangers: Authority

    def lists(self, folder: Path, *, signers: bool = False, clocks: bool = False) -> TrustLists:
        """Trust lists with these roots."""
        return TrustLists.load(
            [self.signers.write(folder)] if signers else [],
            [self.clocks.write(folder)] if clocks else [],
        )


@pytest.fixture(scope="module")
def people() -> People:
    """Roots that only the lists of a test name."""
    return People(
        signers=Authority.make("signers"),
        clocks=Authority.make("clocks"),
        strangers=Authority.make("strangers"),
    )


def altered(data: bytes) -> bytes:
    """Change a byte of the pixels."""
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


def read_later(folder: Path, data: bytes, trust: TrustLists, days: int) -> C2pa:
    """Read a file in a process whose clock is so many days ahead."""
    file = folder / "signed.jpg"
    file.write_bytes(data)
    script = (
        "import json, sys\n"
        "from detection.intake.provenance import TrustLists, read_provenance\n"
        "trust = TrustLists(signers=sys.argv[2], time_stamp_authorities=sys.argv[3])\n"
        "found = read_provenance(open(sys.argv[1], 'rb').read(), trust=trust)\n"
        "print(json.dumps(found.as_dict()))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(file), trust.signers, trust.time_stamp_authorities],
        env=os.environ | clock_off(24 * days),
        capture_output=True,
        check=True,
    )
    return ProvenanceRecord.from_dict(json.loads(told.stdout)).c2pa


# ---------------------------------------------------------------- fit and signer


@pytest.mark.parametrize(
    ("kind", "media"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp")]
)
def test_a_file_that_fits_is_well_formed(people: People, kind: str, media: str) -> None:
    """Hashes and signature hold; without a list nothing is known of the signer but the name."""
    record = read_provenance(signed(people.signers.signer(), _TRAINED, kind, media))
    found = record.c2pa
    assert (found.state, found.signer_state) == (ManifestState.WELL_FORMED, SignerState.UNKNOWN)
    assert found.signer == "leaf, unlatent tests"
    assert found.signed_at is None
    assert found.digital_source_types == (_TRAINED,)
    assert found.problems == ()
    assert record.declares_ai
    assert record.declared_generator is not None
    assert record.declared_generator.startswith("Test Camera 1.0")
    assert record.declared_where == ("C2PA manifest",)


def test_only_signers_on_the_list_are_trusted(people: People, tmp_path: Path) -> None:
    """A signer is trusted by the list of signers; the list of time-stamp authorities is no such."""
    data = signed(people.signers.signer(), _CAPTURE)
    trusted = read_c2pa(data, "image/jpeg", people.lists(tmp_path, signers=True))
    assert (trusted.state, trusted.signer_state) == (ManifestState.TRUSTED, SignerState.TRUSTED)
    assert not trusted.asserts_ai
    stranger = read_c2pa(
        signed(people.strangers.signer(), _CAPTURE),
        "image/jpeg",
        people.lists(tmp_path, signers=True),
    )
    assert stranger.state is ManifestState.WELL_FORMED
    assert stranger.signer_state is SignerState.UNTRUSTED
    by_clock = read_c2pa(
        signed(people.clocks.signer(), _CAPTURE),
        "image/jpeg",
        people.lists(tmp_path, signers=True, clocks=True),
    )
    assert by_clock.signer_state is SignerState.UNTRUSTED


def test_altered_pixels_break_the_manifest(people: People, tmp_path: Path) -> None:
    """A file that does not fit is broken, whoever signed it, and says which hash failed."""
    data = altered(signed(people.signers.signer(), _TRAINED))
    for lists in (TrustLists(), people.lists(tmp_path, signers=True)):
        found = read_c2pa(data, "image/jpeg", lists)
        assert (found.state, found.signer_state) == (ManifestState.BROKEN, None)
        assert found.problems == ("assertion.dataHash.mismatch",)
    assert read_provenance(data).declared_where == ("C2PA manifest (broken)",)


def test_a_manifest_that_cannot_be_parsed_is_broken(people: People) -> None:
    """A damaged store is told apart from none at all."""
    data = signed(people.signers.signer(), _TRAINED)
    at = data.index(b"jumb") + 100
    found = read_c2pa(data[:at] + bytes(60) + data[at + 60 :], "image/jpeg")
    assert found.state is ManifestState.BROKEN
    assert found.problems
    assert not found.asserts_ai


def test_no_manifest_is_absent() -> None:
    """A picture without a manifest has none."""
    assert read_c2pa(_JPEG, "image/jpeg") == C2pa()


def test_a_manifest_elsewhere_is_absent_and_not_fetched(people: People) -> None:
    """A file that only names an address carries no manifest, and nobody is asked for it."""
    told = {"assertions": [{"label": "c2pa.actions", "data": {"actions": [created(_CAPTURE)]}}]}
    result = io.BytesIO()
    with (
        c2pa.Signer.from_info(people.signers.signer()) as signer,
        c2pa.Builder(json.dumps(told)) as builder,
    ):
        builder.set_no_embed()
        builder.set_remote_url("http://127.0.0.1:9/manifest.c2pa")
        builder.sign(signer, "image/jpeg", io.BytesIO(_JPEG), result)
    found = read_c2pa(result.getvalue(), "image/jpeg")
    assert found == C2pa(problems=("manifest.inaccessible",))


# ---------------------------------------------------------------- time


def test_an_expired_certificate_leaves_the_file_as_it_is(people: People, tmp_path: Path) -> None:
    """The day after its certificate ends a file still fits, and its signer counts as expired."""
    data = signed(people.signers.signer(end=_NOW + DAY), _CAPTURE)
    for lists in (TrustLists(), people.lists(tmp_path, signers=True)):
        found = read_later(tmp_path, data, lists, days=2)
        assert (found.state, found.signer_state) == (ManifestState.WELL_FORMED, SignerState.EXPIRED)
        assert found.problems == ()


def test_a_time_stamp_outlives_the_certificate(people: People, tmp_path: Path) -> None:
    """A time stamp within the certificate's time keeps a file what it was on the day it ends."""
    with people.clocks.time_stamp_authority().serve(_NOW) as url:
        data = signed(people.signers.signer(end=_NOW + DAY, ta_url=url), _CAPTURE)
    today = read_c2pa(data, "image/jpeg")
    assert today.state is ManifestState.WELL_FORMED
    assert today.signed_at is not None
    assert dt.datetime.fromisoformat(today.signed_at) == _NOW.replace(microsecond=0)
    assert read_later(tmp_path, data, TrustLists(), days=2) == today
    lists = people.lists(tmp_path, signers=True, clocks=True)
    assert read_later(tmp_path, data, lists, days=2).state is ManifestState.TRUSTED


def test_trust_takes_a_time_stamp_that_is_trusted_itself(people: People, tmp_path: Path) -> None:
    """A signer's old key does not become good again by a time stamp that anybody made."""
    with people.strangers.time_stamp_authority().serve(_NOW) as url:
        data = signed(people.signers.signer(end=_NOW + DAY, ta_url=url), _CAPTURE)
    lists = people.lists(tmp_path, signers=True, clocks=True)
    assert read_c2pa(data, "image/jpeg", lists).state is ManifestState.TRUSTED
    later = read_later(tmp_path, data, lists, days=2)
    assert (later.state, later.signer_state) == (ManifestState.WELL_FORMED, SignerState.EXPIRED)


def test_a_certificate_that_did_not_hold_yet_is_expired(people: People) -> None:
    """A time stamp from before the certificate's time shows that it did not hold."""
    with people.clocks.time_stamp_authority().serve(_NOW - 5 * DAY) as url:
        data = signed(people.signers.signer(ta_url=url), _CAPTURE)
    assert read_c2pa(data, "image/jpeg").signer_state is SignerState.EXPIRED


@pytest.mark.parametrize("text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_trust_list_without_certificates_is_refused(tmp_path: Path, text: str) -> None:
    """A file that holds no certificate is named before any image is read."""
    file = tmp_path / "list.pem"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"list\.pem cannot be read: it holds no PEM"):
        TrustLists.load([file], [])


# ---------------------------------------------------------------- ingredients


@pytest.mark.parametrize("relationship", ["componentOf", "inputTo", "parentOf"])
def test_a_photograph_with_a_generated_ingredient_declares_no_ai(
    people: People, relationship: str
) -> None:
    """What an ingredient says of itself stands with the ingredient, beside its relationship."""
    signer = people.signers.signer()
    data = sign(
        people.signers.signer(),
        _JPEG,
        created(_CAPTURE),
        ingredients=((relationship, signed(signer, _TRAINED)),),
    )
    record = read_provenance(data)
    assert record.c2pa.state is ManifestState.WELL_FORMED
    assert not record.declares_ai
    assert not record.c2pa.asserts_ai
    assert record.c2pa.digital_source_types == (_CAPTURE,)
    assert record.c2pa.ingredients == (Ingredient(relationship=relationship, asserts_ai=True),)


def test_a_generated_picture_that_is_saved_again_declares_ai(people: People) -> None:
    """A file that only goes on from its parent says what the parent says."""
    signer = people.signers.signer()
    generated = signed(signer, _TRAINED)
    opened = sign(
        people.signers.signer(),
        _JPEG,
        {"action": "c2pa.converted"},
        ingredients=(("parentOf", generated),),
    )
    found = read_provenance(opened)
    assert found.declares_ai
    assert found.c2pa.digital_source_types == ()
    captured = sign(
        people.signers.signer(),
        _JPEG,
        {"action": "c2pa.converted"},
        ingredients=(("parentOf", signed(signer, _CAPTURE)),),
    )
    assert not read_provenance(captured).declares_ai


def test_an_ingredient_that_was_altered_after_signing_is_reported(people: People) -> None:
    """What failed when an ingredient was taken in is shown with it; the file itself fits."""
    ingredient = altered(signed(people.signers.signer(), _CAPTURE))
    data = sign(
        people.signers.signer(),
        _JPEG,
        created(_CAPTURE),
        ingredients=(("componentOf", ingredient), ("inputTo", _JPEG)),
    )
    found = read_c2pa(data, "image/jpeg")
    assert found.state is ManifestState.WELL_FORMED
    assert found.problems == ()
    assert found.ingredients == (
        Ingredient(relationship="componentOf", problems=("assertion.dataHash.mismatch",)),
        Ingredient(relationship="inputTo"),
    )


def test_ingredients_of_ingredients_are_reported(people: People) -> None:
    """What went into what went in is shown with the way to it."""
    inner = altered(signed(people.signers.signer(), _TRAINED))
    outer = sign(
        people.signers.signer(), _JPEG, created(_CAPTURE), ingredients=(("componentOf", inner),)
    )
    data = sign(
        people.signers.signer(), _JPEG, created(_CAPTURE), ingredients=(("inputTo", outer),)
    )
    assert read_c2pa(data, "image/jpeg").ingredients == (
        Ingredient(relationship="inputTo"),
        Ingredient(
            relationship="inputTo/componentOf",
            asserts_ai=True,
            problems=("assertion.dataHash.mismatch",),
        ),
    )


def test_the_program_that_generated_is_named(people: People) -> None:
    """An action's software agent is the generator, not the program that wrote the manifest."""
    action = created(_TRAINED) | {"softwareAgent": {"name": "Painter", "version": "2"}}
    data = sign(people.signers.signer(), _JPEG, action)
    assert read_provenance(data).declared_generator == "Painter 2"


# ---------------------------------------------------------------- hostile bytes


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1), patch=st.binary(min_size=1, max_size=40))
def test_mutated_manifests_raise_nothing(at: float, patch: bytes) -> None:
    """Bytes overwritten anywhere in a signed file raise nothing."""
    data = _SIGNED
    start = int(at * (len(data) - 1))
    read_c2pa(data[:start] + patch + data[start + len(patch) :], "image/jpeg")


_SIGNED = signed(Authority.make().signer(), _TRAINED)
