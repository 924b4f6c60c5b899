"""A bundle's figures and its card: what fusion gains, and that every figure finds its column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from detection.bundle import BundleProvenance, load_bundle
from detection.fusion import LabelPolicy
from training.bundles.build import ScoredVariants, _calibration_figures, fusion_gain
from training.bundles.cards.backbone import backbone_card
from training.bundles.cards.branches import bundle_card
from training.bundles.recipe import RECIPES, BundleRecipe
from training.bundles.smoke import smoke_recipe
from training.data.manifest import Entry
from training.evaluation.calibration import Logits, fit_fusion, operating_points
from training.evaluation.scoring import CALIBRATION_TIERS, RAW, Scored


def drawn() -> Logits:
    """Two branches that see independent halves of what tells 300 photographs from 100 fakes."""
    rng = np.random.default_rng(0)
    generated = np.arange(400) >= 300
    branches = {name: generated * 1.5 + rng.normal(size=400) for name in ("aligned", "lare")}
    return Logits(branches, generated)


def test_the_gain_is_over_the_better_branch() -> None:
    """The difference of scikit-learn's areas, inside its interval; here it is above zero."""
    logits = drawn()
    fused = logits.branches["aligned"] + logits.branches["lare"]
    areas = {
        name: roc_auc_score(logits.generated, values) for name, values in logits.branches.items()
    }
    gain = fusion_gain(fused, logits)
    assert gain["best_branch"] == max(areas, key=areas.__getitem__)
    expected = roc_auc_score(logits.generated, fused) - max(areas.values())
    assert gain["value"] == pytest.approx(expected, abs=1e-4)
    assert 0 < gain["low"] < gain["value"] < gain["high"]


def test_a_branch_alone_gains_nothing() -> None:
    """Fused by itself it is what it was: no gain, and no doubt about it."""
    logits = drawn()
    alone = Logits({"lare": logits.branches["lare"]}, logits.generated)
    gain = fusion_gain(alone.branches["lare"], alone)
    assert (gain["value"], gain["low"], gain["high"]) == (0, 0, 0)


def card(recipe: BundleRecipe) -> tuple[str, str]:
    """Write the card of a recipe's bundle on the drawn images; returns it and the better branch."""
    logits = drawn()
    entries = tuple(
        Entry(
            path=Path(f"{index}.jpg"),
            label="generated" if generated else "real",
            set="alpha" if generated else "lake",
            family="alpha" if generated else "",
            group=str(index),
        )
        for index, generated in enumerate(logits.generated)
    )
    forms = ScoredVariants(
        {name: Scored(entries, logits, name) for name in (*CALIBRATION_TIERS, RAW)}
    )
    fusion = fit_fusion(forms.pooled(), "isotonic")
    points = operating_points(forms.worst(fusion), logits.generated)
    figures = _calibration_figures(forms, fusion, points, LabelPolicy())
    tier = {name: figures["clean"][name] for name in ("auc", "auc_by_branch", "fusion_gain")}
    tier |= {"recall_at_1_percent": tier["auc"], "recall_at_5_percent": tier["auc"]}
    unseen = [{"families": ["beta"], "sources": ["street"], "tiers": {"clean": tier}}]
    provenance = BundleProvenance(
        snapshot_digest="", code_revision="", recipe="", seen_families=("alpha",), data_licence=""
    )
    text = bundle_card(
        recipe,
        {"calibration": figures, "unseen": unseen},
        points,
        LabelPolicy(),
        provenance,
    )
    return text, figures["clean"]["fusion_gain"]["best_branch"]


def test_every_row_of_the_card_fills_its_header() -> None:
    """Tables are rectangular, and the gain stands in the seen and in the unseen one."""
    text, best = card(BundleRecipe())
    columns = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        columns = columns or line.count("|")
        assert line.count("|") == columns, line
    assert text.count(f"over {best} |") == 4


def test_the_card_names_the_generator_that_the_bundle_is_on() -> None:
    """A preset and its makers of pairs, or networks of our own; a smoke run is no detector."""
    own, _ = card(BundleRecipe())
    named, _ = card(BundleRecipe(generator="sd15@0123 fp16", aligners=("taesd@4567", "sd3@89ab")))
    smoke, _ = card(smoke_recipe(BundleRecipe()))
    assert "predictor of our own" in own
    assert "it learnt from photographs alone" in own
    assert "the preset sd15@0123 fp16" in named
    assert "presets: taesd@4567, sd3@89ab." in named
    assert "of our own" not in named
    assert "it learnt from photographs alone" not in named
    assert "real detector" in own
    assert "real detector" in named
    assert "A smoke run" not in own + named
    assert "A smoke run" in smoke
    assert "real detector" not in smoke


def test_the_shipped_card_states_the_shipped_figures() -> None:
    """Every byte of the embedded bundle's card is written from the figures in its manifest."""
    bundle = load_bundle("small")
    manifest = bundle.manifest
    text = backbone_card(
        RECIPES[manifest.name],
        manifest.metrics,
        manifest.operating_points,
        manifest.policy,
        manifest.provenance,
    )
    assert text.encode() == bundle.path("card.md").read_bytes()
