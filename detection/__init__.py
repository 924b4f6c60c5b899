"""Pixels in, verdict out: the latent-diffusion detector as a pure library.

Public names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detection.bundle import Bundle, BundleError, embedded_names, load_bundle
    from detection.detector import Detector
    from detection.errors import PermanentError, SettingsError, TransientError, UnlatentError
    from detection.evidence import make_evidence
    from detection.intake.decode import DecodedImage, IntakeLimits, decode
    from detection.intake.errors import ImageRejected
    from detection.intake.provenance import ProvenanceRecord, read_provenance
    from detection.score import Label, Score, TileLogit

_MODULES = {
    "Bundle": "detection.bundle",
    "BundleError": "detection.bundle",
    "DecodedImage": "detection.intake.decode",
    "Detector": "detection.detector",
    "ImageRejected": "detection.intake.errors",
    "IntakeLimits": "detection.intake.decode",
    "Label": "detection.score",
    "PermanentError": "detection.errors",
    "ProvenanceRecord": "detection.intake.provenance",
    "Score": "detection.score",
    "SettingsError": "detection.errors",
    "TileLogit": "detection.score",
    "TransientError": "detection.errors",
    "UnlatentError": "detection.errors",
    "decode": "detection.intake.decode",
    "embedded_names": "detection.bundle",
    "load_bundle": "detection.bundle",
    "make_evidence": "detection.evidence",
    "read_provenance": "detection.intake.provenance",
}

__all__ = [
    "Bundle",
    "BundleError",
    "DecodedImage",
    "Detector",
    "ImageRejected",
    "IntakeLimits",
    "Label",
    "PermanentError",
    "ProvenanceRecord",
    "Score",
    "SettingsError",
    "TileLogit",
    "TransientError",
    "UnlatentError",
    "decode",
    "embedded_names",
    "load_bundle",
    "make_evidence",
    "read_provenance",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
