"""The quality report: figures by hand, resumption, membership, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from detection.bundle import Bundle, write_manifest
from detection.detector import Detector
from detection.errors import SettingsError
from tests.benchmarks import bench_quality
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.images.labelled_folder import write_folder
from training.data.manifest import Entry, load_manifest, snapshot_digest
from training.data.samples import check_images
from training.data.splits import divide
from training.evaluation.calibration import Logits
from training.evaluation.quality.figures import (
    UNKNOWN_MEMBERSHIP,
    form_figures,
    label_changes,
    worst_mistakes,
)
from training.evaluation.quality.run import FORMS, evaluate_bundle, evaluation_subset, limit_per_set
from training.evaluation.score_cache import ScoreCache
from training.evaluation.scoring import RAW, Scored
from worker.cli.training import commands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detection.score import Score
    from training.evaluation.quality.report import FormFigures, Group

PLOTS = {"roc.png", "reliability.png", "histograms.png", "robustness.png", "mistakes.png"}
#: Fused logits of six photographs and four generated images; the tiny bundle flags from 2 on and
#: doubts from 0.5 on.
LARE = np.array([3.0, 1.0, 0.0, -1.0, -2.0, -3.0, 4.0, 2.0, 1.5, -2.0])
ALIGNED = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -0.5, -1.0])
SETS = ("lake", "lake", "lake", "street", "street", "street", "alpha", "alpha", "beta", "beta")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny bundle that was trained on the family alpha."""
    folder = tmp_path_factory.mktemp("quality") / "tiny"
    built = build_tiny_bundle(folder)
    provenance = built.manifest.provenance.model_copy(update={"seen_families": ("alpha",)})
    return write_manifest(folder, built.manifest.model_copy(update={"provenance": provenance}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Thirty small images of five sets."""
    return write_folder(tmp_path / "data")


def hand_scored() -> Scored:
    """Ten images with the logits above."""
    generated = np.arange(10) >= 6
    entries = tuple(
        Entry(
            path=Path("data") / f"{index}.jpg",
            label="generated" if index >= 6 else "real",
            set=name,
            family=name if index >= 6 else "",
            group=str(index),
        )
        for index, name in enumerate(SETS)
    )
    return Scored(entries, Logits({"lare": LARE, "aligned": ALIGNED}, generated), "clean")


def group(figures: FormFigures, kind: str, name: str) -> Group:
    """One group by kind and name."""
    return next(found for found in figures.of(kind) if found.name == name)


def test_shares_by_hand(bundle: Bundle) -> None:
    """Counts at the bundle's thresholds and by its labels, with scipy's exact intervals."""
    figures = form_figures(bundle, hand_scored())
    lake = group(figures, "source", "lake")
    assert (lake.images, lake.flagged.hits, lake.unsure.hits) == (3, 1, 1)
    assert {name: share.hits for name, share in lake.at.items()} == {"fpr=0.01": 1, "fpr=0.05": 2}
    interval = binomtest(1, 3).proportion_ci(method="exact")
    assert (lake.flagged.low, lake.flagged.high) == pytest.approx((interval.low, interval.high))
    street = group(figures, "source", "street")
    assert (street.flagged.hits, street.unsure.hits, street.flagged.low) == (0, 0, 0.0)
    # Fused: 5 and 2 are flagged, 1 is unsure, -3 is real.
    everything = figures.side(generated=True)
    assert everything is not None
    assert (everything.flagged.hits, everything.unsure.hits) == (2, 1)
    assert everything.at["fpr=0.05"].value == pytest.approx(0.75)


def test_labels_that_a_form_changes_by_hand(bundle: Bundle) -> None:
    """Counted are images that are generated before: here one stays, one is unsure, one is real."""
    plain = hand_scored()
    # Fused 3, 5 and 2 are flagged; now they are 2, 1 and 0, and what was real is flagged.
    after = np.array([2.0, 1.0, 0.0, 9.0, -2.0, -3.0, 1.0, 0.0, 1.5, -2.0])
    logits = Logits({"lare": after, "aligned": np.zeros(10)}, plain.logits.generated)
    changes = label_changes(bundle, plain, Scored(plain.entries, logits, "jpeg85"))
    assert changes is not None
    assert (changes.real.hits, changes.unsure.hits, changes.real.total) == (1, 1, 3)
    photographs = plain.of(np.arange(10) == 4)
    assert label_changes(bundle, photographs, photographs) is None


def test_an_unsupported_point_is_not_measured(bundle: Bundle) -> None:
    """Only published operating points appear."""
    figures = form_figures(bundle, hand_scored())
    assert all(set(found.at) == {"fpr=0.01", "fpr=0.05"} for found in figures.groups)


def test_areas_are_scikit_learns(bundle: Bundle) -> None:
    """A set counts against the whole other side; branches and the gain likewise."""
    scored = hand_scored()
    figures = form_figures(bundle, scored)
    generated = scored.logits.generated
    beta = group(figures, "set", "beta")
    keep = ~generated | (scored.sets == "beta")
    fused = roc_auc_score(generated[keep], (LARE + ALIGNED)[keep])
    alone = {
        "lare": roc_auc_score(generated[keep], LARE[keep]),
        "aligned": roc_auc_score(generated[keep], ALIGNED[keep]),
    }
    assert beta.auc is not None
    assert beta.gain is not None
    assert beta.auc.value == pytest.approx(fused)
    assert {name: one.value for name, one in beta.branches.items()} == pytest.approx(alone)
    assert beta.best_branch == max(alone, key=lambda name: alone[name])
    assert beta.gain.value == pytest.approx(fused - max(alone.values()))
    lake = group(figures, "source", "lake")
    keep = generated | (scored.sets == "lake")
    assert lake.auc is not None
    expected = roc_auc_score(generated[keep], (LARE + ALIGNED)[keep])
    assert lake.auc.value == pytest.approx(expected)


def test_families_are_told_apart_by_what_the_bundle_saw(bundle: Bundle) -> None:
    """Alpha was trained on, beta was not; photographs have no family."""
    figures = form_figures(bundle, hand_scored())
    seen = {found.name: found.seen for found in figures.of("family")}
    assert seen == {"alpha": True, "beta": False}
    assert group(figures, "source", "lake").seen is None


def test_mistakes_come_worst_first(bundle: Bundle) -> None:
    """One photograph is labelled generated, one generated image real; unsure is no mistake."""
    accusations, misses = worst_mistakes(bundle, hand_scored(), Path("data"))
    assert [(one.path, one.logit) for one in accusations] == [("0.jpg", 3.0)]
    assert [(one.path, one.logit) for one in misses] == [("9.jpg", -3.0)]


def test_photographs_alone_have_rates_but_no_areas(bundle: Bundle) -> None:
    """A folder of one side states false accusations and leaves out what needs both."""
    scored = hand_scored()
    figures = form_figures(bundle, scored.of(~scored.logits.generated))
    lake = group(figures, "source", "lake")
    assert lake.flagged.hits == 1
    assert (lake.auc, lake.gain, figures.calibration_error) == (None, None, None)
    assert figures.side(generated=True) is None


def test_a_limit_takes_the_same_images_of_every_set(data: Path) -> None:
    """Two a set, the same whatever the order, in the order given."""
    entries = load_manifest(data)
    digests = check_images(entries, data).digests
    kept = limit_per_set(entries, digests, 2)
    assert {name: [one.set for one in kept].count(name) for name in {e.set for e in entries}} == {
        "lake": 2,
        "street": 2,
        "alpha1": 2,
        "alpha2": 2,
        "beta": 2,
    }
    assert kept == [entry for entry in entries if entry in kept]
    assert set(limit_per_set(entries[::-1], digests, 2)) == set(kept)


def test_unusable_files_are_named(data: Path) -> None:
    """A missing, a broken and a tiny file are refused with a reason; the rest is kept."""
    (data / "lake-0.jpg").unlink()
    (data / "lake-1.jpg").write_bytes(b"no image")
    Image.new("RGB", (63, 80)).save(data / "lake-2.jpg")
    inventory = check_images(load_manifest(data), data)
    assert inventory.refused == {
        "lake-0.jpg": "cannot be read: FileNotFoundError",
        "lake-1.jpg": "cannot be read: The bytes are not an image of any kind we know.",
        "lake-2.jpg": "63 x 80 pixels: 64 a side are needed",
    }
    assert len(inventory.entries) == 27


def test_of_its_own_snapshot_only_what_was_held_back_is_evaluated(
    bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    """A folder whose digest the bundle names is cut down to the recipe's calibration side."""
    entries = load_manifest(data)
    assert evaluation_subset(entries, bundle) == (entries, False)
    provenance = bundle.manifest.provenance.model_copy(
        update={"snapshot_digest": snapshot_digest(entries)}
    )
    manifest = bundle.manifest.model_copy(update={"provenance": provenance})
    own = Bundle(tmp_path, manifest, "version")
    training, calibration = divide(entries)
    held, matches = evaluation_subset(entries, own)
    assert matches
    assert held == calibration
    assert training
    assert not set(held) & set(training)


class Counting:
    """A detector that counts images, and dies after some."""

    def __init__(self, detector: Detector, dies_after: int) -> None:
        self._detector = detector
        self.left = dies_after
        self.scored = 0

    def score(self, images: Sequence[np.ndarray]) -> list[Score]:
        """Score, or fail."""
        if self.scored + len(images) > self.left:
            raise RuntimeError("killed")
        self.scored += len(images)
        return self._detector.score(images)


def test_a_killed_run_goes_on(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """What was scored before the kill is not scored again, a cut line is; figures are the same."""
    entries = load_manifest(data)
    digests = check_images(entries, data).digests
    detector = Detector(bundle)
    file = tmp_path / "logits.jsonl"

    def score(counting: Counting) -> Scored:
        cache = ScoreCache(file, bundle.model_version)
        return cache.score(counting, entries, digests, "clean")  # type: ignore[arg-type]  # a double

    with pytest.raises(RuntimeError, match="killed"):
        score(Counting(detector, 20))
    kept = file.read_text("utf-8").splitlines()
    assert len(kept) == 16
    file.write_text("\n".join(kept)[:-9], "utf-8")
    second = Counting(detector, 100)
    resumed = score(second)
    assert second.scored == 15
    third = Counting(detector, 0)
    again = score(third)
    fresh = ScoreCache(tmp_path / "other.jsonl", bundle.model_version)
    whole = fresh.score(detector, entries, digests, "clean")
    for branch, values in whole.logits.branches.items():
        np.testing.assert_allclose(resumed.logits.branches[branch], values, atol=1e-4)
        np.testing.assert_array_equal(
            again.logits.branches[branch], resumed.logits.branches[branch]
        )


def test_another_model_version_scores_afresh(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """Logits of one bundle are never taken for those of another, nor one form's for another's."""
    entries = load_manifest(data)[:3]
    digests = check_images(entries, data).digests
    file = tmp_path / "logits.jsonl"
    detector = Detector(bundle)
    ScoreCache(file, bundle.model_version).score(detector, entries, digests, "clean")
    for version, form in (("another", "clean"), (bundle.model_version, RAW)):
        with pytest.raises(RuntimeError, match="killed"):
            ScoreCache(file, version).score(Counting(detector, 0), entries, digests, form)  # type: ignore[arg-type]  # a double


def test_a_whole_run(
    bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark and the command write the same figures, tables and plots, and warn."""
    out = tmp_path / "out"
    arguments = ["--data", str(data), "--bundle", str(bundle.folder), "--out", str(out)]
    assert bench_quality.main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["images"] == {"real": 12, "generated": 18}
    assert record["families"] == {"alpha": True, "beta": False}
    assert {path.name for path in out.iterdir()} >= PLOTS
    for name in PLOTS:
        with Image.open(out / name) as plot:
            assert np.asarray(plot.convert("L")).std() > 5
    first = json.loads((out / "quality.json").read_text("utf-8"))
    assert set(first["forms"]) == set(FORMS)
    assert first["warnings"] == [UNKNOWN_MEMBERSHIP]
    assert "sharpness" in first["shortcut"]
    page = (out / "quality.md").read_text("utf-8")
    assert "`beta`: **never seen**" in page
    assert "fpr=0.001 is unsupported: it needs 3000 photographs." in page
    for name in PLOTS:
        assert f"({name})" in page
    result = CliRunner().invoke(commands, ["evaluate", *arguments])
    assert result.exit_code == 0, result.output
    assert UNKNOWN_MEMBERSHIP in result.output
    assert json.loads((out / "quality.json").read_text("utf-8")) == first


def test_a_run_on_photographs_alone(bundle: Bundle, tmp_path: Path) -> None:
    """Without generated images the report still states false accusations, and draws what it can."""
    data = write_folder(tmp_path / "data", each=2, sets=("lake", "street"))
    out = tmp_path / "out"
    found = evaluate_bundle(Detector(bundle), data, out)
    assert found.images == {"real": 4}
    assert {path.name for path in out.glob("*.png")} == PLOTS - {"roc.png", "reliability.png"}
    assert "False accusations by label" in (out / "quality.md").read_text("utf-8")


def test_nothing_to_evaluate_is_an_error(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """A folder without a readable image is refused by name."""
    for file in data.glob("*.jpg"):
        file.unlink()
    with pytest.raises(SettingsError, match="can be read"):
        evaluate_bundle(Detector(bundle), data, tmp_path / "out")
