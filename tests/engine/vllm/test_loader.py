"""Blocks are copied out of a peer's pool only under a lease that holds before and after."""

import ctypes
import dataclasses
import os

import msgspec
import pytest

from nodeserve.engine.vllm.handoff import GroupBlocks, Handoff, LoadPart, PoolDescription
from nodeserve.engine.vllm.loader import MAX_PEERS, KvLoader
from nodeserve.errors import PeerError
from nodeserve.ids import Generation, LeaseId
from nodeserve.kv import layout
from nodeserve.kv.layout import NULL_BLOCK
from nodeserve.transfer.lease_table import LeaseTable
from nodeserve.transfer.shared_memory import (
    TRANSPORT,
    MappedMemory,
    SharedMemory,
    SharedMemoryImporter,
    SharedMemoryPool,
)
from tests.support.kv_pools import CELL, LAYERS, Shape, filled

NUM_BLOCKS = 16
WORKER = Shape(tp=1, block_size=8, heads=4, num_blocks=NUM_BLOCKS)
GEOMETRY = WORKER.geometry(0)
BLOCK_BYTES = LAYERS * 8 * 4 * CELL


class Exporter:
    """A peer with one lease on blocks 3 and 4, in this process."""

    def __init__(self, generation: int, shape: Shape = WORKER) -> None:
        self.generation = generation
        self.shape = shape
        self.memories = []
        for rank in range(shape.tp):
            memory = SharedMemory("pool", shape.pool_bytes(rank))
            os.pwrite(memory.fd, filled(shape, rank, [3, 4]), 0)
            self.memories.append(memory)
        self.table = LeaseTable(Generation(generation), 4)
        self.table.publish(2, LeaseId(77))

    def handoff(self) -> Handoff:
        return Handoff(
            engine=self.generation,
            lease_id=77,
            num_tokens=2 * self.shape.block_size,
            num_bytes=2 * BLOCK_BYTES,
            groups=(GroupBlocks(block_size=self.shape.block_size, first=0, blocks=(3, 4)),),
            slot=2,
            table=self.table.handle(),
            pools=tuple(
                PoolDescription(
                    handle=memory.handle(), geometry=layout.to_plain(self.shape.geometry(rank))
                )
                for rank, memory in enumerate(self.memories)
            ),
        )

    def reuse_blocks(self) -> None:
        """End the lease and write over the blocks."""
        self.table.clear(2)
        for memory in self.memories:
            os.pwrite(memory.fd, bytes(memory.num_bytes), 0)

    def close(self) -> None:
        for memory in self.memories:
            memory.close()
        self.table.close()


class InterruptedPool(SharedMemoryPool):
    """Its owner ends the lease and reuses the blocks right after the copy."""

    def __init__(self, memory: MappedMemory, ours: tuple[int, int], exporter: Exporter) -> None:
        super().__init__(memory, *ours)
        self._exporter = exporter

    def copy(self, runs) -> None:
        super().copy(runs)
        self._exporter.reuse_blocks()


class InterruptedImporter(SharedMemoryImporter):
    def __init__(self, address: int, num_bytes: int, exporter: Exporter) -> None:
        super().__init__(address, num_bytes)
        self._interrupted = ((address, num_bytes), exporter)

    def open(self, handle):
        return InterruptedPool(MappedMemory(handle), *self._interrupted)


@pytest.fixture
def exporter():
    made = Exporter(5)
    yield made
    made.close()


@pytest.fixture
def ours():
    return ctypes.create_string_buffer(GEOMETRY.pool_bytes)


@pytest.fixture
def loader(ours):
    importer = SharedMemoryImporter(ctypes.addressof(ours), len(ours))
    made = KvLoader(GEOMETRY, {TRANSPORT: importer}, rank=0)
    yield made
    made.close()


def test_every_layer_of_every_block_arrives(loader, exporter, ours) -> None:
    assert loader.load(exporter.handoff(), [LoadPart(0, [9, 1])]) == 2 * BLOCK_BYTES
    assert ours.raw == filled(WORKER, 0, [9, 1])


def test_blocks_that_are_here_already_are_not_pulled(loader, exporter, ours) -> None:
    assert loader.load(exporter.handoff(), [LoadPart(1, [9])]) == BLOCK_BYTES
    assert ours.raw == filled(WORKER, 0, [9], first_token=8)


@pytest.mark.parametrize(("tp", "blocks", "skip"), [(1, [5], 0), (2, [5, 6, 7], 1), (8, [6], 3)])
def test_a_peer_may_cut_heads_and_tokens_differently(exporter, tp, blocks, skip) -> None:
    mine = Shape(tp=tp, block_size={1: 16}.get(tp, 4), heads=4, num_blocks=NUM_BLOCKS)
    for rank in range(tp):
        pool = ctypes.create_string_buffer(mine.pool_bytes(rank))
        importer = SharedMemoryImporter(ctypes.addressof(pool), len(pool))
        loader = KvLoader(mine.geometry(rank), {TRANSPORT: importer}, rank=rank)
        loader.load(exporter.handoff(), [LoadPart(skip, blocks)])
        loader.close()
        assert pool.raw == filled(mine, rank, blocks, first_token=skip * mine.block_size)


def test_all_heads_arrive_from_all_ranks(loader, ours) -> None:
    peer = Exporter(7, Shape(tp=4, block_size=8, heads=4))
    assert loader.load(peer.handoff(), [LoadPart(0, [9, 1])]) == 2 * BLOCK_BYTES
    assert ours.raw == filled(WORKER, 0, [9, 1])
    peer.close()


def test_only_pools_of_ranks_that_are_needed_are_opened() -> None:
    mine = Shape(tp=4, block_size=8, heads=4)
    peer = Exporter(7, mine)
    handoff = peer.handoff()
    gone = {"transport": "another", "bytes": 0}
    pools = [msgspec.structs.replace(pool, handle=gone) for pool in handoff.pools]
    pools[3] = handoff.pools[3]
    pool = ctypes.create_string_buffer(mine.pool_bytes(3))
    importer = SharedMemoryImporter(ctypes.addressof(pool), len(pool))
    loader = KvLoader(mine.geometry(3), {TRANSPORT: importer}, rank=3)
    handoff = msgspec.structs.replace(handoff, pools=tuple(pools))
    loader.load(handoff, [LoadPart(0, [1, 2])])
    assert pool.raw == filled(mine, 3, [1, 2])
    loader.close()
    peer.close()


def test_an_ended_lease_is_refused_before_a_byte_is_copied(loader, exporter, ours) -> None:
    exporter.table.clear(2)
    with pytest.raises(PeerError, match="has ended"):
        loader.load(exporter.handoff(), [LoadPart(0, [1, 2])])
    assert ours.raw == bytes(len(ours))


def test_a_lease_that_ends_during_the_copy_fails_the_load(exporter, ours) -> None:
    importer = InterruptedImporter(ctypes.addressof(ours), len(ours), exporter)
    loader = KvLoader(GEOMETRY, {TRANSPORT: importer}, rank=0)
    with pytest.raises(PeerError, match="lease 77 of worker generation 5 has ended"):
        loader.load(exporter.handoff(), [LoadPart(0, [1, 2])])
    loader.close()


def test_pools_stay_mapped_until_their_owner_ends(loader, exporter) -> None:
    other = Exporter(6)
    loader.load(exporter.handoff(), [LoadPart(0, [1, 2])])
    loader.load(exporter.handoff(), [LoadPart(0, [1, 2])])
    loader.load(other.handoff(), [LoadPart(0, [1, 2])])
    assert loader.num_peers == 2
    other.close()
    loader.drop_ended()
    assert loader.num_peers == 1
    loader.load(exporter.handoff(), [LoadPart(0, [1, 2])])


def test_a_new_peer_takes_the_place_of_those_that_ended(loader, exporter) -> None:
    old = Exporter(4)
    loader.load(old.handoff(), [LoadPart(0, [1, 2])])
    old.close()
    loader.load(exporter.handoff(), [LoadPart(0, [1, 2])])
    assert loader.num_peers == 1


def test_no_more_pools_are_mapped_than_the_limit(loader) -> None:
    exporters = [Exporter(generation) for generation in range(MAX_PEERS + 3)]
    for exporter in exporters:
        loader.load(exporter.handoff(), [LoadPart(0, [1, 2])])
    assert loader.num_peers == MAX_PEERS
    for exporter in exporters:
        exporter.close()


def test_a_peer_of_another_kind_is_refused_by_name(loader) -> None:
    peer = Exporter(7, Shape(tp=1, block_size=8, heads=2))
    with pytest.raises(PeerError, match="KV heads of the model: 2 there, 4 here"):
        loader.load(peer.handoff(), [LoadPart(0, [1, 2])])
    peer.close()


def test_blocks_behind_the_window_are_left_alone(loader, exporter, ours) -> None:
    assert loader.load(exporter.handoff(), [LoadPart(0, [NULL_BLOCK, 9])]) == BLOCK_BYTES
    assert ours.raw == filled(WORKER, 0, [9], first_token=8)
    assert loader.load(exporter.handoff(), [LoadPart(0, [NULL_BLOCK, NULL_BLOCK])]) == 0


def test_kv_that_the_peer_let_go_is_refused(loader, exporter) -> None:
    group = GroupBlocks(block_size=8, first=1, blocks=(4,))
    handoff = msgspec.structs.replace(exporter.handoff(), groups=(group,))
    with pytest.raises(PeerError, match="group 0 from token 8 on, needed is token 0"):
        loader.load(handoff, [LoadPart(0, [1, 2])])
    assert loader.load(handoff, [LoadPart(0, [NULL_BLOCK, 2])]) == BLOCK_BYTES


def test_a_transport_that_is_not_here_is_refused_by_name(loader, exporter) -> None:
    (pool,) = exporter.handoff().pools
    pool = msgspec.structs.replace(pool, handle={"transport": "cuda_ipc"})
    handoff = msgspec.structs.replace(exporter.handoff(), pools=(pool,))
    with pytest.raises(PeerError, match="cuda_ipc"):
        loader.load(handoff, [LoadPart(0, [1, 2])])


def test_a_pool_that_is_smaller_than_it_claims_is_refused(loader, exporter) -> None:
    (pool,) = exporter.handoff().pools
    larger = dataclasses.replace(GEOMETRY, pool_bytes=2 * GEOMETRY.pool_bytes)
    pool = msgspec.structs.replace(pool, geometry=layout.to_plain(larger))
    handoff = msgspec.structs.replace(exporter.handoff(), pools=(pool,))
    with pytest.raises(PeerError, match="another size"):
        loader.load(handoff, [LoadPart(0, [1, 2])])
