"""Decoders and readers that misbehave, run by the decode pool's processes in its tests."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from detection.intake.animation import ShownFrame
from detection.intake.decode import DecodedImage
from detection.intake.errors import Truncated
from detection.intake.metadata.c2pa_manifest import C2pa, Ingredient, TrustLists
from detection.intake.provenance import Exif, ProvenanceRecord


def decode(data: bytes, **told: Any) -> DecodedImage:  # noqa: C901 - one case a line
    """Do what the bytes say: a word, then an argument."""
    word, _, argument = data.decode().partition(" ")
    match word:
        case "hang":
            time.sleep(3600)
        case "refuse":
            raise Truncated
        case "raise":
            raise ZeroDivisionError(argument)
        case "memory":
            return image(data, np.ones((int(argument), 1024, 1024), np.uint8))
        case "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "die-once" if not Path(argument).exists():
            Path(argument).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        case "modules":
            Path(argument).write_text("\n".join(sys.modules))
        case "environment":
            Path(argument).write_text("\n".join(os.environ))
        case "told":
            Path(argument).write_text(repr(sorted(told.items(), key=lambda item: item[0])))
        case "log":
            with Path(argument).open("a") as file:
                file.write("in\n")
                file.flush()
                time.sleep(0.05)
                file.write("out\n")
        case "film":
            return film(data, *(np.full((64, 64, 3), int(level), np.uint8) for level in argument))
    # "signals …" decodes; what it does is `read_provenance`'s part.
    side = int(argument) if word == "side" else 64
    pixels = np.full((side, side, 3), 7, np.uint8)
    pixels[0, 0] = (1, 2, 3)
    return image(data, pixels)


def read_provenance(data: bytes, *, max_metadata_bytes: int, trust: TrustLists) -> ProvenanceRecord:
    """Do what the bytes say after the word "signals"."""
    match data.decode().split():
        case ["signals", "hang"]:
            time.sleep(3600)
        case ["signals", "raise"]:
            raise ZeroDivisionError
        case ["signals", "memory"]:
            np.ones((4000, 1024, 1024), np.uint8)
        case ["signals", "die"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        case ["signals", "mistyped"]:
            return ProvenanceRecord(c2pa=C2pa(state="certified"))  # type: ignore[arg-type]
        case ["signals", "long"]:
            many = ("\N{PILE OF POO}" * 200,) * 16
            ingredient = Ingredient(relationship=many[0], problems=many[:4])
            return ProvenanceRecord(
                c2pa=C2pa(
                    signer=many[0],
                    signed_at="2026-01-31T12:00:00+00:00",
                    claim_generator=many[0],
                    ai_generator=many[0],
                    digital_source_types=many,
                    problems=many,
                    ingredients=(ingredient,) * 8,
                ),
                declared_generator=many[0],
                declared_where=many,
            )
        case ["signals", "unstorable"]:
            return ProvenanceRecord(exif=Exif(make="a\0b", model="\ud800", software="s" * 999))
        case ["signals", "trust"]:
            return ProvenanceRecord(exif=Exif(model=trust.signers + trust.time_stamp_authorities))
    return ProvenanceRecord(exif=Exif(model=str(max_metadata_bytes)))


def image(data: bytes, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> DecodedImage:
    """Dress pixels up as a decoded file."""
    return film(data, pixels)


def film(data: bytes, *frames: np.ndarray[Any, np.dtype[np.uint8]]) -> DecodedImage:
    """Dress frames up as a decoded animation, numbered 10, 11, …, each shown as long."""
    pixels = frames[0]
    return DecodedImage(
        sample=tuple(
            ShownFrame(10 + number, 1 / len(frames), frame) for number, frame in enumerate(frames)
        ),
        format="PNG",
        width=pixels.shape[1],
        height=pixels.shape[0],
        frames=1,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        pdq=bytes(32),
        pdq_quality=50,
    )
