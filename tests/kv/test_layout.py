"""Where KV blocks lie in a pool."""

import dataclasses

import pytest

from nodeserve.errors import PeerError
from nodeserve.kv import layout
from nodeserve.kv.layout import HeadRange, Plane
from tests.support.kv_pools import CELL, LAYERS, Shape

GEOMETRY = Shape(tp=2, block_size=8, heads=4, page="columns").geometry(1)
(PLACE,) = GEOMETRY.places


@pytest.mark.parametrize("page", ["head_major", "token_major", "columns", "pairs"])
@pytest.mark.parametrize("blocks_outermost", [False, True])
@pytest.mark.parametrize("chunk", [0, 4])
def test_a_geometry_survives_the_wire_and_ends_with_its_pool(page, blocks_outermost, chunk) -> None:
    shape = Shape(2, 8, 4, page, blocks_outermost, chunk)
    geometry = shape.geometry(1)
    assert layout.from_plain(layout.to_plain(geometry)) == geometry
    assert geometry.places[0].end(9, 8) == geometry.pool_bytes


def test_a_block_is_all_layers_pages_of_this_ranks_heads() -> None:
    assert GEOMETRY.block_bytes() == LAYERS * 8 * 2 * CELL


def test_a_block_is_of_its_own_groups_layers() -> None:
    other = dataclasses.replace(PLACE, group=1, num_layers=1, block_stride=PLACE.block_stride * 2)
    both = dataclasses.replace(
        GEOMETRY, places=(PLACE, other), block_sizes=(8, 16), pool_bytes=2 * GEOMETRY.pool_bytes
    )
    with pytest.raises(ValueError, match="block"):
        dataclasses.replace(both, places=(PLACE, dataclasses.replace(other, group=2)))
    assert both.places_of(1) == (other,)
    assert both.block_bytes(0) == LAYERS * 8 * 2 * CELL
    assert both.block_bytes(1) == 16 * 2 * CELL


def test_planes_with_gaps_are_not_dense() -> None:
    assert PLACE.is_dense()
    keys, values = PLACE.planes
    moved = dataclasses.replace(values, offset=values.offset + 1)
    assert not dataclasses.replace(PLACE, planes=(keys, moved)).is_dense()
    assert not Plane(0, 2, 9, 1, 1, 1).is_dense(8)
    assert not Plane(0, 1, 0, 1, 2, 1).is_dense(8)


IMPOSSIBLE_PLACES = [
    {"num_layers": 0},
    {"offset": -8},
    {"offset": 1},
    {"planes": ()},
    {"group": 1},
    {"group": -1},
    {"chunk_tokens": 3},
    {"head_stride": 10**6},
    {"heads": HeadRange(3, 2, 4)},
    {"heads": HeadRange(-1, 2, 4)},
    {"heads": HeadRange(0, 2, 4, 2, 2)},
    {"heads": HeadRange(0, 0, 4)},
    {"planes": (Plane(0, 10**9, 0, 1, 0, 1),)},
    {"planes": (Plane(0, 1, 0, 3, 1, 1),)},
    {"planes": (Plane(0, 1, -1, 1, 1, 1),)},
    {"planes": (Plane(0, 1, 0, 1, 1, 0),)},
]


@pytest.mark.parametrize(
    "change",
    [
        {"num_blocks": 10},
        {"num_blocks": 0},
        {"block_sizes": [0]},
        {"block_sizes": []},
        {"places": []},
        {"pool_bytes": "many"},
        {"places": [[1, 0, 8, 0, 8]]},
        *(
            {"places": [layout.to_plain(dataclasses.replace(PLACE, **change))]}
            for change in IMPOSSIBLE_PLACES
        ),
    ],
)
def test_a_geometry_that_reaches_outside_its_pool_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PeerError, match="wrongly"):
        layout.from_plain(layout.to_plain(GEOMETRY) | change)
