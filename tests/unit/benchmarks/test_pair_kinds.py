"""The benchmark of pairs by other generators, on tiny networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detection.networks.branch_configs import AlignedConfig
from tests.benchmarks import claims_trained
from tests.benchmarks.detector import bench_pair_kinds
from tests.benchmarks.detector.bench_pair_kinds import ARMS, FOREIGN, KINDS, Makers, write_page
from tests.support.images.labelled_folder import write_folder
from training.bundles.training_run import generator
from training.fit import adversarial_task, pixel_task
from training.fit.aligned_task import AlignedBatch, AlignedTask
from training.fit.generator_tasks import AutoencoderTask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from training.data.samples import Sample

TINY = AlignedConfig(widths=(16, 16), depths=(1, 1), max_tiles=1)


def test_each_arm_is_tested_on_generators_that_made_none_of_its_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every arm has figures for each kind and for the data's images; the first gains nothing."""

    def few_crops(samples: Sequence[Sample], **_: int) -> AutoencoderTask:
        return AutoencoderTask(samples, crop=32, batch_size=2)

    class Watched(AlignedTask):
        def __init__(self, samples: Sequence[Sample], *given: Any) -> None:
            partners.append({name for one in samples for name in one.reconstructions})
            super().__init__(samples, *given)

    partners: list[set[str]] = []
    for module in (generator, adversarial_task, pixel_task):
        monkeypatch.setattr(module, "AutoencoderTask", few_crops)
    monkeypatch.setattr(bench_pair_kinds, "AlignedTask", Watched)
    for module in (bench_pair_kinds, claims_trained):
        monkeypatch.setattr(module, "NETWORK", TINY)
    monkeypatch.setattr(bench_pair_kinds, "PAIRED", AlignedBatch(pairs=2, unpaired=0))
    taught, held_back = (Makers(widths=(16, width), pixel_widths=(16, 16)) for width in (16, 24))
    monkeypatch.setattr(bench_pair_kinds, "TAUGHT", taught)
    monkeypatch.setattr(bench_pair_kinds, "HELD_BACK", held_back)
    sets = ("lake", "street", "hill", "alpha1", "beta", "gamma")
    data = write_folder(tmp_path / "data", each=6, sets=sets)
    record = bench_pair_kinds.measure(data, tmp_path / "out", steps=1, images=6)
    assert record["photographs"] > 0
    assert record["arms"].keys() == ARMS.keys()
    for arm, figures in record["arms"].items():
        assert figures.keys() == {*KINDS, FOREIGN}
        for found in figures.values():
            assert 0 <= found["auc"]["value"] <= 1
            assert found["auc"]["reals"] == record["photographs"]
            if arm == "latent":
                assert found["gain"]["value"] == 0
    trained = {file.stem for file in (tmp_path / "out").glob("*/own/*.safetensors")}
    assert {
        spec.name for makers in (taught, held_back) for spec in makers.kinds.values()
    } == trained
    page = write_page(record, "make").splitlines()
    assert sum(line.startswith("|") for line in page) == 2 + len(ARMS)
