"""Which bytes move between ranks, against a model that places every byte by itself."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.errors import PeerError
from nodeserve.kv import page_copy
from nodeserve.kv.layout import NULL_BLOCK, CopyRun, Plane
from nodeserve.kv.page_copy import PoolBlocks
from tests.support.kv_pools import CELL, LAYERS, Shape, expected, filled

HND = Shape(tp=1, block_size=8, heads=4)
PAGE = HND.block_size * HND.heads * CELL


@st.composite
def shapes(draw, heads, page, block_sizes=(4, 8, 16)):
    block_size = draw(st.sampled_from(block_sizes))
    chunk = draw(st.sampled_from([0, 4]))
    return Shape(
        draw(st.sampled_from([1, 2, 4, 8])), block_size, heads, page, draw(st.booleans()), chunk
    )


@st.composite
def one_models_shapes(draw, **which):
    """Two workers of one model that cut its heads and tokens as they like."""
    heads = draw(st.sampled_from([1, 2, 4]))
    alike = draw(st.sampled_from([("head_major", "token_major"), ("columns",), ("pairs",)]))
    pages = (draw(st.sampled_from(alike)), draw(st.sampled_from(alike)))
    return tuple(draw(shapes(heads, page, **which)) for page in pages)


def apply(runs, source, destination):
    """Copy, and insist that nothing is written twice."""
    written = bytearray(len(destination))
    for a, b, length in runs:
        assert not any(written[b : b + length])
        written[b : b + length] = b"\x01" * length
        destination[b : b + length] = source[a : a + length]


def pulled(source, theirs, destination, ours, rank, skip=0):
    """Return a rank's pool once it has pulled ``ours`` from all source ranks that it needs.

    ``theirs`` hold the sequence from its start on; so many of its blocks as ``skip`` says, in
    tokens, are here already.
    """
    pools = [source.geometry(r) for r in range(source.tp)]
    mine = destination.geometry(rank)
    pool = bytearray(mine.pool_bytes)
    gone, skip_tokens = divmod(skip, source.block_size)
    for peer, places in page_copy.sources(pools, mine, rank).items():
        sides = (PoolBlocks(pools[peer], theirs[gone:]), PoolBlocks(mine, ours))
        runs = page_copy.copy_runs(*sides, skip_tokens=skip_tokens, places=places)
        apply(runs, filled(source, peer, theirs), pool)
    return pool


@given(one_models_shapes(), st.permutations(range(1, 9)), st.permutations(range(1, 9)), st.data())
def test_every_byte_arrives_whoever_cuts_heads_and_tokens_how(pair, theirs, ours, data):
    source, destination = pair
    larger = max(source.block_size, destination.block_size)
    num_tokens = larger * data.draw(
        st.integers(1, 8 * min(source.block_size, destination.block_size) // larger)
    )
    here = (
        data.draw(st.integers(0, num_tokens // destination.block_size - 1)) * destination.block_size
    )
    theirs = theirs[: num_tokens // source.block_size]
    ours = ours[: (num_tokens - here) // destination.block_size]
    for rank in range(destination.tp):
        pool = pulled(source, theirs, destination, ours, rank, here)
        assert pool == filled(destination, rank, ours, here)


@given(one_models_shapes(block_sizes=(8,)), st.integers(1, 8), st.integers(1, 8))
def test_a_block_that_one_worker_stored_is_read_by_any_other(pair, block, other_block):
    writer, reader = pair
    size = page_copy.canonical_block_bytes(writer.geometry(0))
    assert size == LAYERS * writer.heads * 8 * CELL
    stored = bytearray(100 + size)
    for rank in range(writer.tp):
        runs = page_copy.canonical_writes(writer.geometry(rank), block, 100)
        apply(runs, filled(writer, rank, [block]), stored)
    assert 0 not in stored[100:]
    for rank in range(reader.tp):
        pool = bytearray(reader.pool_bytes(rank))
        runs = page_copy.canonical_runs(reader.geometry(rank), other_block, 100)
        apply([CopyRun(b, a, length) for a, b, length in runs], stored, pool)
        assert pool == filled(reader, rank, [other_block])


@given(st.integers(1, 8), st.sampled_from(["head_major", "columns", "pairs"]))
def test_all_ranks_that_store_a_block_write_each_byte_once(block, page):
    shape = Shape(tp=8, block_size=8, heads=2, page=page)
    written = [
        run
        for rank in range(shape.tp)
        for run in page_copy.canonical_writes(shape.geometry(rank), block, 0)
    ]
    assert sum(run.length for run in written) == page_copy.canonical_block_bytes(shape.geometry(0))
    other = page_copy.canonical_writes(shape.geometry(0), block + 1, 0)
    assert bool(other) != bool(page_copy.canonical_writes(shape.geometry(0), block, 0)) or not other


def test_canonical_order_is_layer_then_head_then_token():
    runs = page_copy.canonical_runs(Shape(4, 8, 4).geometry(2), 5, 1000)
    layer, head, page = 9 * PAGE // 4, PAGE // 4, PAGE
    assert runs == [
        CopyRun(i * layer + 5 * head, 1000 + i * page + 2 * head, head) for i in range(LAYERS)
    ]


def test_consecutive_blocks_are_one_copy_per_layer():
    pool = HND.geometry(0)
    layer = 9 * PAGE
    assert page_copy.copy_runs(PoolBlocks(pool, [3, 4, 5]), PoolBlocks(pool, [1, 2, 3])) == [
        CopyRun(3 * PAGE + i * layer, PAGE + i * layer, 3 * PAGE) for i in range(LAYERS)
    ]


def test_consecutive_blocks_of_all_layers_are_one_copy_when_blocks_lie_outermost():
    pool = dataclasses.replace(HND, blocks_outermost=True).geometry(0)
    runs = page_copy.copy_runs(PoolBlocks(pool, [3, 4]), PoolBlocks(pool, [6, 7]))
    assert runs == [CopyRun(3 * LAYERS * PAGE, 6 * LAYERS * PAGE, 2 * LAYERS * PAGE)]


def test_a_ranks_heads_of_a_page_are_one_copy():
    (mine, whole) = (Shape(tp=2, block_size=8, heads=4).geometry(1), HND.geometry(0))
    runs = page_copy.copy_runs(PoolBlocks(whole, [2]), PoolBlocks(mine, [1]))
    assert runs[0] == CopyRun(2 * PAGE + PAGE // 2, PAGE // 2, PAGE // 2)
    assert len(runs) == LAYERS


@pytest.mark.parametrize(
    ("source_tp", "tp", "heads", "rank", "ranks"),
    [
        (4, 1, 4, 0, {0, 1, 2, 3}),
        (1, 4, 4, 3, {0}),
        (4, 2, 4, 1, {2, 3}),
        (2, 4, 4, 1, {0}),
        (4, 4, 4, 2, {2}),
        (8, 4, 2, 1, {1}),  # four ranks hold each head: another one serves each rank
        (8, 4, 2, 0, {0}),
        (4, 4, 1, 3, {3}),  # MLA: everybody holds all of it
    ],
)
def test_only_the_ranks_that_are_needed_are_read(source_tp, tp, heads, rank, ranks):
    pools = [Shape(source_tp, 8, heads).geometry(r) for r in range(source_tp)]
    assert set(page_copy.sources(pools, Shape(tp, 8, heads).geometry(rank), rank)) == ranks


def test_a_head_that_no_rank_has_is_refused():
    pools = [Shape(4, 8, 4).geometry(r) for r in (0, 1, 2)]
    with pytest.raises(PeerError, match=r"3 ranks has no KV for heads \[3\]"):
        page_copy.sources(pools, HND.geometry(0), 0)


def test_blocks_behind_the_window_are_passed_over():
    pool = HND.geometry(0)
    runs = page_copy.copy_runs(
        PoolBlocks(pool, [NULL_BLOCK, 3, 4]), PoolBlocks(pool, [NULL_BLOCK, NULL_BLOCK, 7])
    )
    assert runs[0] == CopyRun(4 * PAGE, 7 * PAGE, PAGE)
    assert len(runs) == LAYERS


def test_kv_that_the_source_let_go_and_we_need_is_refused():
    pool = HND.geometry(0)
    with pytest.raises(PeerError, match="no KV for some of the tokens"):
        page_copy.copy_runs(PoolBlocks(pool, [NULL_BLOCK, 3]), PoolBlocks(pool, [1, 2]))


def test_pools_that_only_lie_or_are_cut_differently_are_alike():
    other = Shape(tp=2, block_size=32, heads=4, blocks_outermost=True, num_blocks=3)
    page_copy.require_like(HND.geometry(0), other.geometry(1))


def whole_pages(shape):
    """As ``shape``, but its pages cannot be divided by tokens."""
    geometry = shape.geometry(0)
    (place,) = geometry.places
    cell = shape.block_size * CELL
    place = dataclasses.replace(place, planes=(Plane(0, 1, 0, shape.block_size, cell, cell),))
    return dataclasses.replace(geometry, places=(place,))


def with_layers(geometry, num_layers):
    place = dataclasses.replace(geometry.places[0], num_layers=num_layers)
    return dataclasses.replace(geometry, places=(place,))


OURS = HND.geometry(0)
UNLIKE = [
    (dataclasses.replace(OURS, page_format="fp8"), "page format: fp8 there, f here"),
    (dataclasses.replace(OURS, block_sizes=(8, 8)), "KV cache groups: 2 there, 1 here"),
    (Shape(1, 12, 4).geometry(0), "block_size of KV cache group 0: 12 there, 8 here"),
    (with_layers(OURS, 2), "layers and their KV cache groups"),
    (Shape(1, 8, 2).geometry(0), "KV heads of the model: 2 there, 4 here"),
    (Shape(1, 8, 4, "columns").geometry(0), "tokens of a page belong together|rows and bytes"),
    (whole_pages(Shape(1, 16, 4)), r"belong together: \[16\] of 16 there, \[1\] of 8 here"),
]


@pytest.mark.parametrize(("theirs", "difference"), UNLIKE)
def test_pools_of_other_blocks_are_refused_by_the_first_difference(theirs, difference):
    with pytest.raises(PeerError, match=difference):
        page_copy.copy_runs(PoolBlocks(theirs, [1]), PoolBlocks(OURS, [1]))


def test_pages_that_cannot_be_divided_are_copied_whole():
    pool = whole_pages(HND)
    runs = page_copy.copy_runs(PoolBlocks(pool, [1]), PoolBlocks(pool, [2]))
    assert runs[0] == CopyRun(PAGE, 2 * PAGE, PAGE)


@pytest.mark.parametrize(
    ("theirs", "ours", "skip"),
    [([9], [1], 0), ([1], [-1], 0), ([1, 2], [1], 0), ([1], [1], 4), ([1], [1], -8)],
)
def test_blocks_outside_a_pool_or_without_partner_are_refused(theirs, ours, skip):
    with pytest.raises(PeerError, match="recompute the prompt"):
        page_copy.copy_runs(PoolBlocks(OURS, theirs), PoolBlocks(OURS, ours), skip_tokens=skip)


def test_only_the_chosen_places_are_copied():
    sides = (PoolBlocks(OURS, [1]), PoolBlocks(OURS, [2]))
    assert page_copy.copy_runs(*sides, places={0}) == page_copy.copy_runs(*sides)
    assert page_copy.copy_runs(*sides, places=set()) == []
    assert expected(HND, 0, [NULL_BLOCK]) == {}
