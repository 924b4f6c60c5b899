"""Colour conversion: any mode that a decoder gives, to the sRGB pixels that a viewer shows."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from detection.intake.colour_spaces import ColourSpace

_PROFILE_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
# Full scales that wide greyscale files use; a file is read at the least one that holds its maximum.
_FLOAT_SCALES = (1.0, 255.0, 65_535.0)
_INTEGER_SCALES = (65_535.0, 2.0**31 - 1)
# How to turn the stored image so that it stands as the tag says; 1 is upright already.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_srgb(
    image: Image.Image, *, icc: bytes | None = None, colours: ColourSpace | None = None
) -> Image.Image:
    """Convert a loaded image to mode RGB in sRGB.

    An ICC profile, `icc` or the decoder's, is applied (relative colorimetric, black-point
    compensation) and ignored when it is broken or describes another colour space than the pixels.
    Without one `colours` tell what the pixels mean. Transparency is composited over white, for that
    is the page on which nearly every viewer shows an upload; what lies hidden under transparent
    pixels is no part of the picture.
    """
    profile = icc or image.info.get("icc_profile")
    alpha = _sixteen_bit_key(image)
    image = _eight_bit(image)
    if alpha is None and image.has_transparency_data:
        space = "L" if image.mode in {"1", "L", "LA", "La"} else "RGB"
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert(space)
    elif image.mode not in _PROFILE_SPACES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = _apply_profile(image, profile)
    if colours is not None and profile is None:
        image = Image.fromarray(colours.to_srgb(np.asarray(image)))
    if alpha is not None:
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=alpha)
        return white
    return image


def _sixteen_bit_key(image: Image.Image) -> Image.Image | None:
    """Alpha of a 16-bit grey image of which one level is clear; Pillow would compare 8 bits."""
    key = image.info.get("transparency")
    if not image.mode.startswith("I;16") or not isinstance(key, int):
        return None
    return Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit, 32-bit and float greyscale to 8 bits; other modes pass."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        values16 = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values16 + 128) // 257).astype(np.uint8))
    if image.mode not in {"I", "F"}:
        return image
    values = np.array(image, dtype=np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    scales = _FLOAT_SCALES if image.mode == "F" else _INTEGER_SCALES
    full = next((scale for scale in scales if top <= scale), top)
    np.multiply(values, 255 / full, out=values)
    return Image.fromarray(np.rint(values, out=values).clip(0, 255).astype(np.uint8))


def _apply_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is not None or image.mode == "LAB":
        try:
            return _transformed(image, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a broken profile says nothing about the pixels
    if image.mode == "LAB":
        return _transformed(image, None)
    return image if image.mode == "RGB" else image.convert("RGB")


def _transformed(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is None:
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    else:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
    if source.profile.xcolor_space.strip() != _PROFILE_SPACES[image.mode]:
        message = "the profile is of another colour space than the pixels"
        raise ValueError(message)
    transform = ImageCms.buildTransform(
        source,
        _srgb(),
        image.mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if image.mode == "RGB" and _changes_nothing(transform):
        return image
    return _applied(transform, image)


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether no colour of a 16-step cube moves by more than a level: the profile is sRGB."""
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
    moved = np.asarray(_applied(transform, Image.fromarray(cube)))
    return int(np.abs(moved.astype(np.int16) - cube).max()) <= 1


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    if result is None:
        message = "the profile could not be applied"
        raise ValueError(message)
    return result


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation, 1 to 8 (EXIF 2.32, tag 0x0112)."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
