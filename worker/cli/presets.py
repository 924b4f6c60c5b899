"""`unlatent presets`: the published generators that bundles can be built on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detection.errors import SettingsError
from worker.cli.common.rows import Format, FormatOption, print_fields, print_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from detection.generators.generator import Generator

commands = typer.Typer()
presets = typer.Typer(
    no_args_is_help=True, help="List, show, pin, condition and verify published generators."
)
commands.add_typer(presets, name="presets")

Name = Annotated[str, typer.Argument(help="Preset's name, see `unlatent presets list`.")]
Pins = Annotated[Path, typer.Option(help="File that keeps the pinned revisions.")]
Folder = Annotated[
    Path | None, typer.Option(help="Local folder in the layout of diffusers, instead of the hub.")
]
Variant = Annotated[str | None, typer.Option(help='Weight files\' variant: "fp16".')]
DEFAULT_PINS = Path("var/presets.json")


@presets.command("list")
def list_(pins: Pins = DEFAULT_PINS, format_: FormatOption = Format.TABLE) -> None:
    """List the presets: what they can do, where they come from, and the pinned revision."""
    from detection.generators.presets import PRESETS, pinned_revision

    unpinned = "not pinned" if format_ is Format.TABLE else None
    rows = [
        {
            "name": preset.name,
            "capabilities": preset.capabilities,
            "repository": preset.repository,
            "revision": pinned_revision(preset, pins) or unpinned,
        }
        for preset in PRESETS.values()
    ]
    print_rows(rows, ("name", "capabilities", "repository", "revision"), format_)


@presets.command()
def show(name: Name, pins: Pins = DEFAULT_PINS, format_: FormatOption = Format.TABLE) -> None:
    """Print one preset: repository, licence, gate, prediction, conditioning, revision."""
    from detection.generators.presets import find_preset, pinned_revision

    preset = find_preset(name)
    fields = asdict(preset) | {
        "capabilities": preset.capabilities,
        "revision": pinned_revision(preset, pins) or "",
    }
    print_fields(fields, format_, line="{name}: {value}")


@presets.command()
def pin(name: Name, pins: Pins = DEFAULT_PINS) -> None:
    """Ask the hub for the revision in force and record it."""
    from detection.generators.presets import find_preset
    from detection.generators.presets import pin as pin_preset

    typer.echo(f"{name} {pin_preset(find_preset(name), pins)}")


@presets.command()
def condition(
    name: Name,
    out: Annotated[Path, typer.Option(help="Safetensors to write.")],
    folder: Folder = None,
    variant: Variant = None,
    side: Annotated[
        int, typer.Option(min=64, help="Side in pixels of the views that are scored.")
    ] = 256,
    pins: Pins = DEFAULT_PINS,
) -> None:
    """Compute what the predictor is called with in place of a prompt: the preset's conditioning.

    Takes the preset's own text encoders, once; neither a bundle nor the service needs them.
    """
    from safetensors.torch import save_file

    from detection.generators.presets import find_preset, pinned_revision
    from training.bundles.conditioning import compute_conditioning
    from training.files import written_aside

    preset = find_preset(name)
    tensors = compute_conditioning(
        preset,
        side=side,
        folder=folder,
        revision=pinned_revision(preset, pins),
        variant=variant,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(out) as aside:
        save_file(tensors, aside)
    for tensor, value in tensors.items():
        typer.echo(f"{name}: {tensor} {tuple(value.shape)}")


@presets.command()
def verify(
    name: Name,
    folder: Folder = None,
    variant: Variant = None,
    conditioning: Annotated[
        Path | None, typer.Option(help="Safetensors with the predictor's constant tensors.")
    ] = None,
    pins: Pins = DEFAULT_PINS,
) -> None:
    """Load a preset and send one image through it.

    With the predictor's conditioning the error map is computed too; without it only the
    autoencoder is run.
    """
    from detection.generators.presets import find_preset, load_preset, pinned_revision

    preset = find_preset(name)
    if conditioning is not None and not preset.predictor:
        raise SettingsError(f"preset {name} has no predictor: it takes no conditioning")
    generator = load_preset(
        preset,
        folder=folder,
        revision=pinned_revision(preset, pins),
        conditioning=None if conditioning is None else _read(conditioning),
        variant=variant,
    )
    for line in _try(generator, with_predictor=conditioning is not None):
        typer.echo(f"{name}: {line}")


def _read(file: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"the conditioning in {file} cannot be read: {error}") from error


def _try(generator: Generator, *, with_predictor: bool) -> list[str]:
    import torch

    from detection.generators.generator import noise_bank
    from detection.lare import lare_map
    from detection.networks.branch_configs import LareConfig

    config = LareConfig()
    view = noise_bank((1, 3, config.side, config.side), seed=0).clamp(-1, 1)
    with torch.inference_mode():
        latents = generator.encode(view)
        restored = generator.decode(latents)
        shapes = [tuple(tensor.shape[1:]) for tensor in (latents, view, restored)]
        lines = ["latents {} of {}, decoded to {}".format(*shapes)]
        if with_predictor:
            noises = noise_bank((1, *latents.shape[1:]), seed=1)
            errors = lare_map(generator, view, noises, config.step)
            lines.append(f"error map {tuple(errors.shape[1:])}, mean {float(errors.mean()):.4f}")
    return lines
