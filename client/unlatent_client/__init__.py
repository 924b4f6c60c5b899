"""A client of an unlatent service: check images, submit uploads, ask what became of them."""

from __future__ import annotations

from unlatent_client.client import Client
from unlatent_client.errors import (
    Busy,
    Problem,
    ServiceError,
    UnexpectedAnswer,
    Unreachable,
)
from unlatent_client.ingest_list import IngestList
from unlatent_client.results import CheckedImage, CheckResult, Evidence, ImageStatus, Verdict
from unlatent_client.uploads import UploadOptions

__all__ = [
    "Busy",
    "CheckResult",
    "CheckedImage",
    "Client",
    "Evidence",
    "ImageStatus",
    "IngestList",
    "Problem",
    "ServiceError",
    "UnexpectedAnswer",
    "Unreachable",
    "UploadOptions",
    "Verdict",
]
