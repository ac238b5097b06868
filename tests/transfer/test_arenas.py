"""The host tier's memory."""

import errno
import fcntl
import io
import mmap
import os

import pytest

from nodeserve.errors import CapacityError
from nodeserve.transfer import arenas
from nodeserve.transfer.arenas import (
    HUGE_PAGE_BYTES,
    advise_huge_pages,
    create_arenas,
    free_huge_bytes,
    memory_nodes,
)
from nodeserve.transfer.slot_directory import directory_bytes

ARENA = 4 << 20


@pytest.fixture
def made():
    fds = []

    def make(*args, **kwargs):
        found = create_arenas(*args, **kwargs)
        fds.extend(found.fds)
        return found

    yield make
    for fd in fds:
        os.close(fd)


def test_arenas_are_of_equal_size_and_the_directory_has_room_for_the_smallest_slots(made) -> None:
    found = made(3 * ARENA, ARENA)
    assert [os.fstat(fd).st_size for fd in found.arena_fds] == [ARENA] * 3
    assert os.fstat(found.directory_fd).st_size == directory_bytes(3 * ARENA // 4096)
    assert found.fds == [found.directory_fd, *found.arena_fds]


def test_nobody_can_change_their_size_and_they_take_no_memory_before_they_are_written(made) -> None:
    found = made(ARENA, ARENA)
    for fd in found.fds:
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        assert os.fstat(fd).st_blocks == 0
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)


def test_arenas_for_several_nodes_are_usable_where_the_kernel_refuses_one(made, caplog) -> None:
    """Node 60 is on no machine: the kernel refuses, the arena is as good as any."""
    found = made(2 * ARENA, ARENA, nodes=[0, 60])
    assert len(found.arena_fds) == 2
    assert [r.message for r in caplog.records if "node=60" in r.message]
    with mmap.mmap(found.arena_fds[1], ARENA) as mapped:
        mapped[:4] = b"kept"
        assert mapped[:4] == b"kept"


def test_memory_that_cannot_be_had_is_refused_and_leaves_no_file_open(monkeypatch) -> None:
    create, made = arenas._create, []

    def create_three(name, num_bytes, flags=0):
        if len(made) == 3:
            raise OSError(errno.EMFILE, "too many open files")
        made.append(create(name, num_bytes, flags))
        return made[-1]

    monkeypatch.setattr(arenas, "_create", create_three)
    with pytest.raises(CapacityError, match=r"64 arenas of 4096 bytes cannot be had: too many"):
        create_arenas(64 * 4096, 4096)
    for fd in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_huge_pages_are_used_where_enough_are_free(monkeypatch) -> None:
    asked = []

    def create(name, num_bytes, flags=0):
        asked.append(flags)
        return os.memfd_create(name)

    monkeypatch.setattr(arenas, "free_huge_bytes", lambda: 2 * ARENA)
    monkeypatch.setattr(arenas, "_create", create)
    monkeypatch.setattr(mmap, "mmap", lambda fd, num_bytes: io.BytesIO())
    huge, small = create_arenas(2 * ARENA, ARENA), create_arenas(3 * ARENA, ARENA)
    flags = os.MFD_HUGETLB | os.MFD_HUGE_2MB
    assert (huge.is_huge, small.is_huge) == (True, False)
    assert asked == [0, flags, flags, 0, 0, 0, 0]
    for fd in huge.fds + small.fds:
        os.close(fd)


@pytest.mark.parametrize(("text", "nodes"), [("0\n", [0]), ("0-1,4\n", [0, 1, 4]), ("\n", [])])
def test_nodes_are_those_that_have_memory(tmp_path, text, nodes) -> None:
    (tmp_path / "has_memory").write_text(text)
    assert memory_nodes(tmp_path) == nodes


def test_what_the_kernel_does_not_say_is_none(tmp_path) -> None:
    assert memory_nodes(tmp_path) == []
    assert free_huge_bytes(tmp_path) == 0


def test_huge_pages_that_are_promised_are_not_free(tmp_path) -> None:
    (tmp_path / "free_hugepages").write_text("5\n")
    (tmp_path / "resv_hugepages").write_text("2\n")
    assert free_huge_bytes(tmp_path) == 3 * HUGE_PAGE_BYTES


def test_advice_for_what_is_not_mapped_is_refused() -> None:
    assert not advise_huge_pages(0, 4096)
