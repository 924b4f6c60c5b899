"""One turn of the loop on a folder, without any service."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from detection.bundle import BundleError, load_bundle
from detection.errors import SettingsError
from detection.generators.presets import PRESETS, PresetError, find_preset
from tests.support.bundles.preset_bundle import REVISION, build_preset_bundle
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.generators.autoencoder_references import build
from tests.support.processes.challenge_process import LIMITS, tiny_recipe
from training.bundles.preset_generator import PresetPlace
from training.data.aligners import AutoencoderReconstruction
from training.data.selection import CollectPolicy
from training.data.shaders import renderings
from training.data.shards import FolderStore, load_dataset, read_samples
from training.evaluation.promotion_gate import GateLimits
from training.evaluation.shortcut_audit import DatasetRefused
from training.retraining.folder_run import FolderRunOptions, _FolderState, run_on_folder
from training.retraining.run_state import RunPlan

if TYPE_CHECKING:
    from pathlib import Path

    from detection.bundle import Bundle

REALS, FAKES = 200, 60
GATE = GateLimits(
    min_class_images=5,
    min_source_images=1000,
    allowed_loss=1.0,
    allowed_calibration_loss=1.0,
    bootstraps=50,
)


def labelled(folder: Path, *, reals: int = REALS, fakes: int = FAKES) -> Path:
    """A folder of renderings and of noise that is called generated."""
    folder.mkdir()
    rows = ["path\tlabel\tset\tfamily\tgroup"]
    rng = np.random.default_rng(5)
    noise = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(fakes)]
    for label, set_, pictures in (
        ("real", "real", [pixels for _, pixels in renderings(reals, side=64)]),
        ("generated", "fake", noise),
    ):
        for number, pixels in enumerate(pictures):
            name = f"{set_}-{number}.png"
            Image.fromarray(pixels).save(folder / name)
            rows.append(f"{name}\t{label}\t{set_}\t\t{set_}-{number}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_a_run_goes_on_with_its_own_checkpoints_only(tmp_path: Path) -> None:
    """The same run has the same folder; another champion, images, shares or pairs have another."""
    first, second = (build_tiny_bundle(tmp_path / name, name=name) for name in ("one", "two"))
    data = labelled(tmp_path / "data", reals=3, fakes=2)
    options = FolderRunOptions(data_licence="none")

    def checkpoints(
        data: Path = data,
        champion: Bundle = first,
        options: FolderRunOptions = options,
        steps: int = 4,
    ) -> Path:
        plan = RunPlan(recipe=tiny_recipe(steps=steps), device="cpu", data_licence="none")
        return _FolderState(data, champion, tmp_path / "out", plan, options).checkpoints

    same = checkpoints()
    assert same == checkpoints()
    others = [
        checkpoints(labelled(tmp_path / "more", reals=4, fakes=2)),
        checkpoints(champion=second),
        checkpoints(options=replace(options, draw_codec=True)),
        checkpoints(options=replace(options, shaders=1)),
        checkpoints(options=replace(options, shares=CollectPolicy(evaluation=0.5))),
        checkpoints(steps=5),
    ]
    assert len({same, *others}) == 7


def test_a_folder_that_no_challenger_may_replace_is_refused_before_images_are_read(
    tmp_path: Path,
) -> None:
    """The run ends with the folder's name, though the images that it was given are missing."""
    champion = build_tiny_bundle(tmp_path / "champion", branches=("aligned",))
    kept = tmp_path / "out" / "challenger" / "photo.jpg"
    kept.mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"challenger holds photo\.jpg, which is of no bundle"):
        run_on_folder(
            tmp_path / "no-images",
            champion,
            tmp_path / "out",
            tiny_recipe(),
            FolderRunOptions(data_licence="none"),
            on_progress=lambda _part, _done, _total: None,
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["challenger"]


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_folder_teaches_a_bundle(tmp_path: Path) -> None:
    """What the champion does not know is learnt, passes the gate, and is found again by a rerun."""
    champion = build_tiny_bundle(tmp_path / "champion")
    data, heard = labelled(tmp_path / "data"), set[str]()

    def turn() -> str:
        outcome = run_on_folder(
            data,
            champion,
            tmp_path / "out",
            tiny_recipe(steps=40),
            FolderRunOptions(data_licence="none", alignment_limits=LIMITS, gate_limits=GATE),
            on_progress=lambda part, _done, _total: heard.add(part),
        )
        assert outcome.decision.passed, outcome.decision.reasons
        assert "let the challenger through" in outcome.report.read_text("utf-8")
        assert load_bundle(tmp_path / "out" / "challenger").manifest == outcome.bundle.manifest
        return outcome.bundle.model_version

    first = turn()
    assert {"reconstructing", "training aligned.safetensors", "scoring clean"} <= heard
    assert first != champion.model_version
    assert turn() == first

    strict = replace(LIMITS, tone_levels=0.0)
    with pytest.raises(DatasetRefused):
        run_on_folder(
            data,
            champion,
            tmp_path / "strict",
            tiny_recipe(),
            FolderRunOptions(data_licence="none", alignment_limits=strict),
            on_progress=lambda _part, _done, _total: None,
        )


@pytest.mark.full
@pytest.mark.timeout(600)
def test_terms_are_kept_and_a_refusal_of_the_audit_is_said(tmp_path: Path) -> None:
    """Another aligner makes the pairs, the shares are those asked for, the bundle tells the audit.

    What cannot be used stops nothing, and the page counts it.

    Of 100 groups about 20 are evaluated and 60 calibrate: five standard deviations are 20 and 24.
    """
    champion = build_tiny_bundle(tmp_path / "champion")
    mirror = AutoencoderReconstruction("mirror", lambda images: images, 8)
    options = FolderRunOptions(
        data_licence="none",
        aligners=[mirror],
        shares=CollectPolicy(evaluation=0.2, calibration=0.6),
        alignment_limits=replace(LIMITS, tone_levels=-1.0),
        despite_audit=True,
        gate_limits=GATE,
    )
    data = labelled(tmp_path / "data", reals=80, fakes=20)
    Image.new("RGB", (63, 200)).save(data / "narrow.png")
    (data / "broken.png").write_bytes(b"no image")
    with (data / "manifest.tsv").open("a", encoding="utf-8") as manifest:
        for name in ("narrow.png", "broken.png", "missing.png"):
            manifest.write(f"{name}\treal\treal\t\t{name}\n")
    outcome = run_on_folder(
        data,
        champion,
        tmp_path / "out",
        tiny_recipe(steps=2),
        options,
        on_progress=lambda _part, _done, _total: None,
    )

    assert load_dataset(FolderStore(tmp_path / "out" / "dataset")).aligners == ("mirror",)
    placed = {
        side: len(list((tmp_path / "out" / side).iterdir()))
        for side in ("evaluation", "calibration")
    }
    assert 0 < placed["evaluation"] <= 40
    assert 36 <= placed["calibration"] <= 84
    facts = outcome.bundle.manifest.metrics["challenger"]
    assert "tone betrays the side" in facts["taught although the audit refused"]
    page = outcome.report.read_text("utf-8")
    assert "taught although the audit refused" in page
    assert "images missing, unreadable or too small: 3" in page


def no_progress(_part: str, _done: int, _total: int) -> None:
    """Say nothing."""


@pytest.mark.timeout(600)
def test_a_champion_on_a_preset_is_taught_with_pairs_by_each_named_autoencoder(
    tmp_path: Path,
) -> None:
    """Both branches are taught, and the challenger scores with the same files of the same preset.

    Every photograph has a reconstruction by each autoencoder, and no two of them are equal.
    """
    generators = tmp_path / "generators"
    champion = build_preset_bundle(tmp_path / "champion", generators)
    build("tiny").save_pretrained(generators / "taesd")
    build("kl-16").save_pretrained(generators / "sd3" / "vae")
    place = PresetPlace(pins=tmp_path / "pins.json", generators=generators)
    options = FolderRunOptions(
        data_licence="none",
        aligners=[place.aligner(find_preset(name), device="cpu") for name in ("taesd", "sd3")],
        generators=generators,
        shares=CollectPolicy(evaluation=0.2, calibration=0.6),
        alignment_limits=LIMITS,
        gate_limits=GATE,
    )
    outcome = run_on_folder(
        labelled(tmp_path / "data", reals=60, fakes=16),
        champion,
        tmp_path / "out",
        tiny_recipe(steps=2),
        options,
        on_progress=no_progress,
    )
    assert outcome.bundle.manifest.generator == champion.manifest.generator
    assert not (outcome.bundle.folder / "generator").exists()
    for name in ("aligned", "egre"):
        before, after = (
            (one.folder / f"{name}.safetensors").read_bytes() for one in (champion, outcome.bundle)
        )
        assert before != after
    store = FolderStore(tmp_path / "out" / "dataset")
    dataset = load_dataset(store)
    assert dataset.aligners == ("taesd", "sd3")
    for sample in read_samples(store, dataset):
        if sample.label == "real":
            assert sample.reconstructions.keys() == {"taesd", "sd3"}
            assert len({sample.image, *sample.reconstructions.values()}) == 3


def test_what_a_champions_preset_lacks_is_named_before_pairs_are_made(tmp_path: Path) -> None:
    """Preset, repository, revision and folder; its own autoencoder makes pairs where it is whole.

    Pairs by another autoencoder do not hide that the champion could not score.
    """
    generators = tmp_path / "generators"
    champion = build_preset_bundle(tmp_path / "champion", generators)
    data = labelled(tmp_path / "data", reals=2, fakes=2)
    named = ("sd15", PRESETS["sd15"].repository, REVISION, str(generators / "sd15"))
    mirror = AutoencoderReconstruction("mirror", lambda images: images, 8)
    options = FolderRunOptions(data_licence="none", generators=generators)

    def said(error: type[Exception], options: FolderRunOptions) -> str:
        with pytest.raises(error) as refusal:
            run_on_folder(
                data, champion, tmp_path / "out", tiny_recipe(), options, on_progress=no_progress
            )
        assert not (tmp_path / "out" / "dataset").exists()
        return str(refusal.value)

    (generators / "sd15" / "unet" / "config.json").unlink()
    missing = said(BundleError, replace(options, aligners=[mirror]))
    assert all(word in missing for word in (*named, "unet/config.json is missing"))
    (generators / "sd15" / "vae" / "config.json").unlink()
    missing = said(BundleError, options)
    assert all(word in missing for word in (*named, "vae/config.json is missing"))
    elsewhere = replace(options, generators=tmp_path / "elsewhere")
    assert "there is no such folder" in said(PresetError, elsewhere)
