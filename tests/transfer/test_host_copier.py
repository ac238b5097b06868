import ctypes

from nodeserve.transfer.base import AddressRun
from nodeserve.transfer.host_copier import HostCopier


def test_bytes_move_and_nothing_beside_them():
    source = ctypes.create_string_buffer(bytes(range(200)), 200)
    destination = ctypes.create_string_buffer(b"." * 200, 200)
    here, there = ctypes.addressof(source), ctypes.addressof(destination)
    copier = HostCopier()
    copier.copy([AddressRun(here + 10, there + 50, 5), AddressRun(here, there, 2)], copier.fence())
    expected = bytearray(b"." * 200)
    expected[50:55], expected[:2] = bytes(range(10, 15)), bytes(range(2))
    assert destination.raw == bytes(expected)
