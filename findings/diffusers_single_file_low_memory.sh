#!/usr/bin/env bash
# diffusers without accelerate: `from_pretrained(low_cpu_mem_usage=True)` warns that it goes on
# without it, and loads. `from_single_file(low_cpu_mem_usage=True)` of the same weights ends in a
# NameError, which names a function of accelerate and no package to install.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    diffusers==0.42.1 torch==2.15.0 numpy
"$folder/venv/bin/python" - "$folder/autoencoder" <<'PYTHON'
import importlib.util
import sys

import diffusers
from diffusers import AutoencoderKL

print("diffusers", diffusers.__version__)
assert importlib.util.find_spec("accelerate") is None
folder = sys.argv[1]
AutoencoderKL(block_out_channels=[32], norm_num_groups=8).save_pretrained(folder)
loaded = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=True)
print(f"from_pretrained: {len(loaded.state_dict())} tensors")
file = f"{folder}/diffusion_pytorch_model.safetensors"
loaded = AutoencoderKL.from_single_file(file, config=folder)
print(f"from_single_file, by default: {len(loaded.state_dict())} tensors")
error = ""
try:
    AutoencoderKL.from_single_file(file, config=folder, low_cpu_mem_usage=True)
except NameError as raised:
    error = str(raised)
print(f"from_single_file, with low_cpu_mem_usage: NameError {error!r}")
sys.exit(error != "name 'init_empty_weights' is not defined")
PYTHON
