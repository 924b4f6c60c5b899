"""Runs the stages of a training run in order, each once, resuming after a crash.

1. stages that are recorded as finished are skipped;
2. while a stage runs, a thread renews the lease; when the lease is lost, the run is left alone;
3. a service that is away gives the run back: the next tick goes on from the same stage;
4. whatever else goes wrong ends the run as failed, with the reason, and the champion stays.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from detection.errors import TransientError, UnlatentError
from worker.retraining.runs import Ending, LeaseLost

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from worker.retraining.runs import Run, Runs

_log = structlog.get_logger(__name__)


class RunEnds(UnlatentError):
    """The run ends here, and not as a failure of the machinery."""

    def __init__(self, ending: Ending, reason: str) -> None:
        super().__init__(reason)
        self.ending = ending


@dataclass(slots=True)
class Progress:
    """What a stage works on: the run's snapshot and what earlier stages left."""

    run_id: int
    snapshot_id: int | None
    facts: dict[str, Any] = field(default_factory=dict)


class Stage(Protocol):
    """One step of the loop; may be run again after a crash and must then end the same."""

    @property
    def name(self) -> str:
        """Under which it is recorded."""

    def run(self, progress: Progress) -> Mapping[str, Any]:
        """Do the work and return facts to record (JSON); raises `RunEnds` to end the run."""


def run_stages(run: Run, stages: Sequence[Stage], runs: Runs) -> Ending | None:
    """Run what is not finished yet; returns how the run ended, None when it goes on elsewhere."""
    progress = Progress(run.id, run.snapshot_id, dict(run.stages))
    try:
        for stage in stages:
            if stage.name in progress.facts:
                continue
            _log.info("stage_started", run=run.id, stage=stage.name)
            with _renewed(run.id, runs):
                facts = dict(stage.run(progress))
            runs.finish_stage(run.id, stage.name, facts, progress.snapshot_id)
            progress.facts[stage.name] = facts
            _log.info("stage_finished", run=run.id, stage=stage.name, **facts)
        runs.end(run.id, Ending.FINISHED)
    except LeaseLost as error:
        _log.warning("run_lease_lost", run=run.id, error=str(error))
        return None
    except TransientError as error:
        _log.warning("run_released", run=run.id, error=str(error))
        _give_back(run.id, runs)
        return None
    except RunEnds as end:
        _log.warning("run_ended", run=run.id, ending=end.ending.value, reason=str(end))
        runs.end(run.id, end.ending, str(end))
        return end.ending
    except Exception as error:  # noqa: BLE001 - a run must end, whatever a stage ran into
        _log.exception("run_failed", run=run.id)
        runs.end(run.id, Ending.FAILED, f"{type(error).__name__}: {error}"[:2000])
        return Ending.FAILED
    return Ending.FINISHED


def _give_back(run_id: int, runs: Runs) -> None:
    try:
        runs.give_back(run_id)
    except (TransientError, LeaseLost) as error:
        # The ledger is what is away: the lease runs out by itself.
        _log.warning("run_release_failed", run=run_id, error=str(error))


@contextmanager
def _renewed(run_id: int, runs: Runs) -> Iterator[None]:
    """Renew the lease until the block is left; a lost lease is seen by the next recording."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(runs.lease_s / 4):
            try:
                runs.heartbeat(run_id)
            except TransientError as error:
                _log.warning("heartbeat_failed", run=run_id, error=str(error))
            except LeaseLost:
                return

    thread = threading.Thread(target=renew, name="training-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
