"""Predict how long an engine step takes; pure."""
