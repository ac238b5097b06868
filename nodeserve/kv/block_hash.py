"""Chained hashes of full token blocks, for routing to where a prefix is cached.

They are Python's own hashes of tuples of integers: two 64-bit values that collide send a
request to a worker that has less of its prefix than thought, which costs time and never
changes an answer, because engines look up their own cryptographic hashes. They mean nothing
outside the process that made them.
"""

from collections.abc import Sequence
from typing import Final

from nodeserve.ids import BlockHash

NO_SEED: Final = BlockHash(0)
"""The root of a prompt without LoRA adapter and without cache salt."""


def root_seed(lora_name: str | None = None, cache_salt: str | None = None) -> BlockHash:
    """Return what the first block of a prompt is chained to.

    Prompts under different adapters or salts never share KV, so their chains start apart.
    """
    if not lora_name and not cache_salt:
        return NO_SEED
    return BlockHash(hash((lora_name or None, cache_salt or None)))


def chain(parent: BlockHash, block_tokens: tuple[int, ...]) -> BlockHash:
    """Return the hash of one full block of tokens after everything that ``parent`` covers."""
    return BlockHash(hash((parent, block_tokens)))


def hash_blocks(
    tokens: Sequence[int], block_size: int, seed: BlockHash = NO_SEED
) -> tuple[BlockHash, ...]:
    """Hash every full block of a prompt, each together with all that comes before it.

    Args:
        tokens: The prompt. What is left over after the last full block has no hash.
        block_size: Tokens per block, > 0; the engines' own.
        seed: From `root_seed`.

    Returns:
        ``len(tokens) // block_size`` hashes, first block first.
    """
    parent = seed
    known = tuple(tokens)
    hashes: list[BlockHash] = []
    for end in range(block_size, len(known) + 1, block_size):
        parent = BlockHash(hash((parent, known[end - block_size : end])))
        hashes.append(parent)
    return tuple(hashes)
