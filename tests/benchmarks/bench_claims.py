"""`make bench-claims BUNDLE=… [DATA=…] [TAEF2=…] [MINUTES=20] [OUT=docs/claims]`: papers' claims.

The bundle has a lare and an aligned branch, as the recipe `lare-aligned` makes one.

Writes `claims.json`, `claims.md` and `claims.png` to OUT. A row that is there for the same bundle
and budget is not measured again, so a run that was killed goes on where it stopped; without DATA, a
folder with a manifest, the rows that need images are listed as not run. Each trained arm of an
ablation gets the same number of steps: as many as MINUTES of the first arm hold. Pairs are made by
the bundle's autoencoder or, in rows of their own, by TAEF2, where its folder is named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.bundle import load_bundle
from tests.benchmarks.claims_costs import cost_rows
from tests.benchmarks.claims_trained import EVALUATIONS, Laboratory, needs_images
from worker.settings import load_settings
from worker.telemetry.logs import configure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from detection.bundle import Bundle

NOT_RUN = "not run"
COSTS = "costs"


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True, help="with a lare and an aligned branch")
    parser.add_argument("--data", type=Path, help="folder with manifest.tsv")
    parser.add_argument("--taef2", type=Path, help="folder of TAEF2, to make the pairs with")
    parser.add_argument("--minutes", type=float, default=20.0, help="training budget of one arm")
    parser.add_argument("--images", type=int, default=40, help="at most so many of a set")
    parser.add_argument("--out", type=Path, default=Path("docs/claims"))
    parser.add_argument("--run", type=Path, default=Path("out/claims"), help="checkpoints")
    parser.add_argument(
        "--only", nargs="*", choices=[COSTS, *EVALUATIONS], help="measure these, not all"
    )
    options = parser.parse_args(arguments)
    configure(load_settings().observability)  # log lines: standard output is the record's
    bundle = load_bundle(options.bundle)
    if bundle.manifest.egre is None or bundle.manifest.aligned is None:
        parser.error(f"{bundle.folder} lacks a lare or an aligned branch")
    wanted = options.only or [COSTS, *EVALUATIONS]
    options.out.mkdir(parents=True, exist_ok=True)
    record = Record(options.out / "claims.json", scoring_digest(bundle))
    if COSTS in wanted and not record.has("cost-of-a-pair"):
        record.add(cost_rows(options.bundle))
    if options.data is not None:
        laboratory = Laboratory(
            data=options.data,
            bundle=options.bundle,
            run=options.run,
            minutes=options.minutes,
            images=options.images,
            taef2=options.taef2,
        )
        for name in wanted:
            if name == COSTS:
                continue
            if not record.has(laboratory.row_name(name), laboratory.budget(name)):
                record.add([laboratory.row(name)])
    record.write_page(options.out)
    print(json.dumps(record.rows))
    return 0


def scoring_digest(bundle: Bundle) -> str:
    """Return the sha256 of all that a score depends on: a bundle's manifest but for its texts."""
    said = bundle.manifest.model_dump(mode="json", exclude={"metrics", "provenance"})
    said["files"] = {name: sha for name, sha in said["files"].items() if not name.endswith(".md")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Record:
    """Rows measured so far, by name; those of a bundle that scores otherwise are dropped."""

    def __init__(self, file: Path, scoring: str) -> None:
        self._file = file
        self._scoring = scoring
        known = json.loads(file.read_text("utf-8")) if file.exists() else {}
        self.rows: dict[str, dict[str, Any]] = {
            name: row for name, row in known.items() if row["scoring"] == scoring
        }

    def has(self, name: str, budget: str | None = None) -> bool:
        """Say whether a row is there, and, where a budget is named, was measured with it."""
        row = self.rows.get(name)
        return row is not None and budget in {None, row["budget"]}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep rows at once: the next may take long."""
        for row in rows:
            self.rows[row["name"]] = {**row, "scoring": self._scoring}
            print(f"{row['name']}: {row['found']}", file=sys.stderr)
        text = json.dumps(self.rows, indent=1, sort_keys=True)
        self._file.write_text(text + "\n", encoding="utf-8")

    def write_page(self, out: Path) -> None:
        """Write the table and the plot."""
        lines = [
            "# The papers' claims, on small models",
            "",
            f"Written by `make bench-claims` on a bundle that scores as `{self._scoring[:12]}`",
            "(`scoring_digest`). Models side by side under one protocol: ratios, which say",
            "nothing about the papers' own networks. Costs are processor time; a trained arm has",
            "one seed, pairs by the bundle's autoencoder where its row names no other, and is",
            "tested on photographs that it did not train on: against their reconstructions by the",
            "same decoder, and against generated images of other decoders.",
            "",
            "A claim that two arms differ reproduces where their 95 % intervals lie apart.",
            "",
            "| claim | the paper | found here | intervals lie apart | budget |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row['claim']} | {row['paper'] or 'no figure'} | {row['found']} | {apart(row)} |"
            f" {row['budget']} |"
            for row in self.rows.values()
        ]
        lines += [
            f"| {needs_images(name)} | | {NOT_RUN} | | |"
            for name in EVALUATIONS
            if not {name, f"{name}-taef2"} & self.rows.keys()
        ]
        lines += ["", "![ratios of cost](claims.png)", "", "Every figure is in `claims.json`."]
        (out / "claims.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._plot(out / "claims.png")

    def _plot(self, file: Path) -> None:
        from matplotlib.figure import Figure

        ratios = {
            name: row["figures"]["ratio"]
            for name, row in self.rows.items()
            if "ratio" in row["figures"]
        }
        figure = Figure(figsize=(7, 0.6 * len(ratios) + 1), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(list(ratios), list(ratios.values()))
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.set(xlabel="ratio of processor times")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.margins(x=0.12)
        figure.savefig(file, dpi=120)


def apart(row: Mapping[str, Any]) -> str:
    """Say in which forms of its test the intervals of a row's two arms do not meet.

    Empty for a ratio, which has none.
    """
    if "ratio" in row["figures"]:
        return ""
    first, second = row["figures"].values()
    if "low" in first:
        first, second = {"yes": first}, {"yes": second}
    found = [
        form
        for form, one in first.items()
        if one["low"] > second[form]["high"] or second[form]["low"] > one["high"]
    ]
    return "; ".join(found) or "no"


if __name__ == "__main__":
    sys.exit(main())
