"""`make bench-additions DATA=… [LIMIT=…] [OUT=…]`: what could be added to the shipped recipe.

Each addition is measured by the folds of DATA (`training.data.folds`) against the recipe alone, on
the same pictures and with a paired bootstrap. Additions are LaRE's error map by the generator of
the bundle, of one noise and of its whole bank, which enters the head as EGRE has it: aligned to
every stage that is read; as a control a map of fine detail in its place, for which no generator is
needed; and a second view, a crop at native resolution, asked whether it agrees.
The generator was trained on images of every fold, which flatters the map. Rows are kept in OUT, so
that a run that was killed goes on. Writes `additions.json` and `additions.md` there.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from detection.backbone import to_views, whole_view
from detection.bundle import BundleError, load_bundle
from detection.bundle_generator import load_lare
from detection.lare import center_crop_resize, lare_map, to_minus_one_one
from tests.benchmarks.claims_costs import processor_s
from tests.benchmarks.detector.limited_data import load_limited
from tests.benchmarks.detector.peer_reconstruction import frozen_backbone
from tests.benchmarks.detector.peer_table import mean_area
from tests.benchmarks.photographlike import make_files
from training.bundles.cross_fit import UnseenLogits, unseen_logits
from training.bundles.form_cache import FormCache
from training.bundles.head_branch import HeadBranch, HeadRecipe
from training.data.augmentation import AugmentationConfig
from training.evaluation.scoring import auc, auc_gain
from worker.settings import load_settings
from worker.telemetry.logs import configure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from detection.backbone import Backbone
    from detection.bundle import Bundle
    from detection.bundle_generator import LareComponents
    from training.data.folds import Fold
    from training.data.manifest import Entry

    Pixels = NDArray[np.uint8]
    Rows = NDArray[np.float32]
    Reader = Callable[[Sequence[Pixels]], list[Rows]]

#: As the web serves pictures, and as thumbnails that were passed on.
FORMS = ("web", "hard")
#: The share of a fold's photographs above the point where a second view is asked.
DOUBT = 0.05
SIDE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A row of the table: what is read, for one head, or for one head each and `combine`."""

    title: str
    readers: tuple[str, ...]
    combine: Callable[..., NDArray[np.float64]] | None = None

    @property
    def paid(self) -> tuple[str, ...]:
        """The readers whose cost an image has: what reads a map reads the features on the way."""
        return self.readers[-1:] if self.combine is None else self.readers


ARMS = (
    Arm(title="the recipe", readers=("features",)),
    Arm(title="and LaRE's map, one noise", readers=("features", "map-1")),
    Arm(title="and LaRE's map, the whole bank", readers=("features", "map-all")),
    Arm(title="and a map of detail", readers=("features", "detail")),
    Arm(title="mean of both views", readers=("features", "crop"), combine=np.mean),
    Arm(title="the lower of both views", readers=("features", "crop"), combine=np.min),
)


class JoinedRows:
    """Rows of several caches side by side."""

    def __init__(self, caches: Sequence[FormCache]) -> None:
        self._caches = caches

    def rows(self, entries: Sequence[Entry], form: str) -> Rows:
        """Return the rows (N, D) of N entries in one form."""
        return np.concatenate([cache.rows(entries, form) for cache in self._caches], axis=1)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--limit", type=int, default=None, help="at most so many images a set")
    parser.add_argument("--out", type=Path, default=Path("out/additions"))
    options = parser.parse_args(arguments)
    configure(load_settings().observability)  # log lines: standard output is the record's
    entries, folds = load_limited(options.data, options.limit)
    bundle = load_bundle(options.bundle)
    readers = build_readers(bundle)
    kept = options.out / "forms" / bundle.model_version
    caches = {
        name: FormCache(kept / name, read, AugmentationConfig()) for name, read in readers.items()
    }
    record = measure(caches, entries, folds)
    record |= {"limit": options.limit, "processor_ms": costs_ms(readers)}
    text = json.dumps(record, indent=1)
    (options.out / "additions.json").write_text(text + "\n", encoding="utf-8")
    limit = f" LIMIT={options.limit}" if options.limit else ""
    page = write_page(record, command=f"make bench-additions DATA=…{limit}")
    (options.out / "additions.md").write_text(page, encoding="utf-8")
    print(json.dumps(record))
    return 0


def build_readers(bundle: Bundle) -> dict[str, Reader]:
    """Return what is read from pictures, by name.

    Raises `BundleError` for a bundle that lacks the backbone or the generator.
    """
    lare = load_lare(bundle)
    if lare is None:
        raise BundleError(f"{bundle.folder} has no generator to compute error maps with")
    assert bundle.manifest.backbone is not None
    backbone = frozen_backbone(bundle, bundle.manifest.backbone.stages)
    return {
        "features": view_reader(backbone),
        "map-1": map_reader(backbone, lare, 1),
        "map-all": map_reader(backbone, lare, len(lare.noises)),
        "detail": detail_reader(backbone),
        "crop": crop_reader(backbone),
    }


def view_reader(backbone: Backbone) -> Reader:
    """Return what reads the features (D,) of whole views."""

    def read(pictures: Sequence[Pixels]) -> list[Rows]:
        with torch.inference_mode():
            return list(backbone.features(_views(backbone, pictures)).numpy())

    return read


def crop_reader(backbone: Backbone) -> Reader:
    """Return what reads the features (D,) of the centre at native resolution, a view's side."""
    side = backbone.config.side
    whole = view_reader(backbone)

    def read(pictures: Sequence[Pixels]) -> list[Rows]:
        return whole([_centre(one, side) for one in pictures])

    return read


def map_reader(backbone: Backbone, lare: LareComponents, noises: int) -> Reader:
    """Return what reads how LaRE's error map lies on the features; both show the same square."""

    def read(pictures: Sequence[Pixels]) -> list[Rows]:
        squares = np.stack([center_crop_resize(one, lare.config.side) for one in pictures])
        with torch.inference_mode():
            maps = lare_map(
                lare.generator, to_minus_one_one(squares), lare.noises[:noises], lare.config.step
            )
            return _aligned(backbone, _views(backbone, pictures), maps)

    return read


def detail_reader(backbone: Backbone) -> Reader:
    """Return what reads how fine detail lies on the features: the view's squared high pass."""

    def read(pictures: Sequence[Pixels]) -> list[Rows]:
        views = _views(backbone, pictures)
        with torch.inference_mode():
            detail = views / 127.5 - functional.avg_pool2d(
                views / 127.5, 3, 1, 1, count_include_pad=False
            )
            maps = functional.avg_pool2d(detail.square().mean(dim=1, keepdim=True), 8)
            return _aligned(backbone, views, maps)

    return read


def measure(
    caches: Mapping[str, FormCache], entries: Sequence[Entry], folds: Sequence[Fold]
) -> dict[str, Any]:
    """State every arm's area and its gain over the first arm, by form, averaged over the folds."""
    rows: list[dict[str, Any]] = []
    alone: dict[str, list[UnseenLogits]] = {}
    doubted: dict[str, Any] = {}
    for arm in ARMS:
        forms: dict[str, Any] = {}
        scored = _score(arm, caches, entries, folds)
        for form in FORMS:
            views = [one[form] for one in scored]
            found = [_join(parts, arm) for parts in zip(*views, strict=True)]
            alone.setdefault(form, found)
            forms[form] = {
                "auc": mean_area(
                    [_figure(auc(one.logits, one.generated, groups=one.groups)) for one in found]
                ),
                "gain": mean_area(
                    [
                        _figure(
                            auc_gain(one.logits, other.logits, one.generated, groups=one.groups)
                        )
                        for one, other in zip(found, alone[form], strict=True)
                    ]
                ),
            }
            if len(views) > 1:
                doubted[form] = disagreement(*views)
        rows.append({"title": arm.title, "paid": arm.paid, "forms": forms})
    generated = sum(entry.generated for entry in entries)
    photographs = sum(entry.photograph for entry in entries)
    return {
        "photographs": photographs,
        "generated": generated,
        "folds": len(folds),
        "arms": rows,
        "disagreement": doubted,
    }


def disagreement(whole: Sequence[UnseenLogits], crop: Sequence[UnseenLogits]) -> dict[str, Any]:
    """Say whether disagreement of two views tells false accusations from true ones.

    Looked at is what the whole view puts above all but a share `DOUBT` of its fold's photographs.
    The area is the chance that the view of a photograph there lies further above the crop's than
    that of a generated image; one half says nothing. It is None where there are none of either.
    """
    gaps, false, groups = [], [], []
    for one, other in zip(whole, crop, strict=True):
        limit = np.quantile(one.logits[~one.generated], 1 - DOUBT)
        above = one.logits > limit
        gaps.append((one.logits - other.logits)[above])
        false.append(~one.generated[above])
        groups.append(one.groups[above])
    wrong = np.concatenate(false)
    both = wrong.any() and not wrong.all()
    return {
        "photographs": int(wrong.sum()),
        "generated": int((~wrong).sum()),
        "auc": _figure(auc(np.concatenate(gaps), wrong, groups=np.concatenate(groups)))
        if both
        else None,
    }


def costs_ms(readers: Mapping[str, Reader]) -> dict[str, float]:
    """Return the least processor time that each reads one picture in, on one thread."""
    (data,) = make_files(1, SIDE)
    picture = np.asarray(Image.open(io.BytesIO(data)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            name: round(1000 * processor_s(lambda read=read: read([picture])), 1)  # type: ignore[misc]  # a default per reader
            for name, read in readers.items()
        }
    finally:
        torch.set_num_threads(threads)


def write_page(record: Mapping[str, Any], *, command: str) -> str:
    """Write the table with what it was measured by and on."""
    costs = record["processor_ms"]
    lines = [
        "# What could be added to the shipped recipe",
        "",
        f"Written by `{command}` on {record['photographs']} photographs and",
        f"{record['generated']} generated images in {record['folds']} folds, which each leave out",
        "whole families of generators and whole sources of pictures. AUC against photographs, the",
        "mean of the folds; gains are over the first row, by a paired bootstrap of prompts and",
        "scenes; intervals are 95 %. Heads learn from every picture as the recipe's do, from its",
        "draws of the augmentation too. The small generator that makes LaRE's maps was",
        "trained on images of every fold, which flatters its rows. Costs are processor time on one",
        f"thread for a picture of {SIDE} x {SIDE} pixels. Web: at most 768 pixels, JPEG 60; hard:",
        "at most 512 pixels, JPEG 40.",
        "",
        "| arm | ms an image | AUC, web | gain, web | AUC, hard | gain, hard |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm in record["arms"]:
        cells = [arm["title"], f"{sum(costs[name] for name in arm['paid']):.0f}"]
        for form in FORMS:
            figures = arm["forms"][form]
            cells += [_shown(figures["auc"], ".3f"), _shown(figures["gain"], "+.3f")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Does disagreement of views tell a false accusation?", ""]
    for form in FORMS:
        found = record["disagreement"][form]
        told = "no figure" if found["auc"] is None else f"AUC {_shown(found['auc'], '.3f')}"
        lines.append(
            f"* {form}: of {found['photographs']} photographs and {found['generated']} generated"
            f" images above all but {DOUBT:.0%} of their fold's photographs: whether the crop falls"
            f" further below the whole view of a photograph, {told}; 0.5 is no information."
        )
    return "\n".join([*lines, ""])


def _score(
    arm: Arm, caches: Mapping[str, FormCache], entries: Sequence[Entry], folds: Sequence[Fold]
) -> list[dict[str, list[UnseenLogits]]]:
    """Return by form what each head of an arm says of every fold: one head, or one a view."""
    chosen = [caches[name] for name in arm.readers]
    groups = [chosen] if arm.combine is None else [[one] for one in chosen]
    return [
        unseen_logits(HeadBranch(arm.title, JoinedRows(group), HeadRecipe()), entries, folds, FORMS)
        for group in groups
    ]


def _join(parts: Sequence[UnseenLogits], arm: Arm) -> UnseenLogits:
    if arm.combine is None:
        return parts[0]
    logits = arm.combine(np.stack([one.logits for one in parts]), axis=0)
    return UnseenLogits(logits=logits, generated=parts[0].generated, groups=parts[0].groups)


def _views(backbone: Backbone, pictures: Sequence[Pixels]) -> Tensor:
    return to_views(np.stack([whole_view(one, backbone.config) for one in pictures]))


def _centre(picture: Pixels, side: int) -> Pixels:
    height, width = picture.shape[:2]
    square = min(side, height, width)
    top, left = (height - square) // 2, (width - square) // 2
    return picture[top : top + square, left : left + square]


def _aligned(backbone: Backbone, views: Tensor, maps: Tensor) -> list[Rows]:
    """Read how maps (B, C, h, w) lie on the stages of views (B, 3, H, W): a row a picture.

    The row is of every stage the means of its channels weighted by the map, and of the map's own
    channels the mean and the standard deviation.
    """
    error = maps.mean(dim=1, keepdim=True)
    read = [_weighted(one, error) for one in backbone._stages(views)]
    return list(torch.cat([*read, maps.mean((2, 3)), maps.std((2, 3))], dim=1).numpy())


def _weighted(stage: Tensor, error: Tensor) -> Tensor:
    """Average (B, C, h, w) over space by the weights of a map (B, 1, H, W)."""
    weights = functional.interpolate(error, stage.shape[-2:], mode="area")
    return (stage * weights).sum((2, 3)) / weights.sum((2, 3)).clamp_min(1e-12)


def _figure(interval: Any) -> dict[str, float]:
    return {name: getattr(interval, name) for name in ("value", "low", "high")}


def _shown(figure: Mapping[str, float], style: str) -> str:
    value, low, high = (format(figure[name], style) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(main())
