"""Text that others wrote, made safe for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escape, as Python would write it, every character that a terminal may obey.

    Those are the control characters (ESC among them) and the invisible ones that change direction;
    line feeds too, because a forged line looks like ours: "a\x1b[2J" becomes "a\\x1b[2J".
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
