"""The configuration of each branch in a bundle: its architecture and the view that it reads.

Apart from the networks, so that whoever only lists bundles imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedConfig:
    """Architecture and service view: stage widths and depths, tile side (pixels), most tiles."""

    widths: tuple[int, ...] = (16, 48, 96, 192)
    depths: tuple[int, ...] = (1, 2, 2, 2)
    tile: int = 128
    max_tiles: int = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """A timm architecture by name, the stages that are read, and the view that it sees.

    `stages` are names of the architecture's modules. The view is square, `side` pixels; a larger
    picture is first brought to `shrink_to` pixels by area averaging, and every one is saved as JPEG
    of `quality` (4:2:0) once: what an upload was saved as before then hardly matters, to a score
    nor to what can be learnt. Views enter as (x - `mean`) / `scale` of their 8-bit values. `real`
    and `generated` name the classes of the head: kinds of real pictures, families of generators.
    Above `max_novelty` a picture is too unlike what the head learnt from; None judges all.
    """

    architecture: str = "tf_efficientnet_lite0"
    stages: tuple[str, ...] = ("blocks.4", "blocks.5", "blocks.6")
    side: int = 320
    shrink_to: int = 512
    quality: int = 60
    mean: float = 127.0
    scale: float = 128.0
    real: tuple[str, ...] = ("real:photograph",)
    generated: tuple[str, ...] = ("generated:any",)
    max_novelty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EgreConfig:
    """Backbone by name, attention heads, channels of the error map, and the ablation switch.

    `use_map=False` replaces the map by zeros: the same network without LaRE, for measuring it.
    """

    backbone: str = "small"
    heads: int = 4
    map_channels: int = 4
    use_map: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LareConfig:
    """Stated view and step of the feature; defaults are the paper's (256 px, t = 200, 4 noises)."""

    side: int = 256
    step: int = 200
    ensemble: int = 4
