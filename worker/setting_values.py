"""What the value of a setting looks like: addresses that are checked, and every form in words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from annotated_types import MinLen
from pydantic import AfterValidator, SecretStr

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_ENCODED = " (in a password @ is %40, # is %23, / is %2F)"
#: The form of SQLAlchemy: user and password, host and port, database and parameters are optional.
_POSTGRES = re.compile(
    r"postgresql(\+psycopg)?://([^:/@]*(:[^@]*)?@)?(\[[^/?]+\]|[^:/?@]*)(:\d+)?(/[^?]*)?(\?.*)?",
    re.DOTALL,
)


class UrlForm:
    """How the URL of one kind of service is written; refuses what is not, without showing it."""

    #: What a person may have to do to a right address.
    advice = ""

    def __init__(self, *schemes: str, example: str) -> None:
        self.schemes = schemes
        self.example = example

    def check(self, url: str) -> str:
        """Return the URL; raises `ValueError`."""
        parts = urlsplit(url)
        _ = parts.port  # raises when it is no number
        if parts.scheme not in self.schemes or not parts.hostname or re.search(r"\s", url):
            raise ValueError(self.schemes)
        return url


class RedisForm(UrlForm):
    """Redis, where the path is the number of a database, and the host may be left out."""

    advice = _ENCODED

    def check(self, url: str) -> str:
        """Return the URL; raises `ValueError`."""
        parts = urlsplit(url)
        _ = parts.port  # raises when it is no number
        if parts.scheme not in self.schemes or not re.fullmatch(r"/?\d*", parts.path):
            raise ValueError(self.schemes)
        return url


class PostgresForm(UrlForm):
    """PostgreSQL, whose passwords may hold what ends the host of other URLs."""

    advice = _ENCODED

    def check(self, url: str) -> str:
        """Return the URL; raises `ValueError`."""
        if not _POSTGRES.fullmatch(url):
            raise ValueError(self.schemes)
        return url


REDIS = RedisForm("redis", "rediss", example="rediss://:password@cache.example:6379/0")
POSTGRES = PostgresForm(
    "postgresql+psycopg",
    example="postgresql+psycopg://unlatent_app:password@db.example:5432/unlatent",
)
HTTP = UrlForm("http", "https", example="https://service.example")


def _secret(form: UrlForm) -> AfterValidator:
    def checked(secret: SecretStr) -> SecretStr:
        form.check(secret.get_secret_value())
        return secret

    return AfterValidator(checked)


RedisUrl = Annotated[SecretStr, _secret(REDIS), REDIS]
PostgresUrl = Annotated[SecretStr, _secret(POSTGRES), POSTGRES]
HttpUrl = Annotated[str, AfterValidator(HTTP.check), HTTP]


def form(field: FieldInfo) -> str:
    """Say in words which values a setting takes, with an example; nothing of its present value."""
    kind, marks = _kind(field)
    for mark in marks:
        if isinstance(mark, UrlForm):
            schemes = " or ".join(f"{scheme}://" for scheme in mark.schemes)
            return f"a URL that begins with {schemes}{mark.advice}, for example {mark.example}"
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return f"one of {', '.join(choices)}, for example {choices[0]}"
    if get_origin(kind) is tuple:
        least = "one or more " if any(isinstance(mark, MinLen) for mark in marks) else ""
        what = "paths" if get_args(kind)[0] is Path else "names"
        return f"a JSON list of {least}{what}{_example(field)}"
    if get_origin(kind) is dict:
        return f"a JSON object of names and texts{_example(field)}"
    words = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}
    return f"{words.get(kind, 'a text')}{_bounds(marks)}{_example(field)}"


def read(text: str, field: FieldInfo) -> object:
    """Return what the environment means: lists and objects are JSON, and nothing is no value.

    Raises `ValueError` for one that is no JSON. Other texts are left for the setting to read.
    """
    if not text and NoneType in get_args(field.annotation):
        return None
    return json.loads(text) if get_origin(_kind(field)[0]) in (tuple, dict) else text


def _kind(field: FieldInfo) -> tuple[Any, list[Any]]:
    """Return the type of a setting's value, None apart, and what narrows it."""
    kind, marks = field.annotation, list(field.metadata)
    for one in get_args(kind):
        if NoneType in get_args(kind) and one is not NoneType:
            kind = one
    if get_origin(kind) is Annotated:
        marks += kind.__metadata__  # type: ignore[union-attr]  # an Annotated has some
        kind = get_args(kind)[0]
    return kind, marks


def _bounds(marks: list[Any]) -> str:
    limits = {
        name: getattr(mark, name)
        for mark in marks
        for name in ("gt", "ge", "le")
        if hasattr(mark, name)
    }
    if {"ge", "le"} <= limits.keys():
        return f" from {limits['ge']} to {limits['le']}"
    words = {"gt": "above", "ge": "of at least", "le": "of at most"}
    return "".join(f" {words[name]} {limit}" for name, limit in limits.items())


def _example(field: FieldInfo) -> str:
    value = field.examples[0] if field.examples else field.default
    if value is None:
        return ""
    written = json.dumps(value) if isinstance(value, bool | dict | list | tuple) else str(value)
    return f", for example {written}"
