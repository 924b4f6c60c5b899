"""The autoencoders of diffusers behind one interface on latents (B, C, h, w).

Each family brings its latents to unit spread in its own way before its predictor sees them: by a
scale and a shift, by a mean and a deviation per channel, by a batch norm, or not at all. The
reference for each is the pipeline of the family in diffusers. A class that is not in `ADAPTERS` is
refused by name: a wrong scale would give scores without an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from detection.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence


class LatentSpace:
    """Latents of the KL, DC and Tiny kinds: `(z - shift_factor) * scaling_factor`.

    A configuration with `latents_mean` and `latents_std` is normalised per channel instead, as
    SDXL's pipelines do: `(z - mean) / std * scaling_factor`. Raises `SettingsError` for an
    autoencoder that does not encode RGB or has as many means as no channels.
    """

    #: What the latents are, for the table in docs/presets.md.
    normalisation = "`(z - shift_factor) * scaling_factor`, or `latents_mean` and `latents_std`"

    def __init__(self, network: Any) -> None:
        self.network = network
        config = network.config
        self.scaling = float(config.get("scaling_factor") or 1.0)
        self.shift = float(config.get("shift_factor") or 0.0)
        self._mean: Sequence[float] | None = config.get("latents_mean")
        self._std: Sequence[float] | None = config.get("latents_std")
        if self._mean is None or self._std is None:
            self._mean = self._std = None
        elif not len(self._mean) == len(self._std) == self.channels:
            raise SettingsError(
                f"{type(network).__name__} has {self.channels} latent channels, but"
                f" {len(self._mean)} latents_mean and {len(self._std)} latents_std"
            )
        if self.colours != 3:
            raise SettingsError(
                f"{type(network).__name__} encodes {self.colours} channels; RGB has 3"
            )

    @property
    def channels(self) -> int:
        """Number of channels C of the latents."""
        return int(self.network.config.latent_channels)

    @property
    def colours(self) -> int:
        """Number of channels of the images that the autoencoder encodes."""
        return int(self.network.config.get("in_channels", 3))

    @property
    def factor(self) -> int:
        """Down-sampling factor f from the sides of an image to those of its latents."""
        if ratio := getattr(self.network, "spatial_compression_ratio", None):
            return int(ratio)
        return _halvings(self.network.config.block_out_channels)

    def encode(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, H, W) in [-1, 1] to the predictor's latents (B, C, H/f, W/f)."""
        return self._normalise(self._latents(self.network.encode(images)))

    def decode(self, latents: Tensor) -> Tensor:
        """Map the predictor's latents (B, C, h, w) to float images (B, 3, f h, f w), unclipped."""
        images: Tensor = self.network.decode(self._restore(latents)).sample
        return images

    @staticmethod
    def _latents(encoded: Any) -> Tensor:
        """Read the autoencoder's answer; of a posterior its mode: no draw may move a verdict."""
        latents: Tensor
        if hasattr(encoded, "latent_dist"):
            latents = encoded.latent_dist.mode()
        elif hasattr(encoded, "latents"):
            latents = encoded.latents
        else:
            latents = encoded.latent
        return latents

    def _normalise(self, latents: Tensor) -> Tensor:
        if self._mean is None or self._std is None:
            return (latents - self.shift) * self.scaling
        mean, std = _per_channel(self._mean, latents), _per_channel(self._std, latents)
        return (latents - mean) / std * self.scaling

    def _restore(self, latents: Tensor) -> Tensor:
        if self._mean is None or self._std is None:
            return latents / self.scaling + self.shift
        mean, std = _per_channel(self._mean, latents), _per_channel(self._std, latents)
        return latents * std / self.scaling + mean


class QuantisedLatents(LatentSpace):
    """Latents of `VQModel`: before quantisation; decoding looks them up in the codebook.

    Kandinsky's, told by their spatial norm, are neither scaled nor quantised. aMUSEd's are refused:
    its network predicts entries of the codebook, not noise.
    """

    normalisation = "`z * scaling_factor`, decoded through the codebook; Kandinsky's: `z` as it is"

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        if network.config.get("lookup_from_codebook"):
            raise SettingsError(
                "this VQModel is aMUSEd's (lookup_from_codebook): its generator predicts entries of"
                " the codebook, which is no latent diffusion"
            )
        self._quantised = network.config.get("norm_type") != "spatial"
        if not self._quantised:
            self.scaling = 1.0

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, C, h, w) to float images (B, 3, f h, f w), unclipped."""
        images: Tensor = self.network.decode(
            self._restore(latents), force_not_quantize=not self._quantised
        ).sample
        return images


class StageALatents(LatentSpace):
    """Latents of Würstchen's and Stable Cascade's stage A, on images in [0, 1]: `z / scale`."""

    normalisation = "`z / scale_factor`, images in [0, 1], not quantised"

    @property
    def factor(self) -> int:
        """Down-sampling factor f: the pixel shuffle's, and 2 for each further level."""
        config = self.network.config
        return int(config.up_down_scale_factor * 2 ** (config.levels - 1))

    def encode(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, H, W) in [-1, 1] to scaled latents (B, C, H/f, W/f)."""
        scale = float(self.network.config.scale_factor)
        latents: Tensor = self.network.encode(images / 2 + 0.5).latents
        return latents / scale

    def decode(self, latents: Tensor) -> Tensor:
        """Map scaled latents (B, C, h, w) to float images (B, 3, f h, f w), unclipped."""
        images: Tensor = self.network.decode(latents * self.network.config.scale_factor).sample
        return images * 2 - 1


class Flux2Latents(LatentSpace):
    """Latents of FLUX.2: 2 x 2 patches as channels, then the autoencoder's own batch norm."""

    normalisation = "2 x 2 patches as channels, `(z - running_mean) / sqrt(running_var + eps)`"

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        if tuple(network.config.patch_size) != (2, 2):
            raise SettingsError(
                f"AutoencoderKLFlux2 has patches of {tuple(network.config.patch_size)};"
                " its pipeline makes patches of (2, 2)"
            )

    @property
    def channels(self) -> int:
        """Number of channels C of the latents: a patch has four times those of a latent."""
        return 4 * int(self.network.config.latent_channels)

    @property
    def factor(self) -> int:
        """Down-sampling factor f: the autoencoder's, and 2 for the patches."""
        return 2 * _halvings(self.network.config.block_out_channels)

    def _normalise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return (functional.pixel_unshuffle(latents, 2) - mean) / std

    def _restore(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return functional.pixel_shuffle(latents * std + mean, 2)

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.network.bn
        variance = norm.running_var + self.network.config.batch_norm_eps
        return (
            norm.running_mean.view(1, -1, 1, 1).to(latents),
            variance.sqrt().view(1, -1, 1, 1).to(latents),
        )


class FrameLatents(LatentSpace):
    """Latents of Qwen-Image's video autoencoder (B, C, T, h, w), of an image as its one frame."""

    normalisation = "one frame, `(z - latents_mean) / latents_std`"

    @property
    def channels(self) -> int:
        """Number of latent channels."""
        return int(self.network.config.z_dim)

    @property
    def colours(self) -> int:
        """Number of channels of the images that the autoencoder encodes."""
        return int(self.network.config.input_channels)

    @property
    def factor(self) -> int:
        """Down-sampling factor f of the sides; the one frame stays."""
        return _halvings(self.network.config.dim_mult)

    def encode(self, images: Tensor) -> Tensor:
        """Map float images (B, 3, H, W) in [-1, 1] to normalised latents (B, C, H/f, W/f)."""
        encoded = self.network.encode(images.unsqueeze(2))
        return self._normalise(self._latents(encoded)[:, :, 0])

    def decode(self, latents: Tensor) -> Tensor:
        """Map normalised latents (B, C, h, w) to float images (B, 3, f h, f w)."""
        frames: Tensor = self.network.decode(self._restore(latents).unsqueeze(2)).sample
        return frames[:, :, 0]


class WanLatents(FrameLatents):
    """Latents of Wan's video autoencoder, which may first turn patches of pixels into channels."""

    @property
    def _patch(self) -> int:
        return int(self.network.config.patch_size or 1)

    @property
    def colours(self) -> int:
        """Number of channels of the images that the autoencoder encodes."""
        return int(self.network.config.in_channels // self._patch**2)

    @property
    def factor(self) -> int:
        """Down-sampling factor f of the sides, the patches included."""
        return self._patch * super().factor


class PixelSpace(LatentSpace):
    """No autoencoder: a predictor that denoises pixels, which are their own latents."""

    normalisation = "none"

    def __init__(self) -> None:
        self.network = None

    @property
    def channels(self) -> int:
        """Number of channels: RGB."""
        return 3

    @property
    def factor(self) -> int:
        """Pixels stay pixels."""
        return 1

    def encode(self, images: Tensor) -> Tensor:
        """Return the float images (B, 3, H, W) in [-1, 1]."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Return the latents (B, 3, H, W), unclipped."""
        return latents


#: What turns images into latents and back, by the name of the class in diffusers.
ADAPTERS: dict[str, type[LatentSpace]] = {
    "AutoencoderKL": LatentSpace,
    "AutoencoderTiny": LatentSpace,
    "AutoencoderDC": LatentSpace,
    "VQModel": QuantisedLatents,
    "PaellaVQModel": StageALatents,
    "AutoencoderKLFlux2": Flux2Latents,
    "AutoencoderKLQwenImage": FrameLatents,
    "AutoencoderKLWan": WanLatents,
}

_AUDIO = "it encodes sound, not images"
_VIDEO = "an adapter is missing that encodes an image as one frame, as its pipeline does"
_IMAGE = "an adapter is missing that normalises its latents, as its pipeline does"
#: Why an autoencoder of diffusers is refused, by the name of its class.
REFUSED_AUTOENCODERS: dict[str, str] = {
    "AsymmetricAutoencoderKL": "its decoder is for inpainting: it also takes the image and a mask",
    "AutoencoderKLAllegro": _VIDEO,
    "AutoencoderKLCogVideoX": _VIDEO,
    "AutoencoderKLCosmos": _VIDEO,
    "AutoencoderKLHunyuanImage": _IMAGE,
    "AutoencoderKLHunyuanImageRefiner": _VIDEO,
    "AutoencoderKLHunyuanVideo": _VIDEO,
    "AutoencoderKLHunyuanVideo15": _VIDEO,
    "AutoencoderKLKVAE": _IMAGE,
    "AutoencoderKLKVAEAudio": _AUDIO,
    "AutoencoderKLKVAEVideo": _VIDEO,
    "AutoencoderKLLTX2Audio": _AUDIO,
    "AutoencoderKLLTX2Video": _VIDEO,
    "AutoencoderKLLTXVideo": _VIDEO,
    "AutoencoderKLMagvit": _VIDEO,
    "AutoencoderKLMiniMaxH3": f"{_VIDEO}; its pixels are normalised as ImageNet's",
    "AutoencoderKLMiniMaxH3Audio": _AUDIO,
    "AutoencoderKLMochi": _VIDEO,
    "AutoencoderKLQwenImage21": _VIDEO,
    "AutoencoderKLTemporalDecoder": "its decoder takes the number of frames of a video",
    "AutoencoderOobleck": _AUDIO,
    "AutoencoderRAE": "an adapter is missing for latents that are a pretrained encoder's features",
    "AutoencoderSAME": _AUDIO,
    "AutoencoderVidTok": _VIDEO,
    "ConsistencyDecoderVAE": "its decoder draws noise: the same latents give different images",
    "Cosmos3AVAEAudioTokenizer": _AUDIO,
    "Kandinsky6SRVAE": _VIDEO,
    "LTX2VideoDiffusionDecoderModel": "it only decodes",
    "LongCatAudioDiTVae": _AUDIO,
    "MMAudioVAE": _AUDIO,
    "MMAudioVocoder": _AUDIO,
    "MiniMaxMusic3Vocoder": _AUDIO,
    "RFD4ProteinaAutoencoder": "it encodes molecules, not images",
}


def latent_space(network: Any) -> LatentSpace:
    """Return the adapter of an autoencoder, or of none (None).

    Raises `SettingsError` naming a class without an adapter.
    """
    if network is None:
        return PixelSpace()
    name = type(network).__name__
    if name not in ADAPTERS:
        reason = REFUSED_AUTOENCODERS.get(name, f"known are {', '.join(ADAPTERS)}")
        raise SettingsError(f"{name} is not supported: {reason}")
    return ADAPTERS[name](network)


def _halvings(widths: Sequence[object]) -> int:
    """Factor of an encoder with these widths: it halves the sides between any two of them."""
    return int(2 ** (len(widths) - 1))


def _per_channel(values: Sequence[float], latents: Tensor) -> Tensor:
    """Lay values (C,) out along the channels of latents (B, C, h, w)."""
    return torch.tensor(values, dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1)
