"""Which bytes move when KV blocks are copied between ranks that cut heads and tokens differently.

A destination has its own share of the KV heads and its own block size; a source has others. Both
are described by ``kv.layout``. One order of a block's bytes depends on neither rank nor layout,
the canonical one: by layer, KV head of the whole model, plane, row and token.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import NamedTuple

from nodeserve.errors import PeerError
from nodeserve.kv.layout import NULL_BLOCK, CopyRun, HeadRange, LayerPlace, Plane, PoolGeometry


class PoolBlocks(NamedTuple):
    """Blocks of one KV cache group in one rank's pool."""

    geometry: PoolGeometry
    blocks: Sequence[int]


def require_like(source: PoolGeometry, destination: PoolGeometry) -> None:
    """Refuse two pools between which no copy can be right.

    Ranks, heads per rank, strides, offsets and the number of blocks may differ. Block sizes may
    if one divides the other and no cell of a plane is cut.

    Raises:
        PeerError: Naming the first difference and both values.
    """
    sides = (source, destination)
    _require_equal("page format", *(side.page_format for side in sides))
    _require_equal("KV cache groups", *(len(side.block_sizes) for side in sides))
    for group, (theirs, ours) in enumerate(
        zip(source.block_sizes, destination.block_sizes, strict=True)
    ):
        if max(theirs, ours) % min(theirs, ours):
            text = (
                f"KV pools differ in block_size of KV cache group {group}: {theirs} there, {ours} "
                "here; let one divide the other"
            )
            raise PeerError(text)
    _require_equal("layers and their KV cache groups", *map(_layers, sides))
    for a, b in zip(source.places, destination.places, strict=True):
        _require_equal("KV heads of the model", a.heads.total, b.heads.total)
        _require_whole_cells(a, b)
        _require_equal("rows and bytes of a KV head", _planes(a), _planes(b))


def copy_runs(
    source: PoolBlocks,
    destination: PoolBlocks,
    *,
    group: int = 0,
    skip_tokens: int = 0,
    places: Collection[int] | None = None,
) -> list[CopyRun]:
    """Return the copies that fill the destination's blocks with the heads that both ranks have.

    Blocks that follow each other on both sides become one copy where their bytes do, and so do
    the layers of a block where they do: few large copies are what transports are good at.
    Destinations that are ``NULL_BLOCK`` are passed over.

    Args:
        source: Blocks that are read, of tokens that follow each other.
        destination: Blocks that are written, of tokens that follow each other.
        group: The KV cache group of all these blocks.
        skip_tokens: So many tokens of the source's first block come before the destination's
            first one.
        places: Only these places, by their number; None for all of the group.

    Raises:
        PeerError: The pools are not alike, a block lies outside its pool, the source has no KV
            where the destination wants some, or the two lists are of different tokens.
    """
    require_like(source.geometry, destination.geometry)
    _require_inside(source, "source")
    _require_inside(destination, "destination")
    step = min(side.geometry.block_sizes[group] for side in (source, destination))
    pairs = _pairs(source, destination, group, skip_tokens)
    runs: list[CopyRun] = []
    both = zip(source.geometry.places, destination.geometry.places, strict=True)
    for number, (a, b) in enumerate(both):
        if a.group == group and (places is None or number in places):
            for offsets, blocks in pairs.items():
                runs += _place_runs(a, b, _page_runs(a, b, offsets, step), blocks)
    return runs


def sources(pools: Sequence[PoolGeometry], ours: PoolGeometry, rank: int) -> dict[int, set[int]]:
    """Return from which rank's pool which places' KV is to be copied into ours.

    Where several ranks hold the same heads, ``rank`` chooses among them, so that destinations
    that could all read the same source do not.

    Raises:
        PeerError: A head that we need is in none of the pools.
    """
    chosen: dict[int, set[int]] = {}
    for number, place in enumerate(ours.places):
        theirs = [pool.places[number].heads for pool in pools]
        missing = set(range(place.heads.first, place.heads.end))
        for (first, count), group in groupby(
            sorted(range(len(pools)), key=lambda i: (theirs[i].first, theirs[i].count)),
            key=lambda i: (theirs[i].first, theirs[i].count),
        ):
            heads = range(max(first, place.heads.first), min(first + count, place.heads.end))
            if heads:
                holders = list(group)
                chosen.setdefault(holders[rank % len(holders)], set()).add(number)
                missing.difference_update(heads)
        if missing:
            text = (
                f"handoff of {len(pools)} ranks has no KV for heads {sorted(missing)}; "
                "restart the worker that made it"
            )
            raise PeerError(text)
    return chosen


def canonical_block_bytes(geometry: PoolGeometry, group: int = 0) -> int:
    """Return what a block of ``group`` holds over all layers and all heads of the model."""
    return _canonical(geometry, group)[1]


def group_offsets(geometry: PoolGeometry) -> list[int]:
    """Return where each group's canonical bytes lie behind those of the groups before it.

    One number per KV cache group, in bytes, and behind them the bytes of all groups' blocks.
    """
    sizes = (canonical_block_bytes(geometry, group) for group in range(len(geometry.block_sizes)))
    return list(accumulate(sizes, initial=0))


def canonical_runs(
    geometry: PoolGeometry, block: int, base_offset: int, *, group: int = 0
) -> list[CopyRun]:
    """Return the copies that move this rank's heads of ``block`` into canonical order.

    ``source`` is an offset in the rank's pool, ``destination`` one in the memory where the
    block's canonical bytes start at ``base_offset``; swap them to load. Ranks of every tensor
    parallel size agree on the order, if their ``page_format`` and block sizes are equal.
    """
    return _canonical_runs(geometry, block, base_offset, group, geometry.places)


def canonical_writes(
    geometry: PoolGeometry, block: int, base_offset: int, *, group: int = 0
) -> list[CopyRun]:
    """Return those of ``canonical_runs`` that this rank makes when all ranks store ``block``.

    Heads that several ranks hold are stored by one of them, another for another block.
    """
    places = [p for p in geometry.places if block % p.heads.replicas == p.heads.replica]
    return _canonical_runs(geometry, block, base_offset, group, places)


def _canonical_runs(
    geometry: PoolGeometry,
    block: int,
    base_offset: int,
    group: int,
    chosen: Collection[LayerPlace],
) -> list[CopyRun]:
    runs: list[CopyRun] = []
    for place, packed in _canonical(geometry, group)[0].items():
        if place in chosen:
            base = replace(packed, offset=packed.offset + base_offset)
            in_page = _page_runs(place, packed, (0, 0), geometry.block_sizes[group])
            runs += _place_runs(place, base, in_page, [(block, 0)])
    return runs


def _canonical(geometry: PoolGeometry, group: int) -> tuple[Mapping[LayerPlace, LayerPlace], int]:
    """Return where each place's layers lie in canonical order, and how many bytes that is."""
    block_size, end = geometry.block_sizes[group], 0
    packed: dict[LayerPlace, LayerPlace] = {}
    for place in geometry.places_of(group):
        planes: list[Plane] = []
        head_bytes = 0
        for plane in place.planes:
            row = plane.row_bytes(block_size)
            cell = plane.cell_bytes
            planes.append(replace(plane, offset=head_bytes, row_stride=row, cell_stride=cell))
            head_bytes += plane.rows * row
        total = place.heads.total
        packed[place] = replace(
            place,
            offset=end,
            layer_stride=total * head_bytes,
            block_stride=0,
            heads=HeadRange(0, total, total),
            head_stride=head_bytes,
            chunk_tokens=block_size,
            chunk_stride=0,
            planes=tuple(planes),
        )
        end += place.num_layers * total * head_bytes
    return packed, end


def _pairs(
    source: PoolBlocks, destination: PoolBlocks, group: int, skip_tokens: int
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return, by where in their blocks the tokens start on both sides, which blocks meet."""
    theirs, ours = (side.geometry.block_sizes[group] for side in (source, destination))
    left = len(source.blocks) * theirs - skip_tokens
    right = len(destination.blocks) * ours
    if skip_tokens < 0 or skip_tokens % min(theirs, ours) or abs(left - right) >= max(theirs, ours):
        text = (
            f"handoff of {len(source.blocks)} KV blocks of {theirs} tokens, of which the first "
            f"{skip_tokens} are not wanted, meets {len(destination.blocks)} blocks of {ours}; "
            "recompute the prompt"
        )
        raise PeerError(text)
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for at in range(0, min(left, right), min(theirs, ours)):
        block, offset = divmod(skip_tokens + at, theirs)
        pair = (source.blocks[block], destination.blocks[at // ours])
        if pair[1] == NULL_BLOCK:
            continue
        if pair[0] == NULL_BLOCK:
            text = (
                f"handoff has no KV for some of the tokens that KV cache group {group} needs "
                "here; recompute the prompt"
            )
            raise PeerError(text)
        pairs.setdefault((offset, at % ours), []).append(pair)
    return pairs


def _page_runs(
    source: LayerPlace, destination: LayerPlace, offsets: tuple[int, int], num_tokens: int
) -> list[CopyRun]:
    """Return the copies within a page of ``num_tokens`` tokens from two offsets in tokens on."""
    step = min(source.chunk_tokens, destination.chunk_tokens, num_tokens)
    runs: list[CopyRun] = []
    for at in range(0, num_tokens, step):
        chunks = [
            divmod(offset + at, place.chunk_tokens)
            for offset, place in zip(offsets, (source, destination), strict=True)
        ]
        (their_chunk, their_token), (our_chunk, our_token) = chunks
        in_head = _head_runs(source, destination, (their_token, our_token), step)
        for head in range(
            max(source.heads.first, destination.heads.first),
            min(source.heads.end, destination.heads.end),
        ):
            start = their_chunk * source.chunk_stride
            start += (head - source.heads.first) * source.head_stride
            end = our_chunk * destination.chunk_stride
            end += (head - destination.heads.first) * destination.head_stride
            runs += [CopyRun(start + a, end + b, length) for a, b, length in in_head]
    return _merged(sorted(runs))


def _head_runs(
    source: LayerPlace, destination: LayerPlace, tokens: tuple[int, int], num_tokens: int
) -> list[CopyRun]:
    """Return the copies within one head and chunk of ``num_tokens`` from two tokens on."""
    whole = num_tokens == source.chunk_tokens == destination.chunk_tokens
    if whole and source.is_dense() and destination.is_dense():
        return [CopyRun(0, 0, source.head_bytes)]
    runs: list[CopyRun] = []
    for a, b in zip(source.planes, destination.planes, strict=True):
        start = a.offset + tokens[0] // a.cell_tokens * a.cell_stride
        end = b.offset + tokens[1] // b.cell_tokens * b.cell_stride
        cells, length = num_tokens // a.cell_tokens, a.cell_bytes
        if a.cell_stride == b.cell_stride == length:
            cells, length = 1, cells * length
        runs += [
            CopyRun(
                start + row * a.row_stride + cell * a.cell_stride,
                end + row * b.row_stride + cell * b.cell_stride,
                length,
            )
            for row in range(a.rows)
            for cell in range(cells)
        ]
    return runs


def _place_runs(
    source: LayerPlace,
    destination: LayerPlace,
    in_page: list[CopyRun],
    blocks: Iterable[tuple[int, int]],
) -> list[CopyRun]:
    """Return the copies of all layers' pages of pairs of blocks."""
    num_layers, strides = source.num_layers, {source.layer_stride, destination.layer_stride}
    if len(in_page) == 1 and (num_layers == 1 or strides == {in_page[0].length}):
        # Block-outermost layout: a block's layers lie side by side.
        in_page, num_layers = [in_page[0]._replace(length=in_page[0].length * num_layers)], 1
    block_strides = {source.block_stride, destination.block_stride}
    dense = len(in_page) == 1 and block_strides == {in_page[0].length}
    spans = _spans(blocks) if dense else [(theirs, ours, 1) for theirs, ours in blocks]
    runs: list[CopyRun] = []
    for layer in range(num_layers):
        from_layer = source.offset + layer * source.layer_stride
        to_layer = destination.offset + layer * destination.layer_stride
        for theirs, ours, count in spans:
            start = from_layer + theirs * source.block_stride
            end = to_layer + ours * destination.block_stride
            runs += [CopyRun(start + a, end + b, count * length) for a, b, length in in_page]
    return runs


def _spans(blocks: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Group pairs of blocks that advance by one on both sides: first pair and count."""
    spans: list[tuple[int, int, int]] = []
    for theirs, ours in blocks:
        if spans:
            first_theirs, first_ours, count = spans[-1]
            if theirs == first_theirs + count and ours == first_ours + count:
                spans[-1] = (first_theirs, first_ours, count + 1)
                continue
        spans.append((theirs, ours, 1))
    return spans


def _merged(runs: Iterable[CopyRun]) -> list[CopyRun]:
    merged: list[CopyRun] = []
    for run in runs:
        if merged:
            last = merged[-1]
            ends = (last.source + last.length, last.destination + last.length)
            if ends == (run.source, run.destination):
                merged[-1] = last._replace(length=last.length + run.length)
                continue
        merged.append(run)
    return merged


def _layers(geometry: PoolGeometry) -> list[tuple[int, int]]:
    return [(place.num_layers, place.group) for place in geometry.places]


def _planes(place: LayerPlace) -> list[tuple[int, int]]:
    return [(plane.rows, plane.cell_bytes) for plane in place.planes]


def _require_whole_cells(a: LayerPlace, b: LayerPlace) -> None:
    theirs, ours = ([plane.cell_tokens for plane in place.planes] for place in (a, b))
    chunks = (a.chunk_tokens, b.chunk_tokens)
    if theirs != ours or max(chunks) % min(chunks):
        text = (
            "KV pools differ in how many tokens of a page belong together: "
            f"{theirs} of {chunks[0]} there, {ours} of {chunks[1]} here; "
            "give both workers the same block_size"
        )
        raise PeerError(text)


def _require_equal(name: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        text = (
            f"KV pools differ in {name}: {theirs} there, {ours} here; "
            "give both workers the same model, dtype, kv_cache_dtype and attention backend"
        )
        raise PeerError(text)


def _require_inside(side: PoolBlocks, name: str) -> None:
    num_blocks, blocks = side.geometry.num_blocks, side.blocks
    if blocks and not (min(blocks) >= 0 and max(blocks) < num_blocks):
        text = (
            f"{name} KV blocks {min(blocks)} to {max(blocks)} are not all in a pool of "
            f"{num_blocks}; recompute the prompt"
        )
        raise PeerError(text)
