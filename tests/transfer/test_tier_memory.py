import ctypes

import pytest

from nodeserve.errors import PeerError
from nodeserve.transfer.shared_memory import SharedMemory
from nodeserve.transfer.slot_directory import SlotDirectory, SlotShape, directory_bytes
from nodeserve.transfer.tier_memory import TierMemory

SHAPE = SlotShape(num_slots=5, slot_stride=4096, namespace=b"n" * 32)


@pytest.fixture
def arenas():
    made = [SharedMemory("arena", 3 * 4096) for _ in range(2)]
    yield made
    for one in made:
        one.close()


@pytest.fixture
def page():
    made = SharedMemory("directory", directory_bytes(SHAPE.num_slots))
    SlotDirectory(made.fd, SHAPE).close()
    yield made
    made.close()


def mapped(arenas, page, slots_per_arena=3):
    return TierMemory(SHAPE, slots_per_arena, [one.handle() for one in arenas], page.handle())


def test_slots_lie_one_behind_the_other_in_each_arena(arenas, page):
    memory = mapped(arenas, page)
    (first, size), (second, _) = memory.arenas
    assert size == 3 * 4096
    places = [memory.address(slot) for slot in range(5)]
    assert places == [first, first + 4096, first + 8192, second, second + 4096]


def test_what_one_writes_another_reads(arenas, page):
    writer, reader = mapped(arenas, page), mapped(arenas, page)
    ctypes.memmove(writer.address(4), b"block", 5)
    assert ctypes.string_at(reader.address(4), 5) == b"block"


def test_a_slot_that_is_not_there_is_refused(arenas, page):
    memory = mapped(arenas, page)
    for slot in (-1, 5, 2**32 - 1):
        with pytest.raises(PeerError, match="is not one of 5"):
            memory.address(slot)


def test_arenas_that_do_not_hold_the_slots_are_refused(arenas, page):
    with pytest.raises(PeerError, match="do not hold 5"):
        mapped(arenas[:1], page)
    with pytest.raises(PeerError, match="smaller than its 4 slots"):
        mapped(arenas, page, slots_per_arena=4)
    with pytest.raises(PeerError, match="do not hold"):
        mapped(arenas, page, slots_per_arena=0)


def test_memory_whose_owner_is_gone_is_refused(arenas, page):
    gone = arenas[1].handle() | {"pid": 2**22 + 1}
    with pytest.raises(PeerError, match="cannot open"):
        TierMemory(SHAPE, 3, [arenas[0].handle(), gone], page.handle())


def test_mapped_memory_stays_when_its_owner_closes(page):
    arena = SharedMemory("arena", 5 * 4096)
    memory = TierMemory(SHAPE, 5, [arena.handle()], page.handle())
    arena.close()
    ctypes.memmove(memory.address(0), b"x", 1)
    assert ctypes.string_at(memory.address(0), 1) == b"x"
