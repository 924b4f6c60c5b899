"""The record of the papers' claims: what is kept, what is measured again, what is not run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from detection.generators.generator import Generator, noise_bank
from detection.generators.noise_schedule import EPSILON, noise_schedule_from_scheduler
from detection.networks.branch_configs import AlignedConfig
from tests.benchmarks import bench_claims, claims_trained
from tests.benchmarks.claims_costs import invert
from tests.support.bundles.tiny_bundle import build_tiny_bundle, tiny_autoencoder, tiny_predictor
from tests.support.images.labelled_folder import write_folder
from training.data.diffusion_sampling import denoise
from training.fit.aligned_task import AlignedBatch
from training.fit.loop import LoopConfig

if TYPE_CHECKING:
    from pathlib import Path

COST = {
    "name": "cost-of-a-pair",
    "claim": "a pair is cheaper",
    "paper": "10 times",
    "found": "12.0 times",
    "figures": {"ratio": 12.0},
    "budget": "four views",
}


def test_inversion_is_undone_by_sampling() -> None:
    """Carried to a step and back in as many passes, latents return to about where they were."""
    process = noise_schedule_from_scheduler({"prediction_type": EPSILON})
    text = {"encoder_hidden_states": noise_bank((1, 3, 8), seed=1)}
    generator = Generator(tiny_autoencoder(), tiny_predictor(), process, text).eval()
    latents = noise_bank((2, 4, 8, 8), seed=2)
    with torch.inference_mode():
        inverted = invert(generator, latents, stop=400, passes=40)
        restored = denoise(generator, inverted, start=400, passes=40)
    moved = (inverted - latents).square().mean()
    assert (restored - latents).square().mean() < 0.02 * moved


def test_rows_are_kept_by_bundle_and_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run measures nothing again, and says what was never run."""
    bundle = build_tiny_bundle(tmp_path / "tiny").folder
    asked: list[str] = []

    def costs(name: str) -> list[dict[str, Any]]:
        asked.append(name)
        return [COST]

    monkeypatch.setattr(bench_claims, "cost_rows", costs)
    out = tmp_path / "claims"
    for _ in range(2):
        assert bench_claims.main(["--bundle", str(bundle), "--out", str(out)]) == 0
    assert asked == [str(bundle)]
    page = (out / "claims.md").read_text()
    assert "| a pair is cheaper | 10 times | 12.0 times |  | four views |" in page
    assert page.count("not run") == len(claims_trained.EVALUATIONS)
    assert (out / "claims.png").stat().st_size > 0
    other = build_tiny_bundle(tmp_path / "other", name="other").folder
    bench_claims.main(["--bundle", str(other), "--out", str(out)])
    assert asked == [str(bundle), str(other)]


def test_a_page_says_which_claims_reproduce() -> None:
    """Arms differ where one's interval ends before the other's begins, in either order."""
    low, middle, high = ({"low": at, "high": at + 0.1} for at in (0.5, 0.55, 0.7))
    assert bench_claims.apart({"figures": {"on": low, "off": middle}}) == "no"
    assert bench_claims.apart({"figures": {"on": low, "off": high}}) == "yes"
    forms = {"clean": middle, "webp80": high}, {"clean": low, "webp80": low}
    assert bench_claims.apart({"figures": dict(zip("ab", forms, strict=True))}) == "webp80"
    assert bench_claims.apart(COST) == ""


@pytest.mark.full
@pytest.mark.timeout(600)
def test_every_claim_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a budget of next to nothing every row is filled, and a second run keeps them all."""
    tiny = {
        "SHADERS": 4,
        "TIMED_STEPS": 2,
        # Not narrower: torch's CPU kernels corrupt memory with fewer channels, channels last.
        "NETWORK": AlignedConfig(widths=(16, 16), depths=(1, 1), max_tiles=1),
        "PAIRED": AlignedBatch(pairs=2, unpaired=0),
        "UNPAIRED": AlignedBatch(pairs=0, unpaired=2),
        "LOOP": LoopConfig(steps=1, loader_workers=0),
    }
    for name, value in tiny.items():
        monkeypatch.setattr(claims_trained, name, value)
    monkeypatch.setattr(bench_claims, "cost_rows", lambda _: [COST])
    options = ["--data", str(write_folder(tmp_path / "data", each=24)), "--minutes", "0.001"]
    options += ["--bundle", str(build_tiny_bundle(tmp_path / "tiny").folder)]
    options += ["--out", str(tmp_path / "claims"), "--run", str(tmp_path / "run")]
    bench_claims.main(options)
    written = (tmp_path / "claims" / "claims.json").read_text()
    rows = json.loads(written)
    assert rows.keys() == {"cost-of-a-pair", *claims_trained.EVALUATIONS}
    assert "not run" not in (tmp_path / "claims" / "claims.md").read_text()
    for name in ("aligned-training", "paired-batches", "shaders", "webp-augmentation", "error-map"):
        assert len(rows[name]["figures"]) == 2
    bench_claims.main(options)
    assert (tmp_path / "claims" / "claims.json").read_text() == written
