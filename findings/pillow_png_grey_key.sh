#!/usr/bin/env bash
# Pillow compares the colour key (tRNS) of a grey PNG in other units than its pixels: of 2 and 4 bits
# the pixels are scaled to 8 bits and the key is not, and of 16 bits the key clears nothing. pypng,
# which wrote the file, reads the level that the key names.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 pypng==0.20220715.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import PIL
import png
from PIL import Image

print("Pillow", PIL.__version__)
seen = {}
for depth, key in ((1, 1), (2, 1), (4, 5), (8, 77), (16, 0x1234)):
    file = io.BytesIO()
    writer = png.Writer(width=8, height=8, greyscale=True, bitdepth=depth, transparent=key)
    writer.write(file, [[key] * 4 + [0] * 4] * 8)
    _, _, rows, info = png.Reader(bytes=file.getvalue()).read()
    assert list(rows)[0][0] == key, "the left half is the level that the key names"
    assert info["transparent"] == (key,), "and the file says so"
    image = Image.open(io.BytesIO(file.getvalue()))
    image.load()
    if image.mode.startswith("I;16"):
        clear = image.has_transparency_data and image.convert("LA").getpixel((0, 0))[1] == 0
    else:
        clear = image.convert("RGBA").getpixel((0, 0))[3] == 0
    seen[depth] = clear
    print(f"{depth:2} bits, mode {image.mode}: the keyed half is {'clear' if clear else 'opaque'}")
sys.exit(seen != {1: True, 2: False, 4: False, 8: True, 16: False})
PYTHON
