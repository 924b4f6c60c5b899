"""Who is answered: bearer keys by source, and loopback without any."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from detection.errors import SettingsError
from worker.serving.keys import Keys, is_local_host, new_key
from worker.serving.problems import RequestRefused
from worker.settings import Http

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.serving.http_service import Rig


def digest(key: str) -> str:
    """Return what the settings hold of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def test_a_key_speaks_for_its_source() -> None:
    """Every valid key of a source names it, the old one and the new one alike."""
    keys = Keys(Http(keys={"web": f"{digest('old')} {digest('new')}", "app": digest("other")}))
    assert [keys.source_of(key) for key in ("old", "new", "other")] == ["web", "web", "app"]


@pytest.mark.parametrize("key", [None, "", "wrong", digest("old")])
def test_a_wrong_key_is_refused(key: str | None) -> None:
    """No key, another one and the digest itself open nothing."""
    keys = Keys(Http(keys={"web": digest("old")}))
    with pytest.raises(RequestRefused) as refusal:
        keys.source_of(key)
    assert refusal.value.status == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "service.example"])  # noqa: S104
def test_without_keys_others_are_not_answered(host: str) -> None:
    """An address that others reach needs keys, and the error says how to make one."""
    with pytest.raises(SettingsError, match=r"UNLATENT_HTTP__KEYS.*new-key"):
        Keys(Http(host=host))
    assert Keys(Http(host=host, keys={"web": digest("a")})).required


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_without_keys_this_machine_is_believed(host: str) -> None:
    """On a loopback address no key is needed, and no source is named."""
    assert Keys(Http(host=host)).source_of(None) is None


def test_a_digest_that_is_none_is_refused_without_being_shown() -> None:
    """A key pasted where its digest belongs is an error that does not repeat it."""
    with pytest.raises(SettingsError) as refusal:
        Keys(Http(keys={"web": "ul_my-secret-key"}))
    assert "web" in str(refusal.value)
    assert "my-secret-key" not in str(refusal.value)


def test_new_keys_are_long_and_never_the_same() -> None:
    """A key has 256 random bits, and its digest opens with it."""
    (key, told), (other, _) = new_key(), new_key()
    assert key != other
    assert len(key) >= 43
    assert Keys(Http(keys={"web": told})).source_of(key) == "web"


@pytest.mark.parametrize(
    ("header", "local"),
    [
        ("localhost", True),
        ("localhost:8700", True),
        ("127.0.0.1:8700", True),
        ("[::1]:8700", True),
        ("evil.example", False),
        ("localhost.evil.example:8700", False),
        ("", False),
        ("[", False),
    ],
)
def test_host_headers_are_told_apart(header: str, local: bool) -> None:  # noqa: FBT001 - a table
    """Only loopback names and addresses are this machine."""
    assert is_local_host(header) is local


def test_a_page_of_another_site_cannot_ask_through_a_browser(serve: Callable[..., Rig]) -> None:
    """Without keys, a request under another host's name is refused."""
    answer = serve().client.post("/v1/check", content=b"x", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["reason"]) == (403, "host_refused")


def test_the_key_is_asked_for_before_the_body(serve: Callable[..., Rig]) -> None:
    """A request without a valid key gets 401 and how to sign in; probes need none."""
    client = serve(keys={"web": digest("right")}, host="10.0.0.7").client
    wrong = client.post("/v1/check", content=b"x", headers={"Authorization": "Bearer wrong"})
    assert (wrong.status_code, wrong.headers["WWW-Authenticate"]) == (401, "Bearer")
    right = client.post("/v1/check", content=b"x", headers={"Authorization": "Bearer right"})
    assert right.json()["reason"] == "not_an_image"
    assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [
        200
    ] * 3
