"""What an engine publishes about its prefix cache, as vLLM 0.32 encodes it.

Source: vllm/distributed/kv_events.py. Frames are ``[topic, sequence, batch]`` with the sequence
as eight big-endian bytes; events are maps, so that fields we do not know are skipped.
"""

from typing import Any, Final

import msgspec

from nodeserve.wire.codec import decoded

SEQUENCE_BYTES: Final = 8


class BlockStored(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Blocks that the prefix cache now holds; ``token_ids`` are those of all of them."""

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None = None
    token_ids: list[int]
    block_size: int
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None


class BlockRemoved(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Blocks that the prefix cache dropped."""

    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The prefix cache is empty."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class _Batch(msgspec.Struct, array_like=True, frozen=True):
    ts: float
    events: list[KvEvent]


_decode: Final = msgspec.msgpack.Decoder(_Batch).decode


def decode_batch(frames: list[bytes]) -> tuple[int, list[KvEvent]]:
    """Return a message's sequence number and its events.

    Raises:
        ValueError: It is no such message.
    """
    if len(frames) != 3 or len(frames[1]) != SEQUENCE_BYTES:
        text = f"KV event message has {len(frames)} frames, not topic, sequence and batch"
        raise ValueError(text)
    return int.from_bytes(frames[1], "big"), decoded(_decode, "KV event batch", frames[2]).events
