"""Making a challenger and judging it: one list of stages, on a folder or on a bucket."""
