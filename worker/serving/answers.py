"""The shapes of bodies, for the API's description; docs/api.md says what the fields mean."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field


class Problem(BaseModel):
    """Problem details, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    reason: str


class ImageFacts(BaseModel):
    """What a file is."""

    sha256: str
    size: int
    format: str
    width: int
    height: int


class Evidence(BaseModel):
    """What to look at: the document of docs/evidence.md, and its files in base64."""

    document: dict[str, Any]
    files: dict[str, str]


class Check(BaseModel):
    """What the detector says of one image."""

    score: float
    label: str
    distance: float | None
    distance_words: str | None
    model_version: str
    branches: dict[str, float]
    decided_by: str
    operating_point: str
    prior: float
    outside: str | None
    frame: int
    image: ImageFacts
    evidence: Evidence | None = None


class ObjectAddress(BaseModel):
    """An object of a configured bucket."""

    model_config = ConfigDict(extra="forbid")

    bucket: str
    key: str
    version_id: str | None = None


class NewImage(BaseModel):
    """An upload, in the fields of our own event (docs/events.md)."""

    model_config = ConfigDict(extra="forbid")

    bucket: str
    key: str
    version_id: str | None = None
    etag: str | None = None
    sequencer: str | None = None
    size: int | None = None
    content_type: str | None = None
    sha256: str | None = None
    source: str | None = None
    uploader: str | None = None
    priority: bool | None = None
    uploaded_at: str | None = None
    traceparent: str | None = None


class Accepted(BaseModel):
    """The image that an upload is."""

    id: UUID
    state: str


class Verdict(BaseModel):
    """The champion's latest verdict on an image."""

    score: float
    label: str
    distance: float | None
    distance_words: str | None
    tier: str | None
    model_version: str
    branches: dict[str, float]
    decided_by: str
    operating_point: str
    prior: float
    outside: str | None
    frame: int
    scored_at: datetime


class Image(BaseModel):
    """Where an upload stands."""

    id: UUID
    state: str
    reason: str | None
    detail: str | None
    verdict: Verdict | None


class Note(BaseModel):
    """What somebody says about an image."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(default=None, max_length=4000)


class Appeal(BaseModel):
    """An appeal that is open now."""

    appeal_id: UUID
