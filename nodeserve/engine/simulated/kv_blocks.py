"""Accounting of paged KV blocks: reference counts, prefix cache, eviction. Holds no memory.

A block is free when nobody refers to it. A free block that is in the prefix cache keeps its
content until it is needed; the least recently used goes first. Source: vLLM's
``v1/core/block_pool.py`` (0.32), of which this is the accounting half.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from nodeserve.errors import InvariantError
from nodeserve.ids import BlockHash


@dataclass(frozen=True, slots=True)
class Stored:
    """Consecutive blocks that entered the prefix cache; ``parent`` is None before the first.

    ``salt`` is what a prompt's first block was hashed with beside its tokens.
    """

    hashes: list[BlockHash]
    parent: BlockHash | None
    tokens: list[int]
    salt: str | None


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that left the prefix cache."""

    hashes: list[BlockHash]


@dataclass(frozen=True, slots=True)
class Cleared:
    """The prefix cache is empty."""


CacheEvent = Stored | Removed | Cleared


class KvBlocks:
    """The blocks of one engine.

    Attributes:
        events: What happened to the prefix cache since the caller last emptied this list.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.events: list[CacheEvent] = []
        self._prefix_caching = prefix_caching
        # Blocks from len(_references) on were never used: they cost nothing until then.
        self._references: list[int] = []
        self._hash_of: list[BlockHash | None] = []
        self._cached: dict[BlockHash, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated, cached ones included."""
        return len(self._free) + self.num_blocks - len(self._references)

    @property
    def usage(self) -> float:
        """Share of blocks that somebody refers to, from 0 to 1."""
        return 1.0 - self.num_free / self.num_blocks

    def is_free(self, block: int) -> bool:
        """Tell whether nobody refers to a block, so that it may get other content."""
        return self._references[block] == 0

    def match(self, hashes: Sequence[BlockHash]) -> list[int]:
        """Return the cached blocks of the longest known prefix, and refer to each."""
        found = []
        for block_hash in hashes:
            block = self._cached.get(block_hash)
            if block is None:
                break
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1
            found.append(block)
        return found

    def allocate(self, count: int) -> list[int] | None:
        """Return ``count`` blocks with one reference each, or None when fewer are free."""
        if count > self.num_free:
            return None
        first_new = len(self._references)
        num_new = min(count, self.num_blocks - first_new)
        blocks = list(range(first_new, first_new + num_new))
        self._references += [1] * num_new
        self._hash_of += [None] * num_new
        evicted = []
        for _ in range(count - num_new):
            block, _ = self._free.popitem(last=False)
            block_hash = self._hash_of[block]
            if block_hash is not None:
                self._hash_of[block] = None
                del self._cached[block_hash]
                evicted.append(block_hash)
            self._references[block] = 1
            blocks.append(block)
        if evicted:
            self.events.append(Removed(evicted))
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block. Of one sequence the tail is evicted first.

        Raises:
            InvariantError: A block had no reference.
        """
        for block in reversed(blocks):
            if self._references[block] <= 0:
                raise InvariantError(f"simulated KV: block {block} is released twice")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None

    def pin(self, blocks: Sequence[int]) -> None:
        """Refer once more to blocks that somebody refers to."""
        for block in blocks:
            self._references[block] += 1

    def store(self, run: Stored, blocks: Sequence[int]) -> None:
        """Enter full blocks into the prefix cache; those known already stay where they are."""
        if not self._prefix_caching:
            return
        start: int | None = None
        for index, (block_hash, block) in enumerate(zip(run.hashes, blocks, strict=True)):
            is_new = block_hash not in self._cached
            if is_new:
                self._cached[block_hash] = block
                self._hash_of[block] = block_hash
            if is_new and start is None:
                start = index
            elif not is_new and start is not None:
                self.events.append(self._part(run, start, index))
                start = None
        if start is not None:
            self.events.append(self._part(run, start, len(blocks)))

    def clear_cache(self) -> bool:
        """Empty the prefix cache; refused, with False, while a block is in use, as in vLLM."""
        if self.num_free != self.num_blocks:
            return False
        self._cached.clear()
        self._hash_of = [None] * len(self._hash_of)
        self.events.append(Cleared())
        return True

    def _part(self, run: Stored, start: int, end: int) -> Stored:
        if start == 0 and end == len(run.hashes):
            return run
        return Stored(
            hashes=run.hashes[start:end],
            parent=run.hashes[start - 1] if start else run.parent,
            tokens=run.tokens[start * self.block_size : end * self.block_size],
            salt=None if start else run.salt,
        )

    def check(self) -> None:
        """Raise InvariantError unless every block is either free or referred to."""
        free = sum(1 for references in self._references if references == 0)
        if free != len(self._free) or any(self._references[block] for block in self._free):
            raise InvariantError(
                f"simulated KV: {free} blocks without reference, {len(self._free)} in the free list"
            )
        for block_hash, block in self._cached.items():
            if self._hash_of[block] != block_hash:
                raise InvariantError(f"simulated KV: block {block} lost its hash {block_hash}")
