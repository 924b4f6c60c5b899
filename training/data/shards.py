"""Aligned data sets: WebDataset shards with a manifest, in a folder or a bucket.

A shard is a plain tar file; a sample is `<key>.json`, `<key>.<label>.<suffix>` and, of a real
image, one `<key>.<aligner>.<suffix>` an aligner: png, jpg or webp. `dataset.json` lists every shard
with its sha256 and the keys in it; its digest names the data set for ever. A withdrawn image is cut
out of its shard and leaves a tombstone, which makes a new digest that remembers the old one.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from detection.errors import SettingsError
from training.data.manifest import GENERATED, Entry
from training.data.samples import Sample
from training.files import written_aside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

MANIFEST = "dataset.json"
#: Fields of `<key>.json`, and the attributes of `SampleFiles` that they hold.
_FIELDS = {
    "group": "group",
    "source": "source",
    "label": "label",
    "side": "split",
    "weight": "weight",
    "audited": "audited",
}
SCHEMA_VERSION = 1


class DatasetError(SettingsError):
    """The data set is missing, or not what its manifest says."""


class Store(Protocol):
    """Where a data set lies: named blobs under one prefix."""

    def read(self, name: str) -> bytes | None:
        """Return a blob, or None when there is none of that name."""

    def write(self, name: str, data: bytes) -> None:
        """Keep a blob under a name; nobody ever sees half of it."""

    def delete(self, name: str) -> None:
        """Remove a blob; no error when there is none."""


class FolderStore:
    """A data set in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None when there is none of that name."""
        file = self._folder / name
        return file.read_bytes() if file.is_file() else None

    def write(self, name: str, data: bytes) -> None:
        """Write aside and rename into place."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with written_aside(self._folder / name) as aside:
            aside.write_bytes(data)

    def delete(self, name: str) -> None:
        """Remove a file; no error when there is none."""
        (self._folder / name).unlink(missing_ok=True)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Record):
    """One tar file: which keys it holds, and which originals could not be read."""

    name: str
    sha256: str
    size_bytes: int
    keys: tuple[str, ...]
    unreadable: tuple[str, ...] = ()


class Tombstone(_Record):
    """An image that was withdrawn after the data set was made."""

    key: str
    at: str
    reason: str


class Dataset(_Record):
    """The content of `dataset.json`; `previous` are the digests before each withdrawal."""

    schema_version: int = SCHEMA_VERSION
    aligners: tuple[str, ...]
    shards: tuple[Shard, ...]
    tombstones: tuple[Tombstone, ...] = ()
    previous: tuple[str, ...] = ()

    @property
    def keys(self) -> list[str]:
        """Every key that is still in a shard."""
        return [key for shard in self.shards for key in shard.keys]

    @property
    def unreadable(self) -> list[str]:
        """Originals that were asked for and could not be read."""
        return [key for shard in self.shards for key in shard.unreadable]

    @property
    def digest(self) -> str:
        """The sha256 of the manifest: another byte in any shard makes another data set."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFiles:
    """One sample: what is known of the original, its file, and each reconstruction's by aligner.

    Shards that were written before there were weights and audits hold none: each image stands for
    itself.
    """

    key: str
    group: str
    source: str
    label: str
    split: str
    suffix: str
    image: bytes
    reconstructions: Mapping[str, bytes]
    weight: float = 1.0
    audited: bool = False


def pack(samples: Iterable[SampleFiles]) -> bytes:
    """Write samples into a tar file that depends on nothing but them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            known = {name: getattr(sample, attribute) for name, attribute in _FIELDS.items()}
            _add(tar, f"{sample.key}.json", json.dumps(known, sort_keys=True).encode())
            _add(tar, f"{sample.key}.{sample.label}.{sample.suffix}", sample.image)
            for aligner, data in sorted(sample.reconstructions.items()):
                _add(tar, f"{sample.key}.{aligner}.{sample.suffix}", data)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def unpack(data: bytes) -> Iterator[SampleFiles]:
    """Read the samples of a shard."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            key, _, rest = member.name.partition(".")
            content = tar.extractfile(member)
            found.setdefault(key, {})[rest] = b"" if content is None else content.read()
    for key, parts in found.items():
        known: dict[str, Any] = json.loads(parts.pop("json"))
        first = f"{known['label']}."
        suffix = next(name for name in parts if name.startswith(first)).removeprefix(first)
        image = parts.pop(f"{first}{suffix}")
        made = {name.removesuffix(f".{suffix}"): content for name, content in parts.items()}
        values = {_FIELDS[name]: value for name, value in known.items()}
        yield SampleFiles(key=key, suffix=suffix, image=image, reconstructions=made, **values)


def write_shard(
    store: Store, name: str, samples: Iterable[SampleFiles], *, unreadable: Iterable[str] = ()
) -> Shard:
    """Pack and store one shard."""
    listed = list(samples)
    data = pack(listed)
    store.write(name, data)
    return Shard(
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        keys=tuple(sample.key for sample in listed),
        unreadable=tuple(unreadable),
    )


def save_dataset(store: Store, dataset: Dataset) -> None:
    """Write the manifest: from here on the data set exists."""
    store.write(MANIFEST, dataset.to_bytes())


def load_dataset(store: Store) -> Dataset:
    """Read the manifest; raises `DatasetError`."""
    raw = store.read(MANIFEST)
    if raw is None:
        raise DatasetError(f"there is no data set here: {MANIFEST} is missing")
    try:
        return Dataset.model_validate_json(raw)
    except ValidationError as error:
        raise DatasetError(f"{MANIFEST} is not a data set's: {error}") from error


def read_shard(store: Store, shard: Shard) -> Iterator[SampleFiles]:
    """Read one shard, checking its hash; raises `DatasetError`."""
    data = store.read(shard.name)
    if data is None:
        raise DatasetError(f"{shard.name} is missing: {MANIFEST} lists it")
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise DatasetError(f"{shard.name} has changed: its sha256 is not the one listed")
    yield from unpack(data)


def read_samples(store: Store, dataset: Dataset) -> Iterator[SampleFiles]:
    """Read every sample of a data set, shard by shard."""
    for shard in dataset.shards:
        yield from read_shard(store, shard)


def training_samples(files: Iterable[SampleFiles]) -> Iterator[Sample]:
    """Decode files into the samples that branches train on."""
    for file in files:
        entry = _entry(file, Path(file.key))
        made = {name: _decode(data) for name, data in file.reconstructions.items()}
        lossy = entry.generated and file.suffix == "jpg"
        yield Sample(entry, _decode(file.image), lossy=lossy, reconstructions=made)


def extract(files: Iterable[SampleFiles], folder: Path) -> list[Entry]:
    """Write the originals of samples into a folder and list them; reconstructions stay behind."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for file in files:
        path = folder / f"{file.key}.{file.suffix}"
        path.write_bytes(file.image)
        entries.append(_entry(file, path))
    return entries


def _entry(file: SampleFiles, path: Path) -> Entry:
    return Entry(
        path=path,
        label=file.label,
        set=file.source,
        family=file.source if file.label == GENERATED else "",
        group=file.group,
        weight=file.weight,
        audited=file.audited,
    )


def _decode(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def remove_samples(store: Store, keys: Iterable[str], *, reason: str, at: datetime) -> Dataset:
    """Cut images out of a data set for good and return what is left of it.

    A shard that changes gets another name; the manifest that names it is written before the old
    shard goes, so that a crash leaves a blob too many and never one too few.
    """
    dataset = load_dataset(store)
    gone = set(keys)
    shards, replaced = [], []
    for shard in dataset.shards:
        if gone.isdisjoint(shard.keys):
            shards.append(shard)
            continue
        left = [sample for sample in read_shard(store, shard) if sample.key not in gone]
        replaced.append(shard.name)
        name = _renamed(shard.name)
        shards.append(write_shard(store, name, left, unreadable=shard.unreadable))
    if not replaced:
        return dataset
    buried = sorted(gone.intersection(dataset.keys))
    changed = dataset.model_copy(
        update={
            "shards": tuple(shards),
            "tombstones": dataset.tombstones
            + tuple(Tombstone(key=key, at=at.isoformat(), reason=reason) for key in buried),
            "previous": (*dataset.previous, dataset.digest),
        }
    )
    save_dataset(store, changed)
    for name in replaced:
        store.delete(record_name(name))
        store.delete(name)
    return changed


def record_name(shard: str) -> str:
    """Name of the record that says by which plan a shard was built."""
    return f"{_parts(shard)[0]}.record.json"


def _renamed(name: str) -> str:
    stem, revision = _parts(name)
    return f"{stem}-r{revision + 1}.tar"


def _parts(name: str) -> tuple[str, int]:
    stem, _, revision = name.removesuffix(".tar").partition("-r")
    return stem, int(revision or 0)
