"""Metrics about the whole deployment: backlog, open work in the database, capacity."""
