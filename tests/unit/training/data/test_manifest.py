"""The manifest: families, groups and splits that keep relatives together."""

from __future__ import annotations

from pathlib import Path

import pytest

from detection.errors import SettingsError
from training.data.manifest import Entry, load_manifest, sampling_weights
from training.data.splits import hash_fraction, split


def write(folder: Path, *rows: str) -> Path:
    """Write a manifest of tab-separated rows."""
    text = "\n".join(row.replace(" ", "\t") for row in rows) + "\n"
    (folder / "manifest.tsv").write_text(text)
    return folder


def test_families_and_groups_are_derived(tmp_path: Path) -> None:
    """One autoencoder release is one family; prompts and scenes are groups; real has no family."""
    write(
        tmp_path,
        "path label set",
        "r/backpack__01.jpg real dreambooth",
        "r/backpack__02.jpg real dreambooth",
        "r/x__1.jpg real coco",
        "g/0007__seed1.jpg generated sd1",
        "g/0007__seed2.jpg generated pixart-alpha",
        "g/a-cat__3.jpg generated glid3-xl",
        "g/new.jpg generated brand-new",
    )
    entries = load_manifest(tmp_path)
    assert [entry.family for entry in entries] == [
        "",
        "",
        "",
        "sd-kl",
        "sd-kl",
        "ldm-kl",
        "brand-new",
    ]
    assert entries[0].group == entries[1].group
    assert entries[3].group == entries[4].group
    assert len({entry.group for entry in entries}) == 5
    assert entries[0].path == tmp_path / "r/backpack__01.jpg"
    assert [entry.generated for entry in entries] == [False] * 3 + [True] * 4


def test_stated_families_and_groups_win(tmp_path: Path) -> None:
    """Columns of the manifest come before what names suggest; a real image keeps no family."""
    write(
        tmp_path,
        "path label set family kind source group",
        "a.jpg generated sd1 my-vae drawing someone prompt-7",
        "b.jpg real coco nonsense drawing painter scene-3",
    )
    first, second = load_manifest(tmp_path)
    assert (first.family, first.kind, first.group) == ("my-vae", "", "prompt-7")
    assert (second.family, second.kind, second.group) == ("", "drawing", "scene-3")
    assert (first.source, second.source) == ("someone", "painter")
    assert not second.photograph


def test_a_real_picture_is_a_photograph_of_its_set_unless_stated(tmp_path: Path) -> None:
    """Without the columns kind and source a real picture counts as a photograph of its set."""
    write(tmp_path, "path label set", "a.jpg real coco", "b.jpg generated sd1")
    real, generated = load_manifest(tmp_path)
    assert (real.photograph, real.source) == (True, "coco")
    assert not generated.photograph


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path label set"], "lists no images"),
        (["path label", "a.jpg real"], r"lacks the column\(s\) set"),
        (["path label set", "a.jpg fake coco"], "a.jpg has the label 'fake'"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_why(
    tmp_path: Path, rows: list[str], message: str
) -> None:
    """The file, the column or the label at fault is named."""
    with pytest.raises(SettingsError, match=message):
        load_manifest(write(tmp_path, *rows))


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    """The error says which columns are expected."""
    with pytest.raises(SettingsError, match=r"no manifest\.tsv: expected columns path, label, set"):
        load_manifest(tmp_path)


def test_a_group_never_crosses_the_split(tmp_path: Path) -> None:
    """Every group is whole on one side, about a fifth held out, whatever else is there."""
    rows = [f"g/{number:04}__s{seed}.jpg generated sd1" for number in range(400) for seed in (1, 2)]
    entries = load_manifest(write(tmp_path, "path label set", *rows))
    training, held = split(entries, validation=0.2)
    assert len(training) + len(held) == 800
    assert not {entry.group for entry in training} & {entry.group for entry in held}
    assert 100 < len(held) < 220
    fewer_training, fewer_held = split(entries[::3], validation=0.2)
    assert set(fewer_training) <= set(training)
    assert set(fewer_held) <= set(held)


def test_the_side_of_a_group_never_changes() -> None:
    """The place comes from sha256 of salt and group: this value must hold for ever."""
    import hashlib

    digest = hashlib.sha256(b"split-1:prompt:cat").hexdigest()
    assert hash_fraction("prompt:cat") == int(digest[:16], 16) / 16**16
    assert hash_fraction("prompt:cat", salt="split-2") != hash_fraction("prompt:cat")


def test_a_few_audited_images_do_not_outweigh_a_trusted_source() -> None:
    """Weights compare the images of one set and label; each such stratum weighs what it counts."""

    def entry(label: str, set_: str, weight: float) -> Entry:
        return Entry(path=Path("x.png"), label=label, set=set_, family="", group="", weight=weight)

    vouched = [entry("real", "camera", 1.0)] * 37
    audited = [entry("real", "web", 200.0), entry("real", "web", 600.0)]
    missed = [entry("generated", "web", 200.0), entry("generated", "web", 1.0)]
    weights = sampling_weights([*vouched, *audited, *missed])
    assert weights[:37].tolist() == [1.0] * 37
    assert weights[37:39].tolist() == [0.5, 1.5]
    assert weights[39:] == pytest.approx([400 / 201, 2 / 201])
