"""Which prefixes look-ups find most, counted in bounded memory.

The space-saving algorithm (Metwally et al., ICDT 2005): a newcomer takes the place of the entry
with the lowest count and goes on from that count, so that no count is ever too low and what was
asked for often cannot be missing.
"""

from typing import Final

MAX_COUNTED: Final = 128


class TopPrefixes:
    """Counts of look-ups by the key of the last block that they found."""

    def __init__(self, most: int = MAX_COUNTED) -> None:
        """Count up to ``most`` prefixes at once."""
        self._most = most
        self._hits: dict[bytes, int] = {}

    def found(self, key: bytes) -> None:
        """Count a look-up that found everything up to this block."""
        hits = self._hits
        if key in hits:
            hits[key] += 1
        elif len(hits) < self._most:
            hits[key] = 1
        else:
            least = min(hits, key=hits.__getitem__)
            hits[key] = hits.pop(least) + 1

    def top(self, most: int) -> list[tuple[bytes, int]]:
        """Return the ``most`` counted ones with the highest counts, highest first."""
        by_hits = sorted(self._hits.items(), key=lambda item: -item[1])
        return by_hits[:most]
