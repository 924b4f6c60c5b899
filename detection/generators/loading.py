"""Loading a generator from a folder in diffusers' layout: `vae/`, a predictor, `scheduler/`.

A folder that is itself one saved autoencoder (as the tiny ones are published) is read as such.
diffusers' own loading code does the work (sharded and variant files included); this module picks
the class that the configuration names, from those it knows, and turns every failure into one error
that says what was looked for and where. Only safetensors are read, and nothing is fetched.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from detection.errors import SettingsError
from detection.generators.generator import Generator, noise_schedule_from_scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

AUTOENCODERS = ("AutoencoderKL", "VQModel", "AutoencoderDC", "AutoencoderTiny")
PREDICTORS = (
    "UNet2DConditionModel",
    "UNet2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "PixArtTransformer2DModel",
)


class GeneratorError(SettingsError):
    """A generator's folder cannot be loaded."""


def load_generator_folder(
    folder: Path,
    conditioning: Mapping[str, Tensor] | None = None,
    *,
    variant: str | None = None,
    predictor: bool = True,
) -> Generator:
    """Load the autoencoder and, where it is there and wanted, the predictor and its process.

    Raises `GeneratorError` naming the folder and the part that is missing or wrong.
    """
    part = "vae" if (folder / "vae").is_dir() or not (folder / "config.json").is_file() else "."
    autoencoder = _load_part(folder, part, AUTOENCODERS, variant)
    for part in ("unet", "transformer"):
        if predictor and (folder / part).is_dir():
            network = _load_part(folder, part, PREDICTORS, variant)
            scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
            return Generator(
                autoencoder, network, noise_schedule_from_scheduler(scheduler), conditioning
            )
    return Generator(autoencoder)


def read_config(file: Path) -> dict[str, Any]:
    """Read one of diffusers' JSON configurations; raises `GeneratorError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise GeneratorError(
            f"{file} is missing: expected a folder in diffusers' layout"
        ) from error
    except (OSError, ValueError) as error:
        raise GeneratorError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise GeneratorError(f"{file} does not hold a configuration")
    return content


def _load_part(folder: Path, part: str, known: tuple[str, ...], variant: str | None) -> nn.Module:
    import diffusers

    name = str(read_config(folder / part / "config.json").get("_class_name"))
    if name not in known:
        raise GeneratorError(f"{folder / part} holds a {name}; known are {', '.join(known)}")
    try:
        network: nn.Module = getattr(diffusers, name).from_pretrained(
            folder / part,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise GeneratorError(f"{folder / part} cannot be loaded as {name}: {error}") from error
    return network.float()
