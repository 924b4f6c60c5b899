"""The ledger of uploads: the seam, its Postgres and in-memory versions, and the tables."""
