"""Reason about KV blocks without touching memory; pure."""
