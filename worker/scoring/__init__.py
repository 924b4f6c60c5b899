"""From an image id to its verdict: pipeline, batcher, device thread, evidence."""
