"""The monitor: the only process that asks devices how they are, and what they have used."""
