"""Claims about cost: pairs against samples, LaRE against DIRE, an ensemble of 4 against 1.

All are ratios of processor time on one thread with the bundle's own generator, so that neither
other work on the machine nor the size of the generator decides them.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detection.bundle import load_bundle
from detection.generators.generator import noise_bank
from detection.lare import lare_map
from training.bundles.challenger import lare_of
from training.data.diffusion_sampling import denoise

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from detection.generators.generator import Generator

SIDE = 256
VIEWS = 4
ROUNDS = 3
STEP = 200
#: Passes of a sampler, and of DIRE's inversion and of its reconstruction (arXiv 2303.09295).
SAMPLER_PASSES = 50
DIRE_PASSES = 20


def embedded_generator(name: str) -> tuple[Generator, Tensor]:
    """Load a bundle's generator and noise bank (E, C, h, w)."""
    lare = lare_of(load_bundle(name))
    assert lare is not None
    return lare.generator, lare.noises


def processor_s(work: Callable[[], Any], *, rounds: int = ROUNDS) -> float:
    """Return the least processor time of a few rounds after a first one, in seconds."""
    work()
    found = math.inf
    for _ in range(rounds):
        began = time.process_time()
        work()
        found = min(found, time.process_time() - began)
    return found


def invert(generator: Generator, latents: Tensor, *, stop: int, passes: int) -> Tensor:
    """Carry latents (B, C, h, w) from step 0 to `stop` by DDIM inversion.

    (Song et al., ICLR 2021, arXiv 2010.02502, eq. 13 with time running forwards.)
    """
    assert generator.schedule is not None
    steps = np.linspace(0, stop, passes + 1).round().astype(int).tolist()
    for now, following in pairwise(steps):
        noise = generator.predict(latents, now)
        signal, spread = generator.schedule.alpha_sigma(now)
        next_signal, next_spread = generator.schedule.alpha_sigma(following)
        latents = next_signal * (latents - spread * noise) / signal + next_spread * noise
    return latents


def cost_rows(bundle: str) -> list[dict[str, Any]]:
    """Measure the three ratios with the bundle's generator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return _measured(*embedded_generator(bundle))
    finally:
        torch.set_num_threads(threads)


def _measured(generator: Generator, noises: Tensor) -> list[dict[str, Any]]:
    views = noise_bank((VIEWS, 3, SIDE, SIDE), seed=0).clamp(-1, 1)
    latents = generator.encode(views)
    assert generator.schedule is not None
    last = generator.schedule.steps - 1

    def dire() -> Tensor:
        inverted = invert(generator, generator.encode(views), stop=last, passes=DIRE_PASSES)
        restored = denoise(generator, inverted, start=last, passes=DIRE_PASSES)
        return (generator.decode(restored) - views).abs()

    pair = processor_s(lambda: generator.decode(generator.encode(views)))
    sampled = processor_s(
        lambda: generator.decode(
            denoise(generator, torch.randn_like(latents), start=last, passes=SAMPLER_PASSES)
        )
    )
    single = processor_s(lambda: lare_map(generator, views, noises[:1], STEP))
    ensemble = processor_s(lambda: lare_map(generator, views, noises, STEP))
    inverted = processor_s(dire)
    return [
        _row(
            "cost-of-a-pair",
            f"an aligned pair costs less than a generated image ({SAMPLER_PASSES} DDIM steps)",
            10,
            sampled / pair,
            {"generated image": sampled, "aligned pair": pair},
        ),
        _row(
            "cost-of-lare",
            f"LaRE (one noise) costs less than DIRE ({DIRE_PASSES} + {DIRE_PASSES} DDIM steps)",
            8,
            inverted / single,
            {"DIRE": inverted, "LaRE, one noise": single},
        ),
        _row(
            "cost-of-lare-ensemble",
            f"LaRE with an ensemble of {len(noises)} still costs less than DIRE",
            None,
            inverted / ensemble,
            {"DIRE": inverted, f"LaRE, {len(noises)} noises": ensemble},
        ),
        _row(
            "cost-of-the-ensemble",
            f"an ensemble of {len(noises)} costs less than {len(noises)} times one noise",
            None,
            ensemble / single,
            {f"{len(noises)} noises": ensemble, "one noise": single},
        ),
    ]


def _row(
    name: str, claim: str, paper: float | None, ratio: float, seconds: dict[str, float]
) -> dict[str, Any]:
    each = {label: round(value / VIEWS, 4) for label, value in seconds.items()}
    return {
        "name": name,
        "claim": claim,
        "paper": None if paper is None else f"{paper:g} times",
        "found": f"{ratio:.1f} times",
        "figures": {"ratio": round(ratio, 1), "processor_s_an_image": each},
        "budget": f"{VIEWS} views of {SIDE} px, the least of {ROUNDS} rounds, one thread",
    }
