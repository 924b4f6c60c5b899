"""Figures: scores under tiers, calibration, quality, comparison, the promotion gate, the audit."""
