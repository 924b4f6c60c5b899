"""A critic and an autoencoder in one step: each is moved by its own loss alone."""

from __future__ import annotations

import torch
from torch.nn import functional

from detection.generators.generator import noise_bank
from training.fit.adversarial_task import ADVERSARIAL_WEIGHT, AdversarialPair, AdversarialTask
from training.fit.generator_tasks import AutoencoderSpec, build_autoencoder, reconstruct

IMAGES = noise_bank((2, 3, 32, 32), seed=0).clamp(-1, 1)


def test_each_side_has_the_gradients_of_its_own_loss() -> None:
    """Those of both losses written out apart, each with the other side's weights held still."""
    torch.manual_seed(0)
    pair = AdversarialPair(build_autoencoder(AutoencoderSpec(widths=(16, 16), adversarial=True)))
    torch.manual_seed(1)
    parts = AdversarialTask.loss(pair, {"images": IMAGES})
    parts["loss"].backward()
    found = {name: weight.grad.clone() for name, weight in pair.named_parameters()}

    pair.zero_grad()
    torch.manual_seed(1)
    restored, own = reconstruct(pair.autoencoder, IMAGES)
    made, taken = pair.critic(restored.detach()), pair.critic(IMAGES)
    # -log of the probability of being right, by patch (Goodfellow et al., 2014, equation 1).
    critic = -(torch.sigmoid(taken).log().mean() + (1 - torch.sigmoid(made)).log().mean())
    critic.backward()
    for name, weight in pair.critic.named_parameters():
        torch.testing.assert_close(found[f"critic.{name}"], weight.grad)
    torch.testing.assert_close(parts["critic"], critic.detach())

    pair.zero_grad()
    fooled = functional.binary_cross_entropy_with_logits(
        pair.critic(restored), torch.ones_like(made)
    )
    (own["loss"] + ADVERSARIAL_WEIGHT * fooled).backward()
    for name, weight in pair.autoencoder.named_parameters():
        torch.testing.assert_close(found[f"autoencoder.{name}"], weight.grad)
