"""The digital source types that say that a model made pixels."""

from __future__ import annotations

# The terms of http://cv.iptc.org/newscodes/digitalsourcetype/, and C2PA's own one.
_AI_TERMS = frozenset(
    {
        "trainedAlgorithmicMedia",
        "compositeWithTrainedAlgorithmicMedia",
        "compositeSynthetic",
        "trainedAlgorithmicData",
    }
)


def is_ai(source_type: str | None) -> bool:
    """Say whether a source type, a term or its address, says that a model made pixels."""
    return source_type is not None and source_type.rstrip("/").rsplit("/", 1)[-1] in _AI_TERMS
