"""Pairs by an encoder and a decoder of one's own, as docs/training.md shows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detection.generators.generator import noise_bank
from tests.support.images.labelled_folder import write_folder
from training import BundleRecipe, BundleTrainingRun, load_manifest

if TYPE_CHECKING:
    from training.data.aligners import AutoencoderReconstruction

PAGE = Path(__file__).parents[4] / "docs" / "training.md"


def documented(encoder: torch.nn.Module, decoder: torch.nn.Module) -> AutoencoderReconstruction:
    """Run the page's Python with networks of ours, and return the maker of pairs that it makes."""
    (block,) = (part.split("```")[0] for part in PAGE.read_text("utf-8").split("```python\n")[1:])
    names: dict[str, Any] = {"encoder": encoder, "decoder": decoder}
    exec(block, names)  # noqa: S102  # our own page
    inverted: AutoencoderReconstruction = names["inverted"]
    return inverted


def test_a_torch_pair_makes_the_pairs_of_a_run(tmp_path: Path) -> None:
    """Every photograph gets what the networks make of it, whatever its sides, and no other pair."""

    class Darken(torch.nn.Module):
        def forward(self, codes: torch.Tensor) -> torch.Tensor:
            assert codes.shape[-1] % 32 == codes.shape[-2] % 32 == 0
            return codes - (codes + 1) / 4

    entries = load_manifest(write_folder(tmp_path / "data", each=2))
    maker = documented(torch.nn.Identity(), Darken())
    assert maker.identity == "my-gan@2026-11"
    run = BundleTrainingRun(entries, tmp_path / "run", BundleRecipe(), [maker])
    samples = run.samples(entry for entry in entries if not entry.generated)
    run.pairs(samples)
    for sample in samples:
        assert sample.reconstructions.keys() == {"my-gan"}
        made = sample.reconstructions["my-gan"]
        assert made.shape == sample.pixels.shape
        np.testing.assert_allclose(made, sample.pixels * 0.75, rtol=0, atol=0.51)


def test_the_pixels_of_a_pair_do_not_move() -> None:
    """An image whose sides are no multiple of the factor comes back as it was, pixel by pixel."""
    image = (noise_bank((37, 50, 3), seed=0) * 40 + 128).clamp(0, 255).to(torch.uint8).numpy()
    maker = documented(torch.nn.Identity(), torch.nn.Identity())
    np.testing.assert_array_equal(maker.reconstruct([image])[0], image)
