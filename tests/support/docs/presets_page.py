"""The tables of docs/presets.md, made from the code and from the references it is tested with.

`python -m tests.support.docs.presets_page` writes them into the page.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from detection.generators.autoencoders import ADAPTERS, REFUSED_AUTOENCODERS
from detection.generators.noise_schedule import (
    FLOW_MATCHING,
    FLOW_SIGMAS,
    PRECONDITIONED,
    REFUSED_SCHEDULERS,
    VARIANCE_PRESERVING,
)
from detection.generators.presets import PRESETS
from tests.support.generators.autoencoder_references import REFERENCES
from tests.support.generators.tiny_families import FAMILIES
from tests.support.generators.tiny_pipelines import PIPELINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PAGE = Path(__file__).parents[3] / "docs" / "presets.md"
_VERIFIED = "verified on random weights against"
Row = tuple[str, ...]


def _autoencoders() -> Iterator[Row]:
    yield (
        "class",
        "families",
        "latents that the predictor gets",
        "verified on random weights against",
    )
    for name, space in ADAPTERS.items():
        of = [one for one in REFERENCES.values() if one.autoencoder == name]
        families = "; ".join(one.families for one in of)
        stated = "; ".join(stated for stated, _ in groupby(one.stated for one in of))
        yield f"`{name}`", families, space.normalisation, stated


def _predictors() -> Iterator[Row]:
    yield "class", "presets", _VERIFIED
    named: dict[str, list[str]] = {}
    for preset in PRESETS:
        if preset in FAMILIES:
            named.setdefault(type(FAMILIES[preset]()[0]).__name__, []).append(preset)
    for name, presets in named.items():
        used = dict.fromkeys(_pipeline(preset) for preset in presets)
        yield f"`{name}`", ", ".join(presets), "; ".join(used)


def _pipeline(preset: str) -> str:
    summary = (
        (PIPELINES[preset].__doc__ or "").removeprefix("Sample with ").partition("pipeline")[0]
    )
    return f"the answers it gives in {summary}pipeline"


def _schedulers() -> Iterator[Row]:
    yield "scheduler", "process", "verified by sampling with"
    for name in VARIANCE_PRESERVING:
        flow = name in FLOW_SIGMAS
        process = "variance-preserving: epsilon, v"
        pipelines = "Stable Diffusion's pipeline"
        if flow:
            process += "; flow where it says `use_flow_sigmas` and `flow_prediction`"
            pipelines += "; Stable Diffusion 3's"
        yield f"`{name}`", process, pipelines
    for name in FLOW_MATCHING:
        yield f"`{name}`", "rectified flow, shifted or not", "Stable Diffusion 3's pipeline"
    for name in PRECONDITIONED:
        yield f"`{name}`", "EDM: epsilon, v", "SDXL's pipeline"


def _refused(reasons: dict[str, str]) -> Iterator[Row]:
    yield "class", "why it is refused"
    for name, reason in reasons.items():
        yield f"`{name}`", reason


def tables() -> dict[str, str]:
    """Return the table below each heading of the page, as lines of Markdown."""
    return {
        "### Autoencoders": _table(_autoencoders()),
        "### Refused autoencoders": _table(_refused(REFUSED_AUTOENCODERS)),
        "### Predictors": _table(_predictors()),
        "### Noise schedules": _table(_schedulers()),
        "### Refused noise schedules": _table(_refused(REFUSED_SCHEDULERS)),
    }


def _table(rows: Iterable[Row]) -> str:
    head, *body = rows
    lines = [head, ("---",) * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render(page: str) -> str:
    """Return the page with every table as the code has it; its heading stands right before it."""
    for heading, table in tables().items():
        head, found, rest = page.partition(f"{heading}\n\n")
        assert found, f"no {heading} in the page"
        _, _, after = rest.partition("\n\n")
        page = f"{head}{heading}\n\n{table}\n\n{after}"
    return page.rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
