"""Decide when processes start, stop and come back; pure."""
