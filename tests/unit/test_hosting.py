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


def workflow(name: str = "ci") -> dict[str, Any]:
    """Return a workflow, that of CI unless another is named."""
    loaded: dict[str, Any] = yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text())
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


def test_every_place_names_this_version() -> None:
    """Images and the page that builds them carry the version of the package."""
    version = PROJECT["version"]
    pages = [*(REPOSITORY / "deploy" / "overlays").rglob("*.yaml"), REPOSITORY / "docs/deploy.md"]
    pages.append(REPOSITORY / "compose.yaml")
    named = [
        number
        for page in pages
        for number in re.findall(
            r"(?:newTag: |unlatent(?:-trainer)?:)(\d+\.\d+\.\d+)", page.read_text()
        )
    ]
    assert len(named) >= 7
    assert set(named) == {version}


def test_a_release_gives_each_job_the_least() -> None:
    """Only the job that publishes has an identity, only the last one writes, none has a secret."""
    release = workflow("release")
    assert release["permissions"] == {}
    jobs = release["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items()} == {
        "build": {"contents": "read"},
        "bills": {"contents": "read"},
        "publish": {"contents": "read", "id-token": "write"},
        "announce": {"contents": "write"},
    }
    assert jobs["publish"]["environment"]["name"] == "pypi"
    assert (jobs["publish"]["needs"], jobs["announce"]["needs"]) == ("build", ["publish", "bills"])
    text = (WORKFLOWS / "release.yml").read_text()
    assert "secrets." not in text
    assert not re.search(r"(?i)password|api.token", text)
    for job in jobs.values():
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}


def test_a_release_publishes_what_was_built_and_used() -> None:
    """The job that builds runs targets that exist and the test of installing; tools are hashed."""
    build, bills, publish, _ = workflow("release")["jobs"].values()
    ran = [step.get("run", "") for step in build["steps"]]
    makefile = (REPOSITORY / "Makefile").read_text()
    for job, target in ((build, "dist"), (bills, "sbom")):
        made = [one["run"] for one in job["steps"] if one.get("run", "").startswith("make ")]
        assert made == [f"make {target}"]
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert ".venv/bin/pytest -m full tests/unit/test_packaging.py" in ran
    assert "--require-hashes --requirement deploy/publish.lock" in publish["steps"][-1]["run"]
    pinned = re.findall(
        r"^(\S+==\S+)", (REPOSITORY / "deploy/publish.lock").read_text(), re.MULTILINE
    )
    assert pinned
    assert set(pinned) <= set((REPOSITORY / "requirements.lock").read_text().split())
