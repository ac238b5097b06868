import os
import resource

import pytest

from nodeserve.config.node import TierSettings
from nodeserve.errors import CapacityError
from nodeserve.supervisor import tier_memory
from nodeserve.supervisor.tier_memory import MAX_ARENAS, TierMemory
from nodeserve.transfer.slot_directory import directory_bytes

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def made():
    memories = []

    def make(host_bytes):
        memories.append(TierMemory.made(host_bytes))
        return memories[-1]

    yield make
    for memory in memories:
        memory.close()


@pytest.mark.parametrize(
    ("host_bytes", "num_arenas"),
    [(16 * MIB, 1), (2 * GIB, 1), (3 * GIB, 2), (100 * GIB, 50), (4096 * GIB, MAX_ARENAS)],
)
def test_arenas_are_few_equal_and_no_more_than_the_tier(made, host_bytes, num_arenas):
    memory = made(host_bytes)
    assert len(memory.fds) == num_arenas + 1
    assert {os.fstat(fd).st_size for fd in memory.fds[1:]} == {memory.arena_bytes}
    lost = host_bytes - num_arenas * memory.arena_bytes
    assert 0 <= lost < num_arenas * 2 * MIB
    assert memory.arena_bytes % (2 * MIB) == 0


def test_arenas_are_spread_over_the_memory_of_all_numa_nodes(made, monkeypatch, caplog):
    """Node 60 is on no machine: the kernel's refusal shows which arenas were meant for it."""
    monkeypatch.setattr(tier_memory, "memory_nodes", lambda: [0, 60])
    made(8 * GIB)
    assert [r.args[0] for r in caplog.records if "arena_not_bound" in r.msg] == [60, 60]


def test_the_directory_has_room_for_the_smallest_slots(made):
    memory = made(64 * MIB)
    assert os.fstat(memory.fds[0]).st_size >= directory_bytes(64 * MIB // 4096)


def test_nobody_can_change_a_size_and_no_page_is_taken_before_it_is_written(made):
    memory = made(64 * MIB)
    for fd in memory.fds:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 4096)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, GIB)
        assert os.fstat(fd).st_blocks == 0
        assert not os.get_inheritable(fd)


def test_what_was_kept_goes_on_with_what_is_in_it(made):
    before = made(16 * MIB)
    os.pwrite(before.fds[1], b"KV", 0)
    settings = TierSettings(host_bytes=16 * MIB, log_path="/another")
    after = TierMemory.of(settings, before.kept)
    assert after.fds == before.fds
    assert after.arena_bytes == before.arena_bytes
    assert os.pread(after.fds[1], 2, 0) == b"KV"


def test_another_size_is_new_memory_and_lets_the_old_go(made):
    before = made(16 * MIB)
    old, before.fds = before.fds, []
    before = before.kept
    kept = TierMemory(16 * MIB, before.arena_bytes, old).kept
    inode = os.fstat(old[1]).st_ino
    after = TierMemory.of(TierSettings(host_bytes=32 * MIB), kept)
    try:
        assert os.fstat(after.fds[1]).st_ino != inode
        assert os.fstat(after.fds[1]).st_size == 32 * MIB
    finally:
        after.close()


def test_without_tiers_nothing_is_held(made):
    memory = made(16 * MIB)
    kept, memory.fds = memory.kept, []
    assert TierMemory.of(None, kept) is None
    for fd in kept.fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    assert TierMemory.of(None, None) is None


def test_a_process_that_may_open_no_file_is_told_what_to_do():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = os.memfd_create("highest")
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 3, before[1]))
    try:
        with pytest.raises(CapacityError, match=r"64 arenas of .* Too many open files; lower"):
            TierMemory.made(1024 * GIB)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        os.close(taken)
