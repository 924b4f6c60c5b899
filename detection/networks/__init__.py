"""Network architectures, and what makes them quicker."""
