"""The head of a backbone as a branch: fitted on any part of the images, it scores the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from detection.backbone import novelty, to_views, whole_view
from training.bundles.form_cache import AUGMENTED, FormCache
from training.data.manifest import GENERATED, PHOTOGRAPH, REAL
from training.fit.softmax_head import SoftmaxHead, fit_head, zero_head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from detection.backbone import Backbone
    from training.data.manifest import Entry

    Pixels = NDArray[np.uint8]
    Rows = NDArray[np.float32]


#: The forms that uploads come in; a head also learns from draws of the augmentation.
PLAIN = ("clean", "web")
#: The share of what a head learnt from that is not too novel to be judged.
FAMILIAR = 0.999
#: Side of the thumbnails that the probe sees, in pixels.
THUMBNAIL = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRecipe:
    """How a head is fitted: on which forms of every image, and how strongly to the images.

    `strength` is that of `training.fit.softmax_head.fit_head`; `augmented` counts draws of the
    augmentation, beside the harmonised image and its web form; `other_reals` is what real pictures
    that are no photographs weigh together, where photographs weigh 1 and generated images 1.
    """

    strength: float = 1e-3
    augmented: int = 2
    other_reals: float = 0.3

    @property
    def forms(self) -> tuple[str, ...]:
        """The names of the forms."""
        return *PLAIN, *(f"{AUGMENTED}{number}" for number in range(self.augmented))


@dataclass(frozen=True, slots=True, kw_only=True)
class Familiarity:
    """Mean and standard deviation (D,) of the features learnt from, and the novelty to judge to."""

    centre: Tensor
    spread: Tensor
    max_novelty: float


class HeadBranch:
    """A multinomial regression on rows that do not depend on the fold: features, or a thumbnail."""

    def __init__(self, name: str, rows: FormCache, recipe: HeadRecipe) -> None:
        self.name = name
        self._rows, self._recipe = rows, recipe

    def head(self, entries: Sequence[Entry]) -> SoftmaxHead:
        """Fit a head whose classes are the kinds and the families of the images."""
        forms = self._recipe.forms
        rows = np.concatenate([self._rows.rows(entries, form) for form in forms])
        names = np.array([class_name(entry) for entry in entries])
        generated = np.array([entry.generated for entry in entries])
        real, fake = (
            tuple(sorted({str(name) for name in names[side]})) for side in (~generated, generated)
        )
        return fit_head(
            rows,
            np.tile(names, len(forms)),
            np.tile(self.weights(entries) / len(forms), len(forms)),
            strength=self._recipe.strength,
            start=zero_head(real, fake, rows.shape[1]),
        )

    def logits(self, head: SoftmaxHead, entries: Sequence[Entry], form: str) -> NDArray[np.float64]:
        """Score N images in one form with a head (N,)."""
        return head.logits(self._rows.rows(entries, form))

    def familiarity(self, entries: Sequence[Entry]) -> Familiarity:
        """State mean and spread of the images' features, and the novelty of all but the last few.

        `max_novelty` is the quantile `FAMILIAR` of the images' own novelties. The draws of the
        augmentation are left out: they go further than uploads do.
        """
        rows = torch.from_numpy(np.concatenate([self._rows.rows(entries, form) for form in PLAIN]))
        centre, spread = rows.mean(dim=0), rows.std(dim=0) + 1e-6
        novelties = novelty(rows, centre, spread).double()
        return Familiarity(
            centre=centre, spread=spread, max_novelty=float(novelties.quantile(FAMILIAR))
        )

    def weights(self, entries: Sequence[Entry]) -> NDArray[np.float64]:
        """Return what each of N images counts (N,).

        Generated images count N/2 together, photographs N/2, the other reals `other_reals` x N/2.
        """
        sides = np.array([_side(entry) for entry in entries])
        shares = {"generated": 0.5, "photograph": 0.5, "other": self._recipe.other_reals / 2}
        weights = [shares[side] / (sides == side).sum() for side in sides]
        return np.array(weights) * len(entries)


def class_name(entry: Entry) -> str:
    """Name the class of a head that an image is of: its side, and its family or its kind."""
    if entry.generated:
        return f"{GENERATED}:{entry.family or entry.set}"
    return f"{REAL}:{entry.kind or PHOTOGRAPH}"


def _side(entry: Entry) -> str:
    if entry.generated:
        return "generated"
    return "photograph" if entry.photograph else "other"


def feature_reader(
    backbone: Backbone, device: str = "cpu"
) -> Callable[[Sequence[Pixels]], list[Rows]]:
    """Return what reads a backbone's features (D,) from pictures, RGB uint8 (H, W, 3)."""
    backbone.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it

    def read(pictures: Sequence[Pixels]) -> list[Rows]:
        views = np.stack([whole_view(one, backbone.config) for one in pictures])
        batch = to_views(views).to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            return list(backbone.features(batch).cpu().numpy())

    return read


def thumbnail_reader(pictures: Sequence[Pixels]) -> list[Rows]:
    """Read thumbnails (3072,) of 32 x 32 pixels, averaged over areas, from RGB uint8 (H, W, 3).

    They show what a picture is of and no trace of how it was made: what a head learns from them is
    how far content alone tells the classes of these very images apart.
    """
    box = Image.Resampling.BOX
    small = [Image.fromarray(one).resize((THUMBNAIL, THUMBNAIL), box) for one in pictures]
    return [np.asarray(one, dtype=np.float32).ravel() / np.float32(255) for one in small]
