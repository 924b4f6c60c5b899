"""What the URL of a queue says, and how long a message waits; nothing is asked of a server."""

from __future__ import annotations

import pytest

from detection.errors import SettingsError
from worker.ingest.sqs_bridge import LONGEST_DELAY_S, _delay_s, open_queue
from worker.settings import Sqs

KEYS = {"access_key_id": "id", "secret_access_key": "secret"}


@pytest.mark.parametrize(
    ("url", "region", "endpoint"),
    [
        (
            "https://sqs.eu-west-1.amazonaws.com/123456789012/uploads",
            "eu-west-1",
            "https://sqs.eu-west-1.amazonaws.com",
        ),
        (
            "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/uploads",
            "cn-north-1",
            "https://sqs.cn-north-1.amazonaws.com.cn",
        ),
        (
            "https://vpce-0ab.sqs.eu-west-1.vpce.amazonaws.com/123456789012/uploads",
            "eu-west-1",
            "https://vpce-0ab.sqs.eu-west-1.vpce.amazonaws.com",
        ),
        ("http://127.0.0.1:4566/000000000000/uploads", "us-east-1", "http://127.0.0.1:4566"),
    ],
)
def test_the_url_names_server_and_region(url: str, region: str, endpoint: str) -> None:
    """Nothing else has to be configured for Amazon."""
    client = open_queue(url, Sqs.model_validate(KEYS))
    assert (client.meta.region_name, client.meta.endpoint_url) == (region, endpoint)
    client.close()


def test_the_setting_overrules_the_region() -> None:
    """For servers whose addresses name none."""
    client = open_queue("http://queue.internal/0/uploads", Sqs(region="elsewhere"))
    assert client.meta.region_name == "elsewhere"
    client.close()


@pytest.mark.parametrize(
    "url", ["", "uploads", "https://", "https://host", "ftp://host/q", "http://[/q", "http://h:x/q"]
)
def test_what_is_no_queue_is_refused(url: str) -> None:
    """With the form that is wanted, before anything is asked."""
    with pytest.raises(SettingsError, match="is not the URL of a queue"):
        open_queue(url, Sqs())


def test_a_message_waits_longer_each_time_up_to_a_limit() -> None:
    """Doubling, from a quarter of a minute on."""
    delays = [
        _delay_s({"Attributes": {"ApproximateReceiveCount": str(count)}}) for count in range(1, 9)
    ]
    assert delays == [15, 30, 60, 120, 240, 480, LONGEST_DELAY_S, LONGEST_DELAY_S]
    assert _delay_s({"Attributes": {"ApproximateReceiveCount": "100000"}}) == LONGEST_DELAY_S
    assert _delay_s({}) == 15
