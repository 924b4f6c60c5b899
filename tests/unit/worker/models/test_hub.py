"""Bundles go to a hub and come back as they were, or not at all."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import ModelCard, close_session
from huggingface_hub import constants as hub_constants

from detection.bundle import (
    BUNDLE_FILE,
    Bundle,
    BundleError,
    embedded_folder,
    load_bundle,
    write_manifest,
)
from tests.support.bundles.hollow_bundle import build_hollow_bundle
from tests.support.bundles.hub import TOKEN, FakeHub, serve
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.processes.command_line import run
from worker.models.hub import HubAddress, HubBundles, HubError
from worker.models.hub_card import hub_page
from worker.models.hub_pins import HubPins
from worker.settings import Hub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAME = "somebody/detector"
#: How the hub's library calls its HTTP library for large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle on disk, with weights, and files in sub-folders."""
    return build_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """An empty hub; the library transfers large files by HTTP, as without the wheel `hf_xet`."""
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    hub = FakeHub()
    close_session()
    with serve(hub):
        yield hub
    close_session()


def client(hub: FakeHub, token: str | None = None) -> HubBundles:
    """Return our client of the hub."""
    return HubBundles(Hub.model_validate({"endpoint": hub.url, "token": token, "timeout_s": 20.0}))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def pull(hub: FakeHub, address: str, out: Path) -> Bundle:
    """Pull a bundle into a folder, with pins beside it."""
    pins = HubPins(out.parent / "pins.json")
    return client(hub).pull(HubAddress.parse(address), pins, out).bundle


def test_a_bundle_comes_back_byte_for_byte(hub: FakeHub, bundle: Bundle, tmp_path: Path) -> None:
    """What is pushed is pulled by its commit, with every file and none of the hub's own."""
    pushed = client(hub, TOKEN).push(bundle, HubAddress.parse(f"hf://{NAME}"), create=True)
    assert hub.private == {NAME}
    hub.private.clear()
    files = contents(bundle.folder)
    assert hub.head(NAME).keys() == {*files, "README.md", ".gitattributes"}
    pulled = pull(hub, str(pushed), tmp_path / "new" / "pulled")
    assert pulled == load_bundle(tmp_path / "new" / "pulled")
    assert pulled.model_version == bundle.model_version
    assert contents(pulled.folder) == files
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"pulled", "pins.json"}


def test_a_pushed_page_states_the_figures(hub: FakeHub) -> None:
    """The hub's own reader finds licence, library, task and every figure with its interval."""
    small = load_bundle("small")
    client(hub, TOKEN).push(small, HubAddress.parse(f"hf://{NAME}"), create=True)
    text = hub.head(NAME)["README.md"].decode()
    card = ModelCard(text)
    assert (card.data.license, card.data.license_link) == ("other", "LICENSE-weights.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("unlatent", "image-classification")
    assert "image-forensics" in card.data.tags
    assert card.data.model_name == "small"
    found = {
        (result.dataset_config, result.dataset_split, result.metric_type): result
        for result in card.data.eval_results
    }
    manifest = json.loads((embedded_folder("small") / BUNDLE_FILE).read_text())
    point = next(one for one in manifest["operating_points"] if one["target"] == 0.01)
    rate = found["operating-points", "fpr=0.01", "false_positive_rate"]
    assert rate.metric_value == pytest.approx(point["measured"], abs=1e-6)
    assert rate.metric_name == "False-positive rate (95 % interval 0.00278 to 0.01417)"
    assert ("operating-points", "fpr=0.001", "false_positive_rate") not in found  # unsupported
    aucs = {split for config, split, metric in found if metric == "roc_auc" and "movq" in config}
    assert aucs == manifest["metrics"]["unseen"][0]["forms"].keys()
    assert found["without movq", "web", "roc_auc"].metric_value == pytest.approx(0.877, abs=5e-4)
    recall = found["without movq", "web", "recall_at_1_percent"]
    assert recall.metric_name == "Recall at 1 % false positives (95 % interval 0.12 to 0.4)"
    assert recall.metric_value == pytest.approx(0.2267)
    pooled = found["all folds", "web", "recall"]
    assert pooled.metric_name == ("Recall of the label generated (95 % interval 0.0663 to 0.0999)")
    assert pooled.metric_value == pytest.approx(89 / 1086, abs=1e-6)
    assert (small.folder / "card.md").read_text() in text


def test_a_page_of_a_challenger_states_its_calibration(tmp_path: Path) -> None:
    """A challenger's manifest holds no AUC, so its page holds the calibration error alone."""
    hollow = build_hollow_bundle(tmp_path / "challenger", "challenger")
    figures = {"photographs": 40, "generated": 20, "expected_calibration_error": 0.125}
    metrics = {"challenger": {"calibration": figures, "champion": "0" * 64}}
    made = write_manifest(hollow.folder, hollow.manifest.model_copy(update={"metrics": metrics}))
    results = ModelCard(hub_page(made, NAME)).data.eval_results
    (stated,) = (one for one in results if one.dataset_config == "challenger")
    assert stated.metric_type == "expected_calibration_error"
    assert stated.metric_value == 0.125
    assert stated.dataset_name.startswith("40 photographs and 20 generated images")
    assert {one.metric_type for one in results} == {
        "expected_calibration_error", "false_positive_rate", "recall",
    }  # fmt: skip


def test_a_later_push_replaces_the_bundle(hub: FakeHub, bundle: Bundle, tmp_path: Path) -> None:
    """Files that the new bundle lacks go, and the branch can be pulled; the earlier commit too."""
    ours = client(hub, TOKEN)
    first = ours.push(bundle, HubAddress.parse(f"hf://{NAME}"), create=True)
    hub.private.clear()
    other = build_hollow_bundle(tmp_path / "hollow", "other")
    second = ours.push(other, HubAddress.parse(f"hf://{NAME}@main"))
    assert hub.head(NAME).keys() == {BUNDLE_FILE, "README.md", ".gitattributes"}
    assert pull(hub, str(second), tmp_path / "2").model_version == other.model_version
    assert pull(hub, str(first), tmp_path / "1").model_version == bundle.model_version


def test_a_push_spares_what_is_no_bundle(hub: FakeHub, bundle: Bundle) -> None:
    """A repository with a file of another kind is refused and left as it was."""
    before = hub.commit(NAME, {"README.md": b"mine", "model.bin": b"mine"})
    with pytest.raises(HubError, match=r"holds model\.bin, which is of no bundle"):
        client(hub, TOKEN).push(bundle, HubAddress.parse(f"hf://{NAME}"))
    assert hub.branches[NAME] == {"main": before}


def test_a_push_needs_the_right_to(hub: FakeHub, bundle: Bundle) -> None:
    """Without a token, with one that may only read, or to a commit nothing is sent."""
    commit = hub.commit(NAME, {".gitattributes": b""})
    address = HubAddress.parse(f"hf://{NAME}")
    with pytest.raises(HubError, match="set UNLATENT_HUB__TOKEN"):
        client(hub).push(bundle, address)
    with pytest.raises(HubError, match=r"refuses this of .* \(403\): UNLATENT_HUB__TOKEN"):
        client(hub, "hf_reader").push(bundle, address)
    with pytest.raises(HubError, match="is a commit: push to a branch"):
        client(hub, TOKEN).push(bundle, HubAddress.parse(f"hf://{NAME}@{commit}"))
    assert hub.head(NAME) == {".gitattributes": b""}


def test_a_commit_is_pinned_and_a_branch_is_not(
    hub: FakeHub, bundle: Bundle, tmp_path: Path
) -> None:
    """Without a revision the pinned commit is pulled, though the branch has moved on since."""
    commit = hub.commit(NAME, contents(bundle.folder))
    pins = HubPins(tmp_path / "pins.json")
    ours = client(hub)
    at_main = ours.pull(HubAddress.parse(f"hf://{NAME}@main"), pins, tmp_path / "a")
    assert (at_main.pinned, str(at_main.address)) == (False, f"hf://{NAME}@{commit}")
    with pytest.raises(HubError, match="names no revision"):
        ours.pull(HubAddress.parse(f"hf://{NAME}"), pins, tmp_path / "b")
    assert ours.pull(at_main.address, pins, tmp_path / "c").pinned
    later = build_hollow_bundle(tmp_path / "hollow", "later")
    hub.commit(NAME, contents(later.folder))
    again = ours.pull(HubAddress.parse(f"hf://{NAME}"), pins, tmp_path / "d")
    assert again.bundle.model_version == bundle.model_version
    # A commit never changes: a hub that says otherwise is not believed.
    hub.commits[NAME][commit] = contents(later.folder)
    with pytest.raises(HubError, match="the hub changed a commit"):
        ours.pull(HubAddress.parse(f"hf://{NAME}"), pins, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def _pickle(files: dict[str, bytes]) -> None:
    files["pytorch_model.bin"] = b"cos\nsystem\n"


def _listed_pickle(files: dict[str, bytes]) -> None:
    manifest = json.loads(files[BUNDLE_FILE])
    files["weights.pkl"] = b"cos\nsystem\n"
    manifest["files"]["weights.pkl"] = "0" * 64
    files[BUNDLE_FILE] = json.dumps(manifest).encode()


def _foreign(files: dict[str, bytes]) -> None:
    files["extra.safetensors"] = b"not of the bundle"


def _missing(files: dict[str, bytes]) -> None:
    del files["egre.safetensors"]


def _changed(files: dict[str, bytes]) -> None:
    files["egre.safetensors"] = bytes(len(files["egre.safetensors"]))


def _outside(files: dict[str, bytes]) -> None:
    manifest = json.loads(files[BUNDLE_FILE])
    manifest["files"]["../../evil.json"] = "0" * 64
    files[BUNDLE_FILE] = json.dumps(manifest).encode()


def _no_bundle(files: dict[str, bytes]) -> None:
    del files[BUNDLE_FILE]


def _no_json(files: dict[str, bytes]) -> None:
    files[BUNDLE_FILE] = b"<html>"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_pickle, "holds pytorch_model.bin: only safetensors weights are loaded, never pickles"),
        (_listed_pickle, "holds weights.pkl: only safetensors"),
        (_foreign, "holds extra.safetensors, which bundle.json does not list"),
        (_missing, "lacks egre.safetensors, which bundle.json lists"),
        (_changed, "egre.safetensors has changed: its sha256 is not the one listed"),
        (_outside, "names a file outside of the bundle"),
        (_no_bundle, "is not a bundle: it has no bundle.json"),
        (_no_json, "lists no files"),
    ],
)
def test_what_is_no_bundle_is_refused_whole(
    hub: FakeHub,
    bundle: Bundle,
    tmp_path: Path,
    spoil: Callable[[dict[str, bytes]], None],
    reason: str,
) -> None:
    """A pickle, a foreign, missing or changed file ends the pull, and nothing of it stays."""
    files = contents(bundle.folder)
    spoil(files)
    commit = hub.commit(NAME, files)
    with pytest.raises(BundleError, match=reason):
        pull(hub, f"hf://{NAME}@{commit}", tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []
    if spoil is not _changed:  # found before any weights were downloaded
        assert not any(path.startswith("/large/") for _, path, _ in hub.requests)


def test_half_a_download_leaves_nothing(
    hub: FakeHub, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer that ends in the middle is an error, and neither files nor a pin stay."""
    # The library waits between its tries.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _seconds: None)
    commit = hub.commit(NAME, contents(bundle.folder))
    hub.broken.add("golden.safetensors")
    with pytest.raises(HubError, match="cannot be had"):
        pull(hub, f"hf://{NAME}@{commit}", tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("name", [BUNDLE_FILE, "egre.safetensors"])
def test_a_file_of_another_size_than_stated_leaves_nothing(
    hub: FakeHub, bundle: Bundle, tmp_path: Path, name: str
) -> None:
    """The hub's statement bounds what a pull takes, so a file of more or fewer bytes ends it."""
    files = contents(bundle.folder)
    commit = hub.commit(NAME, files)
    for stated in (len(files[name]) - 1, len(files[name]) + 1):
        hub.misstated[name] = stated
        with pytest.raises(
            HubError, match=f"states {stated} bytes .* {len(files[name])} bytes came"
        ):
            pull(hub, f"hf://{NAME}@{commit}", tmp_path / "new" / "out")
        assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_is_never_overwritten(hub: FakeHub, bundle: Bundle, tmp_path: Path) -> None:
    """A pull into a folder that exists changes nothing in it."""
    commit = hub.commit(NAME, contents(bundle.folder))
    (tmp_path / "mine").mkdir()
    with pytest.raises(HubError, match="exists already"):
        pull(hub, f"hf://{NAME}@{commit}", tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    "address", ["detector", "hf://detector", "hf://a/b/c", "hf://a/b@", "s3://a/b"]
)
def test_an_address_names_owner_and_name(address: str) -> None:
    """Other forms are refused by their text."""
    with pytest.raises(HubError, match="is no address on a hub: hf://owner/name@revision"):
        HubAddress.parse(address)


def test_errors_are_for_people(
    hub: FakeHub,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No repository, no revision and no network are one line each, without the token."""
    hub.commit(NAME, contents(bundle.folder))
    monkeypatch.setenv("UNLATENT_HUB__ENDPOINT", hub.url)
    monkeypatch.setenv("UNLATENT_HUB__TOKEN", TOKEN)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for address, endpoint, expected in (
            (
                "hf://somebody/nothing@main",
                hub.url,
                f"{hub.url} has no repository somebody/nothing",
            ),
            (f"hf://{NAME}@v9", hub.url, f"{NAME} has no revision v9 at {hub.url}"),
            (f"hf://{NAME}@main", nowhere, f"hf://{NAME}@main cannot be had from {nowhere}"),
        ):
            monkeypatch.setenv("UNLATENT_HUB__ENDPOINT", endpoint)
            assert run(monkeypatch, "models", "pull", address) == 1
            error = capsys.readouterr().err
            assert error.startswith(f"unlatent: {expected}")
            assert error.count("\n") == 1
            assert TOKEN not in error


def test_the_commands_use_the_settings_alone(
    hub: FakeHub,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """`push` sends the setting's token to the hub, `pull` without it none that lies about."""
    (tmp_path / "token").write_text("hf_of-another-program")
    monkeypatch.setenv("HF_TOKEN", "hf_of-another-program")
    monkeypatch.setenv("UNLATENT_HUB__ENDPOINT", hub.url)
    monkeypatch.setenv("UNLATENT_HUB__TOKEN", TOKEN)
    assert run(monkeypatch, "models", "push", str(bundle.folder), f"hf://{NAME}", "--create") == 0
    address = capsys.readouterr().out.strip()
    assert {(token, path.startswith("/large/")) for _, path, token in hub.requests} == {
        (TOKEN, False),
        (None, True),
    }
    hub.requests.clear()
    hub.private.clear()
    monkeypatch.delenv("UNLATENT_HUB__TOKEN")
    assert run(monkeypatch, "models", "pull", address) == 0
    printed = capsys.readouterr()
    commit = address.partition("@")[2]
    folder = f"var/bundles/somebody--detector-{commit[:12]}"
    assert printed.out == f"{bundle.model_version}  {folder}\n"
    assert load_bundle(tmp_path / folder).model_version == bundle.model_version
    assert {token for *_, token in hub.requests} == {None}
    assert json.loads((tmp_path / "var/bundles.json").read_text())[NAME]["revision"] == commit
