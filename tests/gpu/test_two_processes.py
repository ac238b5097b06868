"""GPU memory between two processes on one GPU."""

import os
import subprocess
import sys

import pytest

from nodeserve.errors import DeviceError, PeerError
from nodeserve.kv.layout import CopyRun
from nodeserve.transfer import probe
from nodeserve.transfer.base import AddressRun
from nodeserve.transfer.cuda_ipc import CudaIpcImporter, export_pool
from tests.conformance.transfer.rig import POOL_BYTES
from tests.gpu.figures import SIZES, best_s, gbps
from tests.support.pool_owner import ROOT, PoolOwner, pattern

pytestmark = pytest.mark.gpu

KIB = 1 << 10
POOLS = "tests/conformance/transfer/test_pools.py"
IPC = "tests/conformance/transfer/test_cuda_ipc_pools.py"
VMM = "tests/conformance/transfer/test_cuda_vmm_pools.py"


@pytest.mark.twin(f"{POOLS}::test_runs_land_where_they_should_and_nowhere_else")
def test_copies_are_right(rig, record_property):
    """bytes of another process land where they should"""
    owner = rig.owner()
    owner.fill(3)
    pool = rig.open(owner)
    theirs = pattern(3, POOL_BYTES)
    runs = [CopyRun(64 * KIB, 5, 100), CopyRun(0, 4096, 1), CopyRun(1 << 20, 1 << 21, 1 << 20)]
    pool.copy(runs)
    expected = bytearray(POOL_BYTES)
    for source, destination, length in runs:
        expected[destination : destination + length] = theirs[source : source + length]
    assert rig.own.read() == bytes(expected)
    pool.close()
    record_property("transport", rig.transport)


@pytest.mark.twin(f"{POOLS}::test_thousands_of_small_runs_are_all_copied")
def test_many_small_copies_are_right(rig):
    """thousands of small runs are all copied"""
    owner = rig.owner()
    owner.fill(5)
    pool = rig.open(owner)
    runs = [CopyRun(i * 512, POOL_BYTES - (i + 1) * 512, 512) for i in range(POOL_BYTES // 512)]
    pool.copy(runs)
    theirs = pattern(5, POOL_BYTES)
    assert rig.own.read(POOL_BYTES - 512, 512) == theirs[:512]
    assert rig.own.read(0, 512) == theirs[-512:]
    pool.close()


@pytest.mark.twin("tests/transfer/test_probe.py")
def test_bandwidth(gpu, rig, record_property):
    """bandwidth by size, and against a plain copy within the GPU"""
    largest = SIZES[-1] if not gpu.is_fake else 4 << 20
    context, copier = rig.own.context, rig.own.copier
    with PoolOwner(rig.transport, str(rig.library), largest) as owner:
        destination = context.allocate(largest)
        source = context.allocate(largest)
        importer = rig.importer_into(destination, largest)
        pool = importer.open(owner.handle)
        for size in (size for size in SIZES if size <= largest):
            took_s = best_s(lambda size=size: pool.copy([CopyRun(0, 0, size)]))
            record_property(f"{size >> 10} KiB, GB/s", gbps(size, took_s))
        ours_s = best_s(lambda: pool.copy([CopyRun(0, 0, largest)]))
        run = [AddressRun(source, destination, largest)]
        plain_s = best_s(lambda: copier.copy_on_device(run, None))
        batch_s = best_s(lambda: copier.copy(run, None))
        record_property("plain copy, GB/s", gbps(largest, plain_s))
        record_property("batched copy, GB/s", gbps(largest, batch_s))
        record_property("ratio to plain", round(plain_s / ours_s, 2))
        for size in (64 * KIB, 256 * KIB):
            count = largest // size
            runs = [CopyRun(i * size, (count - 1 - i) * size, size) for i in range(count)]
            took_s = best_s(lambda runs=runs: pool.copy(runs))
            record_property(f"pieces of {size >> 10} KiB, GB/s", gbps(largest, took_s))
        pool.close()
        context.free(destination)
        context.free(source)
    if not gpu.is_fake:
        assert plain_s / ours_s >= 0.7


@pytest.mark.twin(f"{IPC}::test_a_copy_from_an_ended_owner_is_refused_before_it_touches_the_device")
def test_death_of_the_exporter(ipc_rig, record_property):
    """a copy from an ended exporter is refused, and the device goes on"""
    owner = ipc_rig.owner()
    owner.fill(1)
    pool = ipc_rig.open(owner)
    pool.copy([CopyRun(0, 0, KIB)])
    owner.kill()
    with pytest.raises(PeerError, match="ended before a copy"):
        pool.copy([CopyRun(0, 0, KIB)])
    pool.close()
    assert ipc_rig.importer.mappings.num_mapped == 0
    successor = ipc_rig.owner()
    successor.fill(2)
    again = ipc_rig.open(successor)
    again.copy([CopyRun(0, 0, KIB)])
    assert ipc_rig.own.read(0, KIB) == pattern(2, KIB)
    again.close()
    record_property("next generation", "opened and read")


READ_THE_DEAD = """
import sys
from nodeserve.kv.layout import CopyRun
from nodeserve.transfer.base import AddressRun
from tests.conformance.transfer.rig import Rig
from tests.support.pool_owner import pattern

rig = Rig("cuda_ipc", sys.argv[1])
owner = rig.owner()
owner.fill(9)
pool = rig.open(owner)
owner.kill()
try:
    run = AddressRun(pool._address, rig.own.address, 1024)
    rig.own.copier.copy_on_device([run], None)
    same = rig.own.read(0, 1024) == pattern(9, 1024)
    print("the bytes of before" if same else "other bytes")
except Exception as error:
    print(f"error {getattr(error, 'code', error)}")
"""


@pytest.mark.twin(
    f"{IPC}::test_an_owner_that_ends_under_a_copy_may_break_the_device_and_the_copy_says_so"
)
def test_what_a_dead_exporters_memory_reads_as(gpu, record_property):
    """what reading an ended exporter's memory does all the same (nodeserve never does)"""
    command = [sys.executable, "-c", READ_THE_DEAD, gpu.library]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    record_property("a read gives", done.stdout.strip() or done.stderr.strip()[-160:])
    assert done.stdout or done.returncode < 0  # a signal would be an answer, too
    if gpu.is_fake:
        assert done.stdout.startswith("error 700")


KILL_UNDER_COPIES = """
import sys
import threading
from nodeserve.errors import PeerError
from nodeserve.kv.layout import CopyRun
from nodeserve.transfer.base import AddressRun
from tests.conformance.transfer.rig import POOL_BYTES, Rig

rig = Rig("cuda_ipc", sys.argv[1])
owner = rig.owner()
owner.fill(9)
pool = rig.open(owner)
begun, copies = threading.Event(), 0
threading.Thread(target=lambda: begun.wait() and owner.kill()).start()
try:
    while True:
        pool.copy([CopyRun(0, 0, POOL_BYTES)])
        copies += 1
        begun.set()
except PeerError as error:
    said = getattr(error, "code", 0) or str(error).partition(" a copy")[0].split()[-1]
try:
    run = AddressRun(rig.own.address, rig.own.address + 4096, 4096)
    rig.own.copier.copy_on_device([run], None)
    after = "goes on"
except PeerError as error:
    after = f"fails with {error.code}"
print(f"refused after some copies ({said}); the device {after}")
"""


@pytest.mark.twin(
    f"{IPC}::test_an_owner_that_ends_under_a_copy_may_break_the_device_and_the_copy_says_so"
)
def test_an_exporter_is_killed_under_copies(gpu, record_property):
    """an exporter that is killed under copies: the copy says so, and what the device does then"""
    command = [sys.executable, "-c", KILL_UNDER_COPIES, gpu.library]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    record_property("it was", done.stdout.strip() or done.stderr.strip()[-160:])
    assert done.stdout.startswith("refused after some copies")


@pytest.mark.twin(f"{IPC}::test_memory_without_a_handle_is_refused_with_the_reason")
def test_memory_without_a_handle(vmm_rig, record_property):
    """memory of cuMemCreate, as that of sleep mode, is refused with the reason"""
    own = vmm_rig.own
    with pytest.raises(DeviceError, match="expandable segments and of sleep mode") as caught:
        export_pool(own.context, own.address, POOL_BYTES)
    record_property("the driver says", caught.value.code)


@pytest.mark.twin(
    f"{IPC}::test_a_second_open_by_the_driver_itself_gives_the_same_address_and_counts"
)
def test_a_second_open(ipc_rig, record_property):
    """a second open gives the same address and counts"""
    owner = ipc_rig.owner()
    context = ipc_rig.own.context
    token = bytes.fromhex(owner.handle["handle"])
    first, second = context.open_ipc(token), context.open_ipc(token)
    record_property("same address", first == second)
    context.close_ipc(first)
    run = AddressRun(second, ipc_rig.own.address, KIB)
    ipc_rig.own.copier.copy_on_device([run], None)
    context.close_ipc(second)
    assert first == second


@pytest.mark.twin(f"{IPC}::test_its_own_handle_is_refused_in_words")
def test_its_own_handle(ipc_rig, record_property):
    """a handle is not opened where it was made"""
    handle = ipc_rig.own.handle()
    with pytest.raises(PeerError, match="its own GPU memory"):
        ipc_rig.importer.open(handle)
    try:
        ipc_rig.own.context.open_ipc(bytes.fromhex(handle["handle"]))
        record_property("the driver itself", "opens it")
    except PeerError as error:
        record_property("the driver itself", error.code)


@pytest.mark.twin(f"{IPC}::test_gpus_are_told_apart_by_uuid_however_they_are_numbered")
def test_uuids(gpu, record_property):
    """the same GPU under another number, or hidden by name, is found by UUID"""
    from tests.conformance.transfer.rig import Rig  # noqa: PLC0415

    with Rig("cuda_ipc", gpu.library) as rig:
        uuid = rig.own.context.uuid
        for mask in (uuid, str(gpu.uuids.index(uuid))):
            if os.environ.get("CUDA_VISIBLE_DEVICES") and mask.isdigit():
                continue
            owner = rig.owner(CUDA_VISIBLE_DEVICES=mask)
            owner.fill(6)
            assert owner.handle["uuid"] == uuid
            pool = rig.open(owner)
            assert pool._same_gpu
            pool.copy([CopyRun(0, 0, KIB)])
            assert rig.own.read(0, KIB) == pattern(6, KIB)
            pool.close()
    record_property("UUID", uuid)


@pytest.mark.twin(f"{VMM}::test_what_is_mapped_can_be_read_when_its_owner_has_ended")
def test_vmm_outlives_its_owner(vmm_rig, record_property):
    """memory by descriptor is read when its owner has ended"""
    owner = vmm_rig.owner()
    owner.fill(3)
    pool = vmm_rig.open(owner)
    owner.kill()
    pool.copy([CopyRun(0, 0, KIB)])
    assert vmm_rig.own.read(0, KIB) == pattern(3, KIB)
    pool.close()
    record_property("by", "pidfd_getfd")


@pytest.mark.twin(
    "tests/transfer/test_probe.py::test_latency_is_a_small_copys_and_bandwidth_is_by_the_size_of_pieces"
)
def test_the_start_up_probe(gpu, ipc_rig, record_property):
    """what the start-up probe says"""
    import time  # noqa: PLC0415

    size = probe.SCRATCH_BYTES if not gpu.is_fake else 2 << 20
    context = ipc_rig.own.context
    with PoolOwner("cuda_ipc", gpu.library, size) as owner:
        scratch = context.allocate(size)
        importer = CudaIpcImporter(context, ipc_rig.own.copier, scratch, size)
        pool = importer.open(owner.handle)
        begun_s = time.monotonic()
        for name, figure in probe.measure(pool, size, size, time.monotonic).items():
            record_property(name, figure)
        record_property("took, ms", round((time.monotonic() - begun_s) * 1e3, 1))
        pool.close()
        context.free(scratch)
