"""The HTTP client of `unlatent serve`."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from unlatent_client.results import check_result, image_status, opened_appeal, submitted_id
from unlatent_client.transport import Transport, whole_seconds
from unlatent_client.uploads import upload_fields

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, BinaryIO, Self, Unpack

    from unlatent_client.results import CheckResult, ImageStatus
    from unlatent_client.uploads import UploadOptions

_JSON = {"Content-Type": "application/json"}


class Client:
    """A client of one service; build it once, after a fork, and share it between threads.

    `key` is the bearer key of a source. A request waits `timeout_s` for its answer. A service
    that is busy or away is asked again for `retry_s` in all, after the time that it asks for;
    0 asks once. At most `connections` are kept for the next requests.

    Every method raises `Problem` when the service refuses the request, `Busy` when it has no
    capacity within `retry_s`, `Unreachable` when no answer comes, and `UnexpectedAnswer` when the
    answer is not one of unlatent; all of these are `ServiceError`.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry_s: float = 30.0,
        connections: int = 10,
    ) -> None:
        self._transport = Transport(
            base_url, key, timeout_s=timeout_s, retry_s=retry_s, connections=connections
        )

    def check(
        self,
        image: bytes | PathLike[str] | BinaryIO,
        *,
        evidence: bool = False,
        wait_s: float | None = None,
    ) -> CheckResult:
        """Check one image: its bytes, the path of a file, or an open file, which is read whole.

        Nothing is stored, so a check may be repeated. `evidence` asks for the layers that show
        what decided. After `wait_s` (whole seconds, rounded up) the service gives up, and no other
        try begins; unset, its own limit counts.
        Raises `TypeError` for anything else than an image and `ValueError` for one without bytes.
        """
        data = _image_bytes(image)
        if not data:
            raise ValueError("the image has no bytes")
        kind = {"Content-Type": "application/octet-stream"}
        return self._check(data, kind, evidence=evidence, wait_s=wait_s)

    def check_object(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        evidence: bool = False,
        wait_s: float | None = None,
    ) -> CheckResult:
        """Check an object of one of the service's buckets, which fetches it; else as `check`."""
        fields = upload_fields(bucket, key, {"version_id": version_id})
        return self._check(_json(fields), _JSON, evidence=evidence, wait_s=wait_s)

    def submit(
        self,
        *,
        bucket: str,
        key: str,
        idempotency_key: str | None = None,
        **options: Unpack[UploadOptions],
    ) -> UUID:
        """Submit a stored object to be checked; return the image's id.

        From the return on, the upload ends in a terminal state. Retries, and calls with the same
        `idempotency_key`, make one image; unset, every call has a random one.
        Raises `ValueError` for an empty or too long key and `TypeError` for a name that is not a
        field of `UploadOptions`; `Problem` with status 422 where the idempotency key belongs to
        another upload.
        """
        answer = self._transport.ask(
            "POST",
            "/v1/images",
            body=_json(upload_fields(bucket, key, options)),
            headers=_JSON | {"Idempotency-Key": idempotency_key or str(uuid4())},
        )
        return submitted_id(answer)

    def get(self, image_id: UUID | str, *, wait_s: float | None = None) -> ImageStatus:
        """Return what became of an image.

        With `wait_s` (whole seconds, rounded up, at most 60) the service answers when the image
        ends, and after that time in any case. Raises `Problem` with status 404 for an unknown id.
        """
        query = None if wait_s is None else {"wait": whole_seconds(wait_s)}
        return image_status(self._transport.ask("GET", _path(image_id), query=query, wait_s=wait_s))

    def appeal(self, image_id: UUID | str, text: str) -> UUID:
        """Open an appeal of the uploader, in their words; return the id of the appeal.

        It is not sent again after a connection that broke: `Unreachable` then leaves open whether
        the appeal was opened. Raises `Problem` with status 409 while another one is open.
        """
        answer = self._transport.ask(
            "POST",
            f"{_path(image_id)}/appeals",
            body=_json({"text": text}),
            headers=_JSON,
            repeatable=False,
        )
        return opened_appeal(answer)

    def report(self, image_id: UUID | str, text: str | None = None) -> None:
        """Have a person look at an image that somebody reported; sent again as an appeal is."""
        self._transport.ask(
            "POST",
            f"{_path(image_id)}/reports",
            body=_json({} if text is None else {"text": text}),
            headers=_JSON,
            repeatable=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(
        self, body: bytes, headers: dict[str, str], *, evidence: bool, wait_s: float | None
    ) -> CheckResult:
        if wait_s is not None:
            headers = headers | {"Prefer": f"wait={whole_seconds(wait_s)}"}
        answer = self._transport.ask(
            "POST",
            "/v1/check",
            query={"evidence": "1"} if evidence else None,
            body=body,
            headers=headers,
            wait_s=wait_s,
            retry_s=wait_s,
        )
        return check_result(answer)


def _image_bytes(image: bytes | PathLike[str] | BinaryIO) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, PathLike):
        return Path(image).read_bytes()
    data = image.read() if hasattr(image, "read") else None
    if not isinstance(data, bytes):
        raise TypeError("an image is given as bytes, as a path, or as a file opened in mode 'rb'")
    return data


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode()


def _path(image_id: UUID | str) -> str:
    return f"/v1/images/{UUID(str(image_id))}"
