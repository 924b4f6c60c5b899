"""What every page but the login needs: somebody who is signed in."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from detection.errors import UnlatentError
from worker.console.identity import Moderator


class NotSignedIn(UnlatentError):
    """The request is nobody's we know."""


def _moderator(request: Request) -> Moderator:
    found: Moderator | None = request.app.state.identity.moderator(request)
    if found is None:
        raise NotSignedIn
    return found


SignedIn = Annotated[Moderator, Depends(_moderator)]
