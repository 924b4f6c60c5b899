"""A test fixture: bundles of random weights and tiny widths, in the layout of released ones.

Their scores mean nothing; what is tested with them is everything around the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from detection.aligned import AlignedNet
from detection.backbone import Backbone
from detection.bundle import (
    PREPROCESSING_VERSION,
    SCHEMA_VERSION,
    Bundle,
    BundleManifest,
    BundleProvenance,
    GeneratorReference,
    write_manifest,
)
from detection.detector import Detector
from detection.egre import Egre
from detection.fusion import Fusion, LabelPolicy, OperatingPoint
from detection.generators.generator import noise_bank
from detection.networks.branch_configs import AlignedConfig, BackboneConfig, EgreConfig, LareConfig

if TYPE_CHECKING:
    from pathlib import Path

LARE = LareConfig(side=64, step=200, ensemble=2)
ALIGNED = AlignedConfig(widths=(16, 16), depths=(1, 1), tile=64, max_tiles=4)
BACKBONE = BackboneConfig(
    stages=("blocks.0", "blocks.2"),
    side=64,
    shrink_to=96,
    real=("real:drawing", "real:photograph"),
    generated=("generated:a", "generated:b", "generated:c"),
)


def tiny_autoencoder() -> AutoencoderKL:
    """A random autoencoder of factor 4 with four latent channels."""
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.5,
        shift_factor=0.1,
    )


def tiny_predictor(**options: object) -> UNet2DConditionModel:
    """A random U-Net on four latent channels with text of width 8."""
    torch.manual_seed(2)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    )


def operating_points() -> tuple[OperatingPoint, ...]:
    """A strict point without support and two supported ones."""
    rates = ((0.001, 4.0, False), (0.01, 2.0, True), (0.05, 0.5, True))
    return tuple(
        OperatingPoint(
            target=target,
            threshold=threshold,
            measured=target,
            low=target / 2,
            high=target * (2 if supported else 4),
            reals=500,
            recall=0.5,
            supported=supported,
            needs_reals=None if supported else 3000,
        )
        for target, threshold, supported in rates
    )


def build_tiny_bundle(
    folder: Path,
    *,
    branches: tuple[str, ...] = ("lare", "aligned"),
    name: str = "tiny",
    generator: bool = False,
) -> Bundle:
    """Write a bundle with the named branches into `folder` and load it.

    With a lare branch it has a generator, too, and without one if it is asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lare, aligned = "lare" in branches, "aligned" in branches
    generator |= lare
    torch.manual_seed(3)
    if generator:
        tiny_autoencoder().save_pretrained(folder / "generator" / "vae")
        tiny_predictor().save_pretrained(folder / "generator" / "unet")
        DDPMScheduler().save_pretrained(folder / "generator" / "scheduler")
        constants = {
            "noise_bank": noise_bank((LARE.ensemble, 4, LARE.side // 4, LARE.side // 4), seed=5),
            "conditioning.encoder_hidden_states": torch.randn(1, 3, 8),
        }
        save_file(constants, folder / "constants.safetensors")
    if lare:
        save_file(Egre(EgreConfig()).state_dict(), folder / "egre.safetensors")
    if aligned:
        save_file(AlignedNet(ALIGNED).state_dict(), folder / "aligned.safetensors")
    if "backbone" in branches:
        save_file(Backbone(BACKBONE).state_dict(), folder / "backbone.safetensors")
    image = np.random.default_rng(6).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    save_file({"image": torch.from_numpy(image)}, folder / "golden.safetensors")
    manifest = BundleManifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        preprocessing_version=PREPROCESSING_VERSION,
        generator=GeneratorReference(folder="generator") if generator else None,
        lare=LARE if generator else None,
        egre=EgreConfig() if lare else None,
        aligned=ALIGNED if aligned else None,
        backbone=BACKBONE if "backbone" in branches else None,
        fusion=Fusion(
            weights=dict.fromkeys(branches, 1.0),
            centres=dict.fromkeys(branches, 0.0),
            bias=0.0,
        ),
        operating_points=operating_points(),
        policy=LabelPolicy(),
        metrics={},
        provenance=BundleProvenance(
            snapshot_digest="0" * 64,
            code_revision="test",
            recipe="random weights",
            seen_families=(),
            data_licence="none: no data",
        ),
        files={},
    )
    logits = Detector(write_manifest(folder, manifest)).score([image])[0].branches
    golden = {f"logit.{branch}": torch.tensor(value) for branch, value in logits.items()}
    save_file({"image": torch.from_numpy(image), **golden}, folder / "golden.safetensors")
    return write_manifest(folder, manifest)
