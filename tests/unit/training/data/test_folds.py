"""Folds: what a fold leaves out, and that no prompt is both taught and tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from detection.errors import SettingsError
from training.data.folds import HELD_PROMPTS, load_folds
from training.data.manifest import Entry
from training.data.splits import hash_fraction


def made(family: str, prompt: str) -> Entry:
    """Make the entry of a generated image."""
    path = Path(f"{family}-{prompt}.png")
    return Entry(path=path, label="generated", set=family, family=family, group=prompt)


def taken(source: str, number: int, kind: str = "photograph") -> Entry:
    """Make the entry of a real picture."""
    name = f"{source}-{number}"
    path = Path(f"{name}.jpg")
    return Entry(
        path=path, label="real", set="photo", family="", group=name, kind=kind, source=source
    )


#: Family b has prompts of its own and shares 0 to 29 with a; every prompt of c is shared with d.
IMAGES = [
    *(made("a", f"p{number}") for number in range(30)),
    *(made("b", f"p{number}") for number in range(60)),
    *(made("c", f"q{number}") for number in range(100)),
    *(made("d", f"q{number}") for number in range(100)),
    *(taken(source, number) for source in ("lake", "street", "hill") for number in range(5)),
    *(taken("desk", number, "drawing") for number in range(5)),
]


def write(folder: Path, *rows: str) -> Path:
    """Write folds of tab-separated rows."""
    (folder / "folds.tsv").write_text("\n".join(rows).replace(" ", "\t") + "\n")
    return folder


def test_a_fold_leaves_out_whole_families_sources_and_their_prompts(tmp_path: Path) -> None:
    """Nothing tested shares family, source or prompt with what is trained on; the rest is used."""
    write(tmp_path, "fold families sources", "one a lake,desk")
    (fold,) = load_folds(tmp_path, IMAGES)
    training, tested = fold.divide(IMAGES)
    assert {entry.family for entry in tested if entry.generated} == {"a"}
    assert {entry.source for entry in tested if not entry.generated} == {"lake", "desk"}
    assert len(tested) == 30 + 10
    assert {entry.source for entry in training if not entry.generated} == {"street", "hill"}
    kept = sorted(int(entry.group[1:]) for entry in training if entry.family == "b")
    assert kept == list(range(30, 60))
    assert sum(entry.family in {"c", "d"} for entry in training) == 200


def test_where_all_prompts_are_shared_a_share_of_them_is_tested(tmp_path: Path) -> None:
    """A family that would lose every image keeps the prompts that are not tested."""
    write(tmp_path, "fold families sources", "one c lake")
    (fold,) = load_folds(tmp_path, IMAGES)
    training, tested = fold.divide(IMAGES)
    held = {f"q{number}" for number in range(100) if hash_fraction(f"q{number}") < HELD_PROMPTS}
    assert {entry.group for entry in tested if entry.generated} == held
    assert {entry.group for entry in training if entry.family == "d"} == {
        f"q{number}" for number in range(100)
    } - held
    assert 20 < len(held) < 50


def test_without_a_file_every_family_is_paired_with_a_source(tmp_path: Path) -> None:
    """The smallest family goes with the largest source, and no source is left out twice."""
    folds = load_folds(tmp_path, IMAGES)
    assert [sorted(fold.families) for fold in folds] == [["a"], ["b"], ["c"], ["d"]]
    assert len({source for fold in folds for source in fold.sources}) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["fold families", "one a"], "lacks sources"),
        (["fold families sources"], "lacks every row"),
        (["fold families sources", "one a nowhere"], "fold one must leave out images of both"),
    ],
)
def test_folds_that_cannot_be_used_say_why(tmp_path: Path, rows: list[str], message: str) -> None:
    """The column that is missing, or the fold that leaves out nothing of a class, is named."""
    with pytest.raises(SettingsError, match=message):
        load_folds(write(tmp_path, *rows), IMAGES)
