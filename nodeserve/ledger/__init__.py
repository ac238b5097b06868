"""The ledger: the only process that writes what was used, and by whom, to disk."""
