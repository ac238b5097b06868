"""What torch and vLLM do with GPU memory, as far as KV rests on it."""

import os
import random
import subprocess
import sys

import pytest

from nodeserve.transfer import cuda_ipc
from nodeserve.transfer.base import AddressRun
from nodeserve.transfer.cuda_copier import CudaCopier
from tests.gpu.figures import best_s, gbps
from tests.support.pool_owner import ROOT

pytestmark = pytest.mark.gpu

MIB = 1 << 20


@pytest.fixture
def torch(needs_torch_on_gpu):
    return needs_torch_on_gpu


@pytest.fixture
def copier(gpu, torch):
    torch.zeros(1, device="cuda")
    return CudaCopier(gpu.context(), lambda: torch.cuda.current_stream().cuda_stream)


@pytest.mark.twin(
    "tests/conformance/transfer/test_cuda_ipc_pools.py::test_an_allocation_is_mapped_once_however_often_it_is_opened"
)
def test_torchs_allocation_has_a_handle(gpu, torch, record_property):
    """what torch.zeros gives has one IPC handle, and says so where it has none"""
    context = gpu.context()
    pool = torch.zeros(96 * MIB, dtype=torch.int8, device="cuda")
    handle = cuda_ipc.export_pool(context, pool.data_ptr(), pool.numel())
    record_property("offset in its allocation", handle["offset"])
    record_property("allocation, MiB", handle["allocation_bytes"] >> 20)
    assert handle["uuid"] in gpu.uuids


@pytest.mark.twin("tests/transfer/test_cuda_copier.py::test_copies_that_follow_a_fence_wait_for_it")
def test_a_copy_waits_for_torchs_stream(torch, copier, record_property):
    """a copy waits for torch's kernels on its current stream"""
    large = torch.randn(8192, 8192, device="cuda")
    wrong = 0
    for value in range(1, 6):
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                made = large @ large
                source = (made * 0 + value).to(torch.int32)
                fence = copier.fence()
            target = torch.zeros_like(source)
            torch.cuda.current_stream().synchronize()
            size = source.numel() * 4
            copier.copy([AddressRun(source.data_ptr(), target.data_ptr(), size)], fence)
            wrong += int((target != value).sum().item() != 0)
    record_property("overtaken", f"{wrong} of 10")
    assert wrong == 0


@pytest.mark.twin("tests/engine/vllm/test_index_copies.py")
def test_pieces_within_the_gpu(gpu, torch, record_property):
    """small pieces within the GPU: one by one, and gathered by torch"""
    index_copies = pytest.importorskip("nodeserve.engine.vllm.index_copies")
    context, device = gpu.context(), torch.device("cuda", 0)
    submit = index_copies.submitter(context)
    gather = CudaCopier(context, lambda: 0, on_device=submit)
    each = CudaCopier(context, lambda: 0)
    source = torch.randint(-128, 127, (256 * MIB,), dtype=torch.int8, device=device)
    target = torch.zeros_like(source)
    torch.cuda.synchronize()
    for size in (16 << 10, 64 << 10, 256 << 10, 2 << 20):
        count = source.numel() // size // 2
        theirs = random.Random(1).sample(range(count * 2), count)
        runs = [
            AddressRun(source.data_ptr() + a * size, target.data_ptr() + b * size, size)
            for b, a in enumerate(theirs)
        ]
        for name, copier in (("one by one", each), ("as chosen", gather)):
            took_s = best_s(lambda c=copier, r=runs: c.copy_on_device(r, None), times=3)
            record_property(f"{size >> 10} KiB {name}, GB/s", gbps(size * count, took_s))
        a = theirs[3]
        assert torch.equal(target[3 * size : 4 * size], source[a * size : (a + 1) * size])


@pytest.mark.twin(
    "tests/device/test_cuda_driver.py::test_batches_are_copied_whatever_the_drivers_age"
)
def test_batches_as_vllm_asks_for_them(gpu, torch, record_property):
    """batches by ctypes against vLLM's swap_blocks_batch, to pinned memory"""
    ops = pytest.importorskip("vllm._custom_ops")
    context = gpu.context()
    copier = CudaCopier(context, lambda: 0)
    host = torch.zeros(64 * MIB, dtype=torch.int8, pin_memory=True)
    device = torch.ones(64 * MIB, dtype=torch.int8, device="cuda")
    torch.cuda.synchronize()
    size = 256 << 10
    runs = [
        AddressRun(device.data_ptr() + i * size, host.data_ptr() + i * size, size)
        for i in range(device.numel() // size)
    ]
    ours_s = best_s(lambda: copier.copy(runs, None))
    columns = [torch.tensor(column, dtype=torch.int64) for column in zip(*runs, strict=True)]

    def theirs():
        ops.swap_blocks_batch(columns[0], columns[1], columns[2], is_src_access_order_any=False)
        torch.cuda.synchronize()

    theirs_s = best_s(theirs)
    record_property("ours, GB/s", gbps(host.numel(), ours_s))
    record_property("vLLM's, GB/s", gbps(host.numel(), theirs_s))
    assert host.sum().item() == host.numel()


UNEXPORTABLE = """
import torch
from nodeserve.device.cuda_driver import CudaContext, CudaDriver
from nodeserve.errors import PeerError
from nodeserve.transfer.cuda_ipc import export_pool

pool = torch.zeros(96 << 20, dtype=torch.int8, device="cuda")
try:
    export_pool(CudaContext(CudaDriver(), 0), pool.data_ptr(), pool.numel())
    print("exported")
except PeerError as error:
    print("refused:", error)
"""


@pytest.mark.twin(
    "tests/conformance/transfer/test_cuda_ipc_pools.py::test_memory_without_a_handle_is_refused_with_the_reason"
)
@pytest.mark.parametrize("setting", ["expandable_segments:True", "backend:cudaMallocAsync"])
def test_unexportable(torch, record_property, setting):
    """memory of torch's allocators that have no handles is refused with the reason"""
    environ = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": setting}
    command = [sys.executable, "-c", UNEXPORTABLE]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environ, timeout=90, check=False
    )
    record_property("it is", done.stdout.strip()[:160] or done.stderr.strip()[-160:])
    assert done.stdout.startswith("refused")
