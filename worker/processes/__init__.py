"""The composition roots: each long-running process, built from the settings."""
