"""Bundles go to object storage and come back as they were, or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from detection.bundle import BUNDLE_FILE, Bundle, BundleError, embedded_names, load_bundle
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from worker.models.bundle_store import BundleStore
from worker.storage.interface import StorageUnavailable
from worker.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

BUCKET = "training"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle on disk, with files in sub-folders."""
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def storage() -> MemoryStorage:
    """Object storage with an empty bucket."""
    return MemoryStorage([BUCKET])


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_bundle_comes_back_byte_for_byte(
    storage: MemoryStorage, bundle: Bundle, tmp_path: Path
) -> None:
    """What was uploaded is downloaded into a folder named by the digest, sub-folders included."""
    store = BundleStore(storage, BUCKET)
    uri = store.upload(bundle)
    assert uri == f"s3://{BUCKET}/models/{bundle.model_version}"
    assert store.upload(bundle) == uri
    fetched = store.fetch(uri, bundle.model_version, tmp_path / "cache")
    assert fetched.folder == tmp_path / "cache" / bundle.model_version
    assert contents(fetched.folder) == contents(bundle.folder)
    assert [path.name for path in fetched.folder.parent.iterdir()] == [bundle.model_version]


def test_a_local_copy_needs_no_storage(
    storage: MemoryStorage, bundle: Bundle, tmp_path: Path
) -> None:
    """The second fetch reads the cache; a damaged copy there is replaced."""
    store = BundleStore(storage, BUCKET)
    uri = store.upload(bundle)
    first = store.fetch(uri, bundle.model_version, tmp_path)
    storage.all_denied = True
    assert store.fetch(uri, bundle.model_version, tmp_path) == first
    first.path("egre.safetensors").write_bytes(b"rotten")
    storage.all_denied = False
    healed = store.fetch(uri, bundle.model_version, tmp_path)
    assert contents(healed.folder) == contents(bundle.folder)


def test_a_changed_byte_is_refused_by_address(
    storage: MemoryStorage, bundle: Bundle, tmp_path: Path
) -> None:
    """Neither weights nor a manifest that changed in the bucket reach the cache."""
    store = BundleStore(storage, BUCKET)
    uri = store.upload(bundle)
    prefix = f"models/{bundle.model_version}"
    storage.put(BUCKET, f"{prefix}/egre.safetensors", b"other", content_type="x")
    with pytest.raises(BundleError, match=f"{uri} cannot be used.*egre.safetensors has changed"):
        store.fetch(uri, bundle.model_version, tmp_path)
    storage.put(BUCKET, f"{prefix}/{BUNDLE_FILE}", b"{}", content_type="x")
    with pytest.raises(BundleError, match=f"{uri}/{BUNDLE_FILE} is not that of model version"):
        store.fetch(uri, bundle.model_version, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(storage: MemoryStorage, bundle: Bundle, tmp_path: Path) -> None:
    """An upload that was cut off cannot be fetched, and the error says what is missing."""
    store = BundleStore(storage, BUCKET)
    uri = store.upload(bundle)
    storage.delete(BUCKET, f"models/{bundle.model_version}/aligned.safetensors")
    with pytest.raises(BundleError, match=f"{uri}/aligned.safetensors cannot be fetched"):
        store.fetch(uri, bundle.model_version, tmp_path)


def test_an_upload_that_is_cut_off_has_no_manifest(bundle: Bundle) -> None:
    """The manifest is stored last, so that half a bundle is none."""

    class Failing(MemoryStorage):
        def put(self, *address: str, **rest: object) -> None:  # type: ignore[override]
            if address[1].endswith("golden.safetensors"):
                raise StorageUnavailable
            super().put(*address, **rest)  # type: ignore[arg-type]

    storage = Failing([BUCKET])
    with pytest.raises(StorageUnavailable):
        BundleStore(storage, BUCKET).upload(bundle)
    assert not any(facts.key.endswith(BUNDLE_FILE) for facts in storage.list(BUCKET))


@pytest.mark.parametrize(
    "uri", ["https://example.org/models/a", "s3://uploads/models/a", "s3://training"]
)
def test_other_addresses_are_never_read(storage: MemoryStorage, tmp_path: Path, uri: str) -> None:
    """Bundles come from the one bucket that the settings name."""
    with pytest.raises(BundleError, match="is no address of a bundle in s3://training/models/"):
        BundleStore(storage, BUCKET).fetch(uri, "a", tmp_path)


def test_a_manifest_cannot_write_elsewhere(storage: MemoryStorage, tmp_path: Path) -> None:
    """A file name that leads out of the bundle is refused before anything is fetched."""
    raw = json.dumps({"files": {"../outside.txt": "0" * 64}}).encode()
    digest = hashlib.sha256(raw).hexdigest()
    storage.put(BUCKET, f"models/{digest}/{BUNDLE_FILE}", raw, content_type="x")
    with pytest.raises(BundleError, match=r"outside of the bundle: '\.\./outside.txt'"):
        BundleStore(storage, BUCKET).fetch(f"s3://training/models/{digest}", digest, tmp_path / "c")


def test_an_embedded_bundle_outlives_its_release(storage: MemoryStorage, tmp_path: Path) -> None:
    """A release that ships another bundle of that name still fetches the one that was stored."""
    shipped = load_bundle(embedded_names()[0])
    digest = shipped.model_version
    uri = BundleStore(storage, BUCKET).upload(shipped)
    assert uri == f"s3://{BUCKET}/models/{digest}"
    assert BundleStore(storage, BUCKET).fetch(uri, digest, tmp_path).folder == tmp_path / digest


def test_two_downloads_at_once_agree(
    storage: MemoryStorage, bundle: Bundle, tmp_path: Path
) -> None:
    """Whoever finishes second uses what the first has put in place."""

    class Overtaken(MemoryStorage):
        def fetch(self, bucket: str, key: str, **rest: object) -> bytes:  # type: ignore[override]
            body = storage.fetch(bucket, key, **rest)  # type: ignore[arg-type]
            target = tmp_path / bundle.model_version
            if not target.exists():
                shutil.copytree(bundle.folder, target)
            return body

    uri = BundleStore(storage, BUCKET).upload(bundle)
    fetched = BundleStore(Overtaken([BUCKET]), BUCKET).fetch(uri, bundle.model_version, tmp_path)
    assert contents(fetched.folder) == contents(bundle.folder)
