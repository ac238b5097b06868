"""What a finished prefill leg tells the decode leg about its KV, as plain msgpack types.

The router reads ``engine``, ``lease_id``, ``num_tokens`` and ``num_bytes``; the rest is between
the two engines.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from nodeserve.errors import PeerError
from nodeserve.transfer.base import Handle


class PoolDescription(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's KV pool: how to open it, and ``kv.layout``'s plain geometry."""

    handle: Handle
    geometry: dict[str, Any]


class GroupBlocks(msgspec.Struct, frozen=True, kw_only=True):
    """One KV cache group's blocks of a sequence, from number ``first`` on.

    The earlier ones are behind a sliding window, and nobody needs them.
    """

    block_size: int
    first: int
    blocks: tuple[int, ...]


class Handoff(msgspec.Struct, frozen=True, kw_only=True):
    """The right to read blocks of one engine generation, shown by ``slot`` of its table.

    ``num_tokens`` is how many tokens of KV the blocks hold, the last one perhaps in part.
    ``num_bytes`` is what a decode leg with an empty cache pulls, each KV head counted once.
    ``groups`` are the model's KV cache groups, ``pools`` the tensor parallel ranks, by rank.
    """

    engine: int
    lease_id: int
    num_tokens: int
    num_bytes: int
    groups: tuple[GroupBlocks, ...]
    slot: int
    table: Handle
    pools: tuple[PoolDescription, ...]


@dataclass(frozen=True, slots=True)
class LoadPart:
    """One KV cache group's blocks here that a load fills: those from number ``first`` on."""

    first: int
    blocks: list[int]


def to_params(handoff: Handoff) -> dict[str, Any]:
    """Return the ``kv_transfer_params`` that carry ``handoff``."""
    return {"do_remote_prefill": True, **msgspec.to_builtins(handoff)}


def from_params(params: dict[str, Any], *, num_tokens: int, num_groups: int) -> Handoff:
    """Return the handoff in a decode leg's ``kv_transfer_params``.

    Args:
        params: What ``to_params`` made.
        num_tokens: Tokens of the request that came with it.
        num_groups: KV cache groups of the engine that reads it.

    Raises:
        PeerError: It is malformed, or is not of this request or of such a model.
    """
    try:
        handoff = msgspec.convert(params, Handoff)
    except msgspec.ValidationError as error:
        text = f"handoff is malformed: {error}; the prompt is computed here"
        raise PeerError(text) from error
    if (
        len(handoff.groups) != num_groups
        or not 0 < handoff.num_tokens <= num_tokens
        or not all(_covers(group, handoff.num_tokens) for group in handoff.groups)
    ):
        shown = [(g.block_size, g.first, len(g.blocks)) for g in handoff.groups]
        text = (
            f"handoff of engine {handoff.engine} has {handoff.num_tokens} tokens in KV cache "
            f"groups of block_size, first and number of blocks {shown}, the request has "
            f"{num_tokens} and the model here {num_groups} groups; the prompt is computed here"
        )
        raise PeerError(text)
    return handoff


def _covers(group: GroupBlocks, num_tokens: int) -> bool:
    num_blocks = -(-num_tokens // max(1, group.block_size))
    return group.block_size > 0 <= group.first and group.first + len(group.blocks) == num_blocks
