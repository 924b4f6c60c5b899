"""The service: settings, ledger, queue, Celery worker and command line."""
