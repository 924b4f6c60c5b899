"""Queue and task names on the wire. Producers import them without importing Celery."""

from __future__ import annotations

SCORE = "score"
SCORE_PRIORITY = "score.priority"
BACKFILL = "backfill"
CONTROL = "control"
#: Not among `QUEUES`: a worker that scores never takes a training run.
TRAIN = "train"

#: In the order in which a worker looks into them.
QUEUES = (CONTROL, SCORE_PRIORITY, SCORE, BACKFILL)
#: Those that carry images.
IMAGE_QUEUES = (SCORE_PRIORITY, SCORE, BACKFILL)
#: Those whose images are pending; the backfill's have their verdicts.
PENDING_QUEUES = (SCORE_PRIORITY, SCORE)

SCORE_TASK = "worker.tasks.score"
RESCORE_TASK = "worker.tasks.rescore"
SWEEP_TASK = "worker.tasks.sweep"
BREAKERS_TASK = "worker.tasks.check_breakers"
COUNTS_TASK = "worker.tasks.keep_counts"
PRUNE_TASK = "worker.tasks.prune"
DRIFT_TASK = "worker.tasks.measure_drift"
RETRAIN_TASK = "worker.retraining.tasks.retrain"

#: What beat sends to any worker, besides the trainer's.
PERIODIC = (SWEEP_TASK, BREAKERS_TASK, COUNTS_TASK, DRIFT_TASK, PRUNE_TASK)
