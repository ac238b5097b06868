import os
import struct

import pytest

from nodeserve.errors import PeerError
from nodeserve.transfer.shared_memory import SharedMemory
from nodeserve.transfer.slot_directory import (
    HEADER_BYTES,
    SlotDirectory,
    SlotDirectoryReader,
    SlotShape,
    SlotState,
    directory_bytes,
    found_shape,
)

SHAPE = SlotShape(num_slots=8, slot_stride=4096, namespace=b"n" * 32)
KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture
def memory():
    made = SharedMemory("slots", directory_bytes(64))
    yield made
    made.close()


@pytest.fixture
def directory(memory):
    made = SlotDirectory(memory.fd, SHAPE)
    yield made
    made.close()


@pytest.fixture
def reader(memory, directory):
    made = SlotDirectoryReader(memory.handle(), SHAPE)
    yield made
    made.close()


def test_only_a_ready_slot_of_that_key_may_be_read(directory, reader):
    for state in SlotState:
        directory.write(3, state, KEY, tenant=0)
        if state is SlotState.READY:
            assert reader.require(3, KEY).key == KEY
            with pytest.raises(PeerError, match="does not hold"):
                reader.require(3, OTHER)
        else:
            with pytest.raises(PeerError, match="does not hold"):
                reader.require(3, KEY)


def test_a_slot_that_was_reused_for_the_same_key_shows_it(directory, reader):
    directory.write(0, SlotState.READY, KEY, tenant=0)
    before = reader.require(0, KEY)
    directory.write(0, SlotState.RESERVED, KEY, tenant=0)
    directory.write(0, SlotState.READY, KEY, tenant=0)
    assert reader.require(0, KEY) != before


def test_an_entry_that_is_being_changed_is_not_read(memory, directory, reader):
    directory.write(0, SlotState.READY, KEY, tenant=0)
    os.pwrite(memory.fd, struct.pack("<Q", directory.entry(0).sequence + 1), HEADER_BYTES)
    with pytest.raises(PeerError, match="does not hold"):
        reader.require(0, KEY)
    directory.write(0, SlotState.READY, KEY, tenant=0)  # a successor goes on from an odd one
    assert directory.entry(0).sequence % 2 == 0
    assert reader.require(0, KEY).key == KEY


def test_a_successor_finds_what_its_predecessor_wrote(memory, directory):
    directory.write(5, SlotState.READY, KEY, tenant=2, parent=OTHER)
    assert not directory.adopted
    assert found_shape(memory.fd) == SHAPE
    successor = SlotDirectory(memory.fd, SHAPE)
    assert successor.adopted
    assert successor.entry(5) == directory.entry(5)
    assert successor.entry(5).parent == OTHER[:8]


def test_another_shape_starts_empty(memory, directory):
    directory.write(5, SlotState.READY, KEY, tenant=0)
    successor = SlotDirectory(memory.fd, SHAPE._replace(namespace=b"m" * 32))
    assert not successor.adopted
    assert successor.entry(5).state == SlotState.FREE


def test_a_reader_refuses_a_directory_of_another_shape(memory, directory):
    for shape in (SHAPE._replace(num_slots=9), SHAPE._replace(num_slots=10_000)):
        with pytest.raises(PeerError, match="header"):
            SlotDirectoryReader(memory.handle(), shape)


def test_a_reader_refuses_slots_that_are_not_there(reader):
    for slot in (-1, 8, 0xFFFFFFFF):
        with pytest.raises(PeerError, match="is not one of 8"):
            reader.require(slot, KEY)


def test_no_directory_has_no_shape(memory):
    assert found_shape(memory.fd) is None


def test_a_successor_is_told_of_every_slot_that_is_not_plainly_free(memory, directory):
    directory.write(1, SlotState.READY, KEY, tenant=7)
    directory.write(2, SlotState.READY, OTHER, tenant=7)
    directory.write(2, SlotState.FREE, b"", tenant=0)
    os.pwrite(memory.fd, struct.pack("<Q", 5), HEADER_BYTES + 6 * 64)  # its writer died
    assert directory.used(0, 99) == {1: directory.entry(1), 6: directory.entry(6)}
    assert directory.used(2, 6) == {}
    assert directory.used(6, 7) == {6: directory.entry(6)}
