"""Tokens that look generated and depend on nothing but the request.

The same prompt and sampling seed give the same tokens on every worker, in every batch, and
whether the request was handed over or not: that is what makes a node of simulated engines
checkable. They are drawn one chunk at a time from SHAKE-128 of (seed, prompt, chunk).
"""

import hashlib
import struct
from array import array
from collections.abc import Sequence
from typing import Final

CHUNK_TOKENS: Final = 64

_UNPACK: Final = struct.Struct(f"<{CHUNK_TOKENS}H").unpack
_LARGE_VOCABULARY: Final = 1024
_LARGE_RANGE: Final = (300, 8192)
"""In byte-level and SentencePiece vocabularies: past specials and bytes, common short pieces."""

_SMALL_RANGE: Final = (5, 94)
"""Past the specials; where a tiny byte-level vocabulary keeps printable ASCII."""


class Vocabulary:
    """Which token ids a simulated model may emit: plain text and never a special token.

    Attributes:
        common: All of them, ascending; at least one.
    """

    def __init__(self, vocab_size: int, special_token_ids: Sequence[int]) -> None:
        """Choose from ``config.json``'s sizes alone; the tokenizer is the front end's."""
        first, last = _LARGE_RANGE if vocab_size >= _LARGE_VOCABULARY else _SMALL_RANGE
        wanted = range(first, min(last, vocab_size))
        ids = [token for token in wanted if token not in special_token_ids] or [0]
        self.common = tuple(ids)
        # One entry per 16-bit draw: a lookup instead of a division per token.
        self._by_draw = tuple(ids[draw * len(ids) >> 16] for draw in range(1 << 16))

    def chunk(self, key: bytes, index: int) -> list[int]:
        """Return the ``index``-th ``CHUNK_TOKENS`` tokens of the stream named by ``key``."""
        digest = hashlib.shake_128(key + index.to_bytes(4, "little")).digest(2 * CHUNK_TOKENS)
        by_draw = self._by_draw
        return [by_draw[draw] for draw in _UNPACK(digest)]


def stream_key(prompt: Sequence[int], seed: int | None) -> bytes:
    """Return the name of the token stream that answers ``prompt``; no seed is a seed too."""
    state = hashlib.blake2b(array("q", prompt).tobytes(), digest_size=16)
    state.update(str(seed).encode())
    return state.digest()
