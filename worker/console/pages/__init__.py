"""The pages, a module each: what they ask of the desk, and the template that shows it."""

from __future__ import annotations

from worker.console.pages import account, appeals, images, lead, queue, review
from worker.console.pages.signed_in import NotSignedIn

ROUTERS = (
    account.router,
    review.router,
    images.router,
    queue.router,
    appeals.router,
    lead.router,
)

__all__ = ["ROUTERS", "NotSignedIn"]
