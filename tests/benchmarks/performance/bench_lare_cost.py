"""`make bench-lare-cost [VIEWS=4]`: LaRE on a CPU, in batches and as published.

One generator of Stable Diffusion 1.5's architecture and size, with random weights, computes the
error maps of the same views with the same noises. As published, images come one at a time and the
text encoder (CLIP ViT-L/14's, random too) runs for each. Here they come in a batch, and the
conditioning was computed before. Figures are processor seconds a view.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from detection.generators.generator import noise_bank
from detection.lare import lare_map
from detection.networks.branch_configs import LareConfig
from tests.benchmarks.bench_gpu import FULL, Sizes, random_generator
from tests.benchmarks.claims_costs import processor_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from detection.generators.generator import Generator

#: Tokens of a prompt, and the length of CLIP's vocabulary.
TOKENS, VOCABULARY = 77, 49408


def main(arguments: list[str] | None = None) -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, default=4, help="of a batch")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny networks: no figure means anything"
    )
    options = parser.parse_args(arguments)
    print(json.dumps(measure(FULL, options.views)))
    return 0


@torch.inference_mode()
def measure(sizes: Sizes, count: int) -> dict[str, Any]:
    """State the processor seconds a view of each way, and their ratios."""
    config = LareConfig(side=sizes.side)
    generator = random_generator(sizes).eval().requires_grad_(False)
    encoder = text_encoder(sizes)
    views = noise_bank((count, 3, sizes.side, sizes.side), seed=1).clamp(-1, 1)
    noises = noise_bank((config.ensemble, *generator.latent_shape(sizes.side)), seed=2)

    def batched() -> Tensor:
        return lare_map(generator, views, noises, config.step)

    def published() -> Tensor:
        maps = []
        for view in views.split(1):
            condition(generator, encoder)
            maps.append(lare_map(generator, view, noises, config.step))
        return torch.cat(maps)

    def halved(way: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return way()

        return run

    condition(generator, encoder)
    # Nothing else differs: both ways compute the same maps.
    torch.testing.assert_close(batched(), published(), rtol=1e-3, atol=1e-3)
    ways = {
        "published": published,
        "batched": batched,
        "published_bfloat16": halved(published),
        "batched_bfloat16": halved(batched),
    }
    seconds = {}
    for name, way in ways.items():
        # A round takes minutes at this size.
        seconds[name] = processor_s(way, rounds=1) / count
        print(f"{name:<20} {seconds[name]:.3g} s a view", file=sys.stderr)
    return {
        "views": count,
        "ensemble": config.ensemble,
        "threads": torch.get_num_threads(),
        "parameters": sum(weight.numel() for weight in generator.parameters()),
        "seconds_a_view": seconds,
        "ratio": seconds["published"] / seconds["batched"],
        "ratio_bfloat16": seconds["published_bfloat16"] / seconds["batched_bfloat16"],
        "ratio_batched_bfloat16": seconds["published"] / seconds["batched_bfloat16"],
    }


def text_encoder(sizes: Sizes) -> CLIPTextModel:
    """Build Stable Diffusion 1.5's text encoder, or a tiny one, with random weights."""
    torch.manual_seed(1)
    heads = 12 if sizes.text == FULL.text else 2
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes.text,
        intermediate_size=4 * sizes.text,
        num_hidden_layers=12 if sizes.text == FULL.text else 1,
        num_attention_heads=heads,
        projection_dim=sizes.text,
        max_position_embeddings=TOKENS,
    )
    return CLIPTextModel(config).eval().requires_grad_(requires_grad=False)


def condition(generator: Generator, encoder: CLIPTextModel) -> None:
    """Encode an empty prompt, and give the generator its embedding (1, 77, D)."""
    tokens = torch.full((1, TOKENS), VOCABULARY - 1)
    generator.conditioning_encoder_hidden_states = encoder(tokens).last_hidden_state


if __name__ == "__main__":
    sys.exit(main())
