"""What a stack replaces in the settings of its processes: addresses and buckets, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.localstack import LocalStack
from worker.settings import Settings, in_force

if TYPE_CHECKING:
    from pathlib import Path

#: What names a stack and logs in there; all else is the caller's.
REPLACED = {
    "UNLATENT_POSTGRES__URL",
    "UNLATENT_POSTGRES__OWNER_URL",
    "UNLATENT_REDIS__URL",
    "UNLATENT_S3__ENDPOINT_URL",
    "UNLATENT_S3__REGION",
    "UNLATENT_S3__ACCESS_KEY_ID",
    "UNLATENT_S3__SECRET_ACCESS_KEY",
    "UNLATENT_S3__BUCKETS",
    "UNLATENT_MODERATION__EVIDENCE_BUCKET",
}


def test_only_addresses_and_buckets_are_replaced(tmp_path: Path) -> None:
    """Prefixes, keys and time-outs stay, so that a process reads what the caller sends."""
    given = Settings.model_validate(
        {
            "redis": {"key_prefix": "mine:", "ingest_key": "uploads", "rejected_max": 7},
            "s3": {"region": "there", "connect_timeout_s": 1.5, "fetch_timeout_s": 99.0},
            "postgres": {"pool_size": 9},
        }
    )
    pointed = LocalStack(tmp_path).addresses.pointed_here(given, buckets=["a", "b"], evidence="b")
    before, after = in_force(given), in_force(pointed)
    assert {name for name, value in after.items() if before[name] != value} == REPLACED
    assert pointed.redis.key_prefix == "mine:"
    assert (pointed.s3.connect_timeout_s, pointed.s3.buckets) == (1.5, ("a", "b"))
