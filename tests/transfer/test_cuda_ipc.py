"""The bookkeeping of IPC handles, without any driver; tests/conformance/transfer copies bytes."""

import os

import pytest

from nodeserve.errors import DeviceError, PeerError
from nodeserve.kv.layout import CopyRun
from nodeserve.transfer import cuda_ipc
from nodeserve.transfer.cuda_ipc import CudaIpcImporter, addressed_runs
from nodeserve.transfer.owner import started_ticks


class PlainDevice:
    """Maps every handle at the same address and counts."""

    uuid = "GPU-ours"

    def __init__(self, size=4096):
        self.size, self.opened, self.closed = size, 0, 0
        self.path: bool | None = None

    def allocation(self, address):
        return address - 256, self.size

    def ipc_handle(self, base):
        return base.to_bytes(64, "big")

    def reaches(self, uuid):
        return self.path

    def open_ipc(self, handle):
        self.opened += 1
        return 1 << 20

    def close_ipc(self, address):
        self.closed += 1
        raise DeviceError("the device is broken", function="cuIpcCloseMemHandle", code=700)


@pytest.fixture
def device():
    return PlainDevice()


@pytest.fixture
def importer(device):
    return CudaIpcImporter(device, None, 1 << 30, 1024)


@pytest.fixture
def handle(device):
    made = cuda_ipc.export_pool(device, 1 << 16, 1024)
    parent = os.getppid()
    return made | {"pid": parent, "started": started_ticks(parent), "uuid": "GPU-theirs"}


def test_a_handle_is_of_the_allocation_and_says_where_in_it_the_pool_begins(device):
    handle = cuda_ipc.export_pool(device, 1 << 16, 1024)
    assert handle == {
        "transport": "cuda_ipc",
        "pid": os.getpid(),
        "started": started_ticks(os.getpid()),
        "uuid": "GPU-ours",
        "handle": ((1 << 16) - 256).to_bytes(64, "big").hex(),
        "offset": 256,
        "bytes": 1024,
        "allocation_bytes": 4096,
    }


def test_a_pool_that_ends_behind_its_allocation_is_refused(device):
    assert cuda_ipc.export_pool(device, 1 << 16, 4096 - 256)["offset"] == 256
    with pytest.raises(PeerError, match="lies across several allocations"):
        cuda_ipc.export_pool(device, 1 << 16, 4096 - 255)


def test_one_open_and_one_close_whatever_the_number_of_users(device, importer, handle):
    pools = [importer.open(handle) for _ in range(3)]
    assert (device.opened, device.closed) == (1, 0)
    for pool in pools:
        pool.close()
    assert (device.opened, device.closed) == (1, 1)
    importer.open(handle).close()
    assert device.opened == 2


def test_an_equal_handle_of_another_life_is_another_mapping(device, importer, handle):
    with pytest.raises(PeerError, match="is another one by now"):
        importer.open(handle | {"started": handle["started"] + 1})
    assert device.opened == 0


def test_a_gpu_out_of_reach_is_refused_before_anything_is_opened(device, importer, handle):
    device.path = False
    with pytest.raises(PeerError, match="GPU-ours has no direct path to GPU-theirs"):
        importer.open(handle)
    assert device.opened == 0


def test_runs_are_addressed_from_their_pools(importer):
    assert addressed_runs([CopyRun(1, 2, 3)], 100, 10, importer) == [(101, (1 << 30) + 2, 3)]
    with pytest.raises(PeerError, match="not inside pools of 10 and 1024 bytes"):
        addressed_runs([CopyRun(8, 0, 3)], 100, 10, importer)
