"""The page that shows which leases hold."""

import pytest

from nodeserve.errors import PeerError
from nodeserve.ids import Generation, LeaseId
from nodeserve.transfer.lease_table import LeaseTable, LeaseTableReader
from nodeserve.transfer.shared_memory import SharedMemory


@pytest.fixture
def table():
    made = LeaseTable(Generation(7), 16)
    yield made
    made.close()


@pytest.fixture
def reader(table):
    made = LeaseTableReader(table.handle(), Generation(7))
    yield made
    made.close()


def test_a_published_lease_holds_until_its_slot_is_cleared(table, reader) -> None:
    table.publish(3, LeaseId(41))
    reader.require(3, LeaseId(41))
    table.clear(3)
    with pytest.raises(PeerError, match="lease 41 of worker generation 7 has ended"):
        reader.require(3, LeaseId(41))


def test_a_slot_given_to_another_lease_does_not_hold_for_the_first(table, reader) -> None:
    table.publish(15, LeaseId(41))
    table.publish(15, LeaseId(42))
    with pytest.raises(PeerError, match="its slot holds 42"):
        reader.require(15, LeaseId(41))


@pytest.mark.parametrize("slot", [-1, 16])
def test_a_slot_outside_the_table_is_refused(reader, slot) -> None:
    with pytest.raises(PeerError, match="the table has 16"):
        reader.require(slot, LeaseId(1))


def test_a_table_of_another_generation_is_refused(table) -> None:
    with pytest.raises(PeerError, match="not of 8"):
        LeaseTableReader(table.handle(), Generation(8))


@pytest.mark.parametrize("num_bytes", [8, 4096])
def test_memory_that_is_no_lease_table_is_refused(num_bytes) -> None:
    memory = SharedMemory("other", num_bytes)
    with pytest.raises(PeerError, match="words"):
        LeaseTableReader(memory.handle(), Generation(7))
    memory.close()
