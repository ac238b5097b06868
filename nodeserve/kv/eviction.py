"""Which block of the host tier goes first: policies that rank blocks, to be chosen and compared.

A policy only ranks. What may not be evicted at all, and that a block never goes before one that
follows it, is decided elsewhere, so that no policy can break it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from nodeserve.errors import ConfigError


class EvictionPolicy(Protocol):
    """Ranks slots; the lowest rank is evicted first. A rank may only rise while a slot is used."""

    def stored(self, slot: int, key: bytes) -> None:
        """Take note that a slot holds another key from now on."""
        ...

    def used(self, slots: Sequence[int]) -> None:
        """Take note that a look-up found these slots, the one to be kept longest last."""
        ...

    def rank(self, slot: int) -> int:
        """Return how much a stored slot is worth keeping."""
        ...

    def dropped(self, slot: int, key: bytes) -> None:
        """Take note that a slot's key was evicted."""
        ...


class Lru:
    """Least recently used first."""

    def __init__(self, num_slots: int) -> None:
        self._used = [0] * num_slots
        self._next = 1

    def stored(self, slot: int, key: bytes) -> None:  # noqa: ARG002
        """Rank the slot as used just now."""
        self._used[slot] = self._next
        self._next += 1

    def used(self, slots: Sequence[int]) -> None:
        """Rank these slots as used just now, one after another."""
        used = self._used
        for slot, tick in zip(slots, itertools.count(self._next), strict=False):
            used[slot] = tick
        self._next += len(slots)

    def rank(self, slot: int) -> int:
        """Return when the slot was used last."""
        return self._used[slot]

    def dropped(self, slot: int, key: bytes) -> None:
        """Nothing is remembered of what is gone."""


class TwoQueue:
    """Blocks that were asked for again go later than those that were stored and never wanted.

    The idea is that of 2Q with its memory of evicted keys (Johnson and Shasha, VLDB 1994). Where
    2Q has two queues of fixed sizes, here each further use, up to three, counts as one made
    ``num_slots`` uses later: what was wanted often ages out too, with no size to choose.
    """

    _MAX_USES: Final = 3

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._recency = Lru(num_slots)
        self._uses = [0] * num_slots
        self._gone: dict[bytes, None] = {}

    def stored(self, slot: int, key: bytes) -> None:
        """Begin at one use where the key was evicted not long ago, else at none."""
        self._recency.stored(slot, key)
        self._uses[slot] = 1 if self._gone.pop(key, 0) is None else 0

    def used(self, slots: Sequence[int]) -> None:
        """Count a use of each."""
        self._recency.used(slots)
        uses = self._uses
        for slot in slots:
            if uses[slot] < self._MAX_USES:
                uses[slot] += 1

    def rank(self, slot: int) -> int:
        """Return when the slot was used last, or later if it was used often."""
        return self._recency.rank(slot) + self._uses[slot] * self._num_slots

    def dropped(self, slot: int, key: bytes) -> None:  # noqa: ARG002
        """Remember the key among the last ``num_slots`` evicted."""
        self._gone[key] = None
        if len(self._gone) > self._num_slots:
            del self._gone[next(iter(self._gone))]


POLICIES: Final[Mapping[str, Callable[[int], EvictionPolicy]]] = {"lru": Lru, "2q": TwoQueue}


def make_policy(name: str, num_slots: int) -> EvictionPolicy:
    """Return a new policy of that name for ``num_slots`` slots.

    Raises:
        ConfigError: There is none of that name.
    """
    policy = POLICIES.get(name)
    if policy is None:
        text = f"eviction policy {name!r} is not one of {', '.join(POLICIES)}; name one of those"
        raise ConfigError(text)
    return policy(num_slots)
