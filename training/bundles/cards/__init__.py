"""Cards: the pages that bundles carry, written from their figures."""
