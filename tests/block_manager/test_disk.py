"""Disk calls that end in the loop."""

import asyncio
import ctypes

import pytest

from nodeserve.block_manager.disk import DiskTier
from nodeserve.transfer.disk_store import StoreState
from tests.block_manager.fake_store import FakeStore
from tests.kv.tiers import key

BLOCK = 64


@pytest.fixture
def memory():
    return (ctypes.c_char * (4 * BLOCK))()


def disk_over(memory, store=None) -> DiskTier:
    address = ctypes.addressof(memory)
    return DiskTier(store or FakeStore(), lambda slot: address + slot * BLOCK, BLOCK)


async def ended(call):
    done = asyncio.get_running_loop().create_future()
    assert call(lambda slot, is_done: done.set_result((slot, is_done)))
    return await asyncio.wait_for(done, 10)


async def test_a_block_is_written_from_its_slot_and_read_into_another(memory) -> None:
    disk = disk_over(memory)
    memory[BLOCK : 2 * BLOCK] = b"x" * BLOCK
    assert await ended(lambda end: disk.write(1, key("a"), end)) == (1, True)
    assert disk.present([key("b"), key("a")]) == [key("a")]
    assert await ended(lambda end: disk.read(3, key("a"), end)) == (3, True)
    assert memory[3 * BLOCK :] == b"x" * BLOCK
    assert disk.stats().num_records == 1
    disk.clear()
    assert disk.present([key("a")]) == []


async def test_what_the_store_does_not_accept_never_ends(memory) -> None:
    disk = disk_over(memory)
    assert not disk.read(0, key("missing"), pytest.fail)


async def test_a_failed_call_says_so(memory) -> None:
    store = FakeStore()
    disk = disk_over(memory, store)
    store.failing = True
    assert await ended(lambda end: disk.write(1, key("a"), end)) == (1, False)


async def test_a_store_without_directories_does_not_work(memory) -> None:
    store = FakeStore()
    disk = disk_over(memory, store)
    assert disk.works
    store.state = StoreState.OFF
    assert not disk.works
    disk.close(1.0)
    assert store.closed


def test_a_call_that_ends_after_the_loop_is_nobodys(memory) -> None:
    store = FakeStore(hold=True)

    async def begin() -> None:
        disk = DiskTier(store, lambda slot: ctypes.addressof(memory), BLOCK)
        assert disk.write(0, key("a"), pytest.fail)

    asyncio.run(begin())
    store.end_all()
