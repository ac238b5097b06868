"""Claims about the bytes that simulated engines leave in the host tier."""

import mmap
import os
from types import SimpleNamespace

import pytest

from nodeserve.engine.simulated.tier_slots import TierSlots
from nodeserve.errors import PeerError
from nodeserve.transfer.arenas import create_arenas
from nodeserve.transfer.shared_memory import handle_of
from nodeserve.transfer.slot_directory import SlotDirectory, SlotShape, SlotState
from nodeserve.wire.kv_tier import KvWelcome

MIB = 1 << 20
KEY, OTHER = b"k" * 32, b"o" * 32


class Memory:
    """A tier of two arenas with four slots each, and its directory."""

    def __init__(self, stride):
        self.arenas = create_arenas(4 * MIB, 2 * MIB)
        self.shape = SlotShape(8, stride, b"n" * 32)
        self.directory = SlotDirectory(self.arenas.directory_fd, self.shape)

    def welcome(self, generation=3):
        return KvWelcome(
            generation=generation,
            namespace=self.shape.namespace,
            num_slots=8,
            slots_per_arena=4,
            slot_stride=self.shape.slot_stride,
            arenas=tuple(handle_of(fd) for fd in self.arenas.arena_fds),
            directory=handle_of(self.arenas.directory_fd),
        )

    def publish(self, slot, key):
        self.directory.write(slot, SlotState.READY, key, tenant=0)

    def close(self):
        self.directory.close()
        for fd in self.arenas.fds:
            os.close(fd)


@pytest.fixture(params=[4096, 512 << 10])
def memory(request):
    made = Memory(request.param)
    yield made
    made.close()


def engine(memory):
    return TierSlots(SimpleNamespace(welcome=memory.welcome()))


def test_another_engine_reads_what_one_has_written(memory):
    writer, reader = engine(memory), engine(memory)
    for slot, key in ((1, KEY), (2, OTHER), (6, KEY)):
        writer.write(slot, key)
        memory.publish(slot, key)
    assert all(reader.holds(slot, key) for slot, key in ((1, KEY), (2, OTHER), (6, KEY)))


def test_slots_do_not_run_into_each_other(memory):
    slots = engine(memory)
    for slot in range(8):
        slots.write(slot, bytes([slot]) * 32)
    for slot in range(8):
        memory.publish(slot, bytes([slot]) * 32)
        assert slots.holds(slot, bytes([slot]) * 32)


@pytest.mark.parametrize("memory", [4096], indirect=True)
@pytest.mark.parametrize("at", [0, 255, 4096 - 1, 4096 - 256])
def test_a_flipped_bit_at_either_end_is_found(memory, at):
    slots = engine(memory)
    slots.write(1, KEY)
    memory.publish(1, KEY)
    with mmap.mmap(memory.arenas.arena_fds[0], 2 * MIB) as mapped:
        mapped[4096 + at] ^= 1
    assert not slots.holds(1, KEY)


@pytest.mark.parametrize("memory", [4096], indirect=True)
def test_a_slot_of_another_block_is_not_read(memory):
    slots = engine(memory)
    slots.write(1, KEY)
    memory.publish(1, OTHER)
    with pytest.raises(PeerError, match="does not hold block"):
        slots.holds(1, KEY)
    with pytest.raises(PeerError, match="slot 8 is not one of 8"):
        slots.write(8, KEY)


def test_without_a_tier_nothing_is_to_be_had():
    with pytest.raises(PeerError, match="the host tier is gone"):
        TierSlots(SimpleNamespace(welcome=None)).write(0, KEY)


@pytest.mark.parametrize("memory", [4096], indirect=True)
def test_a_successor_is_mapped_anew(memory):
    client = SimpleNamespace(welcome=memory.welcome())
    slots = TierSlots(client)
    slots.write(1, KEY)
    memory.publish(1, KEY)
    client.welcome = memory.welcome(generation=4)
    assert slots.holds(1, KEY)
