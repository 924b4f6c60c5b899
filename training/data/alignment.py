"""Building an aligned data set: each real image through every aligner, into shards, resumably.

A shard is a function of its originals and of the aligners alone. Its record is stored after it, so
that a run that was killed skips what it finished and ends with the same digest.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from training.data.manifest import REAL
from training.data.originals import Unreadable
from training.data.shards import Dataset, SampleFiles, Shard, record_name, save_dataset, write_shard
from training.oom import retry_in_halves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from training.data.aligners import Aligner
    from training.data.originals import Original
    from training.data.shards import Store

_log = structlog.get_logger(__name__)


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
    """Images a shard and images a forward pass."""

    shard_images: int = 32
    batch_size: int = BATCH_ON_CPU


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
        plan = _plan(part, aligners)
        shard = _finished(store, name, plan)
        if shard is None:
            shard = _build(part, aligners, store, name, config.batch_size)
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


def _plan(part: Sequence[Source], aligners: Sequence[Aligner]) -> str:
    listed = [[source.key for source in part], [aligner.name for aligner in aligners]]
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
    batch_size: int,
) -> Shard:
    originals: list[Original] = []
    unreadable: list[str] = []
    for source in part:
        try:
            originals.append(source.read())
        except Unreadable as error:
            unreadable.append(source.key)
            _log.warning("original_unreadable", key=source.key, error=str(error))
    made: dict[str, dict[str, bytes]] = {original.key: {} for original in originals}
    for aligner in aligners:
        for batch in _batches([one for one in originals if one.label == REAL], batch_size):
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


def _batches(originals: Sequence[Original], size: int) -> Iterator[list[Original]]:
    """Group originals of one shape, because only those go through a network together."""
    shapes: dict[tuple[int, ...], list[Original]] = {}
    for original in originals:
        shapes.setdefault(original.pixels.shape, []).append(original)
    for members in shapes.values():
        for start in range(0, len(members), size):
            yield members[start : start + size]
