"""What a finished prefill leg tells the decode leg about its KV, as plain msgpack types.

The router reads ``engine``, ``lease_id``, ``num_tokens`` and ``num_bytes``; the rest is between
the two engines.
"""

from typing import Any

import msgspec

from nodeserve.errors import PeerError
from nodeserve.transfer.base import Handle


class PoolDescription(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's KV pool: how to open it, and ``kv.layout``'s plain geometry."""

    handle: Handle
    geometry: dict[str, Any]


class Handoff(msgspec.Struct, frozen=True, kw_only=True):
    """The right to read ``blocks`` of one engine generation, shown by ``slot`` of its table.

    ``num_tokens`` is how many tokens of KV the blocks hold, the last block perhaps in part.
    ``num_bytes`` is what a decode leg with an empty cache pulls, over all ranks.
    ``pools`` has one entry per tensor parallel rank, by rank.
    """

    engine: int
    lease_id: int
    num_tokens: int
    num_bytes: int
    block_size: int
    blocks: tuple[int, ...]
    slot: int
    table: Handle
    pools: tuple[PoolDescription, ...]


def to_params(handoff: Handoff) -> dict[str, Any]:
    """Return the ``kv_transfer_params`` that carry ``handoff``."""
    return {"do_remote_prefill": True, **msgspec.to_builtins(handoff)}


def from_params(params: dict[str, Any], *, num_tokens: int, block_size: int) -> Handoff:
    """Return the handoff in a decode leg's ``kv_transfer_params``.

    Args:
        params: What ``to_params`` made.
        num_tokens: Tokens of the request that came with it.
        block_size: Tokens per block of the engine that reads it.

    Raises:
        PeerError: It is malformed, or is not of this request or of an engine like this one.
    """
    try:
        handoff = msgspec.convert(params, Handoff)
    except msgspec.ValidationError as error:
        text = f"handoff is malformed: {error}; the prompt is computed here"
        raise PeerError(text) from error
    num_blocks = -(-handoff.num_tokens // max(1, handoff.block_size))
    if (
        handoff.block_size != block_size
        or not 0 < handoff.num_tokens <= num_tokens
        or len(handoff.blocks) != num_blocks
    ):
        text = (
            f"handoff of engine {handoff.engine} has {handoff.num_tokens} tokens in "
            f"{len(handoff.blocks)} blocks of {handoff.block_size}, the request has {num_tokens} "
            f"and blocks here {block_size} tokens; the prompt is computed here"
        )
        raise PeerError(text)
    return handoff
