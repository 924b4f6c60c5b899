"""The role `serve` in the manifests: reachable, given its time, and with a device if any."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.rendered_manifests import DEPLOY, Pods, find, pods
from worker.scoring.device_thread import _LOAD_TIMEOUT_S
from worker.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from worker.settings import Settings

SERVERS = [
    made
    for overlay in ("production-gpu", "gpu-mig")
    for made in pods(overlay)
    if made.name == "unlatent-serve"
]


def label(made: Pods) -> str:
    """Name a parameter."""
    return made.overlay


def settings_of(made: Pods, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Read the settings as the pod would, with one key."""
    for name, value in made.environment.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    digest = hashlib.sha256(b"key").hexdigest()
    monkeypatch.setenv("UNLATENT_HTTP__KEYS", f'{{"web": "{digest}"}}')
    return load_settings()


def named(overlay: str, kind: str) -> dict[str, Any]:
    """Return the object of this kind that is the role's own."""
    found: dict[str, dict[str, Any]] = {
        document["metadata"]["name"]: document for document in find(overlay, kind)
    }
    return found["unlatent-serve"]


def test_both_overlays_with_devices_have_the_role() -> None:
    """The tests of this file have pods to look at."""
    assert [made.overlay for made in SERVERS] == ["production-gpu", "gpu-mig"]


@pytest.mark.parametrize("made", SERVERS, ids=label)
def test_requests_reach_the_port_that_the_process_opens(
    made: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Service, probes, policy and scrapes name the container's port, which listens outside."""
    settings = settings_of(made, monkeypatch).http
    (port,) = made.container["ports"]
    assert port == {"name": "http", "containerPort": settings.port}
    assert settings.host == "0.0.0.0"  # noqa: S104 - in a pod
    assert settings.ledger
    service = named(made.overlay, "Service")["spec"]
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert service["selector"].items() <= made.template["metadata"]["labels"].items()
    paths = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        assert made.container[probe]["httpGet"] == {"path": path, "port": "http"}
    (rule,) = named(made.overlay, "NetworkPolicy")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]
    (monitor,) = find(made.overlay, "PodMonitor")
    assert "http" in {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]}


@pytest.mark.parametrize("made", SERVERS, ids=label)
def test_a_request_is_given_the_time_that_it_may_take(
    made: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start-up outlasts the model's loading, grace outlasts a request and a forward pass."""
    settings = settings_of(made, monkeypatch)
    probe = made.container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > _LOAD_TIMEOUT_S
    rest_s = made.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    longest_s = rest_s + settings.http.timeout_s + settings.scoring.forward_timeout_s
    assert made.spec["terminationGracePeriodSeconds"] > longest_s


@pytest.mark.parametrize("made", SERVERS, ids=label)
def test_the_role_fits_into_its_memory(made: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """All decoders at their limit, the budgets of bodies and of pixels, and the model fit."""
    settings = settings_of(made, monkeypatch)
    model_bytes = 2 * 2**30
    decoding = settings.intake.processes * settings.intake.memory_bytes
    assert decoding + 2 * settings.intake.in_flight_bytes + model_bytes <= made.limit("memory")


@pytest.mark.parametrize("made", SERVERS, ids=label)
def test_a_pod_has_one_whole_device_and_its_rollout_no_spare_one(made: Pods) -> None:
    """It gets the kind of device that the overlay gives its workers."""
    deployment = named(made.overlay, "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    (worker,) = (other for other in pods(made.overlay) if other.name == "unlatent-worker")
    assert made.container["resources"] == worker.container["resources"]
    assert made.spec["tolerations"] == worker.spec["tolerations"]
    assert made.spec["affinity"] == worker.spec["affinity"]


def test_the_last_pod_that_answers_is_not_taken_away() -> None:
    """Two pods at least, of which disruptions and rollouts take one."""
    assert named("production-gpu", "ScaledObject")["spec"]["minReplicaCount"] >= 2
    assert named("production-gpu", "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    rollout = named("production-gpu", "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rollout["maxUnavailable"] == 1


def test_the_role_runs_without_a_device(tmp_path: Path) -> None:
    """Added to the overlay for a node without one, the component asks for none."""
    overlay = {
        "resources": [os.path.relpath(DEPLOY / "overlays" / "local-cpu", tmp_path)],
        "components": [os.path.relpath(DEPLOY / "components" / "serve", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    (made,) = (made for made in pods(str(tmp_path)) if made.name == "unlatent-serve")
    assert made.environment["UNLATENT_SCORING__DEVICE"] == "cpu"
    assert not [name for name in made.container["resources"]["limits"] if "/" in name]
    (bridge,) = (other for other in pods(str(tmp_path)) if other.name == "unlatent-bridge")
    assert made.environment["UNLATENT_S3__BUCKETS"] == bridge.environment["UNLATENT_S3__BUCKETS"]
