import ctypes
import mmap
import os
import threading

from nodeserve.transfer.first_touch import CHUNK_BYTES, in_background, touch, touch_mapped
from nodeserve.transfer.shared_memory import SharedMemory

SIZE = 3 * CHUNK_BYTES + 4096


def taken(memory):
    return os.fstat(memory.fd).st_blocks * 512


def test_all_pages_are_there_and_what_was_written_stays():
    memory = SharedMemory("test", SIZE)
    os.pwrite(memory.fd, b"kept", CHUNK_BYTES + 100)
    assert taken(memory) < CHUNK_BYTES
    assert touch(memory.fd, SIZE, goes_on=lambda: True)
    assert taken(memory) >= SIZE
    assert os.pread(memory.fd, 6, CHUNK_BYTES + 99) == b"\0kept\0"


def test_it_ends_when_it_is_told_to():
    memory = SharedMemory("test", SIZE)
    asked = iter([True, False])
    assert not touch(memory.fd, SIZE, goes_on=lambda: next(asked))
    assert taken(memory) == CHUNK_BYTES


def test_what_has_all_its_pages_is_not_mapped_again():
    memory = SharedMemory("test", SIZE)
    assert touch(memory.fd, SIZE, goes_on=lambda: True)
    asked = []
    assert touch(memory.fd, SIZE, goes_on=lambda: asked.append(1) or True)
    assert len(asked) == 1


def test_mapped_memory_is_touched_through_its_mapping():
    memory = SharedMemory("test", SIZE)
    with mmap.mmap(memory.fd, SIZE) as pages:
        pages[CHUNK_BYTES : CHUNK_BYTES + 4] = b"kept"
        address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        assert not touch_mapped(address, SIZE, goes_on=lambda: False)
        assert touch_mapped(address, SIZE, goes_on=lambda: True)
        assert pages[CHUNK_BYTES : CHUNK_BYTES + 5] == b"kept\0"
    assert taken(memory) >= SIZE


def test_a_thread_does_it_and_can_be_ended():
    begun, seen = threading.Event(), []

    def work(goes_on):
        begun.set()
        while goes_on():
            pass
        seen.append(threading.current_thread().name)
        return False

    end = in_background("test", work)
    assert begun.wait(10)
    end()
    assert seen == ["touch-test"]
