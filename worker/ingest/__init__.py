"""How uploads enter: events, the bridge, and the comparison of a bucket with the ledger."""
