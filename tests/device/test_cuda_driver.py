"""The binding of the CUDA driver, against the fake one."""

import ctypes
import os
import subprocess
import threading
from pathlib import Path

import pytest

from nodeserve.device.cuda_driver import CudaContext, CudaDriver
from nodeserve.errors import DeviceError
from tests.support.fake_driver import SOURCES, FakeControls, build, fake_uuid

HEADERS = [
    *(Path(os.environ[name]) / "include/cuda.h" for name in ("CUDA_HOME",) if name in os.environ),
    *sorted(Path("/usr/local").glob("cuda*/include/cuda.h")),
]


@pytest.fixture
def library(tmp_path):
    return build(tmp_path)


@pytest.fixture
def context(library):
    return CudaContext(CudaDriver(str(library)), 0)


@pytest.mark.skipif(not HEADERS, reason="no cuda.h on this machine")
def test_the_fake_has_the_signatures_of_the_real_header():
    for source in SOURCES.glob("*.c"):
        options = ["-D_GNU_SOURCE", "-D__CUDA_API_VERSION_INTERNAL", "-include", str(HEADERS[0])]
        subprocess.run(["cc", "-std=gnu11", "-fsyntax-only", *options, str(source)], check=True)


def test_a_machine_without_driver_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DeviceError, match="install NVIDIA's driver"):
        CudaDriver(str(tmp_path / "libcuda.so.1"))


def test_a_mask_that_hides_every_gpu_is_an_error_with_its_name(library, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match=r"cuInit failed with 100 \(CUDA_ERROR_NO_DEVICE\)"):
        CudaDriver(str(library))


def test_gpus_are_listed_in_the_masks_order_with_the_uuids_that_nvml_writes(library, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"3,{fake_uuid(1)}")
    driver = CudaDriver(str(library))
    assert [(d.ordinal, d.uuid) for d in driver.devices()] == [(0, fake_uuid(3)), (1, fake_uuid(1))]
    found = driver.device_by_uuid(fake_uuid(1))
    assert found is not None
    assert (found.ordinal, found.name, found.pci) == (1, "Fake GPU 1", "0000:11:00.0")
    assert driver.device_by_uuid(fake_uuid(0)) is None
    assert driver.version() == "13.0"


def test_whether_gpus_reach_each_other_is_asked_by_uuid(library, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "3")
    monkeypatch.setenv("FAKE_CUDA_NO_P2P", "0-2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    context = CudaContext(CudaDriver(str(library)), 0)
    reached = [context.reaches(fake_uuid(device)) for device in range(4)]
    assert reached == [True, True, False, None]


def test_every_call_has_a_context_on_any_thread_and_leaves_none_behind(context):
    found = []
    thread = threading.Thread(target=lambda: found.append(context.allocate(64)))
    thread.start()
    thread.join()
    assert context.allocation(found[0] + 5) == (found[0], 64)
    with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_CONTEXT") as caught:
        context.driver.call("cuMemFree_v2", ctypes.c_uint64(found[0]))
    assert (caught.value.function, caught.value.code) == ("cuMemFree_v2", 201)
    context.free(found[0])


def test_an_error_without_a_name_is_still_told(context, library):
    FakeControls(library).fail("cuMemAlloc", 4242)
    with pytest.raises(DeviceError, match=r"cuMemAlloc_v2 failed with 4242 \(unknown\)"):
        context.allocate(64)


@pytest.mark.parametrize("options", [[], ["-DFAKE_ONLY_OLD_BATCH"], ["-DFAKE_WITHOUT_BATCH"]])
def test_batches_are_copied_whatever_the_drivers_age(tmp_path, options):
    context = CudaContext(CudaDriver(str(build(tmp_path, *options))), 0)
    source = (ctypes.c_char * 64).from_buffer_copy(bytes(range(64)))
    at, to, stream = ctypes.addressof(source), context.allocate(64), context.stream()
    done = context.event()
    context.copy_batch([(at + 32, to, 32), (at, to + 32, 32), (at, to, 0)], stream)
    context.record(done, stream)
    context.synchronize(done)
    assert ctypes.string_at(to, 64) == bytes([*range(32, 64), *range(32)])
    context.copy_batch([], stream)
    context.destroy_stream(stream)


@pytest.fixture
def refused(context, library, caplog):
    """Copies twice while the driver refuses the first batch; returns whether a third is a batch."""

    def refuse(code):
        source = (ctypes.c_char * 64).from_buffer_copy(bytes(range(64)))
        to, stream, done = context.allocate(64), context.stream(), context.event()
        controls = FakeControls(library)
        controls.fail("cuMemcpyBatchAsync", code, times=2)
        for _ in range(2):
            context.copy_batch([(ctypes.addressof(source), to, 64)], stream)
        context.record(done, stream)
        context.synchronize(done)
        assert ctypes.string_at(to, 64) == bytes(range(64))
        assert caplog.text.count("cuda_batch_refused") == 1
        controls.fail("cuMemcpyBatchAsync", 0, times=0)
        controls.fail("cuMemcpyAsync", 999)
        try:
            context.copy_batch([(ctypes.addressof(source), to, 64)], stream)
        except DeviceError:
            return False
        return True

    return refuse


def test_a_batch_that_is_refused_is_copied_one_by_one_and_the_next_is_a_batch_again(refused):
    """One with memory that is not pinned, say: between GPUs all others stay fast."""
    assert refused(1)


def test_a_driver_that_has_no_batches_is_not_asked_again(refused):
    assert not refused(801)


def test_instances_of_a_divided_gpu_have_the_names_that_nvml_writes(library, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_MIG", "1")
    (first, _) = CudaDriver(str(library)).devices()
    assert first.uuid == fake_uuid(0).replace("GPU-", "MIG-")


def test_the_default_stream_is_one_that_others_can_wait_for(context, library):
    """What torch computes on unless it is told otherwise has no handle: it is 0."""
    controls = FakeControls(library)
    side, at, event, done = context.stream(), context.allocate(8), context.event(), context.event()
    controls.hold_stream(0)
    context.fill(at, 1, 8, 0)
    context.record(event, 0)
    context.wait_event(side, event)
    context.fill(at, 2, 4, side)
    context.record(done, side)
    controls.let_stream_go(0)
    context.synchronize(done)
    assert ctypes.string_at(at, 8) == bytes([2] * 4 + [1] * 4)


def test_a_gpu_that_is_nearly_full_gives_less_and_no_less_than_the_least(context, library):
    controls = FakeControls(library)
    controls.fail("cuMemAlloc", 2, times=2)
    address, num_bytes = context.allocate_up_to(64, 16)
    assert (num_bytes, context.allocation(address)) == (16, (address, 16))
    controls.fail("cuMemAlloc", 2, times=3)
    with pytest.raises(DeviceError, match="the GPU is full"):
        context.allocate_up_to(64, 16)


def test_events_order_streams_and_tell_the_time_between_them(context, library):
    controls = FakeControls(library)
    first, second = context.stream(), context.stream()
    at = context.allocate(8)
    begin, end = context.event(timed=True), context.event(timed=True)
    controls.hold()
    context.fill(at, 1, 8, first)
    context.record(begin, first)
    context.wait_event(second, begin)
    context.fill(at, 2, 4, second)
    context.record(end, second)
    controls.let_go()
    context.synchronize(end)
    assert ctypes.string_at(at, 8) == bytes([2] * 4 + [1] * 4)
    assert context.elapsed_ms(begin, end) >= 0
    for event in (begin, end):
        context.destroy_event(event)


def test_host_memory_is_registered_once_and_page_by_page(context):
    memory = ctypes.create_string_buffer(3 * 4096)
    page = -(-ctypes.addressof(memory) // 4096) * 4096
    context.register_host(page, 4096)
    with pytest.raises(DeviceError, match="ALREADY_REGISTERED"):
        context.register_host(page, 4096)
    context.unregister_host(page)
    with pytest.raises(DeviceError, match="NOT_REGISTERED"):
        context.unregister_host(page)
    context.close()
