"""GPU memory between GPUs; with one GPU these rows are left out."""

import pytest

from nodeserve.kv.layout import CopyRun
from nodeserve.transfer.cuda_ipc import CudaIpcImporter
from tests.gpu.figures import SIZES, best_s, gbps
from tests.support.pool_owner import OwnPool, PoolOwner, pattern

pytestmark = pytest.mark.gpu

KIB = 1 << 10
IPC = "tests/conformance/transfer/test_cuda_ipc_pools.py"


@pytest.fixture
def uuids(gpu):
    if len(gpu.uuids) < 2:
        pytest.skip("one GPU")
    return gpu.uuids


@pytest.mark.twin(
    "tests/device/test_cuda_driver.py::test_whether_gpus_reach_each_other_is_asked_by_uuid"
)
def test_paths(gpu, uuids, record_property):
    """which GPUs read each other's memory"""
    context = gpu.context()
    record_property("reached from the first", [context.reaches(uuid) for uuid in uuids])


@pytest.mark.twin(f"{IPC}::test_memory_of_a_gpu_that_is_hidden_here_is_opened")
def test_peer_copies(gpu, uuids, record_property):
    """bandwidth from a GPU that is hidden from the importer"""
    largest = SIZES[-1] if not gpu.is_fake else 4 << 20
    own = OwnPool("cuda_ipc", gpu.library, largest)
    importer = CudaIpcImporter(own.context, own.copier, own.address, largest)
    hidden = {"CUDA_VISIBLE_DEVICES": uuids[1]}
    with PoolOwner("cuda_ipc", gpu.library, largest, hidden) as owner:
        assert owner.handle["uuid"] == uuids[1]
        owner.fill(3)
        pool = importer.open(owner.handle)
        for size in (size for size in SIZES if size <= largest):
            took_s = best_s(lambda size=size: pool.copy([CopyRun(0, 0, size)]))
            record_property(f"{size >> 10} KiB, GB/s", gbps(size, took_s))
        for size in (64 * KIB, 256 * KIB):
            count = largest // size
            runs = [CopyRun(i * size, i * size, size) for i in range(count)][::-1]
            took_s = best_s(lambda runs=runs: pool.copy(runs))
            record_property(f"pieces of {size >> 10} KiB, GB/s", gbps(largest, took_s))
        assert own.read(0, KIB) == pattern(3, KIB)
        pool.close()
