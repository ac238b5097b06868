"""The copies between a rank's blocks and their canonical bytes, worked out once for all blocks."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from nodeserve.kv.layout import CopyRun, PoolGeometry
from nodeserve.transfer.base import AddressRun

Planner = Callable[[PoolGeometry, int, int], list[CopyRun]]
"""``page_copy.canonical_runs`` or ``canonical_writes``: of a geometry, a block and a base."""


class _Run(NamedTuple):
    """One copy of block ``b``: the pool's side begins at ``pool + b * block_stride``."""

    pool: int
    block_stride: int
    slot: int
    length: int


class BlockRuns:
    """Says what to copy between any blocks and any slots.

    Planning a block costs some 100 us and differs from block to block only by a stride, and, where
    several ranks hold the same heads, by whose turn it is.
    """

    def __init__(self, by_turn: list[list[_Run]]) -> None:
        """Take the plan of the blocks ``turn``, ``turn + len(by_turn)`` and so on, by turn."""
        self._by_turn = by_turn

    @classmethod
    def of(cls, geometry: PoolGeometry, planner: Planner) -> "BlockRuns":
        """Work the copies out, for a pool of at least two blocks for each turn."""
        num_turns = max(place.heads.replicas for place in geometry.places)
        plans = []
        for turn in range(num_turns):
            first = planner(geometry, turn, 0)
            later = planner(geometry, turn + num_turns, 0)
            strides = [
                (b.source - a.source) // num_turns for a, b in zip(first, later, strict=True)
            ]
            plans.append(
                [
                    _Run(run.source - turn * stride, stride, run.destination, run.length)
                    for run, stride in zip(first, strides, strict=True)
                ]
            )
        return cls(plans)

    def into_slots(self, pairs: Iterable[tuple[int, int]], pool_address: int) -> list[AddressRun]:
        """Return the copies from each pair's block into the slot at its address."""
        return [
            AddressRun(pool_address + pool + block * stride, address + slot, length)
            for address, block in pairs
            for pool, stride, slot, length in self._by_turn[block % len(self._by_turn)]
        ]

    def out_of_slots(self, pairs: Iterable[tuple[int, int]], pool_address: int) -> list[AddressRun]:
        """Return the copies from the slot at each pair's address into its block."""
        return [
            AddressRun(address + slot, pool_address + pool + block * stride, length)
            for address, block in pairs
            for pool, stride, slot, length in self._by_turn[block % len(self._by_turn)]
        ]
