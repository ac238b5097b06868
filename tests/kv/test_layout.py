"""Where KV blocks lie in a pool, and which bytes move."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.errors import PeerError
from nodeserve.kv import layout
from nodeserve.kv.layout import CopyRun, LayerPlace, PoolGeometry


def layers_outermost(num_layers: int, num_blocks: int, page: int = 8) -> PoolGeometry:
    """Lay out as CPU attention does: every layer has a region of its own."""
    place = LayerPlace(num_layers, page * num_blocks, page, 0, page)
    return PoolGeometry((place,), 32, num_blocks, num_layers * num_blocks * page, "f")


def blocks_outermost(num_layers: int, num_blocks: int, page: int = 8) -> PoolGeometry:
    """Lay out so that one block of all layers is one run of bytes."""
    place = LayerPlace(num_layers, page, page * num_layers, 0, page)
    return PoolGeometry((place,), 32, num_blocks, num_layers * num_blocks * page, "f")


def test_consecutive_blocks_are_one_copy_per_layer() -> None:
    pool = layers_outermost(2, 10)
    assert layout.copy_runs(pool, [3, 4, 5], pool, [0, 1, 2]) == [
        CopyRun(24, 0, 24),
        CopyRun(80 + 24, 80, 24),
    ]


def test_consecutive_blocks_of_all_layers_are_one_copy_when_blocks_lie_outermost() -> None:
    pool = blocks_outermost(4, 10)
    assert layout.copy_runs(pool, [3, 4], pool, [7, 8]) == [CopyRun(96, 224, 64)]


def test_blocks_that_part_on_one_side_are_two_copies() -> None:
    pool = blocks_outermost(1, 10)
    assert layout.copy_runs(pool, [3, 4], pool, [7, 6]) == [CopyRun(24, 56, 8), CopyRun(32, 48, 8)]


@given(
    st.sampled_from([layers_outermost, blocks_outermost]),
    st.sampled_from([layers_outermost, blocks_outermost]),
    st.lists(st.integers(0, 6), unique=True),
    st.permutations(range(9)),
)
def test_every_page_arrives_whatever_the_two_layouts(make_source, make_destination, theirs, order):
    source, destination = make_source(3, 7), make_destination(3, 9)
    ours = order[: len(theirs)]
    pool = bytes(i % 251 for i in range(source.pool_bytes))
    copied = bytearray(destination.pool_bytes)
    for run in layout.copy_runs(source, theirs, destination, ours):
        copied[run.destination : run.destination + run.length] = pool[
            run.source : run.source + run.length
        ]
    expected = bytearray(destination.pool_bytes)
    (a,), (b,) = source.places, destination.places
    for layer in range(3):
        for s, d in zip(theirs, ours, strict=True):
            start = layer * a.layer_stride + s * a.block_stride
            end = layer * b.layer_stride + d * b.block_stride
            expected[end : end + 8] = pool[start : start + 8]
    assert copied == expected


def test_pools_that_only_lie_differently_are_alike() -> None:
    layout.require_like(layers_outermost(2, 10), blocks_outermost(2, 99))


@pytest.mark.parametrize(
    ("field", "value"), [("block_size", 16), ("page_format", "g"), ("places", None)]
)
def test_pools_of_other_blocks_are_refused_with_both_values(field, value) -> None:
    ours = layers_outermost(2, 10)
    other = layers_outermost(3, 10)
    theirs = other if value is None else dataclasses.replace(ours, **{field: value})
    with pytest.raises(PeerError, match=r"there, .* here"):
        layout.copy_runs(theirs, [0], ours, [0])


@pytest.mark.parametrize(("theirs", "ours"), [([10], [0]), ([0], [-1]), ([0, 1], [0])])
def test_blocks_outside_a_pool_or_without_partner_are_refused(theirs, ours) -> None:
    pool = layers_outermost(2, 10)
    with pytest.raises(PeerError):
        layout.copy_runs(pool, theirs, pool, ours)


def test_a_geometry_survives_the_wire() -> None:
    pool = layers_outermost(2, 10)
    assert layout.from_plain(layout.to_plain(pool)) == pool


@pytest.mark.parametrize(
    "change",
    [
        {"num_blocks": 11},
        {"block_size": 0},
        {"places": []},
        {"pool_bytes": "many"},
        {"places": [[1, 0, 8, 0, 8]]},
        {"places": [dataclasses.asdict(LayerPlace(1, 8, 8, -8, 8))]},
        {"places": [dataclasses.asdict(LayerPlace(0, 8, 8, 0, 8))]},
    ],
)
def test_a_geometry_that_reaches_outside_its_pool_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PeerError, match="wrongly"):
        layout.from_plain(layout.to_plain(layers_outermost(2, 10)) | change)


def test_a_block_is_all_layers_pages() -> None:
    assert layers_outermost(3, 4, page=16).block_bytes == 48
