"""Decide where each request runs; pure."""
