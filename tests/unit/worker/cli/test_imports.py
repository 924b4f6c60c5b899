"""What commands import, each in a fresh interpreter: modules are counted, never seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.bundles.tiny_bundle import build_tiny_bundle

REPOSITORY = Path(__file__).parents[4]
HEAVY = {"torch", "torchvision", "timm", "diffusers", "transformers", "scipy", "sklearn"}
ID = "00000000-0000-0000-0000-000000000001"

_PROGRAM = """
import sys
from worker import cli
for line in sys.argv[1:]:
    sys.argv = ["unlatent", *line.split()]
    try:
        cli.main()
    except SystemExit as ended:
        print("ENDED", line, ended.code)
print("IMPORTED", *sys.modules)
"""


def imported(*lines: str) -> tuple[set[str], list[str]]:
    """Run commands one after the other; return the modules and how each command ended."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *lines],
        env=os.environ | {"UNLATENT_POSTGRES__URL": "postgresql+psycopg://u@127.0.0.1:1/x"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    printed = done.stdout.splitlines()
    ends = [line.removeprefix("ENDED ") for line in printed if line.startswith("ENDED ")]
    return set(printed[-1].split()[1:]), ends


def tops(modules: set[str]) -> set[str]:
    """Return the top-level packages of modules."""
    return {module.partition(".")[0] for module in modules}


def test_help_reads_no_settings() -> None:
    """Help starts without what reads settings and writes logs, too, that of a group likewise."""
    modules, ends = imported("--help", "review --help")
    assert ends == ["--help 0", "review --help 0"]
    others = {"pydantic_settings", "structlog", "sqlalchemy", "numpy", "boto3", "celery"}
    assert tops(modules) & (HEAVY | others) == set()


def test_moderation_imports_no_torch() -> None:
    """What moderators and their operators ask, up to the database, needs no network of ours."""
    lines = [
        "verdicts", "quality", "reasons", "review list", f"review claim {ID}",
        f"decide {ID} real --reason x", "appeals list", f"appeals open {ID}", "holds list",
        f"holds place {ID} --reason x", "policy list", "policy check", "moderators list",
        "moderators allow kim", "webhooks dead", "webhooks replay --dead", "retain",
        f"link {ID}", "export dsa --since 2026-01-01T00:00:00",
    ]  # fmt: skip
    modules, ends = imported(*lines)
    assert ends == [f"{line} 1" for line in lines]
    assert "sqlalchemy" in modules
    assert tops(modules) & HEAVY == set()


def test_lists_import_no_torch() -> None:
    """Naming bundles and presets loads none, even without a registry."""
    lines = ["models list", "presets list", "presets show sd15"]
    modules, ends = imported(*lines)
    assert ends == [f"{line} 0" for line in lines]
    assert "detection.bundle" in modules
    assert tops(modules) & HEAVY == set()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """An image with content."""
    pixels = np.random.default_rng(1).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_check_imports_torch_and_no_zoo(picture: Path) -> None:
    """With the embedded bundle a score needs none of the libraries of models."""
    modules, (end,) = imported(f"check --device cpu {picture}")
    assert end.endswith(" 0")
    assert tops(modules) & HEAVY == {"torch"}


@pytest.mark.full
def test_check_of_a_generator_imports_no_pipelines(tmp_path: Path, picture: Path) -> None:
    """A bundle with a diffusion model brings diffusers' models, not its pipelines, and no timm."""
    bundle = build_tiny_bundle(tmp_path / "tiny", branches=("lare", "backbone")).folder
    modules, (end,) = imported(f"check --device cpu --bundle {bundle} {picture}")
    assert end.endswith(" 0")
    assert "diffusers.models.unets.unet_2d_condition" in modules
    assert [name for name in modules if name.startswith("diffusers.pipelines")] == []
    assert "timm" not in modules
