#!/usr/bin/env bash
# torch.distributed.destroy_process_group does not end a group that was begun before torch._dynamo
# was imported: no group is left in Python, and the threads of gloo live on to the end of the
# process. The first step of any torch.optim optimizer imports torch._dynamo, so a program that
# joins its group, trains and leaves the group is such a case. Imported first, the threads end.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
cat > "$folder/group.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
from torch import distributed


def step():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    torch.optim.SGD([weight], lr=0.1).step()


when, store = sys.argv[1:]
if when == "before":
    step()
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
if when == "during":
    step()
distributed.destroy_process_group()
assert not distributed.is_initialized()
left = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
left = sorted(name for name in left if "gloo" in name)
print(f"torch {torch.__version__}, first step {when} the group: threads left {left}")
sys.exit(bool(left) != (when == "during"))
PYTHON
for when in never before during; do
    "$folder/venv/bin/python" "$folder/group.py" "$when" "$folder/store-$when"
done
