"""How a moderator wants pictures shown: in a cookie of the browser, read strictly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args, get_type_hints
from urllib.parse import parse_qsl, urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping

COOKIE = "unlatent_look"

Blur = Literal["none", "light", "strong"]
Reveal = Literal["hold", "toggle"]
Theme = Literal["system", "light", "dark"]
Switch = Literal["off", "on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """Blur and grey of every picture, how it is revealed, colours of the page, keys on or off."""

    blur: Blur = "light"
    grayscale: Switch = "off"
    reveal: Reveal = "hold"
    theme: Theme = "system"
    keys: Switch = "on"

    @classmethod
    def choices(cls) -> dict[str, tuple[str, ...]]:
        """Return what each preference may be."""
        hints = get_type_hints(cls)
        return {field.name: get_args(hints[field.name]) for field in fields(cls)}

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Self:
        """Read preferences; what is not one of the choices stays as it is by default."""
        chosen = {
            name: values[name] for name, known in cls.choices().items() if values.get(name) in known
        }
        return replace(cls(), **cast("dict[str, Any]", chosen))

    @classmethod
    def read(cls, cookie: str | None) -> Self:
        """Read the cookie."""
        return cls.of(dict(parse_qsl(cookie or "")))

    def write(self) -> str:
        """Return the cookie's value."""
        return urlencode(asdict(self))
