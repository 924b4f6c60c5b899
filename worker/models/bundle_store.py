"""Released bundles in object storage: `s3://<bucket>/models/<digest>/…`, and their local copies.

The digest is the sha256 of `bundle.json`, which lists the sha256 of every other file. A reader who
knows the digest can verify files from any source. Bundles that ship in the package are stored too:
the next release may ship another under the same name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from detection.bundle import BUNDLE_FILE, Bundle, BundleError, load_bundle
from detection.errors import PermanentError
from worker.models.registry import ModelVersion
from worker.storage.s3 import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.settings import Settings
    from worker.storage.interface import Storage

_MAX_FILE_BYTES = 4 * 2**30
_MAX_MANIFEST_BYTES = 2**24


class BundleStore:
    """Keeps bundles under `models/` of one bucket; all raise `StorageUnavailable` when it is away.

    What is there but cannot be used is a `BundleError` that names the address.
    """

    def __init__(self, storage: Storage, bucket: str) -> None:
        self._storage, self._bucket = storage, bucket

    def upload(self, bundle: Bundle) -> str:
        """Store every file of a bundle and return its address; doing so again changes nothing.

        `bundle.json` goes last: an address that can be fetched is complete.
        """
        prefix = f"models/{bundle.model_version}/"
        for name in (*sorted(bundle.manifest.files), BUNDLE_FILE):
            body = bundle.path(name).read_bytes()
            self._storage.put(
                self._bucket, f"{prefix}{name}", body, content_type="application/octet-stream"
            )
        return f"s3://{self._bucket}/{prefix.rstrip('/')}"

    def fetch(self, uri: str, digest: str, cache: Path) -> Bundle:
        """Return the bundle of that digest from `cache`, downloading it on a cache miss.

        A local copy that was damaged is replaced; a download shows in the cache whole or not at
        all. Raises `BundleError` when what lies at `uri` is not this bundle.
        """
        target = cache / digest
        if target.is_dir():
            try:
                return _of_version(load_bundle(target), digest, target)
            except BundleError:
                shutil.rmtree(target)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as scratch:
            folder = Path(scratch) / digest
            self._download(uri, digest, folder)
            try:
                bundle = _of_version(load_bundle(folder), digest, uri)
            except BundleError as error:
                raise BundleError(f"the bundle at {uri} cannot be used: {error}") from error
            try:
                folder.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
        return replace(bundle, folder=target)

    def _download(self, uri: str, digest: str, folder: Path) -> None:
        raw = self._read(uri, BUNDLE_FILE, max_bytes=_MAX_MANIFEST_BYTES)
        if hashlib.sha256(raw).hexdigest() != digest:
            raise BundleError(f"{uri}/{BUNDLE_FILE} is not that of model version {digest}")
        folder.mkdir()
        for name in listed_files(raw, uri):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self._read(uri, name, max_bytes=_MAX_FILE_BYTES))
        (folder / BUNDLE_FILE).write_bytes(raw)

    def _read(self, uri: str, name: str, *, max_bytes: int) -> bytes:
        scheme, _, address = uri.partition("://")
        bucket, _, prefix = address.partition("/")
        if scheme != "s3" or bucket != self._bucket or not prefix:
            raise BundleError(f"{uri} is no address of a bundle in s3://{self._bucket}/models/")
        try:
            return self._storage.fetch(bucket, f"{prefix}/{name}", max_bytes=max_bytes)
        except PermanentError as error:
            raise BundleError(f"{uri}/{name} cannot be fetched: {error}") from error


def model_of(bundle: Bundle, uri: str, *, training_snapshot: str | None = None) -> ModelVersion:
    """Say of a bundle what the registry keeps."""
    return ModelVersion(
        digest=bundle.model_version,
        name=bundle.manifest.name,
        uri=uri,
        manifest=bundle.manifest.model_dump(mode="json"),
        training_snapshot=training_snapshot,
        code_revision=bundle.manifest.provenance.code_revision or None,
    )


@contextmanager
def open_bundles(settings: Settings) -> Iterator[BundleStore]:
    """Open the bundles of these settings' training bucket."""
    storage = open_storage(settings)
    try:
        yield BundleStore(storage, settings.training.bucket)
    finally:
        storage.close()


def _of_version(bundle: Bundle, digest: str, address: object) -> Bundle:
    if bundle.model_version != digest:
        raise BundleError(f"{address} holds model version {bundle.model_version}, not {digest}")
    return bundle


def listed_files(raw: bytes, uri: str) -> list[str]:
    """Return the names that a `bundle.json` from elsewhere lists, none of them outside its folder.

    Raises `BundleError`, which names `uri`.
    """
    try:
        names = list(json.loads(raw)["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{uri}/{BUNDLE_FILE} lists no files: {error}") from error
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise BundleError(f"{uri}/{BUNDLE_FILE} names a file outside of the bundle: {name!r}")
    return names
