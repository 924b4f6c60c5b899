"""The demo of retraining: from moderators' decisions to another champion, and back.

1. the past: images are uploaded and scored, moderators confirm them;
2. beat asks, the trainer takes a snapshot, aligns, audits, trains, calibrates and evaluates;
3. the gate decides; a challenger that it refuses is promoted by force later, labelled so;
4. the challenger judges live uploads in shadow, becomes champion, and is rolled back.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from detection.bundle import load_bundle
from worker.demo.deployment import SERVICE, DemoError, Deployment
from worker.demo.retrain_images import (
    CAMERA,
    FEED,
    fakes,
    live,
    own,
    photographs_and_renderings,
)
from worker.demo.retrain_platform import RetrainPlatform
from worker.localstack.commands import TrainerServer
from worker.models.registry import ModelsRegistry
from worker.models.shadow import agreement

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rich.console import Console

    from worker.demo.retrain_images import ScenarioUpload
    from worker.settings import Settings

ACTOR = "demo"
TICK_S = 10.0
#: Larger than a site's: a demo has few images, and the gate needs 50 of each class.
EVALUATION, CALIBRATION = 0.4, 0.3
#: A branch learns the one unknown decoder in fewer than a site's recipe allows.
STEPS = 100
#: The embedded autoencoder is small: it moves tones and smooths renderings so much that the audit's
#: own limits refuse its pairs. They are lifted here, and the story says so.
NO_LIMITS = {
    "max_probe_auc": 1.0,
    "max_sharpness_auc": 1.0,
    "max_shift_px": 1e3,
    "max_tone_levels": 255.0,
    "max_mmd_squared": 2.0,
    "max_frechet": 1e6,
    "max_information": 1.0,
}
#: So many live images must have been judged by both.
SHADOW_IMAGES = 10
#: What the story says of each stage when it is finished.
TOLD = {
    "collect": "a snapshot was taken",
    "align": "every photograph was sent through the autoencoder",
    "audit": "the pairs were audited, with the limits LIFTED for the demo's small autoencoder",
    "train": "each branch was taught further",
    "calibrate": "fusion and thresholds were fitted, the bundle stored",
    "evaluate": "champion and challenger scored the evaluation side",
    "gate": "the gate decided",
    "register": "the challenger was registered",
    "shadow": "the challenger went into shadow",
}


@dataclass(slots=True)
class Transcript:
    """What happened, as it is told: on the terminal and in a page."""

    console: Console
    begun: float
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print a line with the time since the beginning, and keep it."""
        told = f"{time.monotonic() - self.begun:6.0f} s  {line}"
        self.console.print(told, highlight=False, soft_wrap=True, markup=False)
        self.lines.append(told)


def run_retrain_demo(
    settings: Settings,
    *,
    folder: Path | None,
    out: Path,
    images: int,
    console: Console,
    begun: float,
) -> None:
    """Go through the whole loop, and leave `retrain.json` and `retrain.md` in `out`.

    Raises `UnlatentError` when a part could not be started, died, made no progress, or when the run
    ended before there was a challenger.
    """
    out.mkdir(parents=True, exist_ok=True)
    # The database is new: what an earlier demo left of its run 1 is not this one's.
    shutil.rmtree(out / "work", ignore_errors=True)
    transcript = Transcript(console, begun)
    bundle = load_bundle(settings.scoring.bundle)
    reals = own(folder) if folder is not None else list(photographs_and_renderings(images))
    past = reals if any(one.generated for one in reals) else [*reals, *fakes(bundle, images)]
    transcript.say(
        f"{sum(not one.generated for one in past)} photographs"
        + (", " if folder is not None else " and renderings, ")
        + f"{sum(one.generated for one in past)} generated images"
        + ("" if past is reals else " by a decoder that the champion has never met")
    )
    confirmed = sum(one.generated for one in past)
    with (
        Deployment(
            _for_demo(settings, out, confirmed), logs=out / "logs", kinds=(*SERVICE, TrainerServer)
        ) as deployment,
        RetrainPlatform(deployment) as platform,
    ):
        deployment.wait_until_ready()
        transcript.say("PostgreSQL, Redis, S3, worker, bridge, beat and trainer run")
        scenario = _RetrainScenario(transcript, deployment, platform, live(bundle), out)
        facts = scenario.run(past)
    facts["seconds"] = round(time.monotonic() - begun, 1)
    (out / "retrain.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _write_page(out, transcript, facts)
    # Paths must stay whole, so that they can be copied.
    for file in (out / "retrain.json", out / "retrain.md"):
        console.print(str(file), soft_wrap=True, highlight=False)


def _for_demo(settings: Settings, out: Path, confirmed: int) -> Settings:
    training = settings.training.model_copy(
        update={
            "sources": (CAMERA, FEED),
            "trusted_sources": (CAMERA,),
            "tick_s": TICK_S,
            # Each of the two moderators commits half at once: the run starts after the second.
            "min_new_images": max(1, 2 * confirmed // 3),
            "evaluation_share": EVALUATION,
            "calibration_share": CALIBRATION,
            "steps": min(settings.training.steps, STEPS),
            "max_per_moderator": max(confirmed, 1),
            "promote_after_s": 1.0,
            "promote_min_images": SHADOW_IMAGES,
            "work_dir": out / "work",
            **NO_LIMITS,
        }
    )
    scoring = settings.scoring.model_copy(
        update={"shadow_share": 1.0, "reload_every_s": 1.0, "cache": out / "models"}
    )
    return settings.model_copy(update={"training": training, "scoring": scoring})


@dataclass(slots=True)
class _RetrainScenario:
    """The chapters of the story."""

    transcript: Transcript
    deployment: Deployment
    platform: RetrainPlatform
    live: Iterator[ScenarioUpload]
    out: Path

    def run(self, past: list[ScenarioUpload]) -> dict[str, Any]:
        """Go through the chapters and return what `retrain.json` says."""
        self._past(past)
        run = self._run()
        gate = run["stages"]["gate"]
        for reason in gate["reasons"]:
            self.transcript.say(f"gate {'passed' if gate['passed'] else 'refused'}: {reason}")
        self._keep_report(run["id"])
        registry = ModelsRegistry(self.platform.engine)
        before = run["stages"]["train"]["champion"]
        challenger = run["stages"]["register"]["model_version"]
        if not gate["passed"]:
            reason = "shown in the demo although the gate refused it"
            registry.put_in_shadow(challenger, actor=ACTOR, reason=reason)
            self.transcript.say("the demo puts the refused challenger into shadow all the same")
        shadow = self._shadow(registry, challenger)
        if gate["passed"]:
            self._champion(registry, challenger)
            self.transcript.say("the schedule made the challenger champion")
        else:
            registry.promote(
                challenger, actor=ACTOR, reason="shown although the gate refused", forced=True
            )
            self.transcript.say("promoted by FORCE, audited: the gate had refused it")
        after = self._next_verdict(challenger)
        self.transcript.say(f"the next verdict carries model version {after[:12]}")
        registry.roll_back(actor=ACTOR, reason="the end of the demo")
        rolled_back = self._next_verdict(before)
        self.transcript.say(f"rolled back: the next verdict carries {rolled_back[:12]}")
        return {
            "model_versions": {
                "before": before,
                "after_promotion": after,
                "after_rollback": rolled_back,
            },
            "forced": not gate["passed"],
            "gate": gate,
            "shadow": shadow,
            "training_run": run["id"],
            "stages": {name: left for name, left in run["stages"].items() if name != "gate"},
        }

    def _past(self, past: list[ScenarioUpload]) -> None:
        platform = self.platform
        platform.audit_all(FEED)
        ids = [platform.upload(one) for one in past]
        self.transcript.say(f"{len(ids)} images uploaded")
        count = "SELECT count(*) FILTER (WHERE state <> 'pending') FROM app.images"

        def ended() -> int:
            return int(platform.rows(count)[0][0])

        platform.wait(lambda: ended() == len(ids), ended, what="scoring the uploads")
        scored = {
            row.id for row in platform.rows("SELECT id FROM app.images WHERE state = 'scored'")
        }
        self.transcript.say(f"{len(scored)} images have a verdict")
        decided = [
            (image, "generated")
            for image, one in zip(ids, past, strict=True)
            if one.generated and image in scored
        ]
        platform.decide(decided)
        self.transcript.say(f"two moderators confirmed {len(decided)} generated images")

    def _run(self) -> Mapping[str, Any]:
        """Follow the training run to its end."""
        platform, told = self.platform, set[str]()

        def row() -> Any:
            found = platform.rows("SELECT * FROM app.training_runs ORDER BY id LIMIT 1")
            return found[0] if found else None

        def tell_stages() -> tuple[object, ...]:
            now = row()
            finished = [] if now is None else [name for name in TOLD if name in now.stages]
            for name in finished:
                if name not in told:
                    told.add(name)
                    self.transcript.say(f"training run {now.id}, {name}: {TOLD[name]}")
            # A stage may take long: what moves meanwhile is its lease.
            return (*finished, None if now is None else now.lease_until)

        def ended() -> bool:
            now = row()
            return now is not None and now.state != "running"

        platform.wait(ended, tell_stages, what="the training run")
        tell_stages()
        run = row()
        if "register" not in run.stages:
            raise DemoError(f"training run {run.id} ended as {run.state}: {run.reason}")
        return {"id": run.id, "state": run.state, "stages": run.stages}

    def _keep_report(self, run_id: int) -> None:
        bucket = self.deployment.settings.training.bucket
        folder = self.out / "report"
        folder.mkdir(exist_ok=True)
        for name, data in self.platform.report(bucket, f"reports/run-{run_id}/").items():
            (folder / name).write_bytes(data)

    def _shadow(self, registry: ModelsRegistry, challenger: str) -> dict[str, Any]:
        """Upload live images one by one until both have judged enough of them."""
        active = registry.active()
        count = (
            "SELECT count(*) FROM app.verdicts WHERE role = 'shadow' AND model_version = :version"
        )

        def judged() -> int:
            return int(self.platform.rows(count, version=challenger)[0][0])

        for one in self.live:
            if judged() >= SHADOW_IMAGES:
                break
            self._verdict_of(one)
        else:
            raise DemoError(f"the challenger judged {judged()} live images only; the log says why")
        assert active.shadow_since is not None  # noqa: S101  # it is in shadow
        found = agreement(self.platform.engine, challenger, since=active.shadow_since)
        self.transcript.say(
            f"in shadow: {found.images} live images judged by both, {found.disagreements} labelled"
            " otherwise"
        )
        return {"images": found.images, "disagreements": found.disagreements}

    def _champion(self, registry: ModelsRegistry, wanted: str) -> None:
        def there() -> bool:
            champion = registry.champion()
            return champion is not None and champion.digest == wanted

        self.platform.wait(there, there, what="the promotion by the schedule")

    def _next_verdict(self, wanted: str) -> str:
        """Upload until a verdict carries the version; workers follow within moments."""
        version = ""
        for one in self.live:
            version = self._verdict_of(one)
            if version == wanted:
                break
        else:
            raise DemoError(f"verdicts still carry {version}; the worker's log says why")
        return version

    def _verdict_of(self, one: ScenarioUpload) -> str:
        image = self.platform.upload(one, folder="live")
        query = (
            "SELECT model_version FROM app.verdicts WHERE image_id = :image AND role = 'champion'"
        )

        def found() -> str:
            rows = self.platform.rows(query, image=image)
            return rows[0].model_version if rows else ""

        self.platform.wait(lambda: bool(found()), found, what="a live upload")
        return found()


def _write_page(out: Path, transcript: Transcript, facts: Mapping[str, Any]) -> None:
    versions = facts["model_versions"]
    lines = [
        "# The retraining demo",
        "",
        "```",
        *transcript.lines,
        "```",
        "",
        "| when | model version of the next verdict |",
        "| --- | --- |",
        *(f"| {when.replace('_', ' ')} | `{version}` |" for when, version in versions.items()),
        "",
    ]
    page = (out / "report" / "report.md").read_text(encoding="utf-8")
    lines.append(page.replace("](", "](report/"))
    (out / "retrain.md").write_text("\n".join(lines), encoding="utf-8")
