"""compose.yaml: valid, and the same service as the manifests describe."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.rendered_manifests import DEPLOY, REPOSITORY, pods
from worker.settings import load_settings

SCHEMA = REPOSITORY / "tests" / "support" / "schemas" / "compose.json"
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
#: Service of the file → the object of the manifests with the same role.
ROLES = {
    "worker-cpu": "unlatent-worker",
    "bridge": "unlatent-bridge",
    "beat": "unlatent-beat",
    "migrate": "unlatent-migrate",
    "console": "unlatent-console",
    "serve": "unlatent-serve",
}
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("unlatent:")]
#: `${NAME:?message}`.
_VARIABLE = re.compile(r"\$\{([A-Z_]+):\?[^}]+\}")


def environment(name: str) -> dict[str, str]:
    """Return the variables of a service with every secret filled in."""
    variables = SERVICES[name].get("environment", {})
    return {key: _VARIABLE.sub(r"secret-\1", value) for key, value in variables.items()}


def test_the_file_is_a_compose_file() -> None:
    """It holds what the Compose Specification knows, and nothing that the schema does not list."""
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(COMPOSE, schema)
    assert {"postgres", "valkey", "storage", "buckets", *ROLES} <= SERVICES.keys()


def test_what_a_service_names_is_in_the_file() -> None:
    """Services that are waited for can reach that state; volumes, configs and files are there."""
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for {other}"
            else:
                assert SERVICES[other]["restart"] == "on-failure", f"{name} waits for {other}"
        for volume in service.get("volumes", ()):
            source, *_ = volume.split(":")
            if source.startswith("."):
                assert (REPOSITORY / source).is_file()
            else:
                assert source in COMPOSE["volumes"]
        for config in service.get("configs", ()):
            assert config["source"] in COMPOSE["configs"]
        if "build" in service:
            assert (REPOSITORY / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", ROLES)
def test_a_role_runs_as_in_a_cluster(name: str) -> None:
    """Command, time to stop and the settings that are given agree with the manifests'."""
    overlay = "production-gpu" if name in {"console", "serve"} else "local-cpu"
    (made,) = [pod for pod in pods(overlay) if pod.name == ROLES[name]]
    service = SERVICES[name]
    assert service["command"] == made.container["args"]
    if "stop_grace_period" in service:
        grace = made.spec["terminationGracePeriodSeconds"]
        assert service["stop_grace_period"] == f"{grace}s"
    secrets = {entry["name"] for entry in made.container["env"]} - {"UNLATENT_CONSOLE__URL"}
    assert secrets <= environment(name).keys()
    if overlay == "local-cpu":
        for setting, value in made.config.items():
            if setting != "UNLATENT_S3__BUCKETS":  # evidence is kept here, too
                assert environment(name)[setting] == value


@pytest.mark.parametrize("name", OURS)
def test_our_containers_keep_to_the_restricted_profile(name: str) -> None:
    """No root, no privilege, no writable image, and of all folders only those that are written."""
    service = SERVICES[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp", "/run/unlatent"]  # noqa: S108 - in the container
    assert all(volume.endswith(":ro") for volume in service.get("volumes", ()))


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_a_service_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a setting with a value that it takes; hosts are services of the file."""
    for key, value in environment(name).items():
        assert key.startswith("UNLATENT_")
        monkeypatch.setenv(key, value)
    settings = load_settings()
    assert settings.moderation.evidence_bucket in settings.s3.buckets
    for value in environment(name).values():
        for host in re.findall(r"(?:@|http://|psycopg://)([a-z-]+):\d+", value):
            assert host in SERVICES


def test_every_secret_is_asked_for_and_documented() -> None:
    """Nothing starts with an empty or a known password, and the page makes every one."""
    text = (REPOSITORY / "compose.yaml").read_text()
    asked = set(_VARIABLE.findall(text))
    assert len(asked) >= 6
    assert len(re.findall(r"\$\{", text)) == len(_VARIABLE.findall(text))
    page = (REPOSITORY / "docs" / "deploy.md").read_text()
    section = page.partition("One machine with Docker")[2].partition("\n## ")[0]
    assert asked <= set(re.findall(r"\b[A-Z]+_(?:PASSWORD|KEY_DIGEST)\b", section))


def test_the_context_of_the_build_holds_what_is_copied() -> None:
    """Every file that the Dockerfile copies from the checkout passes .dockerignore."""
    allowed = {
        line.removeprefix("!")
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied
    assert copied - allowed == set()
