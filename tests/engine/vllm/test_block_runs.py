import ctypes

import pytest

from nodeserve.engine.vllm.block_runs import BlockRuns
from nodeserve.kv import page_copy
from nodeserve.transfer.host_copier import HostCopier
from tests.support.kv_pools import Shape, expected, filled

SHAPES = [
    Shape(tp=1, block_size=4, heads=4),
    Shape(tp=2, block_size=4, heads=4, page="columns"),
    Shape(tp=4, block_size=4, heads=4, page="token_major"),
    Shape(tp=4, block_size=4, heads=2, page="pairs"),
    Shape(tp=2, block_size=4, heads=4, blocks_outermost=True),
    Shape(tp=8, block_size=8, heads=2, chunk=4, num_blocks=40),
]


def plans(geometry):
    return (
        BlockRuns.of(geometry, page_copy.canonical_writes),
        BlockRuns.of(geometry, page_copy.canonical_runs),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_block_is_copied_as_if_it_were_planned_alone(shape):
    for rank in range(shape.tp):
        geometry = shape.geometry(rank)
        writes, runs = plans(geometry)
        for block in range(shape.num_blocks):
            for made, planner in (
                (writes, page_copy.canonical_writes),
                (runs, page_copy.canonical_runs),
            ):
                alone = planner(geometry, block, 10_000)
                assert made.into_slots([(10_000, block)], 0) == alone
                loaded = made.out_of_slots([(10_000, block)], 0)
                assert [(b, a, n) for a, b, n in loaded] == alone


@pytest.mark.parametrize("reader", SHAPES[:4], ids=str)
@pytest.mark.parametrize("writer", SHAPES[:4], ids=str)
def test_ranks_of_any_number_read_what_others_have_written(writer, reader):
    if (writer.heads, writer.page) != (reader.heads, reader.page) and writer is not reader:
        reader = Shape(tp=min(2 * writer.tp, 4), block_size=4, heads=writer.heads, page=writer.page)
    stored, wanted = [3, 5], [7, 2]
    slots = ctypes.create_string_buffer(2 * 4096)
    base = ctypes.addressof(slots)
    copier = HostCopier()
    for rank in range(writer.tp):
        pool = ctypes.create_string_buffer(bytes(filled(writer, rank, stored)))
        pairs = [(base + 4096 * i, block) for i, block in enumerate(stored)]
        writes, _ = plans(writer.geometry(rank))
        copier.copy(writes.into_slots(pairs, ctypes.addressof(pool)), None)
    for rank in range(reader.tp):
        pool = ctypes.create_string_buffer(reader.pool_bytes(rank))
        pairs = [(base + 4096 * i, block) for i, block in enumerate(wanted)]
        _, runs = plans(reader.geometry(rank))
        copier.copy(runs.out_of_slots(pairs, ctypes.addressof(pool)), None)
        raw = pool.raw
        for at, value in expected(reader, rank, wanted).items():
            assert raw[at] == value
