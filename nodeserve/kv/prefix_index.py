"""Which worker's prefix cache holds which blocks of tokens."""

from collections.abc import Iterable, Sequence

from nodeserve.errors import InvariantError
from nodeserve.ids import BlockHash, Generation


class PrefixIndex:
    """Block hashes per worker generation, bounded per worker.

    Each worker owns one bit, and each hash maps to the bits of the workers that hold it, so
    that one walk along a prompt finds every worker's longest cached prefix at once.
    """

    def __init__(self) -> None:
        self._holders: dict[BlockHash, int] = {}
        self._bits: dict[Generation, int] = {}
        self._generations: dict[int, Generation] = {}
        # In the order of storing, so that the oldest can go when removals got lost.
        self._held: dict[Generation, dict[BlockHash, None]] = {}
        self._limits: dict[Generation, int] = {}

    def add_worker(self, generation: Generation, max_blocks: int) -> None:
        """Begin to know a worker whose cache can hold ``max_blocks`` blocks.

        More than ``max_blocks`` are never kept for it: the oldest go first. So what the engine
        said while nobody listened can cost a wrong guess but never memory.
        """
        bit = 1
        while bit in self._generations:
            bit <<= 1
        self._bits[generation] = bit
        self._generations[bit] = generation
        self._held[generation] = {}
        self._limits[generation] = max_blocks

    def store(self, generation: Generation, block_hashes: Iterable[BlockHash]) -> None:
        """Note that a worker holds these blocks; an unknown worker is ignored."""
        bit = self._bits.get(generation)
        if bit is None:
            return
        held = self._held[generation]
        for block_hash in block_hashes:
            held[block_hash] = None
            self._holders[block_hash] = self._holders.get(block_hash, 0) | bit
        while len(held) > self._limits[generation]:
            self._drop(next(iter(held)), generation, bit)

    def remove(self, generation: Generation, block_hashes: Iterable[BlockHash]) -> None:
        """Note that a worker no longer holds these blocks; unknown ones are ignored."""
        bit = self._bits.get(generation)
        if bit is None:
            return
        held = self._held[generation]
        for block_hash in block_hashes:
            if block_hash in held:
                self._drop(block_hash, generation, bit)

    def clear(self, generation: Generation) -> None:
        """Note that a worker's cache is empty."""
        self.remove(generation, tuple(self._held.get(generation, ())))

    def forget(self, generation: Generation) -> None:
        """Stop knowing a worker; an unknown one is ignored."""
        self.clear(generation)
        bit = self._bits.pop(generation, None)
        if bit is not None:
            del self._generations[bit], self._held[generation], self._limits[generation]

    def longest_prefix(self, block_hashes: Sequence[BlockHash]) -> dict[Generation, int]:
        """Return how many of a prompt's leading blocks each worker holds.

        Workers that hold not even the first block are left out.
        """
        found: dict[Generation, int] = {}
        alive = -1
        depth = 0
        for block_hash in block_hashes:
            still = self._holders.get(block_hash, 0) & alive
            if still != alive:
                if depth:
                    self._note(found, alive & ~still, depth)
                if not still:
                    return found
                alive = still
            depth += 1
        if depth:
            self._note(found, alive, depth)
        return found

    def num_blocks(self, generation: Generation) -> int:
        """Return how many blocks a worker is thought to hold."""
        return len(self._held.get(generation, ()))

    def check(self) -> None:
        """Check the books.

        Raises:
            InvariantError: The two directions of the index disagree, or a bound is broken.
        """
        expected: dict[BlockHash, int] = {}
        for generation, held in self._held.items():
            if len(held) > self._limits[generation]:
                raise InvariantError(
                    f"prefix index: worker generation {generation} holds {len(held)} blocks,"
                    f" at most {self._limits[generation]} are allowed; report this bug"
                )
            for block_hash in held:
                expected[block_hash] = expected.get(block_hash, 0) | self._bits[generation]
        if expected != self._holders:
            raise InvariantError(
                f"prefix index: {len(self._holders)} hashes have holders, the workers' own"
                f" lists give {len(expected)}; report this bug"
            )

    def _note(self, found: dict[Generation, int], bits: int, depth: int) -> None:
        for bit, generation in self._generations.items():
            if bits & bit:
                found[generation] = depth

    def _drop(self, block_hash: BlockHash, generation: Generation, bit: int) -> None:
        del self._held[generation][block_hash]
        left = self._holders[block_hash] & ~bit
        if left:
            self._holders[block_hash] = left
        else:
            del self._holders[block_hash]
