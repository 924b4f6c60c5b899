"""What the pipelines of diffusers make of each kind of autoencoder, on tiny random weights.

A reference encodes and decodes with methods of the pipeline of the family, or with the arithmetic
of its `__call__` where that is not a method, and never with code of unlatent. The table of
docs/presets.md says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderTiny,
    Flux2Pipeline,
    FluxImg2ImgPipeline,
    QwenImageImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    VQModel,
    WanVideoToVideoPipeline,
)
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One published kind of autoencoder: `encode` and `decode` take it and images or latents.

    Images are float (B, 3, H, W) in [-1, 1], latents (B, C, h, w) as the predictor takes them.
    `stated` says which code of diffusers the reference is.
    """

    autoencoder: str
    families: str
    build: Callable[[], Any]
    channels: int
    factor: int
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]
    stated: str


class _Modes:
    """An autoencoder whose posterior has no spread, as pipelines draw from it."""

    def __init__(self, network: Any) -> None:
        self.config, self.dtype, self._network = network.config, torch.float32, network

    def encode(self, images: Tensor) -> SimpleNamespace:
        """Return the mode of the posterior where pipelines look for latents without one."""
        return SimpleNamespace(latents=self._network.encode(images).latent_dist.mode())


def _kl(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=2,
        force_upcast=False,
        **options,
    )


def _encode_sdxl(network: Any, images: Tensor) -> Tensor:
    latents: Tensor = StableDiffusionXLImg2ImgPipeline.prepare_latents(
        SimpleNamespace(vae=_Modes(network)),
        images,
        timestep=None,
        batch_size=len(images),
        num_images_per_prompt=1,
        dtype=torch.float32,
        device="cpu",
        add_noise=False,
    )
    return latents


def _decode_sdxl(network: Any, latents: Tensor) -> Tensor:
    config = network.config
    if config.latents_mean is None:
        return network.decode(latents / config.scaling_factor, return_dict=False)[0]
    mean = torch.tensor(config.latents_mean).view(1, 4, 1, 1)
    std = torch.tensor(config.latents_std).view(1, 4, 1, 1)
    return network.decode(latents * std / config.scaling_factor + mean, return_dict=False)[0]


def _encode_flux(network: Any, images: Tensor) -> Tensor:
    pipeline = SimpleNamespace(vae=_Modes(network))
    return FluxImg2ImgPipeline._encode_vae_image(pipeline, images, None)


def _decode_flux(network: Any, latents: Tensor) -> Tensor:
    config = network.config
    return network.decode(latents / config.scaling_factor + config.shift_factor).sample


def _tiny() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        scaling_factor=0.7,
        shift_factor=0.2,
    )


def _encode_tiny(network: Any, images: Tensor) -> Tensor:
    pipeline = SimpleNamespace(vae=network)
    return FluxImg2ImgPipeline._encode_vae_image(pipeline, images, None)


def _dc() -> AutoencoderDC:
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 8, 8),
        decoder_block_out_channels=(4, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.4,
    )


def _vq(**options: Any) -> VQModel:
    network = VQModel(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=2,
        **options,
    )
    torch.nn.init.normal_(network.quantize.embedding.weight)
    return network


def _movq() -> VQModel:
    return VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=8,
        norm_type="spatial",
    )


def _stage_a() -> PaellaVQModel:
    network = PaellaVQModel(
        levels=2, bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=16, scale_factor=0.43
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    norm = network.down_blocks[-1][1]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return network


def _flux2() -> AutoencoderKLFlux2:
    network = AutoencoderKLFlux2(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=32,
        norm_num_groups=2,
    )
    network.bn.running_mean.uniform_(-1, 1)
    network.bn.running_var.uniform_(0.5, 2)
    return network


def _encode_flux2(network: Any, images: Tensor) -> Tensor:
    pipeline = SimpleNamespace(vae=network, _patchify_latents=Flux2Pipeline._patchify_latents)
    return Flux2Pipeline._encode_vae_image(pipeline, images, generator=None)


def _decode_flux2(network: Any, latents: Tensor) -> Tensor:
    mean = network.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(network.bn.running_var.view(1, -1, 1, 1) + network.config.batch_norm_eps)
    return network.decode(Flux2Pipeline._unpatchify_latents(latents * std + mean)).sample


def _qwen() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1, dim_mult=[1, 1, 2, 2])


def _encode_qwen(network: Any, images: Tensor) -> Tensor:
    pipeline = SimpleNamespace(vae=_Modes(network))
    return QwenImageImg2ImgPipeline._encode_vae_image(pipeline, images[:, :, None], None)[:, :, 0]


def _decode_frames(network: Any, latents: Tensor) -> Tensor:
    shape = (1, network.config.z_dim, 1, 1, 1)
    mean = torch.tensor(network.config.latents_mean).view(shape)
    inverse = 1 / torch.tensor(network.config.latents_std).view(shape)
    return network.decode(latents[:, :, None] / inverse + mean, return_dict=False)[0][:, :, 0]


def _wan(**options: Any) -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=8, num_res_blocks=1, dim_mult=[1, 1, 2, 2], **options)


def _wan22() -> AutoencoderKLWan:
    return _wan(
        z_dim=6,
        latents_mean=[0.1, -0.2, 0.3, -0.4, 0.5, -0.6],
        latents_std=[0.5, 0.6, 0.7, 0.8, 0.9, 1.1],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def _encode_wan(network: Any, images: Tensor) -> Tensor:
    pipeline = SimpleNamespace(
        vae=network,
        vae_scale_factor_temporal=4,
        vae_scale_factor_spatial=network.config.scale_factor_spatial,
        scheduler=SimpleNamespace(add_noise=lambda latents, _noise, _timestep: latents),
    )
    latents: Tensor = WanVideoToVideoPipeline.prepare_latents(
        pipeline,
        images[:, :, None],
        batch_size=len(images),
        num_channels_latents=network.config.z_dim,
        height=images.shape[-2],
        width=images.shape[-1],
        dtype=torch.float32,
        device="cpu",
    )
    return latents[:, :, 0]


REFERENCES: dict[str, Reference] = {
    "kl-4": Reference(
        autoencoder="AutoencoderKL",
        families="Stable Diffusion 1 and 2, SDXL",
        build=lambda: _kl(latent_channels=4, scaling_factor=0.18),
        channels=4,
        factor=4,
        encode=_encode_sdxl,
        decode=_decode_sdxl,
        stated="`StableDiffusionXLImg2ImgPipeline.prepare_latents` and `__call__`",
    ),
    "kl-4-mean": Reference(
        autoencoder="AutoencoderKL",
        families="Playground 2.5",
        build=lambda: _kl(
            latent_channels=4,
            scaling_factor=0.5,
            latents_mean=[-1.6, 1.1, 2.6, 2.0],
            latents_std=[8.4, 5.9, 6.7, 5.0],
        ),
        channels=4,
        factor=4,
        encode=_encode_sdxl,
        decode=_decode_sdxl,
        stated="`StableDiffusionXLImg2ImgPipeline.prepare_latents` and `__call__`",
    ),
    "kl-16": Reference(
        autoencoder="AutoencoderKL",
        families="Stable Diffusion 3, FLUX.1",
        build=lambda: _kl(latent_channels=16, scaling_factor=0.36, shift_factor=0.12),
        channels=16,
        factor=4,
        encode=_encode_flux,
        decode=_decode_flux,
        stated="`FluxImg2ImgPipeline._encode_vae_image` and `__call__`",
    ),
    "kl-32": Reference(
        autoencoder="AutoencoderKL",
        families="any with 32 latent channels",
        build=lambda: _kl(latent_channels=32, scaling_factor=0.36, shift_factor=-0.1),
        channels=32,
        factor=4,
        encode=_encode_flux,
        decode=_decode_flux,
        stated="`FluxImg2ImgPipeline._encode_vae_image` and `__call__`",
    ),
    "tiny": Reference(
        autoencoder="AutoencoderTiny",
        families="TAESD and its likes",
        build=_tiny,
        channels=4,
        factor=4,
        encode=_encode_tiny,
        decode=_decode_flux,
        stated="`FluxImg2ImgPipeline._encode_vae_image` and `__call__`",
    ),
    "dc": Reference(
        autoencoder="AutoencoderDC",
        families="Sana",
        build=_dc,
        channels=4,
        factor=4,
        encode=lambda network, images: (
            network.encode(images).latent * network.config.scaling_factor
        ),
        decode=lambda network, latents: network.decode(
            latents / network.config.scaling_factor, return_dict=False
        )[0],
        stated="arithmetic of `SanaControlNetPipeline.__call__`",
    ),
    "vq": Reference(
        autoencoder="VQModel",
        families="latent diffusion (LDM)",
        build=lambda: _vq(scaling_factor=0.6),
        channels=4,
        factor=2,
        encode=lambda network, images: (
            network.encode(images).latents * network.config.scaling_factor
        ),
        decode=lambda network, latents: (
            network.decode(latents / network.config.scaling_factor).sample
        ),
        stated="arithmetic of `LDMPipeline.__call__`, and its inverse",
    ),
    "movq": Reference(
        autoencoder="VQModel",
        families="Kandinsky 2 and 3",
        build=_movq,
        channels=4,
        factor=2,
        encode=lambda network, images: network.encode(images)["latents"],
        decode=lambda network, latents: network.decode(latents, force_not_quantize=True)["sample"],
        stated="arithmetic of `KandinskyV22Img2ImgPipeline.__call__`",
    ),
    "stage-a": Reference(
        autoencoder="PaellaVQModel",
        families="Würstchen, Stable Cascade (stage A)",
        build=_stage_a,
        channels=4,
        factor=4,
        encode=lambda network, images: (
            network.encode((images + 1) / 2).latents / network.config.scale_factor
        ),
        decode=lambda network, latents: (
            network.decode(network.config.scale_factor * latents).sample.clamp(0, 1) * 2 - 1
        ),
        stated="arithmetic of `StableCascadeDecoderPipeline.__call__`, and its inverse",
    ),
    "flux2": Reference(
        autoencoder="AutoencoderKLFlux2",
        families="FLUX.2",
        build=_flux2,
        channels=128,
        factor=8,
        encode=_encode_flux2,
        decode=_decode_flux2,
        stated="`Flux2Pipeline._encode_vae_image`, `_unpatchify_latents` and `__call__`",
    ),
    "qwen": Reference(
        autoencoder="AutoencoderKLQwenImage",
        families="Qwen-Image",
        build=_qwen,
        channels=16,
        factor=8,
        encode=_encode_qwen,
        decode=_decode_frames,
        stated="`QwenImageImg2ImgPipeline._encode_vae_image` and `__call__`",
    ),
    "wan-2.1": Reference(
        autoencoder="AutoencoderKLWan",
        families="Wan 2.1",
        build=_wan,
        channels=16,
        factor=8,
        encode=_encode_wan,
        decode=_decode_frames,
        stated="`WanVideoToVideoPipeline.prepare_latents` and `__call__`",
    ),
    "wan-2.2": Reference(
        autoencoder="AutoencoderKLWan",
        families="Wan 2.2 (5B)",
        build=_wan22,
        channels=6,
        factor=16,
        encode=_encode_wan,
        decode=_decode_frames,
        stated="`WanVideoToVideoPipeline.prepare_latents` and `__call__`",
    ),
}


def build(name: str) -> Any:
    """Build the tiny autoencoder of a reference, the same each time, in evaluation mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        return REFERENCES[name].build().eval()
