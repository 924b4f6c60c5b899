"""Released bundles in service: registry, storage, reload, shadow and drift."""
