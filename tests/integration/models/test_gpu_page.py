"""Every line of docs/gpu.md runs, in its order, on tiny presets from a hub on loopback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from detection.bundle import load_bundle
from detection.generators.presets import PRESETS
from tests.support.generators.autoencoder_references import build
from tests.support.generators.local_hub import REVISION, local_hub
from tests.support.generators.tiny_families import save_family
from tests.support.generators.tiny_text_encoders import clip
from worker.demo.photographs import PHOTOGRAPHS
from worker.models.registry import ModelsRegistry
from worker.settings import child_environment

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "gpu.md"
TOKEN = "hf_of_your_account"  # the page's own


def commands() -> list[str]:
    """Return the lines of the page's blocks; hours of training on a GPU become a smoke run."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    (training,) = [line for line in lines if '--data "$DATA"' in line]
    smoke = training.replace('--data "$DATA"', "--smoke --no-folds")
    return [
        line.replace("DEVICE=cuda", "DEVICE=cpu") if line != training else smoke for line in lines
    ]


def publish(folder: Path) -> dict[str, Path]:
    """Lay out tiny repositories of the presets that the page names."""
    save_family(folder / "sd15", "sd15")
    clip(folder / "sd15", width=8)
    build("tiny").save_pretrained(folder / "taesd")
    build("kl-16").save_pretrained(folder / "sd3" / "vae")
    return {PRESETS[name].repository: folder / name for name in ("sd15", "taesd", "sd3")}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_lines_of_the_page_lead_to_a_promoted_bundle(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    """The champion is the bundle that the page trained, on the preset that the hub served."""
    training = settings.training.model_copy(update={"bucket": settings.s3.buckets[0]})
    chosen = settings.model_copy(update={"training": training})
    (tmp_path / "photo.jpg").write_bytes(PHOTOGRAPHS[0].path.read_bytes())
    with local_hub(publish(tmp_path / "hub"), TOKEN) as hub:
        environment = child_environment(chosen) | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(commands())],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=800,
        )
    assert done.returncode == 0, done.stderr[-5000:]
    bundle = load_bundle(tmp_path / "out" / "bundle")
    reference = bundle.manifest.generator
    assert reference is not None
    assert (reference.preset, reference.revision) == ("sd15", REVISION)
    champion = ModelsRegistry(engine).champion()
    assert champion is not None
    assert champion.digest == bundle.model_version
