"""CRC32C of memory by its address."""

import ctypes
import sys
import threading

from nodeserve.transfer.checksum import crc32c_at, memory_at


def test_the_standard_s_own_values_are_computed() -> None:
    # Source: RFC 3720, appendix B.4; the last is the check value of CRC catalogues.
    for content, crc in [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ]:
        buffer = ctypes.create_string_buffer(content, len(content))
        assert crc32c_at(ctypes.addressof(buffer), len(content)) == crc


def test_memory_at_reads_and_writes_what_lies_there() -> None:
    buffer = ctypes.create_string_buffer(b"abcdef", 6)
    memory = memory_at(ctypes.addressof(buffer) + 2, 2)
    memory.raw = b"XY"
    assert (bytes(memory), buffer.raw) == (b"XY", b"abXYef")


def test_another_thread_runs_while_checksums_are_computed() -> None:
    buffer = ctypes.create_string_buffer(1 << 20)
    stop = threading.Event()
    begun = threading.Event()
    was_stopped = []

    def compute() -> None:
        begun.set()
        for _ in range(5000):
            crc32c_at(ctypes.addressof(buffer), len(buffer))
            if stop.is_set():
                break
        was_stopped.append(stop.is_set())

    thread = threading.Thread(target=compute)
    interval_s = sys.getswitchinterval()
    # Only who lets go of the GIL by itself lets another thread run before this time is over.
    sys.setswitchinterval(30.0)
    try:
        thread.start()
        begun.wait()
        stop.set()
        thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    assert was_stopped == [True]
