"""The real scorer: its golden image is one that a sound device scores as stated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from detection.bundle import write_manifest
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from worker.scoring.interface import DeviceLost, DeviceMemoryExceeded
from worker.scoring.torch_scorer import TorchScorer
from worker.settings import Scoring

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_the_golden_image_scores_within_its_tolerance(tmp_path: Path, arithmetic: str) -> None:
    """The branch logits that the bundle states are those that scoring gives."""
    bundle = build_tiny_bundle(tmp_path / "tiny")
    changes = {"arithmetic": arithmetic, "intake_versions": (3, 4)}
    write_manifest(bundle.folder, bundle.manifest.model_copy(update=changes))
    scorer = TorchScorer.load(Scoring(bundle=str(bundle.folder), device="cpu"))
    assert (scorer.dtype, scorer.intake_versions) == (arithmetic, (3, 4))
    golden = scorer.golden()
    (score,) = scorer.score([golden.image])
    assert golden.branches
    for branch, logit in golden.branches.items():
        allowed = golden.tolerance * max(1.0, abs(logit))
        assert score.branches[branch] == pytest.approx(logit, abs=allowed)


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), DeviceMemoryExceeded),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), DeviceMemoryExceeded),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), DeviceLost),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ],
)
def test_device_errors_get_their_names(
    raised: Exception, error: type[Exception], tmp_path: Path
) -> None:
    """Memory, a lost device and an ordinary bug are told apart."""

    class Failing:
        model_version = "tiny"
        arithmetic = "float32"
        bundle = build_tiny_bundle(tmp_path / "tiny")

        def score(self, _: object) -> None:
            raise raised

    scorer = TorchScorer(Failing(), device="cpu")  # type: ignore[arg-type]
    with pytest.raises(error) as caught:
        scorer.score([])
    assert type(caught.value) is error
