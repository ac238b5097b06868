"""Blocks are copied out of a peer's pool only under a lease that holds before and after."""

import ctypes
import dataclasses
import os

import msgspec
import pytest

from nodeserve.engine.vllm.handoff import Handoff, PoolDescription
from nodeserve.engine.vllm.loader import MAX_PEERS, KvLoader
from nodeserve.errors import PeerError
from nodeserve.ids import Generation, LeaseId
from nodeserve.kv import layout
from nodeserve.kv.layout import LayerPlace, PoolGeometry
from nodeserve.transfer.lease_table import LeaseTable
from nodeserve.transfer.shared_memory import (
    TRANSPORT,
    MappedMemory,
    SharedMemory,
    SharedMemoryImporter,
    SharedMemoryPool,
)

PAGE, NUM_BLOCKS = 64, 16
GEOMETRY = PoolGeometry(
    places=(LayerPlace(2, PAGE * NUM_BLOCKS, PAGE, 0, PAGE),),
    block_size=32,
    num_blocks=NUM_BLOCKS,
    pool_bytes=2 * PAGE * NUM_BLOCKS,
    page_format="f",
)


class Exporter:
    """A peer with one lease on blocks 3 and 4, in this process."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.memory = SharedMemory("pool", GEOMETRY.pool_bytes)
        os.pwrite(self.memory.fd, bytes(i % 251 for i in range(GEOMETRY.pool_bytes)), 0)
        self.table = LeaseTable(Generation(generation), 4)
        self.table.publish(2, LeaseId(77))

    def handoff(self) -> Handoff:
        pool = PoolDescription(handle=self.memory.handle(), geometry=layout.to_plain(GEOMETRY))
        return Handoff(
            engine=self.generation,
            lease_id=77,
            num_tokens=64,
            num_bytes=256,
            block_size=32,
            blocks=(3, 4),
            slot=2,
            table=self.table.handle(),
            pools=(pool,),
        )

    def close(self) -> None:
        self.memory.close()
        self.table.close()


class InterruptedPool(SharedMemoryPool):
    """Its owner ends the lease and reuses the blocks right after the copy."""

    def __init__(self, memory: MappedMemory, ours: tuple[int, int], exporter: Exporter) -> None:
        super().__init__(memory, *ours)
        self._exporter = exporter

    def copy(self, runs) -> None:
        super().copy(runs)
        self._exporter.table.clear(2)
        os.pwrite(self._exporter.memory.fd, bytes(GEOMETRY.pool_bytes), 0)


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
    made = KvLoader(GEOMETRY, {TRANSPORT: importer}, rank=0, num_ranks=1)
    yield made
    made.close()


def page(layer: int, block: int) -> bytes:
    start = (layer * NUM_BLOCKS + block) * PAGE
    return bytes(i % 251 for i in range(start, start + PAGE))


def test_every_layer_of_every_block_arrives(loader, exporter, ours) -> None:
    assert loader.load(exporter.handoff(), 0, [9, 1]) == 4 * PAGE
    for layer in range(2):
        for theirs, mine in ((3, 9), (4, 1)):
            start = (layer * NUM_BLOCKS + mine) * PAGE
            assert ours.raw[start : start + PAGE] == page(layer, theirs)


def test_blocks_that_are_here_already_are_not_pulled(loader, exporter, ours) -> None:
    assert loader.load(exporter.handoff(), 1, [9]) == 2 * PAGE
    assert ours.raw[9 * PAGE : 10 * PAGE] == page(0, 4)


def test_an_ended_lease_is_refused_before_a_byte_is_copied(loader, exporter, ours) -> None:
    exporter.table.clear(2)
    with pytest.raises(PeerError, match="has ended"):
        loader.load(exporter.handoff(), 0, [0, 1])
    assert ours.raw == bytes(len(ours))


def test_a_lease_that_ends_during_the_copy_fails_the_load(exporter, ours) -> None:
    importer = InterruptedImporter(ctypes.addressof(ours), len(ours), exporter)
    loader = KvLoader(GEOMETRY, {TRANSPORT: importer}, rank=0, num_ranks=1)
    with pytest.raises(PeerError, match="lease 77 of worker generation 5 has ended"):
        loader.load(exporter.handoff(), 0, [0, 1])
    loader.close()


def test_pools_stay_mapped_until_their_owner_ends(loader, exporter) -> None:
    other = Exporter(6)
    loader.load(exporter.handoff(), 0, [0, 1])
    loader.load(exporter.handoff(), 0, [0, 1])
    loader.load(other.handoff(), 0, [0, 1])
    assert loader.num_peers == 2
    other.close()
    loader.drop_ended()
    assert loader.num_peers == 1
    loader.load(exporter.handoff(), 0, [0, 1])


def test_a_new_peer_takes_the_place_of_those_that_ended(loader, exporter) -> None:
    old = Exporter(4)
    loader.load(old.handoff(), 0, [0, 1])
    old.close()
    loader.load(exporter.handoff(), 0, [0, 1])
    assert loader.num_peers == 1


def test_no_more_pools_are_mapped_than_the_limit(loader) -> None:
    exporters = [Exporter(generation) for generation in range(MAX_PEERS + 3)]
    for exporter in exporters:
        loader.load(exporter.handoff(), 0, [0, 1])
    assert loader.num_peers == MAX_PEERS
    for exporter in exporters:
        exporter.close()


def test_another_tensor_parallel_size_is_refused(loader, exporter) -> None:
    handoff = msgspec.structs.replace(exporter.handoff(), pools=exporter.handoff().pools * 2)
    with pytest.raises(PeerError, match="has 2 pools, this worker 1"):
        loader.load(handoff, 0, [0, 1])


def test_a_transport_that_is_not_here_is_refused_by_name(loader, exporter) -> None:
    (pool,) = exporter.handoff().pools
    pool = msgspec.structs.replace(pool, handle={"transport": "cuda_ipc"})
    handoff = msgspec.structs.replace(exporter.handoff(), pools=(pool,))
    with pytest.raises(PeerError, match="cuda_ipc"):
        loader.load(handoff, 0, [0, 1])


def test_a_pool_that_is_smaller_than_it_claims_is_refused(loader, exporter) -> None:
    (pool,) = exporter.handoff().pools
    larger = dataclasses.replace(GEOMETRY, pool_bytes=2 * GEOMETRY.pool_bytes)
    pool = msgspec.structs.replace(pool, geometry=layout.to_plain(larger))
    handoff = msgspec.structs.replace(exporter.handoff(), pools=(pool,))
    with pytest.raises(PeerError, match="another size"):
        loader.load(handoff, 0, [0, 1])
