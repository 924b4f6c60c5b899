#!/usr/bin/env bash
# Pillow reads an uncompressed TIFF of 16-bit samples in planes (PlanarConfiguration 2) without an
# error and gives other pixels: it takes each plane for 8-bit samples. The same samples compressed,
# which libtiff reads, come out right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image

y, x = np.mgrid[0:64, 0:64]
picture = np.stack([4 * x, 4 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
planes = np.moveaxis(picture.astype(np.uint16) * 257, 2, 0)
print("Pillow", PIL.__version__)
errors = {}
for compression in (None, "zlib"):
    file = io.BytesIO()
    tifffile.imwrite(
        file, planes, photometric="rgb", planarconfig="separate", compression=compression
    )
    file.seek(0)
    assert np.array_equal(tifffile.imread(file), planes), "tifffile reads what it wrote"
    file.seek(0)
    read = np.asarray(Image.open(file)).astype(int)
    errors[compression] = float(np.abs(read - picture).mean())
    print(f"compression {compression}: mean error {errors[compression]:.1f} of 255")
sys.exit(not (errors[None] > 20 and errors["zlib"] == 0))
PYTHON
