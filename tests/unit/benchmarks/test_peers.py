"""The peers of the benchmark read what they claim to read, and the table averages the folds."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.benchmarks.detector.peer_formulas import (
    SIDE,
    declared,
    native_square,
    neighbour_residuals,
    spectral_decay,
)
from tests.benchmarks.detector.peer_reconstruction import perceptual_distance
from tests.benchmarks.detector.peer_table import (
    DeclaredRows,
    OwnDirection,
    Peer,
    mean_area,
    measure,
    write_page,
)
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.images.labelled_folder import write_folder
from training.bundles.head_branch import HeadRecipe
from training.data.folds import make_folds
from training.data.manifest import load_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.manifest import Entry

    Pixels = NDArray[np.uint8]


def grey(plane: NDArray[np.float64]) -> Pixels:
    """Stretch a plane (H, W) to 40 levels about the middle: uint8 (H, W, 3)."""
    levels = 128 + 40 * (plane - plane.mean()) / plane.std()
    return np.repeat(levels.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_slope_is_that_of_the_noise(power: float) -> None:
    """Noise whose power falls with a power of the frequency gives back that power."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    frequency[0, 0] = 1.0
    noise = np.fft.fft2(rng.normal(size=(SIDE, SIDE))) * frequency ** (-power / 2)
    (row,) = spectral_decay([grey(np.fft.ifft2(noise).real)])
    assert row[0] == pytest.approx(-power, abs=0.25)


def test_a_doubled_picture_has_no_residual() -> None:
    """All differences in squares of 2 x 2 are 0 after doubling by neighbours, few are in noise."""
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (SIDE // 2, SIDE // 2, 3), dtype=np.uint8)
    doubled = small.repeat(2, axis=0).repeat(2, axis=1)
    noise = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    of_doubled, of_noise = (one.reshape(3, -1) for one in neighbour_residuals([doubled, noise]))
    np.testing.assert_array_equal(of_doubled[:, 0], 1)
    assert of_noise[:, 0].max() < 0.01
    np.testing.assert_allclose(of_noise.sum(axis=1), 1, rtol=1e-5)


def test_squares_are_cut_and_only_small_pictures_enlarged() -> None:
    """A large picture keeps its pixels, a small one gets the side."""
    large = np.random.default_rng(2).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    np.testing.assert_array_equal(native_square(large), large[22:278, 72:328])
    assert native_square(large[:100, :90]).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(("make", "expected"), [("Canon", -1.0), (None, 0.0), ("parameters", 1.0)])
def test_files_are_judged_by_what_they_say(make: str | None, expected: float) -> None:
    """A camera speaks against a generator, a prompt for it, and silence for nothing."""
    picture, buffer = Image.new("RGB", (64, 64)), io.BytesIO()
    if make == "parameters":
        text = PngInfo()
        said = "a lake\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
        text.add_text(make, said)
        picture.save(buffer, "PNG", pnginfo=text)
    else:
        exif = Image.Exif()
        if make is not None:
            exif[0x010F] = make
        picture.save(buffer, "JPEG", exif=exif)
    assert declared(buffer.getvalue()) == expected


@dataclass(frozen=True, slots=True)
class Darkened:
    """An aligner that loses so many levels."""

    levels: int
    name: str = "darkened"

    def reconstruct(self, images: Sequence[Pixels]) -> list[Pixels]:
        """Return the images, darker."""
        return [one - np.minimum(one, self.levels) for one in images]


def test_a_worse_reconstruction_is_farther(tmp_path: Path) -> None:
    """The same picture has no distance, and a darker one a larger one than a less dark one."""
    bundle = build_tiny_bundle(tmp_path / "tiny", branches=("backbone",))
    picture = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    found = [
        float(perceptual_distance(bundle, Darkened(levels))([picture])[0][0])
        for levels in (0, 60, 160)
    ]
    assert found[0] == 0
    assert found[0] > found[1] > found[2]


class FakeRows:
    """One number an image: 1 for a generated one as uploaded, the opposite on the web."""

    @staticmethod
    def rows(entries: Sequence[Entry], form: str) -> NDArray[np.float32]:
        """Return the numbers (N, 1)."""
        sign = 1 if form == "raw" else -1
        return np.array([[sign * entry.generated] for entry in entries], dtype=np.float32)


def test_the_table_has_a_row_for_every_peer(tmp_path: Path) -> None:
    """A number that says all has AUC 1, its opposite 0; what no file declares is worth 0.5."""
    sets = ("lake", "street", "hill", "alpha1", "beta", "gamma")
    entries = load_manifest(write_folder(tmp_path / "data", each=4, sets=sets))
    rows = []
    for title, cache in (("all", FakeRows()), ("metadata", DeclaredRows())):
        branch = OwnDirection(title, cache, HeadRecipe())  # type: ignore[arg-type]
        peer = Peer(title=title, learnt="nothing", branch=branch, processor_ms=1.0)
        rows.append(measure(peer, entries, make_folds(entries)))
    areas = [[row["forms"][form]["mean"]["value"] for form in ("raw", "web")] for row in rows]
    assert areas == [[1, 0], [0.5, 0.5]]
    write_page(rows, tmp_path / "peers.md", command="make bench-peers", data="24 images")
    table = [line for line in (tmp_path / "peers.md").read_text().splitlines() if line[:1] == "|"]
    assert len(table) == 4
    assert {line.count("|") for line in table} == {6}


def test_the_interval_of_a_mean_of_folds_is_narrower_than_theirs() -> None:
    """Of two equal half intervals of 0.1 the mean has 0.1 over the root of 2 (Gauss)."""
    found = mean_area(
        [{"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.7, "low": 0.6, "high": 0.8}]
    )
    assert found["value"] == pytest.approx(0.6)
    assert found["low"] == pytest.approx(0.6 - 0.1 / 2**0.5, abs=1e-4)
    assert found["high"] == pytest.approx(0.6 + 0.1 / 2**0.5, abs=1e-4)
