"""Aligned data sets: pairs that differ by nothing but the aligner, in shards to be trusted."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from training.data.alignment import AlignmentConfig, attach_pairs, build_pairs
from training.data.manifest import Entry
from training.data.originals import Original, Unreadable, lossless, read_original
from training.data.samples import Sample
from training.data.shaders import render
from training.data.shards import (
    DatasetError,
    FolderStore,
    load_dataset,
    read_samples,
    remove_samples,
    training_samples,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CONFIG = AlignmentConfig(shard_images=3, batch_size=2)
NOW = datetime(2026, 5, 4, tzinfo=UTC)


@dataclass(frozen=True)
class Rendered:
    """An original that is rendered when it is read."""

    key: str
    seed: int = 0
    side: int = 64
    split: str = "training"
    label: str = "real"

    def read(self) -> Original:
        """Render it."""
        pixels = render("clouds", self.seed, height=self.side, width=self.side)
        made = lossless(pixels, key=self.key, group=f"group-{self.seed}", source="shader")
        return replace(made, split=self.split, label=self.label)


@dataclass(frozen=True)
class Broken:
    """An original whose file is no image."""

    key: str

    def read(self) -> Original:
        """Fail."""
        return read_original(b"no image", key=self.key, group="g", source="s")


class Darker:
    """An aligner that takes one grey level off and counts its calls."""

    name = identity = "darker"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def reconstruct(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Subtract one."""
        self.sizes.append(len(images))
        return [np.where(image > 0, image - 1, image) for image in images]


def sources(count: int) -> list[Rendered]:
    """Originals in no order at all."""
    return [Rendered(f"image-{seed:02d}", seed) for seed in reversed(range(count))]


def test_pairs_come_back_exactly(tmp_path: Path) -> None:
    """A stored pair decodes to the very original and to what the aligner made of it."""
    store = FolderStore(tmp_path)
    dataset = build_pairs(sources(5), [Darker()], store, config=CONFIG)

    samples = list(training_samples(read_samples(store, load_dataset(store))))
    assert [str(sample.entry.path) for sample in samples] == dataset.keys
    for seed, sample in enumerate(samples):
        expected = render("clouds", seed, height=64, width=64)
        assert np.array_equal(sample.pixels, expected)
        made = sample.reconstructions["darker"]
        assert np.array_equal(made, np.where(expected > 0, expected - 1, expected))
        assert sample.entry.group == f"group-{seed}"


def test_a_jpeg_partner_gets_the_original_tables(tmp_path: Path) -> None:
    """Both sides of a JPEG's pair share tables, chroma layout and scan, and carry no metadata."""
    pixels = render("shapes", 3, height=80, width=96)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.fromarray(pixels).save(
        buffer, "JPEG", quality=83, subsampling="4:2:2", progressive=True, exif=exif, comment="x"
    )
    original = read_original(buffer.getvalue(), key="a", group="g", source="s")

    @dataclass(frozen=True)
    class Ready:
        key: str = "a"

        def read(self) -> Original:
            return original

    store = FolderStore(tmp_path)
    build_pairs([Ready()], [Darker()], store)
    (pair,) = read_samples(store, load_dataset(store))
    with (
        Image.open(buffer) as source,
        Image.open(io.BytesIO(pair.image)) as real,
        Image.open(io.BytesIO(pair.reconstructions["darker"])) as made,
    ):
        assert real.quantization == made.quantization == source.quantization
        assert real.layer == made.layer == source.layer
        assert real.info.get("progressive") == made.info.get("progressive") == 1
        assert not real.getexif()
        assert "comment" not in real.info
        assert np.array_equal(np.asarray(real), np.asarray(source))


def test_what_lies_under_transparency_teaches_nothing() -> None:
    """A file that is kept losslessly is kept as the service shows it: over white."""
    hidden = np.full((64, 64, 4), 90, np.uint8)
    hidden[:, :32, 3], hidden[:, 32:, 3] = 0, 255
    buffer = io.BytesIO()
    Image.fromarray(hidden).save(buffer, "PNG")
    original = read_original(buffer.getvalue(), key="a", group="g", source="s")

    shown = np.full((64, 64, 3), 90, np.uint8)
    shown[:, :32] = 255
    assert np.array_equal(original.pixels, shown)
    with Image.open(io.BytesIO(original.data)) as stored:
        assert np.array_equal(np.asarray(stored), shown)


def test_an_unreadable_original_is_skipped_and_listed(tmp_path: Path) -> None:
    """An original that cannot be decoded costs itself only, and the manifest names it."""
    dataset = build_pairs([*sources(4), Broken("broken")], [Darker()], FolderStore(tmp_path))

    assert dataset.unreadable == ["broken"]
    assert len(dataset.keys) == 4


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """After an interruption only unfinished shards are made, and the digest is that of one run."""

    class Cut(Exception):
        pass

    class Interrupted(Darker):
        def reconstruct(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
            if len(self.sizes) == 3:
                raise Cut
            return super().reconstruct(images)

    whole = build_pairs(sources(8), [Darker()], FolderStore(tmp_path / "whole"), config=CONFIG)
    store = FolderStore(tmp_path / "cut")
    with pytest.raises(Cut):
        build_pairs(sources(8), [Interrupted()], store, config=CONFIG)
    with pytest.raises(DatasetError):
        load_dataset(store)

    rest = Darker()
    resumed = build_pairs(sources(8), [rest], store, config=CONFIG)
    assert resumed.digest == whole.digest
    assert sum(rest.sizes) == 5


def test_another_set_of_images_is_another_digest(tmp_path: Path) -> None:
    """A finished shard is not reused for other originals."""
    store = FolderStore(tmp_path)
    first = build_pairs(sources(3), [Darker()], store, config=CONFIG)
    second = build_pairs(sources(4)[:3], [Darker()], store, config=CONFIG)

    assert first.digest != second.digest
    assert second.keys == ["image-01", "image-02", "image-03"]


def test_a_withdrawn_image_leaves_a_tombstone(tmp_path: Path) -> None:
    """A withdrawn image is in no shard any more; the tombstone and the old digest stay."""
    store = FolderStore(tmp_path)
    before = build_pairs(sources(5), [Darker()], store, config=CONFIG)

    after = remove_samples(store, ["image-01", "unknown"], reason="erasure", at=NOW)

    assert after == load_dataset(store)
    assert [stone.key for stone in after.tombstones] == ["image-01"]
    assert after.previous == (before.digest,)
    assert "image-01" not in [pair.key for pair in read_samples(store, after)]
    assert len(after.keys) == 4
    for file in tmp_path.glob("*.tar"):
        assert b"image-01" not in file.read_bytes()
    assert not any(b"image-01" in file.read_bytes() for file in tmp_path.glob("*.record.json"))
    again = remove_samples(store, ["image-02"], reason="erasure", at=NOW)
    assert len(list(read_samples(store, again))) == 3


def test_a_changed_shard_is_refused(tmp_path: Path) -> None:
    """A shard whose bytes are not those listed is an error that names it."""
    store = FolderStore(tmp_path)
    dataset = build_pairs(sources(2), [Darker()], store)
    file = tmp_path / dataset.shards[0].name
    file.write_bytes(file.read_bytes() + b"\0")

    with pytest.raises(DatasetError, match=r"shard-00000\.tar has changed"):
        list(read_samples(store, dataset))


def test_other_tools_read_the_shards(tmp_path: Path) -> None:
    """A shard is what webdataset and tar expect."""
    build_pairs(sources(2), [Darker()], FolderStore(tmp_path))
    file = tmp_path / "shard-00000.tar"

    with tarfile.open(file) as tar:
        assert tar.getnames()[0] == "image-00.json"
    with file.open("rb") as handle:
        rows = list(group_by_keys(tar_file_expander([{"url": file.name, "stream": handle}])))
    assert [row["__key__"] for row in rows] == ["image-00", "image-01"]
    assert json.loads(rows[0]["json"])["group"] == "group-0"


def test_out_of_memory_halves_the_batch(tmp_path: Path) -> None:
    """A batch that does not fit is done in halves, and every pair is the same."""

    class Small(Darker):
        def reconstruct(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
            if len(images) > 2:
                raise torch.OutOfMemoryError
            return super().reconstruct(images)

    aligner, config = Small(), AlignmentConfig(shard_images=5, batch_size=5)
    halved = build_pairs(sources(5), [aligner], FolderStore(tmp_path / "halved"), config=config)
    whole = build_pairs(sources(5), [Darker()], FolderStore(tmp_path / "whole"), config=config)

    assert aligner.sizes == [2, 1, 2]
    assert halved.digest == whole.digest


def test_a_broken_jpeg_is_unreadable() -> None:
    """A truncated JPEG is refused by name."""
    pixels = render("waves", 1, height=64, width=64)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")

    with pytest.raises(Unreadable, match="cut"):
        read_original(buffer.getvalue()[:-200], key="cut", group="g", source="s")


def test_a_generated_image_has_no_partner(tmp_path: Path) -> None:
    """A confirmed fake is kept as it is, under its label, and is not reconstructed."""
    pixels = render("cells", 1, height=64, width=64)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")

    @dataclass(frozen=True)
    class Fake:
        key: str = "fake"

        def read(self) -> Original:
            return read_original(
                buffer.getvalue(), key="fake", group="g", source="s", label="generated"
            )

    aligner = Darker()
    store = FolderStore(tmp_path)
    dataset = build_pairs([*sources(1), Fake()], [aligner], store)

    fake, real = training_samples(read_samples(store, dataset))
    assert fake.entry.generated
    assert fake.reconstructions == {}
    assert not real.entry.generated
    assert aligner.sizes == [1]


def test_pairs_of_a_bundles_training_are_made_in_batches_and_once(tmp_path: Path) -> None:
    """Images of one size share a pass, what has its file is only read, and progress counts both."""
    sizes = [(64, 64), (64, 96), (64, 64), (64, 96), (64, 64)]
    photographs = [
        Sample(
            Entry(path=Path(f"{number}.png"), label="real", set="lake", family="", group=""),
            render("clouds", number, height=height, width=width),
            lossy=False,
        )
        for number, (height, width) in enumerate(sizes)
    ]
    first, second = Darker(), Darker()
    heard: list[tuple[str, int, int]] = []

    def attach(samples: Sequence[Sample], aligner: Darker) -> None:
        attach_pairs(
            samples,
            aligner,
            tmp_path / "pairs",
            batch_size=2,
            on_progress=lambda *values: heard.append(values),
        )

    attach(photographs[:1], first)
    photographs[0].reconstructions.clear()
    attach(photographs, second)
    assert first.sizes == [1]
    assert second.sizes == [2, 2]
    assert heard == [("pairs by darker", done, of) for done, of in ((1, 1), (3, 5), (5, 5))]
    for sample in photographs:
        made = sample.reconstructions["darker"]
        assert np.array_equal(made, np.where(sample.pixels > 0, sample.pixels - 1, sample.pixels))


def test_a_finished_shard_is_not_taken_for_another_versions(tmp_path: Path) -> None:
    """An aligner of the same name and of other weights makes its pairs again."""
    store = FolderStore(tmp_path)
    build_pairs(sources(3), [Darker()], store, config=CONFIG)
    same, other = Darker(), Darker()
    other.identity = "darker@2"
    build_pairs(sources(3), [same], store, config=CONFIG)
    build_pairs(sources(3), [other], store, config=CONFIG)
    assert (sum(same.sizes), sum(other.sizes)) == (0, 3)


def test_a_codec_is_drawn_for_a_pair_and_both_sides_are_saved_by_it(tmp_path: Path) -> None:
    """JPEG and WebP of several qualities occur, and no property of a file tells the sides apart.

    A second build draws the same, and what is not trained on keeps its own coding.
    """
    drawn = replace(CONFIG, draw_codec=True)
    first = build_pairs(sources(24), [Darker()], FolderStore(tmp_path / "a"), config=drawn)
    again = build_pairs(sources(24), [Darker()], FolderStore(tmp_path / "b"), config=drawn)
    assert first.digest == again.digest
    codings = set()
    for sample in read_samples(FolderStore(tmp_path / "a"), first):
        pair = [sample.image, sample.reconstructions["darker"]]
        opened = [Image.open(io.BytesIO(data)) for data in pair]
        kinds = {(one.format, str(getattr(one, "quantization", None))) for one in opened}
        assert len(kinds) == 1
        codings |= kinds
        real, made = (np.asarray(one.convert("RGB")).astype(float).mean() for one in opened)
        assert made < real  # the aligner's own work is in its file
    assert {kind for kind, _ in codings} == {"JPEG", "WEBP"}
    assert len(codings) > 5
    fakes = [replace(one, label="generated") for one in sources(24)]
    dataset = build_pairs(fakes, [Darker()], FolderStore(tmp_path / "d"), config=drawn)
    read = read_samples(FolderStore(tmp_path / "d"), dataset)
    # What its file tells of a generated image, it tells of a photograph.
    assert {one.suffix for one in read} == {"jpg", "webp"}
    kept = [replace(one, split="calibration") for one in sources(2)]
    dataset = build_pairs(kept, [Darker()], FolderStore(tmp_path / "c"), config=drawn)
    assert {one.suffix for one in read_samples(FolderStore(tmp_path / "c"), dataset)} == {"png"}
