"""Colour spaces told by numbers instead of an ICC profile, converted to sRGB.

Numbers are the code points of ITU-T H.273 (PNG's cICP, `nclx` in HEIF and AVIF), or the gamma and
chromaticities of PNG and BMP. Conversion is colorimetric: to linear light, by Bradford adaptation
and the matrix of the primaries to those of BT.709, to the curve of sRGB; what lies outside clips.

PQ and HLG (BT.2100) are shown as a screen of standard range shows them without compressing
highlights: diffuse white, 203 cd/m² (BT.2408), becomes sRGB's white, and brighter light clips. HLG
is taken through its display transform for a screen of 1000 cd/m² first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from detection.intake.errors import UnsupportedFormat

# Red, green, blue and white, each as CIE x and y.
Primaries = tuple[float, float, float, float, float, float, float, float]
Floats = NDArray[np.float64]
Curve = Callable[[Floats], Floats]

_D65 = (0.3127, 0.3290)
_BT709: Primaries = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *_D65)
_PRIMARIES: dict[int, Primaries] = {  # H.273, table 2
    1: _BT709,
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *_D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    8: (0.681, 0.319, 0.243, 0.692, 0.145, 0.049, 0.310, 0.316),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *_D65),
}
# Of H.273, table 3: curves that no viewer shows alike, and colours that are no light's.
_LOGARITHMIC = {9, 10}
_XYZ = 10

_REFERENCE_WHITE = 203.0
_HLG_PEAK, _HLG_GAMMA = 1000.0, 1.2
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
# Pixels converted at once: bounds what the linear light of a large picture takes.
_BLOCK = 1 << 19
# libpng's own tolerances, within which it calls a file sRGB.
_SAME_XY, _SAME_GAMMA = 0.01, 0.05


@dataclass(frozen=True)
class ColourSpace:
    """Primaries, and the curve from stored levels, 0 to 1, to light of which 1 is white.

    With `scene_light` it is HLG's scene light, which a display shows by a transform of its own.
    """

    primaries: Primaries
    curve: Curve
    scene_light: bool = False

    def to_srgb(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert uint8 (height, width, 3) to sRGB."""
        flat = pixels.reshape(-1, 3)
        result = np.empty_like(flat)
        for start in range(0, len(flat), _BLOCK):
            light = self._light[flat[start : start + _BLOCK]]
            if self.scene_light:
                light = _hlg_display(light, self.primaries)
            light = np.clip(light @ self._matrix, 0, 1)
            result[start : start + _BLOCK] = _encoded()[np.rint(light * 65535).astype(np.uint16)]
        return result.reshape(pixels.shape)

    @cached_property
    def _light(self) -> NDArray[np.float32]:
        return self.curve(np.arange(256) / 255).astype(np.float32)

    @cached_property
    def _matrix(self) -> NDArray[np.float32]:
        if self.primaries == _BT709:
            return np.eye(3, dtype=np.float32)
        matrix = np.linalg.inv(_to_xyz(_BT709)) @ _adapted(self.primaries) @ _to_xyz(self.primaries)
        return matrix.T.astype(np.float32)


def by_code_points(
    primaries: int, transfer: int, *, camera_display: bool = False
) -> ColourSpace | None:
    """Read code points of H.273; None for sRGB and for what they leave unspecified.

    Pictures made for the camera curves of BT.709, BT.601 and BT.2020 are shown with
    `camera_display` as BT.1886 says (a display's gamma of 2.4), as browsers do for PNG; otherwise
    as sRGB, as browsers do for HEIF and AVIF, where these curves stand in many a photograph. Raises
    `UnsupportedFormat` for a description that no viewer shows alike.
    """
    if transfer in _LOGARITHMIC or primaries == _XYZ:
        message = (
            f"The file's colours (H.273 primaries {primaries}, transfer {transfer}) are none that "
            "a screen shows; upload the picture in sRGB."
        )
        raise UnsupportedFormat(message)
    curves = _CURVES | dict.fromkeys(_CAMERAS, _power(2.4)) if camera_display else _CURVES
    found = ColourSpace(
        _PRIMARIES.get(primaries, _BT709), curves.get(transfer, _srgb), scene_light=transfer == 18
    )
    return None if found == ColourSpace(_BT709, _srgb) else found


def by_measurement(primaries: Primaries | None, gamma: float) -> ColourSpace | None:
    """Read a file's gamma (stored value = light ** gamma) and chromaticities; None for sRGB.

    Without chromaticities those of sRGB are meant; values that describe no colours say nothing.
    """
    if not 0.01 < gamma < 10:
        return None
    found = _BT709 if primaries is None else primaries
    if np.abs(np.subtract(found, _BT709)).max() < _SAME_XY:
        if abs(gamma * 2.2 - 1) < _SAME_GAMMA:
            return None
        found = _BT709
    return ColourSpace(found, _power(1 / gamma)) if _are_colours(found) else None


def _are_colours(primaries: Primaries) -> bool:
    xs, ys = np.array(primaries[0::2]), np.array(primaries[1::2])
    if xs.min() < 0 or ys.min() < 0.001 or (xs + ys).max() > 1.0001:
        return False
    (rx, gx, bx, _), (ry, gy, by, _) = xs, ys
    area = (gx - rx) * (by - ry) - (bx - rx) * (gy - ry)
    return bool(abs(area) > 0.01 and np.all(_scale(primaries) > 0))


def _xyz(primaries: Primaries) -> tuple[Floats, Floats]:
    points = np.array(primaries).reshape(4, 2)
    columns = np.stack([points[:, 0], points[:, 1], 1 - points.sum(axis=1)]) / points[:, 1]
    return columns[:, :3], columns[:, 3]


def _scale(primaries: Primaries) -> Floats:
    columns, white = _xyz(primaries)
    return np.asarray(np.linalg.solve(columns, white), np.float64)


def _to_xyz(primaries: Primaries) -> Floats:
    columns, _ = _xyz(primaries)
    matrix: Floats = columns * _scale(primaries)
    return matrix


def _adapted(primaries: Primaries) -> Floats:
    """Bradford adaptation from the white of `primaries` to D65."""
    _, white = _xyz(primaries)
    _, wanted = _xyz(_BT709)
    scale = (_BRADFORD @ wanted) / (_BRADFORD @ white)
    matrix: Floats = np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD
    return matrix


# ---------------------------------------------------------------- curves


def _power(exponent: float) -> Curve:
    return lambda levels: np.power(levels, exponent)


def _knee(levels: Floats, slope: float, start: float, offset: float, exponent: float) -> Floats:
    """A curve that is straight up to a level and a power from there."""
    bent = ((levels + offset) / (1 + offset)) ** exponent
    return np.asarray(np.where(levels <= start, levels / slope, bent), np.float64)


def _srgb(levels: Floats) -> Floats:
    return _knee(levels, 12.92, 0.04045, 0.055, 2.4)


def _st240(levels: Floats) -> Floats:
    return _knee(levels, 4.0, 0.0912, 0.1115, 1 / 0.45)


def _st428(levels: Floats) -> Floats:
    return np.asarray(levels**2.6 * 52.37 / 48, np.float64)


def _pq(levels: Floats) -> Floats:
    """BT.2100's PQ, whose light in cd/m² is divided by that of reference white."""
    root = levels ** (1 / 78.84375)
    ratio = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
    return np.asarray(10_000 / _REFERENCE_WHITE * ratio ** (1 / 0.1593017578125), np.float64)


def _hlg_scene(levels: Floats) -> Floats:
    """BT.2100's HLG: scene light, 0 to 1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(levels <= 0.5, levels**2 / 3, (np.exp((levels - c) / a) + b) / 12)
    return np.asarray(light, np.float64)


_CAMERAS = (1, 6, 14, 15)
_CURVES: dict[int, Curve] = {  # H.273, table 3; what is not here is sRGB's or unspecified
    4: _power(2.2),
    5: _power(2.8),
    7: _st240,
    8: _power(1.0),
    16: _pq,
    17: _st428,
    18: _hlg_scene,
}


def _hlg_display(scene: NDArray[np.float32], primaries: Primaries) -> NDArray[np.float32]:
    """Display light, reference white being 1, of scene light (n, 3) by BT.2100's OOTF."""
    luminance = scene @ _to_xyz(primaries)[1].astype(np.float32)
    gain = (_HLG_PEAK / _REFERENCE_WHITE) * luminance ** (_HLG_GAMMA - 1)
    light: NDArray[np.float32] = scene * gain[:, None].astype(np.float32)
    return light


@cache
def _encoded() -> NDArray[np.uint8]:
    """Levels of sRGB by linear light in steps of 1/65535."""
    light = np.arange(65_536) / 65_535
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table: NDArray[np.uint8] = np.rint(255 * curve).astype(np.uint8)
    return table
