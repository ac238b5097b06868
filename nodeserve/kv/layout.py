"""Where a worker's KV blocks lie in its pool, head by head and token by token.

vLLM keeps a rank's whole KV cache in one allocation, the pool. Like layers of one KV cache group
have a place in it: the page of layer ``l`` in block ``b`` starts at
``offset + l * layer_stride + b * block_stride``. A page holds some of the model's KV heads, and
every head of it the same planes. Source: KVCacheTensor in vllm/v1/kv_cache_interface.py (0.32).

What a plane is differs: attention on GPUs keeps key and value of a token side by side, one plane
of one row. Attention on CPUs keeps keys as ``[head_dim, block_size]``, a plane of ``head_dim``
rows, and values as ``[block_size, head_dim]``, a plane of one row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from nodeserve.errors import PeerError

NULL_BLOCK: Final = 0
"""In a list of blocks, what stands for tokens without KV: they are behind a sliding window.

Source: BlockPool in vllm/v1/core/block_pool.py (0.32) never gives block 0 to a request.
"""


class CopyRun(NamedTuple):
    """One contiguous copy: ``length`` bytes from one pool offset to another."""

    source: int
    destination: int
    length: int


@dataclass(frozen=True, slots=True)
class HeadRange:
    """Which of the model's ``total`` KV heads a rank has: ``count`` of them from ``first`` on.

    With more ranks than heads, ``replicas`` ranks hold the same heads; ``replica`` numbers them.
    """

    first: int
    count: int
    total: int
    replica: int = 0
    replicas: int = 1

    @property
    def end(self) -> int:
        """The number behind the last head's."""
        return self.first + self.count

    def check(self) -> None:
        """Raise ValueError unless there are such heads."""
        if not (0 <= self.first < self.end <= self.total and 0 <= self.replica < self.replicas):
            text = f"KV geometry has impossible heads {self}"
            raise ValueError(text)


@dataclass(frozen=True, slots=True)
class Plane:
    """A part of a head's bytes in a page: ``rows`` rows of cells, a cell for ``cell_tokens``.

    ``offset`` is from the head's start. A cell is never split: where an attention backend mixes
    the bytes of tokens, its cell has all of these tokens.
    """

    offset: int
    rows: int
    row_stride: int
    cell_tokens: int
    cell_stride: int
    cell_bytes: int

    def row_bytes(self, num_tokens: int) -> int:
        """Return the bytes of ``num_tokens`` tokens in one row."""
        return num_tokens // self.cell_tokens * self.cell_bytes

    def end(self, num_tokens: int) -> int:
        """Return the offset behind the last byte of ``num_tokens`` tokens."""
        last_cell = (num_tokens // self.cell_tokens - 1) * self.cell_stride
        return self.offset + (self.rows - 1) * self.row_stride + last_cell + self.cell_bytes

    def is_dense(self, num_tokens: int) -> bool:
        """Return whether rows of ``num_tokens`` tokens follow each other without a gap."""
        row_bytes = self.row_bytes(num_tokens)
        in_row = self.cell_stride == self.cell_bytes or num_tokens == self.cell_tokens
        return in_row and (self.rows == 1 or self.row_stride == row_bytes)


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """Where ``num_layers`` like layers of KV cache group ``group`` lie in the pool, in bytes.

    A page is made of chunks of ``chunk_tokens`` tokens, which is one chunk for all tokens unless
    the attention kernel's blocks are smaller than vLLM's. Planes repeat per chunk and head.
    """

    num_layers: int
    layer_stride: int
    block_stride: int
    offset: int
    heads: HeadRange
    head_stride: int
    chunk_tokens: int
    chunk_stride: int
    planes: tuple[Plane, ...]
    group: int = 0

    @property
    def head_bytes(self) -> int:
        """What a chunk holds of one head."""
        return sum(plane.rows * plane.row_bytes(self.chunk_tokens) for plane in self.planes)

    def layer_bytes(self, block_size: int, num_heads: int) -> int:
        """Return what ``num_heads`` heads of one layer's page of ``block_size`` tokens hold."""
        return block_size // self.chunk_tokens * num_heads * self.head_bytes

    def is_dense(self) -> bool:
        """Return whether a head's planes follow each other in a chunk without a gap."""
        offset = 0
        for plane in self.planes:
            if plane.offset != offset or not plane.is_dense(self.chunk_tokens):
                return False
            offset = plane.end(self.chunk_tokens)
        return True

    def end(self, num_blocks: int, block_size: int) -> int:
        """Return the offset behind the last byte of the last block's last layer."""
        counts_and_strides = (
            (self.num_layers, self.layer_stride),
            (num_blocks, self.block_stride),
            (block_size // self.chunk_tokens, self.chunk_stride),
            (self.heads.count, self.head_stride),
        )
        last = sum((count - 1) * stride for count, stride in counts_and_strides)
        return self.offset + last + max(plane.end(self.chunk_tokens) for plane in self.planes)

    def check(self, block_size: int) -> None:
        """Raise ValueError unless blocks of ``block_size`` tokens can lie so."""
        self.heads.check()
        planes = self.planes
        counts = [self.num_layers, self.chunk_tokens, *(plane.rows for plane in planes)]
        counts += [size for plane in planes for size in (plane.cell_tokens, plane.cell_bytes)]
        others = [self.layer_stride, self.block_stride, self.offset, self.head_stride]
        others += [self.chunk_stride]
        others += [n for plane in planes for n in (plane.offset, plane.row_stride)]
        others += [plane.cell_stride for plane in planes]
        if (
            not planes
            or min(counts) < 1
            or min(others) < 0
            or block_size % self.chunk_tokens
            or any(self.chunk_tokens % plane.cell_tokens for plane in planes)
        ):
            text = f"KV geometry has an impossible place {self} for blocks of {block_size} tokens"
            raise ValueError(text)


@dataclass(frozen=True, slots=True)
class PoolGeometry:
    """The shape of one rank's KV pool.

    ``block_sizes`` is in tokens, by KV cache group; groups share the pool's blocks, each of which
    is of one group at a time. ``page_format`` says what the bytes mean (attention backend, dtype,
    kinds of groups); it is only compared. A geometry that reaches outside ``pool_bytes`` is
    refused, because copies trust it.

    Raises:
        ValueError: A number is impossible, or a place ends behind the pool.
    """

    places: tuple[LayerPlace, ...]
    block_sizes: tuple[int, ...]
    num_blocks: int
    pool_bytes: int
    page_format: str

    def __post_init__(self) -> None:
        if not self.places or not self.block_sizes or min(*self.block_sizes, self.num_blocks) < 1:
            text = f"KV geometry {self} is empty"
            raise ValueError(text)
        for place in self.places:
            if not 0 <= place.group < len(self.block_sizes):
                text = f"KV geometry: {place} is of none of {len(self.block_sizes)} groups"
                raise ValueError(text)
            block_size = self.block_sizes[place.group]
            place.check(block_size)
            held = place.num_layers * place.layer_bytes(block_size, place.heads.count)
            end = max(place.end(self.num_blocks, block_size), self.num_blocks * held)
            if end > self.pool_bytes:
                text = f"KV geometry: {place} ends at byte {end} of a pool of {self.pool_bytes}"
                raise ValueError(text)

    def places_of(self, group: int) -> tuple[LayerPlace, ...]:
        """Return the places of one KV cache group's layers."""
        return tuple(place for place in self.places if place.group == group)

    def block_bytes(self, group: int = 0) -> int:
        """Return what one block of ``group`` holds over all its layers of this rank."""
        block_size = self.block_sizes[group]
        return sum(
            place.num_layers * place.layer_bytes(block_size, place.heads.count)
            for place in self.places_of(group)
        )


def to_plain(geometry: PoolGeometry) -> dict[str, Any]:
    """Return ``geometry`` as plain msgpack types."""
    plain: dict[str, Any] = msgspec.to_builtins(geometry)
    return plain


def from_plain(plain: Mapping[str, Any]) -> PoolGeometry:
    """Return the geometry in what ``to_plain`` made, checked.

    Raises:
        PeerError: It is not a geometry, or reaches outside its own pool.
    """
    try:
        return msgspec.convert(plain, PoolGeometry)
    except (msgspec.ValidationError, ValueError) as error:
        text = f"a peer described its KV pool wrongly: {error}; restart that worker"
        raise PeerError(text) from error
