"""The benchmark of LaRE's cost, on tiny networks: what each way computes, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.benchmarks.bench_gpu import TINY
from tests.benchmarks.performance import bench_lare_cost

if TYPE_CHECKING:
    import pytest
    from torch import Tensor

VIEWS = 3


def test_the_published_way_takes_views_one_by_one_with_the_text_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The batch is one call without the encoder; that the maps are equal, the benchmark asserts."""
    done: list[str] = []
    lare_map, condition = bench_lare_cost.lare_map, bench_lare_cost.condition

    def mapped(generator: Any, views: Tensor, noises: Tensor, step: int) -> Tensor:
        done.append(f"map of {len(views)}, {len(noises)} noises")
        return lare_map(generator, views, noises, step)

    def encoded(*given: Any) -> None:
        done.append("text")
        condition(*given)

    monkeypatch.setattr(bench_lare_cost, "lare_map", mapped)
    monkeypatch.setattr(bench_lare_cost, "condition", encoded)
    record = bench_lare_cost.measure(TINY, VIEWS)
    one, all_ = ["text", "map of 1, 4 noises"] * VIEWS, [f"map of {VIEWS}, 4 noises"]
    # Once before anything, once to compare, then twice each in float32 and in bfloat16.
    assert done == ["text", *all_, *one, *(one * 2 + all_ * 2) * 2]
    seconds = record["seconds_a_view"]
    assert record["ratio"] == seconds["published"] / seconds["batched"]
