"""Files for benchmarks: noise that compresses like a photograph, without a model or a download."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def make_files(count: int, side: int) -> list[bytes]:
    """Return JPEG files of `side` pixels a side, all different and of a photograph's entropy."""
    files = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 6, smooth.shape)
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files
