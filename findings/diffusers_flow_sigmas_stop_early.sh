#!/usr/bin/env bash
# DEISMultistepScheduler and SASolverScheduler of diffusers with `use_flow_sigmas` repeat the last
# noise level in the place of the final 0, which DPMSolverMultistepScheduler and
# UniPCMultistepScheduler append. With an exact predictor the latter two end at the clean sample,
# and DEIS with that level of noise still in it, at 5 steps a fifth. (SASolver draws noise on the
# way, so only its levels are looked at.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    diffusers==0.42.1 torch==2.15.0 numpy scipy
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import diffusers
import torch

print("diffusers", diffusers.__version__)
names = (
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)
clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
ends, left = {}, {}
for name in names:
    scheduler = getattr(diffusers, name)(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(5)
    levels = [round(float(level), 4) for level in scheduler.sigmas]
    ends[name] = levels[-1]
    print(f"{name}: noise levels {levels}")
    if name == "SASolverScheduler":
        continue
    first = float(scheduler.sigmas[0])
    sample = (1 - first) * clean + first * noise
    for step in scheduler.timesteps:
        sample = scheduler.step(noise - clean, step, sample).prev_sample
    # How much of the noise is in what the sampler ends with.
    left[name] = float(((sample - clean) * (noise - clean)).sum() / (noise - clean).square().sum())
    print(f"{name}: share of the noise that is left at the end {abs(left[name]):.3f}")
early = [name for name, level in ends.items() if level > 0.1]
noisy = [name for name, share in left.items() if abs(share) > 0.01]
sys.exit((early, noisy) != (list(names[2:]), [names[2]]))
PYTHON
