"""Logs, metrics, traces and health files of one process."""
