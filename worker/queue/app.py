"""The Celery configuration: one factory, no global application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu import Exchange, Queue

from worker.queue import names as queues

if TYPE_CHECKING:
    from worker.settings import Settings

#: Retried messages wait in the worker's memory; more than this and it takes no new ones.
_MAX_WAITING_RETRIES = 100


def build_app(settings: Settings) -> Celery:
    """Build the application for a worker, for beat and for what publishes messages."""
    app = Celery("unlatent", set_as_current=False)
    app.conf.update(
        **_broker(settings),
        task_queues=[
            Queue(name, Exchange(name), routing_key=name) for name in (*queues.QUEUES, queues.TRAIN)
        ],
        task_default_queue=queues.SCORE,
        task_default_exchange=queues.SCORE,
        task_default_routing_key=queues.SCORE,
        task_create_missing_queues=False,  # a misspelt queue is an error, not a place to get lost
        task_routes={
            queues.RESCORE_TASK: queues.BACKFILL,
            **{task: queues.CONTROL for task, _ in _periodic(settings).values()},
            queues.RETRAIN_TASK: queues.TRAIN,
        },
        task_acks_late=True,  # a message is done when its image is
        task_acks_on_failure=True,  # the ledger keeps what failed; the queue must not
        task_reject_on_worker_lost=True,
        task_ignore_result=True,  # verdicts are in Postgres
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        accept_content=["json"],  # the broker may be writable by others: nothing that executes
        worker_prefetch_multiplier=1,  # what is prefetched goes back at every deployment
        worker_eta_task_limit=_MAX_WAITING_RETRIES,
        worker_hijack_root_logger=False,  # structlog owns logging
        worker_redirect_stdouts=False,
        worker_send_task_events=False,  # metrics are our own; events double the traffic
        worker_soft_shutdown_timeout=0,  # with threads it only sleeps
        worker_cancel_long_running_tasks_on_connection_loss=False,  # threads cannot be cancelled
        worker_enable_remote_control=False,  # nobody may shut workers down through the broker
        beat_schedule={
            **{
                # What could not run in time is made up for by the next tick.
                name: {"task": task, "schedule": every_s, "options": {"expires": every_s}}
                for name, (task, every_s) in _periodic(settings).items()
            },
            **_retraining(settings),
        },
        beat_schedule_filename=str(settings.observability.run_dir / "beat-schedule"),
        beat_max_loop_interval=5,
        timezone="UTC",
        enable_utc=True,
    )
    return app


def _periodic(settings: Settings) -> dict[str, tuple[str, float]]:
    """Return the tasks that beat sends to any worker, and how often, in seconds."""
    return {
        "sweep": (queues.SWEEP_TASK, settings.queue.sweep_every_s),
        "check-breakers": (queues.BREAKERS_TASK, settings.moderation.check_breakers_every_s),
        "keep-counts": (queues.COUNTS_TASK, settings.moderation.keep_counts_every_s),
        "measure-drift": (queues.DRIFT_TASK, settings.drift.every_s),
        "prune": (queues.PRUNE_TASK, settings.retention.prune_every_s),
    }


def _retraining(settings: Settings) -> dict[str, Any]:
    """Let beat ask when a trigger or a promotion is set; what is due is the trainer's to say."""
    training = settings.training
    triggers = (training.every_s, training.min_new_images, training.promote_after_s)
    if not any(triggers) and not training.on_drift:
        return {}
    return {
        "retrain": {
            "task": queues.RETRAIN_TASK,
            "schedule": training.tick_s,
            "options": {"expires": training.tick_s},
        }
    }


def _broker(settings: Settings) -> dict[str, Any]:
    """Return how the broker is reached, and what keeps its messages from getting lost."""
    broker_url = settings.redis.url.get_secret_value()
    encrypted = broker_url.startswith("rediss:")
    return {
        "broker_url": broker_url,
        # The address may say otherwise; where it says nothing, kombu would take any certificate.
        "broker_use_ssl": {"ssl_cert_reqs": "required"} if encrypted else None,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # restarting the pod would be no better retry loop
        "broker_transport_options": {
            # Shared by all workers of a broker: the shortest one wins. Messages of a killed worker
            # return after it; an image must be done well within it.
            "visibility_timeout": settings.queue.visibility_timeout_s,
            "unacked_restore_interval": min(10, settings.queue.visibility_timeout_s),
            "unacked_restore_throttle": 1,  # the default of 10 looks only every 100 s
            # A worker killed while it looks keeps the others from looking: by default 300 s.
            "unacked_mutex_expire": 30,
            # Without one, an acknowledgement on a dead connection waits indefinitely.
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "global_keyprefix": settings.redis.key_prefix,
            "client_name": "unlatent",
            # Priority uploads before the others: queues are read in the order they are listed.
            "queue_order_strategy": "priority",
        },
    }
