"""What schemas do not see in the manifests of `deploy/`, held against the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import typer.main
import yaml

from tests.support.rendered_manifests import (
    DEPLOY,
    OVERLAYS,
    REPOSITORY,
    Pods,
    alerts,
    find,
    pods,
    quantity,
    render,
)
from worker.cli import build_app
from worker.scoring.device_thread import _IDLE_S, _LOAD_TIMEOUT_S
from worker.scoring.evidence import evidence_bucket
from worker.settings import Settings, in_force, load_settings
from worker.telemetry import health

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

#: The oldest and the newest release of Kubernetes that the manifests are checked against.
VERSIONS = ("1.31", "1.37")
CRDS = yaml.safe_load((REPOSITORY / "tests" / "support" / "schemas" / "crds.yaml").read_text())
EVERY = [made for overlay in OVERLAYS for made in pods(overlay)]
PROBED = [made for made in EVERY if "exec" in made.container.get("livenessProbe", ())]
WORKERS = [made for made in EVERY if made.name == "unlatent-worker"]


def label(made: Pods) -> str:
    """Name a parameter."""
    return f"{made.overlay}-{made.name}"


def settings_of(made: Pods, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Read the settings as the pod would; its secrets keep their defaults."""
    for name, value in made.environment.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    return load_settings()


def commands(application: click.Command) -> Iterator[str]:
    """Return the names of all commands, groups as `group command`."""
    for name, command in getattr(application, "commands", {}).items():
        yield name
        for below in commands(command):
            yield f"{name} {below}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_are_what_their_schemas_say(overlay: str) -> None:
    """Every object is known to Kubernetes, or to its operator, with no field too many."""
    for document in render(overlay):
        if document["kind"] in CRDS:
            jsonschema.validate(document, CRDS[document["kind"]])
            continue
        for version in VERSIONS:
            # An unknown kind raises here, where the command line would only warn.
            kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_refuse_what_is_misspelt() -> None:
    """A field that nobody knows fails, in our own schemas as in those of Kubernetes."""
    scaled = find("production-gpu", "ScaledObject")[0]
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.validate(
            {**scaled, "spec": {**scaled["spec"], "maxReplicas": 3}}, CRDS["ScaledObject"]
        )
    deployment = find("production-gpu", "Deployment")[0]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**deployment, "spec": {**deployment["spec"], "replica": 3}}, "1.37", strict=True
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_their_pods(overlay: str) -> None:
    """Every selector and every reference means something that is rendered."""
    labelled = {made.name: made.template["metadata"]["labels"] for made in pods(overlay)}

    def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
        wanted = selector.get("matchLabels", {}).items()
        return wanted <= labels.items() and all(
            labels.get(term["key"]) in term["values"]
            for term in selector.get("matchExpressions", ())
        )

    def found(selector: dict[str, Any]) -> set[str]:
        return {name for name, labels in labelled.items() if matches(selector, labels)}

    for document in find(overlay, "Deployment", "PodDisruptionBudget"):  # and nobody else's
        assert found(document["spec"]["selector"]) == {document["metadata"]["name"]}
    for document in find(overlay, "PodMonitor"):
        scraped = {"unlatent-bridge", "unlatent-worker", "unlatent-serve"}
        assert found(document["spec"]["selector"]) == scraped
    for document in find(overlay, "NetworkPolicy"):
        assert found(document["spec"]["podSelector"])
    for document in find(overlay, "ScaledObject"):
        assert document["spec"]["scaleTargetRef"]["name"] in labelled
    for made in pods(overlay):
        for spread in made.spec.get("topologySpreadConstraints", ()):
            assert found(spread["labelSelector"]) == {made.name}
    accounts = {account["metadata"]["name"] for account in find(overlay, "ServiceAccount")}
    priorities = {one["metadata"]["name"] for one in find(overlay, "PriorityClass")}
    for made in pods(overlay):
        assert made.spec["serviceAccountName"] in accounts
        assert made.spec["priorityClassName"] in priorities


@pytest.mark.parametrize("made", EVERY, ids=label)
def test_pods_keep_to_the_restricted_profile(made: Pods) -> None:
    """No root, no privilege, no writable image, no token, no variables from Services."""
    security = made.spec["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert made.container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert made.spec["automountServiceAccountToken"] is False
    assert made.spec["enableServiceLinks"] is False
    for forbidden in ("hostNetwork", "hostPID", "hostIPC", "initContainers"):
        assert forbidden not in made.spec
    for volume in made.spec["volumes"]:
        assert "hostPath" not in volume


@pytest.mark.parametrize("made", EVERY, ids=label)
def test_what_a_pod_may_use_is_limited(made: Pods) -> None:
    """Processor, memory and disk have limits, and what is written has a place with a size."""
    resources = made.container["resources"]
    for resource in ("cpu", "memory", "ephemeral-storage"):
        asked = quantity(resources["requests"][resource])
        assert 0 < asked <= quantity(resources["limits"][resource])
    for volume in made.spec["volumes"]:
        assert "persistentVolumeClaim" in volume or "sizeLimit" in volume["emptyDir"]
    mounted = {mount["mountPath"] for mount in made.container["volumeMounts"]}
    own = {"/training"} if made.name == "unlatent-trainer" else set()
    assert mounted == {"/tmp", "/run/unlatent"} | own  # noqa: S108 - where the image writes
    assert re.search(r":[0-9]", made.container["image"]), "a released version, never latest"


@pytest.mark.parametrize("made", EVERY, ids=label)
def test_arguments_and_variables_exist_in_the_code(
    made: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods run commands of the command line with settings it knows and values it takes."""
    known = set(commands(typer.main.get_command(build_app())))
    assert " ".join(made.container["args"]) in known
    assert "command" not in made.container, "the image's entry point gets the signals"
    assert made.environment.keys() <= in_force(Settings.model_construct()).keys()
    settings_of(made, monkeypatch)
    for entry in made.container.get("env", ()):
        assert "secretKeyRef" in entry["valueFrom"], "addresses and keys come from secrets"


@pytest.mark.parametrize("made", PROBED, ids=label)
def test_probes_look_at_files_that_the_code_writes(
    made: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each probe passes on a fresh file, and liveness fails on a stale one and on none."""
    image = (DEPLOY / "Dockerfile").read_text()
    assert "UNLATENT_OBSERVABILITY__RUN_DIR=/run/unlatent" in image
    alive = {
        "unlatent-worker": health.ALIVE,
        "unlatent-bridge": health.BRIDGE_ALIVE,
        "unlatent-beat": health.BEAT_ALIVE,
        "unlatent-trainer": health.TRAINER_ALIVE,
    }[made.name]

    def passes(probe: str) -> bool:
        command = made.container[probe]["exec"]["command"]
        here = [word.replace("/run/unlatent", str(tmp_path)) for word in command]
        assert here != command
        return subprocess.run(here, check=False, stderr=subprocess.DEVNULL).returncode == 0

    assert not passes("startupProbe")
    assert not passes("livenessProbe")
    (tmp_path / alive).touch()
    assert passes("startupProbe")
    assert passes("livenessProbe")
    if made.name == "unlatent-worker":
        assert not passes("readinessProbe")
        (tmp_path / health.READY).touch()
        assert passes("readinessProbe")
    settings = settings_of(made, monkeypatch)
    # A long forward pass, with what is stored after it, is life.
    longest_s = 2 * settings.scoring.forward_timeout_s + settings.postgres.statement_timeout_s
    lived_s = longest_s if made.name == "unlatent-worker" else 2 * _IDLE_S
    aged = time.time() - lived_s
    os.utime(tmp_path / alive, (aged, aged))
    assert passes("livenessProbe")
    os.utime(tmp_path / alive, (0, 0))
    assert not passes("livenessProbe")


@pytest.mark.parametrize("made", WORKERS, ids=label)
def test_a_worker_is_given_the_time_that_it_may_take(
    made: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start-up outlasts the model's loading, grace outlasts everything under way."""
    settings = settings_of(made, monkeypatch)
    probe = made.container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > _LOAD_TIMEOUT_S
    longest_s = (
        settings.scoring.lease_s
        + settings.s3.fetch_timeout_s
        + 2 * settings.intake.timeout_s
        + settings.scoring.forward_timeout_s
        + 2 * settings.postgres.statement_timeout_s
    )
    assert made.spec["terminationGracePeriodSeconds"] > longest_s
    assert settings.scoring.lease_s < settings.queue.visibility_timeout_s


@pytest.mark.parametrize("made", WORKERS, ids=label)
def test_a_worker_fits_into_its_memory(made: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """All decoders at their limit, the budget of decoded bytes and the model fit together."""
    settings = settings_of(made, monkeypatch)
    model_bytes = 2 * 2**30
    decoding = settings.intake.processes * settings.intake.memory_bytes
    assert decoding + settings.intake.in_flight_bytes + model_bytes <= made.limit("memory")
    assert settings.scoring.threads >= 2 * settings.scoring.max_batch


@pytest.mark.parametrize("made", WORKERS, ids=label)
def test_two_dead_workers_are_no_storm(made: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker dies with an image in each thread; quarantining pauses when more than two did."""
    scoring = settings_of(made, monkeypatch).scoring
    assert 2 * scoring.threads < scoring.max_deaths_in_window <= 3 * scoring.threads


@pytest.mark.parametrize("made", WORKERS, ids=label)
def test_evidence_that_expires_is_kept_first(made: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where evidence has a number of days it has a bucket, which is not the one of uploads."""
    settings = settings_of(made, monkeypatch)
    if settings.retention.evidence_days is not None:
        assert evidence_bucket(settings) in settings.s3.buckets[1:]


def traces_policy(overlay: str) -> dict[str, Any]:
    """Return the network policy that the component `tracing` opens."""
    named = {policy["metadata"]["name"]: policy for policy in find(overlay, "NetworkPolicy")}
    return named["unlatent-traces"]


def test_a_collector_is_reached_when_it_is_named(tmp_path: Path) -> None:
    """The component opens its own address's port to bridges and workers, which is shut without."""
    assert traces_policy("production-gpu")["spec"]["egress"] == []
    overlay = {
        "resources": [os.path.relpath(DEPLOY / "overlays" / "production-gpu", tmp_path)],
        "components": [os.path.relpath(DEPLOY / "components" / "tracing", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    traced = [p for p in pods(str(tmp_path)) if p.name in {"unlatent-bridge", "unlatent-worker"}]
    assert len(traced) == 2
    (rule,) = traces_policy(str(tmp_path))["spec"]["egress"]
    for made in traced:
        address = made.environment["UNLATENT_TRACING__ENDPOINT"]
        assert rule == {"ports": [{"protocol": "TCP", "port": urlsplit(address or "").port}]}


def test_a_stopped_run_finds_its_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer keeps them on a claimed volume held by one pod at a time, and has more grace."""
    (trainer,) = (made for made in pods("production-gpu") if made.name == "unlatent-trainer")
    folder = settings_of(trainer, monkeypatch).training.work_dir
    (mount,) = (m for m in trainer.container["volumeMounts"] if m["mountPath"] == str(folder))
    (volume,) = (v for v in trainer.spec["volumes"] if v["name"] == mount["name"])
    claims = {
        claim["metadata"]["name"] for claim in find("production-gpu", "PersistentVolumeClaim")
    }
    assert volume["persistentVolumeClaim"]["claimName"] in claims
    (deployment,) = (
        document
        for document in find("production-gpu", "Deployment")
        if document["metadata"]["name"] == trainer.name
    )
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    grace_s = {made.name: made.spec["terminationGracePeriodSeconds"] for made in WORKERS}
    assert trainer.spec["terminationGracePeriodSeconds"] > 2 * grace_s["unlatent-worker"]


def test_downloaded_models_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of bundles lies on a volume that holds more than the largest preset's networks."""
    for made in WORKERS:
        cache = settings_of(made, monkeypatch).scoring.cache
        (volume,) = (v for v in made.spec["volumes"] if v["name"] == "tmp")
        assert cache.is_relative_to("/tmp")  # noqa: S108 - the volume
        assert (
            4 * 2**30 < quantity(volume["emptyDir"]["sizeLimit"]) < made.limit("ephemeral-storage")
        )


def test_devices_are_whole_and_never_in_surplus() -> None:
    """Requests for devices equal their limits, and a rollout asks for no spare one."""
    for made in WORKERS:
        (deployment,) = (
            document
            for document in find(made.overlay, "Deployment")
            if document["metadata"]["name"] == made.name
        )
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
        resources = made.container["resources"]
        devices = {name for name in resources["limits"] if name.startswith("nvidia.com/")}
        wanted = {"local-cpu": set(), "production-gpu": {"nvidia.com/gpu"}}
        assert devices == wanted.get(made.overlay, {"nvidia.com/mig-1g.10gb"})
        for device in devices:
            assert resources["requests"][device] == resources["limits"][device] == "1"


def test_beat_is_alone() -> None:
    """There is never a second scheduler, not even while one replaces the other."""
    for overlay in OVERLAYS:
        (beat,) = (
            document["spec"]
            for document in find(overlay, "Deployment")
            if document["metadata"]["name"] == "unlatent-beat"
        )
        assert beat["replicas"] == 1
        assert beat["strategy"] == {"type": "Recreate"}


def test_the_autoscaler_alone_decides_how_many_workers_there_are() -> None:
    """Where there is a ScaledObject, applying the manifests again leaves the number alone."""
    for overlay in OVERLAYS:
        for scaled in find(overlay, "ScaledObject"):
            for document in find(overlay, "Deployment"):
                if document["metadata"]["name"] == scaled["spec"]["scaleTargetRef"]["name"]:
                    assert "replicas" not in document["spec"]


def test_each_alert_says_what_to_do() -> None:
    """An alert has a severity, a sentence and a runbook in the operations page."""
    page = REPOSITORY / "docs" / "operations.md"
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").strip().lower()).replace(" ", "-")
        for line in page.read_text().splitlines()
        if line.startswith("#")
    }
    for alert in alerts():
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"]["summary"].endswith(".")
        file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert (REPOSITORY / file) == page
        assert anchor == alert["alert"].lower()
        assert anchor in headings, f"docs/operations.md has no heading {alert['alert']}"


def test_one_line_says_where_the_runbooks_are() -> None:
    """The rule's annotation is the address before the anchor of every alert."""
    (rule,) = find("production-gpu", "PrometheusRule")
    address = rule["metadata"]["annotations"]["unlatent.example/runbooks"]
    links = {
        one["alert"]: one["annotations"]["runbook_url"]
        for group in rule["spec"]["groups"]
        for one in group["rules"]
        if "alert" in one
    }
    assert links == {name: f"{address}#{name.lower()}" for name in links}
    assert len(links) == len(alerts())


def test_linters_pass() -> None:
    """The image and the scripts of `deploy/` are free of what linters know."""
    tools = Path(sys.executable).parent
    subprocess.run([tools / "hadolint", DEPLOY / "Dockerfile"], check=True)
    scripts = [DEPLOY / "apply", DEPLOY / "install-dependencies"]
    subprocess.run([tools / "shellcheck", *scripts], check=True)
