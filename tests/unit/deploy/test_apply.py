"""`deploy/apply` against a kubectl that writes down what it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.support.rendered_manifests import DEPLOY

#: Renders like the real one; the migration ends as $ENDS says; the rest is only noted.
_KUBECTL = """#!/bin/sh
case "$1 $*" in
    kustomize*) exec {kubectl} "$@" ;;
    wait*condition=$ENDS*) ;;
    wait*) exit 1 ;;
esac
echo "$@" >>"$NOTES"
"""


def apply(folder: Path, *, ends: str) -> tuple[int, list[str]]:
    """Run the script; return its exit status and what kubectl was asked to do."""
    real = shutil.which("kubectl", path=str(Path(sys.executable).parent))
    fake = folder / "kubectl"
    fake.write_text(_KUBECTL.format(kubectl=real))
    fake.chmod(0o755)
    notes = folder / "notes"
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        [DEPLOY / "apply", DEPLOY / "overlays" / "production-gpu"],
        env=os.environ | {"PATH": path, "NOTES": str(notes), "ENDS": ends},
        check=False,
        capture_output=True,
        timeout=60,
    )
    return done.returncode, notes.read_text().splitlines()


def test_pods_are_rolled_after_the_migration(tmp_path: Path) -> None:
    """First what has no role and the job, then the wait, then everything."""
    status, asked = apply(tmp_path, ends="complete")
    assert status == 0
    assert [line.split()[0] for line in asked] == ["delete", "apply", "wait", "apply", "rollout"]
    assert "notin" in asked[1]
    assert "--selector" not in asked[3]


def test_nothing_is_rolled_when_the_migration_fails(tmp_path: Path) -> None:
    """The old pods stay, the script says why and fails."""
    status, asked = apply(tmp_path, ends="failed")
    assert status == 1
    assert [line.split()[0] for line in asked] == ["delete", "apply", "wait", "logs"]


def test_the_first_step_holds_every_deployment_back() -> None:
    """The selector names the role of each deployment that an overlay may have."""
    script = (DEPLOY / "apply").read_text()
    held = set(script.partition("notin (")[2].partition(")")[0].split(","))
    deployments = {
        document["metadata"]["labels"]["app.kubernetes.io/component"]
        for file in DEPLOY.rglob("*.yaml")
        for document in yaml.safe_load_all(file.read_text())
        if document["kind"] == "Deployment" and "overlays" not in file.parts
    }
    assert held == deployments
