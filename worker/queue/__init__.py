"""Celery and the broker: application, tasks, publisher, sweeper, scheduler."""
