"""The alignment report on pairs that are sound and on pairs with one planted misalignment."""

from __future__ import annotations

import io
import sys
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageFilter

from detection.errors import SettingsError
from training.data.codecs import Codec
from training.evaluation import shortcut_audit
from training.evaluation.distances import frechet, maximum_mean_discrepancy, sliced_wasserstein
from training.evaluation.reencoding_advice import ReencodingAdvice
from training.evaluation.shortcut_audit import DatasetRefused, run_audit, run_probes
from training.evaluation.shortcut_features import (
    ShortcutFeatures,
    SourceFile,
    read_shortcut_features,
)
from worker import cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

PAIRS = 30


def picture(seed: int, *, side: int = 104) -> Pixels:
    """A picture of smooth shapes, edges and grain, different for every seed."""
    rng = np.random.default_rng(seed)
    small = rng.integers(30, 220, (7, 7, 3), dtype=np.uint8)
    large = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    values = np.asarray(large, np.float32) + rng.normal(0, rng.uniform(2, 9), (side, side, 3))
    top, left = rng.integers(10, 60, 2)
    values[top : top + 30, left : left + 30] += rng.uniform(-60, 60)
    return np.clip(values, 0, 255).astype(np.uint8)


def decoded(pixels: Pixels) -> Pixels:
    """What an autoencoder does, roughly: a faint periodic pattern."""
    y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]]
    pattern = (1.5 * np.cos(np.pi * x / 2) * np.cos(np.pi * y / 2))[..., None]
    return np.clip(pixels + pattern + 0.5, 0, 255).astype(np.uint8)


def png(pixels: Pixels) -> bytes:
    """Encode losslessly."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(pixels: Pixels) -> bytes:
    """Encode as JPEG quality 80."""
    return Codec("JPEG", 80).encode(pixels)


def pairs(
    *,
    real: Callable[[Pixels], bytes] = png,
    generated: Callable[[Pixels], bytes] = png,
    change: Callable[[Pixels], Pixels] = lambda pixels: pixels,
    prepare: Callable[[Pixels], Pixels] = lambda pixels: pixels,
) -> list[SourceFile]:
    """Pairs of a picture and its imitation, with a planted `change` on the second side."""
    files = []
    for seed in range(PAIRS):
        pixels = prepare(picture(seed))
        for flag, data in ((False, real(pixels)), (True, generated(change(decoded(pixels))))):
            files.append(
                SourceFile(
                    name=f"{seed}-{flag}",
                    data=data,
                    generated=flag,
                    group=str(seed),
                    source="imitator" if flag else f"camera {seed % 2}",
                )
            )
    return files


def moved(pixels: Pixels) -> Pixels:
    """The same size, one pixel of crop to the right."""
    return np.pad(pixels, ((0, 0), (0, 1), (0, 0)), mode="edge")[:, 1:]


def brightened(pixels: Pixels) -> Pixels:
    """A gamma of 0.9."""
    return (255 * (pixels / 255.0) ** 0.9 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("encode", [png, jpeg])
def test_sound_pairs_pass(encode: Callable[[Pixels], bytes]) -> None:
    """Pairs in one codec that differ by a faint pattern alone are not refused."""
    report = run_audit(pairs(real=encode, generated=encode))

    report.require()
    assert report.probes["container"].auc == 0.5
    assert report.pairs is not None
    assert report.pairs.shift_px < 0.05


@pytest.mark.parametrize(
    ("files", "betrayer"),
    [
        (pairs(real=jpeg, generated=png), "container"),
        (
            pairs(real=jpeg, generated=lambda pixels: Codec("JPEG", 92).encode(pixels)),
            "tables",
        ),
        (pairs(change=lambda pixels: pixels[:, 1:]), "size"),
        (pairs(change=moved), "crop"),
        (pairs(prepare=Codec("JPEG", 60).apply, change=moved), "blockiness"),
        (pairs(change=brightened), "tone"),
        (
            pairs(
                change=lambda pixels: np.asarray(
                    Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.5))
                )
            ),
            "sharpness",
        ),
    ],
    ids=["codec", "quality", "resized", "one pixel", "off the grid", "gamma", "blur"],
)
def test_a_planted_misalignment_is_refused_by_name(files: list[SourceFile], betrayer: str) -> None:
    """Each planted misalignment refuses the data set, and the refusal names it."""
    report = run_audit(files)

    assert any(reason.startswith(betrayer) for reason in report.refusals), report.refusals
    with pytest.raises(DatasetRefused, match=betrayer):
        report.require()


def test_each_kind_of_pair_is_judged() -> None:
    """Of two kinds of pairs the one in another codec is refused by its name, the other is not."""
    sound = [replace(file, source="one") if file.generated else file for file in pairs()]
    coded = [
        replace(file, group=f"{file.group}:2", source="two" if file.generated else file.source)
        for file in pairs(generated=Codec("JPEG", 60).encode)
    ]

    report = run_audit([*sound, *coded])

    assert set(report.kinds) == {"all", "one", "two"}
    assert report.kinds["one"]["container"].probe.auc == 0.5
    assert report.kinds["two"]["container"].mmd_squared.low > report.limits.mmd_squared
    assert report.kinds["two"]["container"].mmd_squared.reals == PAIRS
    refused = [reason for reason in report.refusals if "pairs by" in reason]
    assert any(
        reason.startswith("container betrays the side of the pairs by two") for reason in refused
    )
    assert not [reason for reason in refused if "by one" in reason]
    assert "| two | container | 1.000 (1.000 to 1.000) | " in report.to_markdown()


def test_a_refused_data_set_is_told_what_would_align_it() -> None:
    """Where the container alone differs, re-encoding aligns; blocks of JPEG 60 survive JPEG 95.

    The report names the re-encoding whose probe is nearest to 0.5; pairs that pass get no advice.
    """

    def bmp(pixels: Pixels) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "BMP")
        return buffer.getvalue()

    same = [
        replace(file, data=(bmp if file.generated else png)(picture(int(file.group))))
        for file in pairs()
    ]
    advice = run_audit(same).advice
    assert advice is not None
    assert advice.untouched == 1.0
    assert set(advice.reencoded.values()) == {0.5}

    report = run_audit(pairs(generated=Codec("JPEG", 60).encode))
    assert report.advice is not None
    found = report.advice.reencoded
    assert abs(found["JPEG 60"] - 0.5) < abs(found["JPEG 95"] - 0.5)
    best = min(found, key=lambda name: abs(found[name] - 0.5))
    assert f"{best} on both sides brings the probe nearest" in report.to_markdown()
    assert run_audit(pairs()).advice is None


def test_no_advice_is_given_where_none_helps() -> None:
    """When no candidate is nearer to 0.5 than the files as they are, the advice says so."""
    advice = ReencodingAdvice(images=20, untouched=0.7, reencoded={"JPEG 95": 0.8, "JPEG 60": 0.2})

    assert str(advice).startswith("No re-encoding of both sides (JPEG 95, JPEG 60)")
    assert "AUC 0.700" in str(advice)


def test_unreadable_files_are_listed() -> None:
    """A file that is no image is left out of the figures and named."""
    broken = SourceFile(name="broken.png", data=b"no image", generated=True, group="x")

    report = run_audit([*pairs(), broken])

    assert report.unreadable == ("broken.png",)
    assert (report.reals, report.generated) == (PAIRS, PAIRS)


def test_one_side_missing_is_an_error() -> None:
    """A data set without generated images cannot be audited, and the error says so."""
    with pytest.raises(SettingsError, match="0 readable generated"):
        run_audit([file for file in pairs() if not file.generated])


def test_distances_follow_their_closed_forms() -> None:
    """A pure shift by d costs d² in Fréchet and is seen by MMD; equal sets cost nothing."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal((120, 4))
    shift = np.array([2.0, 0.0, 0.0, 0.0])

    assert frechet(first, first + shift) == pytest.approx(4.0, rel=1e-6)
    assert frechet(first, first) == pytest.approx(0.0, abs=1e-6)
    assert sliced_wasserstein(first, first) == 0
    far, far_p = maximum_mean_discrepancy(first, rng.standard_normal((120, 4)) + shift)
    near, near_p = maximum_mean_discrepancy(first, rng.standard_normal((120, 4)))
    assert far > 0.1 > near
    assert far_p < 0.01 < near_p


def test_the_report_states_sides_and_distances() -> None:
    """Codecs, sizes and sources of either side, and distances in the named feature space."""
    report = run_audit(
        pairs(), features=lambda images: np.array([i.mean((0, 1)) for i in images]), space="means"
    )

    assert report.distances is not None
    assert report.distances.space == "means"
    assert report.distances.pair_share is not None
    assert report.distances.pair_share < 0.2
    assert "means" in report.to_markdown()
    assert report.formats == {"real": {"PNG": PAIRS}, "generated": {"PNG": PAIRS}}
    assert report.sizes == {"real": (104, 104, 104), "generated": (104, 104, 104)}
    assert report.sources["generated"] == {"imitator": PAIRS}
    row = "| real | PNG 30 | 104 to 104, median 104 | camera 0 15, camera 1 15 |"
    assert row in report.to_markdown().splitlines()


def test_the_command_refuses_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`unlatent audit` reads a manifest, prints the report and exits 1 when it refuses."""
    lines = ["path\tlabel\tset\tgroup"]
    for file in pairs(real=jpeg):
        (tmp_path / file.name).write_bytes(file.data)
        label = "generated" if file.generated else "real"
        lines.append(f"{file.name}\t{label}\tplanted\t{file.group}")
    (tmp_path / "manifest.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "argv", ["unlatent", "audit", str(tmp_path)])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == 1
    assert "container betrays the side" in capsys.readouterr().out


@pytest.mark.parametrize("look", [run_audit, run_probes])
def test_pixels_of_a_pair_are_let_go_once_it_is_read(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[list[SourceFile]], object]
) -> None:
    """A data set does not fit into memory: at most the sides of two pairs are kept at a time."""
    alive: set[int] = set()
    most = 0

    def watched(file: SourceFile) -> ShortcutFeatures:
        nonlocal most
        found = read_shortcut_features(file)
        pixels = found.pixels.copy()
        number = id(pixels)
        alive.add(number)
        weakref.finalize(pixels, alive.discard, number)
        most = max(most, len(alive))
        return replace(found, pixels=pixels)

    monkeypatch.setattr(shortcut_audit, "read_shortcut_features", watched)
    look(pairs())
    assert 0 < most <= 4
