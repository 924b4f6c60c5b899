"""What a challenger's backbone branch learns: its head, further on a site's own images.

The backbone stays frozen, so that its features are computed once; the head starts from the
champion's and stays near it. How far it may move is chosen by the loss on groups held back; when no
distance lowers that loss, the champion's head stays.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from detection.backbone import to_views, whole_view
from training.bundles.form_cache import draw_whole
from training.data.splits import hash_fraction
from training.evaluation.calibration import class_weights
from training.files import written_aside
from training.fit.softmax_head import SoftmaxHead, fit_head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from detection.backbone import Backbone
    from detection.networks.branch_configs import BackboneConfig
    from training.data.augmentation import AugmentationConfig
    from training.data.manifest import Entry
    from training.data.samples import Sample

#: How strongly new images may pull on the champion's head (`fit_head`), gentlest first.
STRENGTHS = (1e-3, 1e-2, 1e-1)


def is_held_back(group: str, share: float) -> bool:
    """Whether a group is held back from a challenger's training, to choose when it ends."""
    # Another salt than that of the sides: all of these groups lie in one part of its range.
    return hash_fraction(group, salt="early-stopping") < share


@dataclass(frozen=True, slots=True)
class HeadSamples:
    """Features (N, D) of images in several forms, whether they are generated, and their groups."""

    features: NDArray[np.float32]
    generated: NDArray[np.bool_]
    groups: NDArray[np.str_]

    def of(self, keep: NDArray[np.bool_]) -> HeadSamples:
        """Return the rows of a mask (N,)."""
        return HeadSamples(self.features[keep], self.generated[keep], self.groups[keep])

    @property
    def both_classes(self) -> bool:
        """Whether there is something to tell apart."""
        return bool(self.generated.any()) and not bool(self.generated.all())

    def divided(self, share: float) -> tuple[HeadSamples, HeadSamples]:
        """Return what is fitted, and what a share of the groups holds back."""
        held = np.array([is_held_back(group, share) for group in self.groups])
        return self.of(~held), self.of(held)

    def save(self, file: Path) -> None:
        """Write the samples aside and rename them into place."""
        tensors = {
            "features": torch.from_numpy(self.features),
            "generated": torch.from_numpy(self.generated),
        }
        with written_aside(file) as aside:
            save_file(tensors, aside, metadata={"groups": json.dumps(self.groups.tolist())})

    @classmethod
    def load(cls, file: Path) -> HeadSamples:
        """Read what `save` wrote."""
        with safe_open(file, framework="numpy") as stored:
            groups = np.array(json.loads(stored.metadata()["groups"]))
            return cls(stored.get_tensor("features"), stored.get_tensor("generated"), groups)


def sample_features(
    sample: Sample,
    backbone: Backbone,
    augmentation: AugmentationConfig,
    *,
    copies: int,
    seed: int,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Compute features (copies, D) of draws of the augmentation, codec-harmonised as crops are."""
    views = []
    for copy in range(copies):
        rng = np.random.default_rng([seed, copy])
        drawn = draw_whole(sample.pixels, rng, augmentation, lossy=sample.lossy)
        views.append(whole_view(drawn, backbone.config))
    batch = to_views(np.stack(views)).to(device, memory_format=torch.channels_last)
    with torch.inference_mode():
        return np.asarray(backbone.features(batch).cpu().numpy(), dtype=np.float32)


def teach_head(
    samples: HeadSamples, champion: SoftmaxHead, validation: float
) -> tuple[SoftmaxHead, dict[int, float]]:
    """Fit the champion's head further; returns the head and the loss on held-back groups by try.

    Try 0 is the champion's own head, the others are those of `STRENGTHS`. Without both classes on
    both sides of the groups held back, the gentlest fit to all is returned, without losses.
    """
    taught, held = samples.divided(validation)
    judged = taught.both_classes and held.both_classes
    if not judged:
        taught = samples
    weights = class_weights(taught.generated)
    # Of a site's images the side is known, not the family or the kind.
    names = np.where(taught.generated, "generated", "real")
    heads = [
        fit_head(taught.features, names, weights, strength=one, start=champion) for one in STRENGTHS
    ]
    if not judged:
        return heads[0], {}
    tried = [champion, *heads]
    losses = {number: _loss(head, held) for number, head in enumerate(tried)}
    return tried[min(losses, key=losses.__getitem__)], losses


def head_of(weights: Mapping[str, torch.Tensor], config: BackboneConfig) -> SoftmaxHead:
    """Return the head among the weights of a backbone branch."""
    return SoftmaxHead(
        real=config.real,
        generated=config.generated,
        weight=weights["head.weight"].double().numpy(),
        bias=weights["head.bias"].double().numpy(),
    )


def _loss(head: SoftmaxHead, held: HeadSamples) -> float:
    signs = np.where(held.generated, 1.0, -1.0)
    losses = np.logaddexp(0, -signs * head.logits(held.features))
    return float(np.average(losses, weights=class_weights(held.generated)))


def joined(parts: Sequence[NDArray[np.float32]], entries: Sequence[Entry]) -> HeadSamples:
    """Join the features of images, each (copies, D)."""
    copies = [len(part) for part in parts]
    return HeadSamples(
        np.concatenate(parts),
        np.repeat([entry.generated for entry in entries], copies),
        np.repeat([entry.group for entry in entries], copies),
    )
