"""GPU memory by file descriptor, against the fake driver."""

import ctypes
from pathlib import Path

import pytest

from nodeserve.device.cuda_driver import CudaContext, CudaDriver
from nodeserve.device.cuda_vmm import VmmMemory, map_fd
from nodeserve.errors import DeviceError
from tests.support.fake_driver import FakeControls, build

MIB = 1 << 20


@pytest.fixture
def library(tmp_path):
    return build(tmp_path)


@pytest.fixture
def context(library):
    return CudaContext(CudaDriver(str(library)), 0)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_memory_is_rounded_up_and_shared_by_its_descriptor(context):
    memory = VmmMemory(context, 3 * MIB)
    assert memory.num_bytes == 4 * MIB
    ctypes.memset(memory.address, 7, memory.num_bytes)
    mapping = map_fd(context, memory.fd, memory.num_bytes)
    assert mapping.address != memory.address
    memory.close()
    assert ctypes.string_at(mapping.address + 4 * MIB - 1, 1) == b"\x07"
    mapping.close()


def test_nothing_is_left_open(context):
    before = open_files()
    memory = VmmMemory(context, MIB)
    map_fd(context, memory.fd, memory.num_bytes).close()
    memory.close()
    assert open_files() == before


def test_a_descriptor_of_a_plain_file_is_refused(context, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("rb") as file, pytest.raises(DeviceError, match="cuMemImport"):
        map_fd(context, file.fileno(), 2 * MIB)


def test_more_than_the_piece_is_not_mapped(context):
    memory = VmmMemory(context, MIB)
    before = open_files()
    with pytest.raises(DeviceError, match="cuMemMap"):
        map_fd(context, memory.fd, 8 * MIB)
    assert open_files() == before


def test_a_descriptor_that_cannot_be_made_gives_the_memory_back(context, library):
    before = open_files()
    FakeControls(library).fail("cuMemExportToShareableHandle", 801)
    with pytest.raises(DeviceError, match="does not have it"):
        VmmMemory(context, MIB)
    assert open_files() == before


@pytest.mark.parametrize("function", ["cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"])
def test_a_mapping_that_fails_half_way_leaves_nothing_behind(context, library, function):
    """A peer whose GPU is out of reach is refused by the last of these, each time it is tried."""
    controls, memory = FakeControls(library), VmmMemory(context, MIB)
    before = open_files(), controls.num_ranges
    controls.fail(function, 101, times=2)
    with pytest.raises(DeviceError, match=function):
        map_fd(context, memory.fd, memory.num_bytes)
    with pytest.raises(DeviceError, match=function):
        VmmMemory(context, MIB)
    assert (open_files(), controls.num_ranges) == before
    map_fd(context, memory.fd, memory.num_bytes).close()
    memory.close()
