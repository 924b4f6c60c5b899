"""Bundles in repositories of a hub that speaks the Hugging Face API, as `hf://owner/name@revision`.

A repository holds the files of one bundle and its page, `README.md`. Nothing of it is trusted:
the files are those that `bundle.json` lists, each of the sha256 that stands there, all of one
commit.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from detection.bundle import BUNDLE_FILE, SUFFIXES, Bundle, BundleError, load_bundle
from detection.errors import SettingsError
from worker.models.bundle_store import listed_files
from worker.models.hub_card import hub_page
from worker.models.hub_pins import HubPin

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from huggingface_hub.hf_api import ModelInfo

    from worker.models.hub_pins import HubPins
    from worker.settings import Hub

    _Sizes = dict[str, int | None]

#: The page of a repository, and the file in which the hub keeps which files are large.
PAGE = "README.md"
_OF_THE_HUB = frozenset({PAGE, ".gitattributes"})
_MAX_MANIFEST_BYTES = 2**24
_MAX_FILE_BYTES = 4 * 2**30
_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^\s@]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(SettingsError):
    """The hub, or what a repository there holds, cannot be used."""


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository, and a commit, tag or branch of it."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Read `hf://owner/name@revision`, or that without a revision; raises `HubError`."""
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise HubError(f"{text!r} is no address on a hub: hf://owner/name@revision")
        return cls(found["repository"], found["revision"])

    @property
    def is_commit(self) -> bool:
        """Whether the revision can never become another one."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


class HubBundles:
    """Pulls and pushes bundles; every failure of the hub is a `HubError` that says what to do."""

    def __init__(self, settings: Hub) -> None:
        from huggingface_hub import HfApi, get_session
        from huggingface_hub.utils.tqdm import disable_progress_bars

        token = settings.token.get_secret_value() if settings.token is not None else None
        self._settings = settings
        # False: no token that lies on this machine for other programs.
        self._api = HfApi(endpoint=settings.endpoint.rstrip("/"), token=token or False)
        get_session().timeout = settings.timeout_s
        if not sys.stderr.isatty():
            disable_progress_bars()

    def pull(self, address: HubAddress, pins: HubPins, folder: Path | None = None) -> HubPull:
        """Download the bundle of a revision into a new folder, whole or not at all.

        A commit is pinned; an address without a revision means the commit that is pinned. Raises
        `HubError`, and `BundleError` for what is no bundle.
        """
        pinned = pins.find(address.repository)
        if address.revision is None:
            if pinned is None:
                raise HubError(
                    f"{address} names no revision, and no commit of it was pulled before:"
                    f" {address}@REVISION"
                )
            address = replace(address, revision=pinned.revision)
        info = self._info(address)
        at = HubAddress(address.repository, info.sha)
        if address.is_commit and at != address:
            raise HubError(f"the hub answers {address} with another commit, {info.sha}")
        name = address.repository.replace("/", "--")
        target = folder or Path("var/bundles") / f"{name}-{str(info.sha)[:12]}"
        if target.exists():
            raise HubError(f"{target} exists already: name a new folder with --out")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
            bundle = self._download(at, info, Path(scratch) / "bundle")
            pin = HubPin(revision=str(info.sha), model_version=bundle.model_version)
            if pinned is not None and pinned.contradicts(pin):
                raise HubError(
                    f"{at} was model version {pinned.model_version} when it was pulled before, and"
                    f" is {pin.model_version} now: the hub changed a commit"
                )
            bundle.folder.rename(target)
        if address.is_commit:
            pins.record(address.repository, pin)
        return HubPull(replace(bundle, folder=target), at, pinned=address.is_commit)

    def push(self, bundle: Bundle, address: HubAddress, *, create: bool = False) -> HubAddress:
        """Commit a bundle and its page to a branch, else main; return the address of the commit.

        Files of the bundle that was there before go. Raises `HubError`, and changes nothing, where
        the repository holds anything else. `create` makes a missing repository, a private one.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        if self._settings.token is None:
            raise HubError("pushing needs a token that may write: set UNLATENT_HUB__TOKEN")
        if address.is_commit:
            raise HubError(f"{address} is a commit: push to a branch, or name none for main")
        if PAGE in bundle.manifest.files:
            raise HubError(f"the bundle holds a {PAGE}, where its page on the hub goes: rename it")
        branch = HubAddress(address.repository, address.revision or "main")
        names = {*bundle.manifest.files, BUNDLE_FILE}
        if create:
            with self._errors(branch):
                self._api.create_repo(branch.repository, private=True, exist_ok=True)
        info = self._info(branch)
        replaced = self._replaced(branch, info, names)
        page = hub_page(bundle, branch.repository).encode()
        with self._errors(branch):
            commit = self._api.create_commit(
                branch.repository,
                [
                    *(CommitOperationAdd(name, bundle.path(name)) for name in sorted(names)),
                    CommitOperationAdd(PAGE, page),
                    *(CommitOperationDelete(name) for name in sorted(replaced)),
                ],
                commit_message=f"Bundle {bundle.manifest.name} {bundle.model_version[:12]}",
                revision=branch.revision,
                parent_commit=info.sha,
            )
        return HubAddress(branch.repository, commit.oid)

    def _info(self, address: HubAddress) -> ModelInfo:
        with self._errors(address):
            info = self._api.model_info(
                address.repository,
                revision=address.revision,
                files_metadata=True,
                timeout=self._settings.timeout_s,
            )
        if not info.sha or not _COMMIT.fullmatch(info.sha):
            raise HubError(f"{self._api.endpoint} states no commit of {address}")
        return info

    def _download(self, at: HubAddress, info: ModelInfo, folder: Path) -> Bundle:
        sizes = _sizes(info)
        names = self._listed(at, sizes, folder)
        _check_names(at, names, sizes)
        for name in names:
            self._fetch(at, name, sizes, folder)
        # The hub's library leaves its notes beside what it downloads.
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        try:
            return load_bundle(folder)
        except BundleError as error:
            reason = str(error).replace(f"{folder}/", "")
            raise BundleError(f"the bundle at {at} cannot be used: {reason}") from error

    def _listed(self, at: HubAddress, sizes: _Sizes, folder: Path) -> list[str]:
        """Download `bundle.json` and return the files that it lists."""
        if BUNDLE_FILE not in sizes:
            raise BundleError(f"{at} is not a bundle: it has no {BUNDLE_FILE}")
        if (sizes[BUNDLE_FILE] or 0) > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{at}/{BUNDLE_FILE} is too large: {sizes[BUNDLE_FILE]} bytes")
        return listed_files(self._fetch(at, BUNDLE_FILE, sizes, folder).read_bytes(), str(at))

    def _fetch(self, at: HubAddress, name: str, sizes: _Sizes, folder: Path) -> Path:
        with self._errors(at):
            file = Path(
                self._api.hf_hub_download(
                    at.repository,
                    name,
                    revision=at.revision,
                    local_dir=folder,
                    etag_timeout=self._settings.timeout_s,
                )
            )
        stated, found = sizes[name], file.stat().st_size
        if stated is not None and found != stated:
            raise HubError(
                f"the hub states {stated} bytes of {name} at {at}, and {found} bytes came:"
                " pull again"
            )
        return file

    def _replaced(self, at: HubAddress, info: ModelInfo, names: Collection[str]) -> set[str]:
        """Return the files of an earlier bundle that another one lacks."""
        sizes = _sizes(info)
        left = sizes.keys() - set(names) - _OF_THE_HUB
        if not left:
            return set()
        earlier: set[str] = set()
        if BUNDLE_FILE in sizes:
            with tempfile.TemporaryDirectory() as scratch:
                earlier.update(self._listed(at, sizes, Path(scratch)))
        if foreign := sorted(left - earlier):
            raise HubError(
                f"{at} holds {foreign[0]}, which is of no bundle: push to a repository of its own"
            )
        return left

    @contextmanager
    def _errors(self, at: HubAddress) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library's own HTTP library changes with its releases
            raise HubError(_in_words(error, at, str(self._api.endpoint))) from error


@dataclass(frozen=True, slots=True)
class HubPull:
    """A bundle that was pulled, and the commit that it is of."""

    bundle: Bundle
    address: HubAddress
    pinned: bool


def _sizes(info: ModelInfo) -> _Sizes:
    """Return the files of a repository and their bytes, where the hub states them."""
    return {file.rfilename: file.size for file in info.siblings or ()}


def _check_names(at: HubAddress, names: Collection[str], sizes: _Sizes) -> None:
    """Refuse files that are missing, foreign, too large or of a format that can run code."""
    present = sizes.keys() - _OF_THE_HUB - {BUNDLE_FILE}
    for name in sorted(present.union(names)):
        if PurePosixPath(name).suffix not in SUFFIXES:
            raise BundleError(
                f"{at} holds {name}: only safetensors weights are loaded, never pickles"
            )
        if name not in names:
            raise BundleError(f"{at} holds {name}, which {BUNDLE_FILE} does not list")
        if name not in sizes:
            raise BundleError(f"{at} lacks {name}, which {BUNDLE_FILE} lists")
        if (sizes[name] or 0) > _MAX_FILE_BYTES:
            raise BundleError(f"{at} holds {name} of {sizes[name]} bytes: more than a bundle has")


def _in_words(error: BaseException, at: HubAddress, endpoint: str) -> str:
    from huggingface_hub import errors

    # The library wraps what failed in errors about its cache and its uploads.
    while not isinstance(error, errors.HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__

    token = "UNLATENT_HUB__TOKEN"  # noqa: S105  # the setting's name
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    match error, status:
        case errors.RepositoryNotFoundError(), _:
            return (
                f"{endpoint} has no repository {at.repository}, or it is private or gated: check"
                f" its name, accept its terms, set {token} to one that may use it"
            )
        case errors.RevisionNotFoundError(), _:
            return f"{at.repository} has no revision {at.revision} at {endpoint}"
        case _, 401 | 403:
            return f"{endpoint} refuses this of {at} ({status}): {token} must be one that may do it"
        case _, 409 | 412:
            return f"{at} changed at the same time: push again"
        case _, None:
            return f"{at} cannot be had from {endpoint}: {reason} (is the network there?)"
    return f"{endpoint} answers {status} to {at}: {reason}"
