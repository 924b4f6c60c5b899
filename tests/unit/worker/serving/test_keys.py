"""Who is answered: bearer keys by source, and loopback without any."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from starlette.datastructures import Headers

from detection.errors import SettingsError
from worker.serving.keys import Keys, is_local, new_key
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


HERE = {"host": "127.0.0.1:8700"}


@pytest.mark.parametrize(
    ("headers", "local"),
    [
        ({"host": "localhost"}, True),
        ({"host": "localhost:8700"}, True),
        ({"host": "[::1]:8700"}, True),
        (HERE, True),
        (HERE | {"origin": "http://localhost:3000"}, True),
        (HERE | {"sec-fetch-site": "none"}, True),
        ({"host": "evil.example"}, False),
        ({"host": "localhost.evil.example:8700"}, False),
        ({"host": ""}, False),
        ({"host": "["}, False),
        ({}, False),
        (HERE | {"origin": "https://evil.example"}, False),
        (HERE | {"origin": "null"}, False),
        (HERE | {"sec-fetch-site": "cross-site"}, False),
        (HERE | {"x-forwarded-for": "203.0.113.7"}, False),
        (HERE | {"forwarded": "for=203.0.113.7"}, False),
        (HERE | {"via": "1.1 proxy"}, False),
    ],
)
def test_requests_of_this_machine_are_told_from_others(
    headers: dict[str, str],
    local: bool,  # noqa: FBT001 - a table
) -> None:
    """Loopback names are this machine; other names and origins and proxies' requests are not."""
    assert is_local(Headers(headers)) is local


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Via": "1.1 proxy"}]
)
def test_without_keys_only_this_machine_is_answered(
    headers: dict[str, str], serve: Callable[..., Rig]
) -> None:
    """A page of another site, by whatever name, and a proxy's request are refused."""
    answer = serve().client.post("/v1/check", content=b"x", headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (403, "not_local")


def test_a_source_without_a_digest_is_refused() -> None:
    """A secret that is empty by mistake opens nothing to everybody."""
    with pytest.raises(SettingsError, match="'web' has no digest"):
        Keys(Http(keys={"web": " "}))


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
