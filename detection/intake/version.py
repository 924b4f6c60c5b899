"""The number of the rules by which bytes become pixels; every verdict records it.

Raise it whenever a file that was accepted before gets other pixels, and say here what changed. The
thresholds of a bundle hold for the versions that its calibration photographs were read with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

#: 1: the rules of every release that did not count them yet.
#: 2: animations by a sample of frames instead of the first; colours by code points, gamma and
#: chromaticities; grey colour keys; BMP without alpha; TIFF in planes, from white to black, behind
#: a thumbnail. Photographs without any of these have the pixels of version 1.
INTAKE_VERSION: Final = 2


def threshold_warning(intake_versions: Collection[int]) -> str | None:
    """Return why thresholds of a bundle that states these versions may not hold here, if so."""
    if INTAKE_VERSION in intake_versions:
        return None
    known = ", ".join(map(str, sorted(intake_versions)))
    return (
        f"the thresholds were measured on files as intake {known} reads them and this release is"
        f" intake {INTAKE_VERSION}: their rate of false accusations is not known here"
    )
