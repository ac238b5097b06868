"""Where a worker's KV blocks lie in its pool, and which bytes move when blocks are copied.

vLLM keeps a worker's whole KV cache in one allocation, the pool. Every group of like layers has
a place in it: the page of layer ``l`` in block ``b`` starts at
``offset + l * layer_stride + b * block_stride``.
Source: KVCacheTensor in vllm/v1/kv_cache_interface.py (0.32).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from nodeserve.errors import PeerError


class CopyRun(NamedTuple):
    """One contiguous copy: ``length`` bytes from one pool offset to another."""

    source: int
    destination: int
    length: int


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """Where ``num_layers`` like layers lie in the pool, all in bytes."""

    num_layers: int
    layer_stride: int
    block_stride: int
    offset: int
    page_bytes: int

    def end(self, num_blocks: int) -> int:
        """Return the offset behind the last byte of the last block's last layer."""
        last_layer = (self.num_layers - 1) * self.layer_stride
        return self.offset + last_layer + (num_blocks - 1) * self.block_stride + self.page_bytes


@dataclass(frozen=True, slots=True)
class PoolGeometry:
    """The shape of one rank's KV pool.

    ``block_size`` is in tokens. ``page_format`` says how a page is laid out inside (layout,
    dtype, heads); it is only compared. A geometry that reaches outside ``pool_bytes`` is
    refused, because copies trust it.

    Raises:
        ValueError: A number is negative, or a place ends behind the pool.
    """

    places: tuple[LayerPlace, ...]
    block_size: int
    num_blocks: int
    pool_bytes: int
    page_format: str

    def __post_init__(self) -> None:
        if not self.places or self.block_size < 1 or self.num_blocks < 1:
            text = f"KV geometry {self} is empty"
            raise ValueError(text)
        for place in self.places:
            numbers = (place.layer_stride, place.block_stride, place.offset)
            if place.num_layers < 1 or place.page_bytes < 1 or min(numbers) < 0:
                text = f"KV geometry has an impossible place {place}"
                raise ValueError(text)
            if (end := place.end(self.num_blocks)) > self.pool_bytes:
                text = f"KV geometry: {place} ends at byte {end} of a pool of {self.pool_bytes}"
                raise ValueError(text)

    @property
    def block_bytes(self) -> int:
        """What one block holds over all layers of this rank."""
        return sum(place.num_layers * place.page_bytes for place in self.places)


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


def require_like(source: PoolGeometry, destination: PoolGeometry) -> None:
    """Refuse two pools whose blocks do not hold the same bytes in the same order.

    Strides, offsets and the number of blocks may differ: they only change where bytes lie.

    Raises:
        PeerError: Naming the first difference and both values.
    """
    compared: tuple[tuple[str, object, object], ...] = (
        ("block_size", source.block_size, destination.block_size),
        ("page format", source.page_format, destination.page_format),
        ("layers and page bytes", _pages(source), _pages(destination)),
    )
    for name, theirs, ours in compared:
        if theirs != ours:
            text = (
                f"KV pools differ in {name}: {theirs} there, {ours} here; "
                "give both workers the same model, dtype, block_size and tensor parallel size"
            )
            raise PeerError(text)


def copy_runs(
    source: PoolGeometry,
    source_blocks: Sequence[int],
    destination: PoolGeometry,
    destination_blocks: Sequence[int],
) -> list[CopyRun]:
    """Return the copies that move ``source_blocks`` onto ``destination_blocks``, in order.

    Blocks that follow each other on both sides become one copy where their bytes do, and so do
    the layers of a block where they do: few large copies are what transports are good at.

    Raises:
        PeerError: The pools are not alike, a block lies outside its pool, or the two lists
            differ in length.
    """
    require_like(source, destination)
    _require_inside(source, source_blocks, "source")
    _require_inside(destination, destination_blocks, "destination")
    if len(source_blocks) != len(destination_blocks):
        text = (
            f"handoff of {len(source_blocks)} KV blocks meets {len(destination_blocks)} "
            "destination blocks; recompute the prompt"
        )
        raise PeerError(text)
    spans = _spans(source_blocks, destination_blocks)
    runs: list[CopyRun] = []
    for theirs, ours in zip(source.places, destination.places, strict=True):
        runs += _place_runs(theirs, ours, spans)
    return runs


def _pages(geometry: PoolGeometry) -> list[tuple[int, int]]:
    return [(place.num_layers, place.page_bytes) for place in geometry.places]


def _require_inside(geometry: PoolGeometry, blocks: Sequence[int], side: str) -> None:
    if blocks and not (min(blocks) >= 0 and max(blocks) < geometry.num_blocks):
        text = (
            f"{side} KV blocks {min(blocks)} to {max(blocks)} are not all in a pool of "
            f"{geometry.num_blocks}; recompute the prompt"
        )
        raise PeerError(text)


def _spans(
    source_blocks: Sequence[int], destination_blocks: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Group pairs of blocks that advance by one on both sides: first pair and count."""
    spans: list[tuple[int, int, int]] = []
    for theirs, ours in zip(source_blocks, destination_blocks, strict=True):
        if spans:
            first_theirs, first_ours, count = spans[-1]
            if theirs == first_theirs + count and ours == first_ours + count:
                spans[-1] = (first_theirs, first_ours, count + 1)
                continue
        spans.append((theirs, ours, 1))
    return spans


def _place_runs(
    source: LayerPlace, destination: LayerPlace, spans: Sequence[tuple[int, int, int]]
) -> list[CopyRun]:
    unit, num_layers = source.page_bytes, source.num_layers
    if source.layer_stride == destination.layer_stride == unit:
        # Block-outermost layout: a block's layers lie side by side.
        unit, num_layers = unit * num_layers, 1
    dense = source.block_stride == destination.block_stride == unit
    runs: list[CopyRun] = []
    for layer in range(num_layers):
        from_layer = source.offset + layer * source.layer_stride
        to_layer = destination.offset + layer * destination.layer_stride
        for theirs, ours, count in spans:
            start = from_layer + theirs * source.block_stride
            end = to_layer + ours * destination.block_stride
            if dense:
                runs.append(CopyRun(start, end, count * unit))
                continue
            runs += [
                CopyRun(start + i * source.block_stride, end + i * destination.block_stride, unit)
                for i in range(count)
            ]
    return runs
