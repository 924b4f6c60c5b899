"""The page of a bundle on a hub: its card below the front matter that the hub reads.

The front matter follows https://huggingface.co/docs/hub/model-cards; `model-index` holds what the
bundle's manifest states, with the 95 % intervals that it has in the names of the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from huggingface_hub import EvalResult

    from detection.bundle import Bundle, BundleManifest

CARD = "card.md"
_TASK = "image-classification"
_TAGS = ["ai-generated-image-detection", "image-forensics", "latent-diffusion", "safetensors"]

#: Figures of one form of the images: their names in the manifest and on the hub, and in words.
_FIGURES = (
    ("auc", "roc_auc", "AUC"),
    ("recall_at_1_percent", "recall_at_1_percent", "Recall at 1 % false positives"),
    ("recall_at_5_percent", "recall_at_5_percent", "Recall at 5 % false positives"),
)
#: The same of shares of images that are labelled generated.
_SHARES = (
    ("generated_accused", "recall", "Recall of the label generated"),
    ("photographs_accused", "false_positive_rate", "False-positive rate of the label generated"),
)


def hub_page(bundle: Bundle, repository: str) -> str:
    """Write the `README.md` of a bundle: front matter, how to pull it, and its card."""
    from huggingface_hub import ModelCardData

    manifest = bundle.manifest
    data = ModelCardData(
        license="other",
        license_name="terms-of-the-weights",
        license_link=_terms(manifest),
        library_name="unlatent",
        pipeline_tag=_TASK,
        tags=_TAGS,
        model_name=manifest.name,
        eval_results=list(_results(manifest)),
    )
    card = (
        bundle.path(CARD).read_text("utf-8") if CARD in manifest.files else f"# {manifest.name}\n"
    )
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"Model version `{bundle.model_version}`, for [unlatent](https://pypi.org/project/unlatent/):",
        "",
        "```",
        f"unlatent models pull hf://{repository}@REVISION --out FOLDER",
        "unlatent check --bundle FOLDER PATH…",
        "```",
        "",
        card,
    ]
    return "\n".join(lines)


def _terms(manifest: BundleManifest) -> str:
    """Name the file that states the terms of the weights; the card names those of the data."""
    licences = sorted(name for name in manifest.files if name.upper().startswith("LICENSE"))
    return licences[0] if licences else CARD


def _results(manifest: BundleManifest) -> Iterator[EvalResult]:
    for point in manifest.operating_points:
        if not point.supported:
            continue
        at = ("operating-points", point.name, f"{point.reals} photographs")
        rate = {"value": point.measured, "low": point.low, "high": point.high}
        yield _result(*at, "false_positive_rate", "False-positive rate", rate)
        yield _result(*at, "recall", "Recall", {"value": point.recall})
    for form, part in manifest.metrics.get("calibration", {}).items():
        yield from _figures("calibration", form, "Generator families that it trained on", part)
    for fold in manifest.metrics.get("unseen", ()):
        left_out = ", ".join(fold.get("families", ()))
        for form, part in (fold.get("forms") or fold.get("tiers") or {}).items():
            yield from _figures(f"without {left_out}", form, f"Trained without {left_out}", part)
    for form, part in manifest.metrics.get("pooled", {}).get("forms", {}).items():
        yield from _figures("all folds", form, "All folds together, as unseen", part)
    yield from _challenger(manifest.metrics.get("challenger", {}).get("calibration", {}))


def _figures(config: str, split: str, name: str, part: Any) -> Iterator[EvalResult]:
    if not isinstance(part, dict):
        return
    at = (config, split, f"{name}, form {split}")
    for key, metric, words in _FIGURES:
        figure = part.get(key)
        if isinstance(figure, dict) and figure.keys() >= {"value", "low", "high"}:
            yield _result(*at, metric, words, figure)
    for key, metric, words in _SHARES:
        share = part.get(key)
        if isinstance(share, dict) and share.get("total"):
            yield _result(*at, metric, words, share | {"value": share["hits"] / share["total"]})


def _challenger(part: Mapping[str, Any]) -> Iterator[EvalResult]:
    """State what a challenger's manifest holds of its calibration, which is no AUC."""
    if "expected_calibration_error" in part:
        yield _result(
            "challenger",
            "clean",
            f"{part['photographs']} photographs and {part['generated']} generated images that it"
            " was calibrated on",
            "expected_calibration_error",
            "Expected calibration error",
            {"value": part["expected_calibration_error"]},
        )


def _result(
    config: str, split: str, name: str, metric: str, words: str, figure: Mapping[str, float]
) -> EvalResult:
    """Write one figure; results of one configuration and split stand under one data set."""
    from huggingface_hub import EvalResult

    interval = (
        f" (95 % interval {figure['low']:.4g} to {figure['high']:.4g})" if "low" in figure else ""
    )
    return EvalResult(
        task_type=_TASK,
        task_name="Detection of generated images",
        dataset_type="unlatent-manifest",
        dataset_config=config,
        dataset_split=split,
        dataset_name=name,
        metric_type=metric,
        metric_name=f"{words}{interval}",
        metric_value=round(figure["value"], 6),
    )
