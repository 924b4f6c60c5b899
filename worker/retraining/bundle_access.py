"""Bundles as files on this machine: the one in force, and any other registered one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.bundle import load_bundle
from worker.models.bundle_store import model_of

if TYPE_CHECKING:
    from pathlib import Path

    from detection.bundle import Bundle
    from worker.models.bundle_store import BundleStore
    from worker.models.registry import ModelsRegistry

ACTOR = "trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleAccess:
    """Fetches bundles; `default` is the one that serves before the first promotion."""

    registry: ModelsRegistry
    bundles: BundleStore
    default: str
    cache: Path

    def current(self) -> Bundle:
        """Return the champion.

        Before the first promotion the bundle that serves is enthroned, so that there is a champion
        to roll back to.
        """
        champion = self.registry.champion()
        if champion is not None:
            return self.fetch(champion.uri, champion.digest)
        bundle = load_bundle(self.default)
        self.register(bundle)
        self.registry.promote(
            bundle.model_version,
            actor=ACTOR,
            reason="served before the first promotion",
            forced=True,
        )
        return bundle

    def of(self, digest: str) -> Bundle:
        """Return a registered bundle; raises `UnknownModel`."""
        return self.fetch(self.registry.find(digest).uri, digest)

    def fetch(self, uri: str, digest: str) -> Bundle:
        """Return a bundle by its address, registered or not."""
        return self.bundles.fetch(uri, digest, self.cache)

    def register(
        self, bundle: Bundle, uri: str | None = None, *, snapshot: str | None = None
    ) -> None:
        """Add a bundle to the registry; without an address it is uploaded first."""
        stored = uri or self.bundles.upload(bundle)
        self.registry.register(model_of(bundle, stored, training_snapshot=snapshot))
