"""Claims about KV event messages."""

import pytest

from nodeserve.wire.codec import encode
from nodeserve.wire.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, decode_batch

STORED = {
    "type": "BlockStored",
    "block_hashes": [1, b"2"],
    "parent_block_hash": None,
    "token_ids": [1, 2],
    "block_size": 1,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "locality": "LOCAL",
}


def frames(*events: object, sequence: int = 0) -> list[bytes]:
    return [b"", sequence.to_bytes(8, "big"), encode([1.0, list(events), 0])]


def test_events_are_read_and_unknown_fields_skipped() -> None:
    removed = {"type": "BlockRemoved", "block_hashes": [1], "medium": None}
    assert decode_batch(frames(STORED, removed, {"type": "AllBlocksCleared"}, sequence=9)) == (
        9,
        [
            BlockStored(block_hashes=[1, b"2"], token_ids=[1, 2], block_size=1, medium="GPU"),
            BlockRemoved(block_hashes=[1]),
            AllBlocksCleared(),
        ],
    )


@pytest.mark.parametrize(
    "message",
    [
        [],
        [b"", b"", b""],
        [b"", b"\0" * 8, b"\xc1"],
        [b"", b"\0" * 8, b"\x91" * 50_000],
        frames({"type": "Other"}),
        frames(STORED | {"block_hashes": ["x"]}),
    ],
)
def test_garbage_is_a_value_error(message: list[bytes]) -> None:
    with pytest.raises(ValueError):
        decode_batch(message)
