"""What the service answers, as records."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from unlatent_client.errors import UnexpectedAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """The file that was checked: its checksum, bytes, format, and size in pixels."""

    sha256: str
    size: int
    format: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What decided, in layers: the document of docs/evidence.md, and its files by name."""

    document: Mapping[str, Any]
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The detector's answer for one image.

    `label` is `real`, `generated` or `unsure`. `distance` is the distance from the point of
    accusation in log-odds, above 0 beyond it, and None where the image was not judged;
    `distance_words` says it in words. `score` is the probability of `generated` under the assumed
    share `prior` of generated images. `outside` says why an image is not judged. `frame` is the
    frame of an animation that decided. `evidence` is None unless it was asked for. `record` is the
    whole answer.
    """

    score: float
    label: str
    distance: float | None
    distance_words: str | None
    model_version: str
    branches: Mapping[str, float]
    decided_by: str
    operating_point: str
    prior: float
    outside: str | None
    frame: int
    image: CheckedImage
    evidence: Evidence | None
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The stored verdict of a submitted image; `tier` is the action that the policy names.

    The other fields are those of `CheckResult`.
    """

    score: float
    label: str
    distance: float | None
    distance_words: str | None
    tier: str | None
    model_version: str
    branches: Mapping[str, float]
    decided_by: str
    operating_point: str
    prior: float
    outside: str | None
    frame: int
    scored_at: datetime
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """What became of a submitted image.

    `state` is `pending`, or the state in which the image ended: `scored`, `failed`, `quarantined`,
    `superseded` or `withdrawn`. `reason` and `detail` say why it ended without a verdict.
    """

    id: UUID
    state: str
    reason: str | None
    detail: str | None
    verdict: Verdict | None

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self.state != "pending"


def check_result(answer: Any) -> CheckResult:
    """Read the answer to a check."""
    return _read(_check_result, answer)


def image_status(answer: Any) -> ImageStatus:
    """Read the answer to a question about an image."""
    return _read(_image_status, answer)


def submitted_id(answer: Any) -> UUID:
    """Read the id of a submitted image."""
    return _read(lambda values: UUID(values["id"]), answer)


def opened_appeal(answer: Any) -> UUID:
    """Read the id of an appeal."""
    return _read(lambda values: UUID(values["appeal_id"]), answer)


def _read(read: Callable[[Any], _Record], answer: Any) -> _Record:
    try:
        return read(answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnexpectedAnswer(f"the answer is not one of unlatent: {error!r}") from error


def _check_result(answer: Mapping[str, Any]) -> CheckResult:
    image, evidence = answer["image"], answer.get("evidence")
    return CheckResult(
        score=answer["score"],
        label=answer["label"],
        distance=answer["distance"],
        distance_words=answer["distance_words"],
        model_version=answer["model_version"],
        branches=answer["branches"],
        decided_by=answer["decided_by"],
        operating_point=answer["operating_point"],
        prior=answer["prior"],
        outside=answer["outside"],
        frame=answer["frame"],
        image=CheckedImage(
            sha256=image["sha256"],
            size=image["size"],
            format=image["format"],
            width=image["width"],
            height=image["height"],
        ),
        evidence=None if evidence is None else _evidence(evidence),
        record=answer,
    )


def _evidence(values: Mapping[str, Any]) -> Evidence:
    files = values["files"].items()
    return Evidence(
        document=values["document"],
        files={name: base64.b64decode(data, validate=True) for name, data in files},
    )


def _image_status(answer: Mapping[str, Any]) -> ImageStatus:
    verdict = answer["verdict"]
    return ImageStatus(
        id=UUID(answer["id"]),
        state=answer["state"],
        reason=answer["reason"],
        detail=answer["detail"],
        verdict=None if verdict is None else _verdict(verdict),
    )


def _verdict(values: Mapping[str, Any]) -> Verdict:
    return Verdict(
        score=values["score"],
        label=values["label"],
        distance=values["distance"],
        distance_words=values["distance_words"],
        tier=values["tier"],
        model_version=values["model_version"],
        branches=values["branches"],
        decided_by=values["decided_by"],
        operating_point=values["operating_point"],
        prior=values["prior"],
        outside=values["outside"],
        frame=values["frame"],
        scored_at=datetime.fromisoformat(values["scored_at"]),
        record=values,
    )
