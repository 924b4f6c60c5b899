"""Which key an S3 record means when its producer may not have encoded it.

S3 and MinIO URL-encode the keys of their events; Ceph writes the same shape with plain keys, and
`a+b.jpg` reads as either. Only the store knows. It is asked about events whose key changes on
decoding, at most two HEADs each; all other events pass as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from detection.errors import PermanentError
from worker.ledger.interface import Removal, Upload
from worker.storage.interface import AccessDenied

if TYPE_CHECKING:
    from worker.storage.interface import ObjectFacts, Storage


def settle(event: Upload | Removal, storage: Storage) -> list[Upload | Removal]:
    """Return the event with the key that it means; one removal becomes two when both may be meant.

    Raises `TransientError` when the store cannot tell now, and `AccessDenied` when what it denies
    may be meant.
    """
    if event.raw_key is None:
        return [event]
    candidates = [replace(event, key=key, raw_key=None) for key in (event.key, event.raw_key)]
    if isinstance(event, Removal):
        # What is still there was not removed. Withdrawing a key that never had a row is no harm.
        gone = [one for one in candidates if _found(one, storage) is None]
        return gone or candidates[:1]
    denial: AccessDenied | None = None
    for one in candidates:
        try:
            facts = _found(one, storage)
        except AccessDenied as error:
            denial = error
            continue
        if facts is not None and event.etag in (None, facts.etag):
            return [one]
    if denial is not None:
        raise denial
    return [candidates[0]]


def _found(event: Upload | Removal, storage: Storage) -> ObjectFacts | None:
    try:
        return storage.head(event.bucket, event.key, version_id=event.version_id)
    except AccessDenied:
        raise
    except PermanentError:
        # Not there: then the decoded key, as S3 documents it, stands.
        return None
