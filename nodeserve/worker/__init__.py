"""Run one engine in one process."""
