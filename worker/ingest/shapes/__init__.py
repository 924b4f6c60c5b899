"""The shapes of events: one module a family of producers, each written from their documents."""
