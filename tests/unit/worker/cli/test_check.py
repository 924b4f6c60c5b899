"""`unlatent check`, `models` and `presets` on real files and a bundle of random weights."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from detection.detector import Detector
from detection.intake.decode import IntakeLimits
from detection.score import Label, Score
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from worker import cli
from worker.cli.check import _record, _row
from worker.cli.context import ending
from worker.scoring.file_scoring import ScoredFile, check_files, find_files, intake_limits
from worker.settings import Intake

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle on disk."""
    return build_tiny_bundle(tmp_path_factory.mktemp("check") / "tiny").folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with good files in two levels, bad files, and files that are no images."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("b.png", (70, 90)), ("a.jpg", (128, 64)), ("deep/c.webp", (64, 64))):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    whole = (folder / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("not an image")
    return folder


SAID = Score(
    probability=0.5,
    label=Label.UNSURE,
    branches={"aligned": 4.0},
    decided_by="aligned",
    operating_point="fpr=0.01",
    prior=0.5,
)


def columns(line: str) -> list[str]:
    """Split a line of the table, whose columns stand two spaces apart."""
    return re.split(r"\s{2,}", line)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `unlatent` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["unlatent", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Parse what was printed, one JSON object a line."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_file_gets_one_line_in_order(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle: Path,
    pictures: Path,
) -> None:
    """Folders recursively and sorted, files as named; bad files say why and cost nobody else."""
    missing, notes = pictures / "missing.jpg", pictures / "notes.txt"
    options = ("--format", "jsonl", "--bundle", bundle, "--batch", 2, "--device", "cpu")
    assert run(monkeypatch, "check", *options, missing, pictures, notes) == 1
    found = lines(capsys)
    names = ["missing.jpg", "a.jpg", "b.png", "cut.jpg", "deep/c.webp", "empty.png", "notes.txt"]
    assert [line["path"] for line in found] == [str(pictures / name) for name in names]
    errors = {line["path"].rpartition("/")[2]: line["error"] for line in found if "error" in line}
    assert {name: text.partition(":")[0] for name, text in errors.items()} == {
        "missing.jpg": "FileNotFoundError",
        "cut.jpg": "Truncated",
        "empty.png": "EmptyFile",
        "notes.txt": "NotAnImage",
    }
    detector = Detector.load(bundle)
    for line in (line for line in found if "error" not in line):
        pixels = np.asarray(Image.open(line["path"]).convert("RGB"))
        (score,) = detector.score([pixels])
        assert line["score"] == pytest.approx(score.probability, abs=1e-4)
        assert line["label"] == score.label.value
        assert line["model_version"] == detector.model_version
        assert line["branches"] == pytest.approx(dict(score.branches), abs=1e-4)


def test_every_format_has_the_same_records(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle: Path,
    pictures: Path,
) -> None:
    """JSON is the lines of JSON Lines in an array; CSV has their fields, and errors too."""
    printed = {}
    for format_ in ("jsonl", "json", "csv"):
        options = ("--format", format_, "--bundle", bundle, "--device", "cpu")
        assert run(monkeypatch, "check", *options, pictures) == 1
        printed[format_] = capsys.readouterr().out
    records = [json.loads(line) for line in printed["jsonl"].splitlines()]
    assert json.loads(printed["json"]) == records
    rows = list(csv.DictReader(io.StringIO(printed["csv"])))
    assert [row["path"] for row in rows] == [record["path"] for record in records]
    for row, record in zip(rows, records, strict=True):
        assert {name for name, value in row.items() if value} <= record.keys()
        assert record.keys() <= row.keys()
        assert row["error"] == record.get("error", "")
        if "error" not in record:
            assert float(row["score"]) == record["score"]
            assert json.loads(row["branches"]) == record["branches"]


def test_all_good_files_exit_with_0(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle: Path,
    pictures: Path,
) -> None:
    """The table is the default; a path is printed as it was given."""
    monkeypatch.chdir(pictures)
    assert run(monkeypatch, "check", "--bundle", bundle, "a.jpg", "deep") == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert columns(header) == [
        "label",
        "point of accusation",
        "distance",
        "score",
        "decided by",
        "path",
    ]
    assert first.endswith(" a.jpg")
    assert second.endswith(" deep/c.webp")


def test_evidence_is_kept_for_each_image(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    """An overlay and the error map at image scale are written, and the line names the overlay."""
    evidence = tmp_path / "evidence"
    options = ("--format", "jsonl", "--bundle", bundle, "--evidence", evidence)
    assert run(monkeypatch, "check", *options, pictures / "b.png") == 0
    (line,) = lines(capsys)
    with Image.open(line["evidence"]) as overlay:
        assert overlay.height > 70
    (stored,) = evidence.glob("b-*.npz")
    with np.load(stored) as arrays:
        assert arrays["error"].shape == (70, 90)
        assert np.isnan(arrays["error"]).sum() == 70 * 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bundle", "nowhere"), "no bundle at nowhere"),
        (("--device", "toaster"), "no device named 'toaster'"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pictures: Path,
    options: tuple[str, str],
    message: str,
) -> None:
    """A wrong bundle and a wrong device end with code 1, one line and no traceback."""
    assert run(monkeypatch, "check", *options, pictures) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_images_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing to score is said rather than passed over."""
    assert run(monkeypatch, "check", tmp_path) == 1
    assert "no image files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "no such file or folder: nowhere"),
        (("nowhere", "neither.jpg"), "no such file or folder: nowhere, neither.jpg"),
        (("nowhere", "."), "no such file or folder: nowhere"),
        ((".",), "no image files in ."),
        (("--evidence", "notes.txt", "notes.txt"), "--evidence notes.txt: File exists"),
        (("--evidence", "notes.txt/deep", "notes.txt"), "notes.txt/deep: Not a directory"),
    ],
)
def test_a_wrong_path_is_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    """Where nothing can be scored or kept, the command ends before the bundle is looked for."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").touch()
    monkeypatch.setattr("worker.cli.check._load", lambda *_: pytest.fail("a model was loaded"))
    assert run(monkeypatch, "check", *arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.endswith(f"{message}\n")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("swallowed", [False, True])
def test_an_interruption_keeps_what_was_scored(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle: Path,
    pictures: Path,
    swallowed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Lines of before stay, the rest is counted, and no library hides the signal."""
    monkeypatch.setattr("worker.cli.context.ending._number", 0)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def outcomes(files: list[Path], *_: object, **__: object) -> Iterator[ScoredFile]:
        yield ScoredFile(path=files[0], error=OSError("gone"))
        try:
            ending(signal.SIGINT, None)
        except SystemExit:
            if not swallowed:
                raise
        yield ScoredFile(path=files[1], error=OSError("gone"))
        pytest.fail("the next file was asked for")

    monkeypatch.setattr("worker.scoring.file_scoring.check_files", outcomes)
    options = ("--format", "jsonl", "--bundle", bundle, "--device", "cpu")
    assert run(monkeypatch, "check", *options, pictures) == 130
    captured = capsys.readouterr()
    done = 2 if swallowed else 1
    assert len(captured.out.splitlines()) == done
    assert captured.err == f"stopped after {done} of 5 files\n"


def test_a_batch_that_fails_is_scored_image_by_image(pictures: Path, bundle: Path) -> None:
    """Only the image at fault fails."""
    detector = Detector.load(bundle)

    class Fragile:
        model_version = detector.model_version

        def score(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
            if any(image.shape[:2] == (70, 90) for image in images):
                raise RuntimeError("the device stumbled")
            return detector.score(images)

    files = [pictures / name for name in ("a.jpg", "b.png", "deep/c.webp")]
    limits = intake_limits(Intake())
    outcomes = list(check_files(files, Fragile(), limits, batch=8))  # type: ignore[arg-type]  # a stand-in
    assert [outcome.path for outcome in outcomes] == files
    assert [type(outcome.error) for outcome in outcomes] == [type(None), RuntimeError, type(None)]


def test_limits_of_the_settings_hold(pictures: Path, bundle: Path) -> None:
    """A file larger than allowed is refused without being read whole."""
    limits = IntakeLimits(max_bytes=100, max_pixels=10**6, max_frames=10, max_metadata_bytes=10**6)
    (outcome,) = check_files([pictures / "a.jpg"], Detector.load(bundle), limits, batch=1)
    assert type(outcome.error).__name__ == "TooManyBytes"


def test_a_line_says_why_an_image_could_not_be_judged() -> None:
    """The reason stands in the record and the table's row of an image that is outside."""
    score = replace(SAID, probability=0.925, label=Label.UNSURE, distance=-0.38)
    outside = replace(score, probability=0.5, distance=None, outside="nearly nothing to look at")
    plain, doubted = (
        _record(ScoredFile(path=Path("a.png"), score=one), "version") for one in (score, outside)
    )
    assert plain["outside"] is None
    assert doubted == plain | {
        "score": 0.5,
        "distance": None,
        "distance_words": "not judged",
        "outside": "nearly nothing to look at",
    }
    assert _row(plain).endswith("a.png")
    assert columns(_row(doubted)) == [
        "unsure",
        "not judged",
        "-",
        "0.500",
        "aligned",
        "a.png (nearly nothing to look at)",
    ]


@pytest.mark.parametrize(
    ("probability", "distance", "label", "words", "away"),
    [
        (0.74, -1.84, Label.REAL, "below", "-1.84"),
        (0.865, -1.03, Label.REAL, "below", "-1.03"),
        (0.925, -0.38, Label.UNSURE, "not surely beyond", "-0.38"),
        (0.999, 4.02, Label.GENERATED, "far beyond", "+4.02"),
    ],
)
def test_a_line_says_label_words_and_distance_before_the_score(
    probability: float, distance: float, label: Label, words: str, away: str
) -> None:
    """A probability of 0.74 beside `real` is explained; JSON has number and words."""
    score = replace(SAID, probability=probability, distance=distance, label=label)
    record = _record(ScoredFile(path=Path("a.png"), score=score), "version")
    assert columns(_row(record))[:4] == [label.value, words, away, f"{probability:.3f}"]
    assert (record["score"], record["distance"], record["distance_words"]) == (
        probability,
        distance,
        words,
    )


def test_only_image_files_are_found_in_folders(pictures: Path) -> None:
    """Other files are left alone in folders, but tried when they are named."""
    assert pictures / "notes.txt" not in set(find_files([pictures]))
    assert list(find_files([pictures / "notes.txt"])) == [pictures / "notes.txt"]


def test_models_are_shown_verified_and_exported(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle: Path,
    tmp_path: Path,
) -> None:
    """An exported bundle is the same model version; a spoilt one does not verify."""
    copy = tmp_path / "copy"
    assert run(monkeypatch, "models", "show", bundle) == 0
    version = json.loads(capsys.readouterr().out)["model_version"]
    assert run(monkeypatch, "models", "export", bundle, copy) == 0
    assert run(monkeypatch, "models", "verify", copy) == 0
    assert capsys.readouterr().out.count(version) == 2
    assert run(monkeypatch, "models", "export", bundle, copy) == 1
    (copy / "egre.safetensors").write_bytes(b"")
    assert run(monkeypatch, "models", "verify", copy) == 1
    error = capsys.readouterr().err
    assert "exists already" in error
    assert "egre.safetensors has changed" in error
    assert run(monkeypatch, "models", "list") == 0


def test_presets_are_listed_shown_and_verified(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    """A local folder is verified by sending an image through it; without a pin it says so."""
    assert run(monkeypatch, "presets", "list") == 0
    assert capsys.readouterr().out.count("not pinned") == 13
    assert run(monkeypatch, "presets", "show", "sd3") == 0
    shown = capsys.readouterr().out
    assert "gated: True" in shown
    assert "revision:\n" in shown
    assert run(monkeypatch, "presets", "verify", "sd15", "--folder", bundle / "generator") == 0
    assert (
        "latents (4, 64, 64) of (3, 256, 256), decoded to (3, 256, 256)" in capsys.readouterr().out
    )
    assert run(monkeypatch, "presets", "verify", "taesd") == 1
    assert "presets pin taesd" in capsys.readouterr().err
