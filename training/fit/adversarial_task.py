"""Training of an autoencoder against a critic, whose traces are those of adversarial generators.

The objective is VQGAN's (Esser et al., CVPR 2021, arXiv 2012.09841): the reconstruction error, and
that a critic of patches (Isola et al., CVPR 2017, arXiv 1611.07004) takes the reconstruction for a
photograph. Critic and autoencoder are trained in the same step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from training.fit.generator_tasks import AutoencoderTask, reconstruct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKL

    from training.data.samples import Sample

#: Weight of being taken for a photograph beside the reconstruction error.
ADVERSARIAL_WEIGHT = 0.1
#: Widths of the critic's layers, each of which halves the sides.
CRITIC_WIDTHS = (32, 64, 128)


class AdversarialPair(nn.Module):
    """An autoencoder, and the critic that tells its reconstructions from photographs."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        layers: list[nn.Module] = []
        before = 3
        for width in CRITIC_WIDTHS:
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            before = width
        self.critic = nn.Sequential(*layers, nn.Conv2d(before, 1, 3, 1, 1))


class AdversarialTask:
    """Crops for an `AdversarialPair`: `AutoencoderTask`'s loss, and a critic's of every patch."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.batch = AutoencoderTask(samples).batch

    @staticmethod
    def loss(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of both sides' losses, and its parts.

        `critic` is the critic's own loss, which moves no weight of the autoencoder, and `fooled`
        the autoencoder's by a critic that is held still.
        """
        images = batch["images"].to(memory_format=torch.channels_last)
        restored, parts = reconstruct(model.autoencoder, images)
        still = {name: weight.detach() for name, weight in model.critic.named_parameters()}
        fooled = functional.softplus(-functional_call(model.critic, still, (restored,))).mean()
        critic = functional.softplus(-model.critic(images)).mean()
        critic = critic + functional.softplus(model.critic(restored.detach())).mean()
        loss = parts["loss"] + ADVERSARIAL_WEIGHT * fooled + critic
        return {**parts, "loss": loss, "fooled": fooled.detach(), "critic": critic.detach()}
