"""Connections to Postgres: engine, transactions, migrations, and the base class of tables."""
