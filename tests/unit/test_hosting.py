"""What the hosting platform reads: the workflow of CI, and how to cite."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes.postgres_versions import VERSIONS

REPOSITORY = Path(__file__).parents[2]
WORKFLOWS = REPOSITORY / ".github" / "workflows"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def workflow() -> dict[str, Any]:
    """Return the workflow of CI."""
    loaded: dict[str, Any] = yaml.safe_load((WORKFLOWS / "ci.yml").read_text())
    return loaded


def test_every_action_is_pinned_by_its_commit() -> None:
    """A tag can be moved to other code; a commit cannot, and a comment names its release."""
    lines = [
        line
        for file in WORKFLOWS.iterdir()
        for line in file.read_text().splitlines()
        if "uses:" in line
    ]
    assert lines
    for line in lines:
        assert re.fullmatch(r"\s*-? *uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_ci_may_only_read() -> None:
    """No job gets more than reading the code, and no credential stays in the checkout."""
    assert workflow()["permissions"] == {"contents": "read"}
    (job,) = workflow()["jobs"].values()
    assert "permissions" not in job
    checkout, _ = job["steps"]
    assert checkout["with"] == {"persist-credentials": False}


def test_ci_runs_every_supported_version() -> None:
    """Every Python of the classifiers, and every PostgreSQL that tests can choose, in `.ci/run`."""
    (job,) = workflow()["jobs"].values()
    matrix = job["strategy"]["matrix"]["include"]
    classifiers = [
        name.rpartition(" ")[2]
        for name in PROJECT["classifiers"]
        if re.search(r"Python :: 3\.\d+$", name)
    ]
    assert {row["python"] for row in matrix} == set(classifiers)
    assert {row["postgres"] for row in matrix} == set(VERSIONS)
    step = job["steps"][-1]
    assert step["run"] == ".ci/run"
    assert step["env"] == {"PYTEST_ADDOPTS": "--postgres=${{ matrix.postgres }}"}


def test_the_citation_is_of_this_version() -> None:
    """Version and licence are those of the package."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
