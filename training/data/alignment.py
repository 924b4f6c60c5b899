"""Building pairs in batches, resumably: each real image through every aligner.

A data set of the retraining loop lies in shards, the pairs of a bundle's training in one file a
photograph and aligner. A shard is a function of its originals and of the aligners alone. Its record
is stored after it, so that a run that was killed skips what it finished and ends with the same
digest.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import structlog
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from training.data.manifest import REAL
from training.data.originals import Unreadable
from training.data.selection import Split
from training.data.shards import Dataset, SampleFiles, Shard, record_name, save_dataset, write_shard
from training.files import written_aside
from training.oom import retry_in_halves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.aligners import Aligner
    from training.data.originals import Original
    from training.data.samples import Sample
    from training.data.shards import Store

_log = structlog.get_logger(__name__)
_Image = TypeVar("_Image", "Original", "Sample")


#: Images a forward pass: a GPU wants many, a CPU's caches hold few (`make bench-pairs`).
BATCH_ON_GPU, BATCH_ON_CPU = 8, 2


class Source(Protocol):
    """One original that has not been read yet."""

    @property
    def key(self) -> str:
        """The key it has in every data set."""

    def read(self) -> Original:
        """Fetch and decode it; raises `Unreadable`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentConfig:
    """Images a shard and images a forward pass.

    With `draw_codec` every image that is trained on, and a photograph's partners with it, is saved
    by a codec and quality that its key draws; what calibrates and evaluates keeps its file.
    """

    shard_images: int = 32
    batch_size: int = BATCH_ON_CPU
    draw_codec: bool = False


def batch_for(device: str) -> int:
    """Return how many images a forward pass should take on a device."""
    return BATCH_ON_GPU if torch.device(device).type == "cuda" else BATCH_ON_CPU


class _Finished(BaseModel):
    """A stored shard and the plan it fulfils."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: str
    shard: Shard


def build_pairs(
    sources: Sequence[Source],
    aligners: Sequence[Aligner],
    store: Store,
    *,
    config: AlignmentConfig | None = None,
    on_image: Callable[[int], None] | None = None,
) -> Dataset:
    """Build the data set of `sources` in the order of their keys, and store its manifest.

    `on_image` hears how many originals are done. Originals that cannot be read are listed in their
    shard's record and skipped.
    """
    config = config or AlignmentConfig()
    ordered = sorted(sources, key=lambda source: source.key)
    shards: list[Shard] = []
    began, made, done = time.monotonic(), 0, 0
    for number, start in enumerate(range(0, len(ordered), config.shard_images)):
        part = ordered[start : start + config.shard_images]
        name = f"shard-{number:05d}.tar"
        plan = _plan(part, aligners, config)
        shard = _finished(store, name, plan)
        if shard is None:
            shard = _build(part, aligners, store, name, config)
            record = _Finished(plan=plan, shard=shard)
            store.write(record_name(name), record.model_dump_json().encode())
            made += len(shard.keys)
        shards.append(shard)
        done += len(part)
        if on_image is not None:
            on_image(done)
        took_s = time.monotonic() - began
        _log.info(
            "pairs_built",
            shard=name,
            done=done,
            of=len(ordered),
            unreadable=len(shard.unreadable),
            images_per_s=round(made / took_s, 2),
        )
    names = tuple(aligner.name for aligner in aligners)
    dataset = Dataset(aligners=names, shards=tuple(shards))
    save_dataset(store, dataset)
    return dataset


def _digest(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def attach_pairs(
    photographs: Sequence[Sample],
    aligner: Aligner,
    folder: Path,
    *,
    batch_size: int,
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Attach the reconstruction of each photograph, making those that are not in `folder`.

    Photographs of one size go through the aligner together, `batch_size` a pass; a run that was
    killed makes the rest. `on_progress` receives the part of the work, how many photographs have
    their file and how many there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {id(one): folder / f"{_digest(one.pixels)}.npy" for one in photographs}
    missing = [one for one in photographs if not files[id(one)].is_file()]
    part, began, made = f"pairs by {aligner.name}", time.monotonic(), 0
    for batch in _same_shape(missing, batch_size):
        images = retry_in_halves(aligner.reconstruct, [one.pixels for one in batch])
        for one, image in zip(batch, images, strict=True):
            with written_aside(files[id(one)]) as aside, aside.open("wb") as file:
                np.save(file, image)
        made += len(batch)
        on_progress(part, len(photographs) - len(missing) + made, len(photographs))
    if made:
        rate = round(made / (time.monotonic() - began), 2)
        _log.info("pairs_stored", aligner=aligner.identity, images=made, images_per_s=rate)
    for one in photographs:
        if aligner.name not in one.reconstructions:
            one.reconstructions[aligner.name] = np.load(files[id(one)])


def _plan(part: Sequence[Source], aligners: Sequence[Aligner], config: AlignmentConfig) -> str:
    listed = [[source.key for source in part], [one.identity for one in aligners]]
    if config.draw_codec:
        listed.append(["codec drawn"])
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _finished(store: Store, name: str, plan: str) -> Shard | None:
    raw = store.read(record_name(name))
    if raw is None:
        return None
    try:
        record = _Finished.model_validate_json(raw)
    except ValidationError:
        return None
    return record.shard if record.plan == plan else None


def _build(
    part: Sequence[Source],
    aligners: Sequence[Aligner],
    store: Store,
    name: str,
    config: AlignmentConfig,
) -> Shard:
    originals: list[Original] = []
    unreadable: list[str] = []
    for source in part:
        try:
            original = source.read()
        except Unreadable as error:
            unreadable.append(source.key)
            _log.warning("original_unreadable", key=source.key, error=str(error))
            continue
        drawn = config.draw_codec and original.split == Split.TRAINING
        originals.append(original.recoded() if drawn else original)
    made: dict[str, dict[str, bytes]] = {original.key: {} for original in originals}
    for aligner in aligners:
        reals = [one for one in originals if one.label == REAL]
        for batch in _same_shape(reals, config.batch_size):
            images = retry_in_halves(aligner.reconstruct, [original.pixels for original in batch])
            for original, image in zip(batch, images, strict=True):
                made[original.key][aligner.name] = original.coding.encode(image)
    samples = (
        SampleFiles(
            key=original.key,
            group=original.group,
            source=original.source,
            label=original.label,
            split=original.split,
            weight=original.weight,
            audited=original.audited,
            suffix=original.coding.suffix,
            image=original.data,
            reconstructions=made[original.key],
        )
        for original in originals
    )
    return write_shard(store, name, samples, unreadable=unreadable)


def _same_shape(images: Sequence[_Image], size: int) -> Iterator[list[_Image]]:
    """Group images of one shape, because only those go through a network together."""
    shapes: dict[tuple[int, ...], list[_Image]] = {}
    for image in images:
        shapes.setdefault(image.pixels.shape, []).append(image)
    for members in shapes.values():
        for start in range(0, len(members), size):
            yield members[start : start + size]
