"""Aligned datasets, training, calibration, evaluation and model bundles."""
