"""The image, built on a Debian base in a chroot; needs root and Debian's package `debootstrap`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.deploy.chroot_build import Image, build
from tests.support.bundles.tiny_bundle import build_tiny_bundle
from tests.support.rendered_manifests import DEPLOY, REPOSITORY
from tests.support.upload_site import Site, png
from worker.settings import PREFIX, child_environment

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from worker.settings import Settings

# Installing torch with CUDA downloads gigabytes.
pytestmark = [pytest.mark.deploy, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """The stages of the Dockerfile."""
    assert os.geteuid() == 0, "chroot needs root"
    assert shutil.which("debootstrap"), "debootstrap is missing: apt-get install debootstrap"
    work = tmp_path_factory.mktemp("image")
    base = work / "debian"
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", base], check=True)
    return build(DEPLOY / "Dockerfile", REPOSITORY, base=base, work=work / "stages")


@pytest.fixture(scope="module")
def image(stages: dict[str, Image]) -> Image:
    """The image of every role but the trainer."""
    return stages["service"]


def test_nothing_to_compile_or_install_with_is_left(image: Image) -> None:
    """Neither compilers nor pip are in the last stage, and it does not run as root."""
    absent = " || ".join(f"command -v {name}" for name in ("cc", "gcc", "g++", "make", "pip"))
    image.run(["sh", "-c", f"! ({absent}) && test $(id -u) = 10001"])


def test_what_only_training_needs_is_in_the_trainer_alone(stages: dict[str, Image]) -> None:
    """The trainer imports its stages; the service carries none of what only they import."""
    stages["trainer"].run(["python3", "-c", "import worker.retraining.wiring, accelerate, timm"])
    absent = [
        f"! python3 -c 'import {name}' 2>/dev/null"
        for name in ("accelerate", "matplotlib", "scipy", "sklearn", "tensorboard", "transformers")
    ]
    stages["service"].run(["sh", "-c", " && ".join(absent)])


@pytest.mark.parametrize(
    "command",
    [
        ["unlatent", "check", "/srv/a.png"],
        ["python3", "-c", "import worker.telemetry.tracing_otlp"],
    ],
    ids=["embedded-bundle", "traces"],
)
def test_what_needs_no_service_is_in_the_image(image: Image, command: list[str]) -> None:
    """It scores a file with the embedded bundle, and has what traces are delivered with."""
    (image.root / "srv" / "a.png").write_bytes(png(90, side=100))
    assert image.start(command, read_only=True).wait(900) == 0


def test_a_worker_of_the_image_scores_and_stops(
    image: Image, settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    """On a read-only root, as an ordinary user: migrated, a verdict, SIGTERM, exit code 0."""
    models = image.root / "models"
    shutil.copytree(build_tiny_bundle(tmp_path / "bundle").folder, models)
    subprocess.run(["chmod", "--recursive", "a+rX", models], check=True)
    names = {
        name: value
        for name, value in child_environment(settings).items()
        if name.startswith(PREFIX) and not name.endswith("__RUN_DIR")
    }
    names["UNLATENT_SCORING__BUNDLE"] = "/models"
    migration = image.start([*image.entrypoint, "migrate"], read_only=True, **names)
    assert migration.wait(300) == 0
    site = Site(settings, engine)
    image_id = site.upload("a.png", png(90, side=100))
    worker = image.start([*image.entrypoint, "worker"], read_only=True, **names)
    try:
        deadline = time.monotonic() + 900
        while site.row(image_id).state == "pending":
            assert worker.poll() is None, f"the worker exited with {worker.returncode}"
            assert time.monotonic() < deadline, "no verdict within 900 s"
            time.sleep(0.2)
        assert len(site.verdicts(image_id)) == 1
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(330) == 0
    finally:
        worker.kill()
        worker.wait()
