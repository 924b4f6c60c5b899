"""Links between the pages of the repository lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")


def pages() -> list[Path]:
    """Return every Markdown page of the repository."""
    folders = ("docs", "tests", "detection", "training", "worker", "findings", "deploy")
    below = [page for folder in folders for page in (REPOSITORY / folder).rglob("*.md")]
    return sorted([*REPOSITORY.glob("*.md"), *below])


def anchors(page: Path) -> set[str]:
    """Return the anchors that hosting platforms make of the headings, as GitHub does."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+)$", _FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """The file is in the checkout, and the heading behind `#` is on the page."""
    for link in _LINK.findall(_FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            assert link.startswith(("https://", "mailto:")), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(REPOSITORY), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_anchors_are_made_of_headings(tmp_path: Path) -> None:
    """Signs go, spaces become hyphens, a second heading of one name gets a number."""
    page = tmp_path / "page.md"
    page.write_text("# A `b` & [c](d.md)\n## Twice\n```\n# no heading\n```\n## Twice\n")
    assert anchors(page) == {"a-b--c", "twice", "twice-1"}


def test_the_index_names_every_page() -> None:
    """Whoever opens the folder finds each page from its index, and the role it is for."""
    docs = REPOSITORY / "docs"
    named = set(_LINK.findall((docs / "README.md").read_text("utf-8")))
    assert {page.name for page in docs.glob("*.md")} - {"README.md"} <= named
