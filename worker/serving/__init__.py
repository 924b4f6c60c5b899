"""The HTTP service: `unlatent serve`."""
