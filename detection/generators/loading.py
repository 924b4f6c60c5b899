"""Loading a generator from a folder in diffusers' layout: `vae/`, a predictor, `scheduler/`.

A folder that is itself one saved autoencoder (as the tiny ones are published) is read as such, and
a part may be one file in another layout beside a `config.json`. diffusers' own loading code does
the work (sharded and variant files included); this module picks the class that the configuration
names, from those it knows, and turns every failure into one error that says what was looked for
and where. Only safetensors are read, and nothing is fetched.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from detection.errors import SettingsError
from detection.generators.autoencoders import ADAPTERS, REFUSED_AUTOENCODERS
from detection.generators.generator import Generator
from detection.generators.noise_schedule import NoiseSchedule, noise_schedule_from_scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

#: Where a repository keeps its autoencoder: most, Kandinsky, latent diffusion, Stable Cascade.
AUTOENCODER_FOLDERS = ("vae", "movq", "vqvae", "vqgan")
PREDICTORS = (
    "UNet2DConditionModel",
    "UNet2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "PixArtTransformer2DModel",
)
#: diffusers exports Stable Cascade's stage A from no other module.
PAELLA = "diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model"


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
    autoencoder = _load_part(folder, _autoencoder_folder(folder), tuple(ADAPTERS), variant)
    for part in ("unet", "transformer"):
        if predictor and (folder / part).is_dir():
            network = _load_part(folder, part, PREDICTORS, variant)
            schedule = _read_schedule(folder, part)
            return _generator(folder, autoencoder, network, schedule, conditioning)
    return _generator(folder, autoencoder)


def _autoencoder_folder(folder: Path) -> str:
    for part in AUTOENCODER_FOLDERS:
        if (folder / part).is_dir():
            return part
    return "." if (folder / "config.json").is_file() else AUTOENCODER_FOLDERS[0]


def _read_schedule(folder: Path, part: str) -> NoiseSchedule:
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise GeneratorError(
            f"{file} is missing: it states the noise schedule that {folder / part} was trained on"
        )
    config = read_config(file)
    if "_class_name" not in config:
        raise GeneratorError(f"{file} names no scheduler: expected a _class_name")
    try:
        return noise_schedule_from_scheduler(config)
    except SettingsError as error:
        raise GeneratorError(f"{file} cannot be used: {error}") from error


def _generator(folder: Path, *parts: Any) -> Generator:
    try:
        return Generator(*parts)
    except SettingsError as error:
        raise GeneratorError(f"{folder} cannot be used: {error}") from error


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
    where = folder / part
    config = read_config(where / "config.json")
    name = str(config.get("_class_name"))
    if name not in known:
        reason = REFUSED_AUTOENCODERS.get(name, f"known are {', '.join(known)}")
        raise GeneratorError(f"{where} holds a {name}, which is not supported: {reason}")
    kind = _find_class(where, name)
    try:
        if (file := _single_file(where)) is not None:
            network = _load_single_file(kind, config, file)
        else:
            network = _load_pretrained(kind, where, variant)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise GeneratorError(f"{where} cannot be loaded as {name}: {said}") from error
    return network.float().eval()


def _find_class(where: Path, name: str) -> Any:
    module = "diffusers" if name != "PaellaVQModel" else PAELLA
    try:
        return getattr(import_module(module), name)
    except (AttributeError, ImportError) as error:
        raise GeneratorError(f"{where}: the installed diffusers has no {name}") from error


def _load_pretrained(kind: Any, where: Path, variant: str | None) -> nn.Module:
    network: nn.Module
    network, info = kind.from_pretrained(
        where,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        low_cpu_mem_usage=False,
        output_loading_info=True,
    )
    # diffusers leaves them random, and only warns.
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"the weights lack {', '.join(missing[:3])} ({len(missing)} in all)")
    return network


def _single_file(where: Path) -> Path | None:
    """Return the one file of weights that has none of diffusers' own names, if that is all."""
    files = sorted(where.glob("*.safetensors"))
    other = len(files) == 1 and not files[0].name.startswith("diffusion_pytorch_model")
    return files[0] if other else None


def _load_single_file(kind: Any, config: Mapping[str, Any], file: Path) -> nn.Module:
    """Load one file whose tensors carry the names of diffusers or of the original repository.

    Raises `RuntimeError` where a tensor is missing, which `from_single_file` would leave random.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    network: nn.Module = kind.from_config(config)
    tensors = load_file(file)
    if network.state_dict().keys() != tensors.keys():
        if kind.__name__ not in SINGLE_FILE_LOADABLE_CLASSES:
            raise ValueError(f"diffusers cannot convert {file.name}: its tensors have other names")
        convert = SINGLE_FILE_LOADABLE_CLASSES[kind.__name__]["checkpoint_mapping_fn"]
        tensors = convert(config=config, checkpoint=tensors)
    network.load_state_dict(tensors)
    return network
