"""Pure core of the ledger: meters, windows, who is to bear what, carbon, reports."""
