"""The retraining loop over the ledger: what is collected, which run is whose, stage by stage."""
