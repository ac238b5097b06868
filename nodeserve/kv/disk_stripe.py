"""Which of several directories takes the next record."""

from collections.abc import Sequence


def next_directory(pending_bytes: Sequence[int], turn: int) -> int:
    """Return the directory with the least to write, so that a faster disk takes more.

    Those that have equally little take turns: ``turn`` counts the records so far.
    """
    order = [(turn + i) % len(pending_bytes) for i in range(len(pending_bytes))]
    return min(order, key=pending_bytes.__getitem__)
