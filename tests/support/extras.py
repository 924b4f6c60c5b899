"""What the extras of pyproject.toml install, by the metadata of what is installed here."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: pyproject.toml, and not our installed metadata: that of an editable installation may be old.
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
_BLOCKED = Path(__file__).with_name("blocked")
EXTRAS: dict[str, list[str]] = tomllib.loads(PYPROJECT.read_text())["project"][
    "optional-dependencies"
]


def declared(extra: str) -> set[str]:
    """Return the distributions that an extra names itself, and those of the extras it includes."""
    names: set[str] = set()
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.name == "unlatent":
            names.update(*(declared(other) for other in requirement.extras))
        else:
            names.add(canonicalize_name(requirement.name))
    return names


def installed(extra: str) -> set[str]:
    """Return every distribution that an extra brings onto this machine."""
    found: set[str] = set()
    waiting = [*map(Requirement, EXTRAS[extra])]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for chosen in ("", *sorted(requirement.extras)):
            if (name, chosen) in seen or not _applies(requirement):
                continue
            seen.add((name, chosen))
            if name == "unlatent":
                waiting += map(Requirement, EXTRAS.get(chosen, []))
                continue
            found.add(name)
            waiting += _requirements(name, chosen)
    return found


def modules_of(distributions: set[str]) -> set[str]:
    """Return the top-level modules that some of these distributions bring."""
    return {
        module
        for module, names in metadata.packages_distributions().items()
        if distributions.intersection(map(canonicalize_name, names))
    }


def size_bytes(distribution: str) -> int:
    """Return how much the files of an installed distribution take."""
    files = metadata.files(distribution) or []
    paths = {Path(str(file.locate())) for file in files}
    return sum(path.stat().st_size for path in paths if path.is_file())


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _requirements(name: str, extra: str) -> list[Requirement]:
    asked = map(Requirement, metadata.requires(name) or [])
    return [
        requirement
        for requirement in asked
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
    ]


def only(extra: str) -> dict[str, str]:
    """Return the environment of a process in which only what an extra installs can be imported."""
    blocked = set(metadata.packages_distributions()) - modules_of(installed(extra))
    ours = {"detection", "training", "worker", "migrations", "tests", "_editable_impl_unlatent"}
    return {"PYTHONPATH": str(_BLOCKED), "BLOCKED": " ".join(blocked - ours)}
