"""The host tier's memory, cut into slots."""

import ctypes
import os

import pytest

from nodeserve.block_manager.memory import TierMemory, directory_shape
from nodeserve.errors import CapacityError, ConfigError
from nodeserve.transfer.arenas import create_arenas

ARENA = 1 << 20


@pytest.fixture
def fds():
    arenas = create_arenas(2 * ARENA, ARENA)
    yield arenas.fds
    for fd in arenas.fds:
        os.close(fd)


def test_slots_are_blocks_rounded_up_to_pages_and_never_lie_across_arenas(fds) -> None:
    memory = TierMemory(fds, ARENA)
    shape = memory.shape(300_000)
    assert shape == (6, 3, 303_104, 300_000)
    assert memory.shape(4096).num_slots == 512
    assert memory.num_bytes == 2 * ARENA
    assert directory_shape(shape, bytes(32)) == (6, 303_104, bytes(32))


def test_an_address_leads_to_the_arena_of_its_slot(fds) -> None:
    memory = TierMemory(fds, ARENA)
    shape = memory.shape(300_000)
    ctypes.memmove(memory.address(4, shape), b"here", 4)
    assert os.pread(fds[2], 4, 303_104) == b"here"
    assert memory.address(1, shape) - memory.address(0, shape) == 303_104
    assert memory.address(0, shape) % 4096 == 0


def test_handles_are_of_every_file(fds) -> None:
    arenas, directory = TierMemory(fds, ARENA).handles()
    assert [handle["fd"] for handle in (directory, *arenas)] == fds
    assert [handle["bytes"] for handle in arenas] == [ARENA, ARENA]


def test_memory_that_is_not_what_the_spec_says_is_refused(fds) -> None:
    with pytest.raises(ConfigError, match="1 files"):
        TierMemory(fds[:1], ARENA)
    with pytest.raises(ConfigError, match=r"arenas have \[1048576\] bytes, told were 5"):
        TierMemory(fds, 5)


def test_blocks_for_which_there_is_no_room_are_refused(fds) -> None:
    with pytest.raises(CapacityError, match="an arena of the host tier 1048576"):
        TierMemory(fds, ARENA).shape(ARENA + 1)
    small = TierMemory([os.memfd_create("small"), *fds[1:]], ARENA)
    with pytest.raises(CapacityError, match="the slot directory has 0 bytes"):
        small.shape(4096)
    os.close(small.directory_fd)
