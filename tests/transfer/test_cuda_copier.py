"""Copies on a stream of their own, behind what they must come after."""

import ctypes
import threading

import pytest

from nodeserve.device.cuda_driver import CudaContext, CudaDriver
from nodeserve.errors import DeviceError
from nodeserve.transfer.base import AddressRun
from nodeserve.transfer.cuda_copier import CudaCopier
from tests.support.fake_driver import FakeControls, build

WHILE_S = 0.05
"""How long is watched that something does not happen."""


@pytest.fixture
def library(tmp_path):
    return build(tmp_path)


@pytest.fixture
def controls(library):
    return FakeControls(library)


class Gpu:
    def __init__(self, library):
        self.context = CudaContext(CudaDriver(str(library)), 0)
        self.compute = self.context.stream()
        self.copier = CudaCopier(self.context, lambda: self.compute)
        self.source, self.destination = self.context.allocate(64), self.context.allocate(64)
        self.run = AddressRun(self.source, self.destination, 64)

    def result(self):
        return ctypes.string_at(self.destination, 64)


@pytest.fixture
def gpu(library):
    return Gpu(library)


def test_a_copy_waits_for_what_was_asked_of_the_device_before_its_fence(gpu, controls):
    controls.hold_stream(gpu.compute)
    gpu.context.fill(gpu.source, 5, 64, gpu.compute)
    fence = gpu.copier.fence()
    copying = threading.Thread(target=gpu.copier.copy, args=([gpu.run], fence))
    copying.start()
    copying.join(WHILE_S)
    assert copying.is_alive()
    controls.let_stream_go(gpu.compute)
    copying.join()
    assert gpu.result() == bytes([5] * 64)


def test_copies_that_follow_a_fence_wait_for_it(gpu, controls):
    controls.hold_stream(gpu.compute)
    gpu.context.fill(gpu.source, 6, 64, gpu.compute)
    gpu.copier.follow(gpu.copier.fence())
    copying = threading.Thread(target=gpu.copier.copy_on_device, args=([gpu.run], None))
    copying.start()
    copying.join(WHILE_S)
    assert copying.is_alive()
    controls.let_stream_go(gpu.compute)
    copying.join()
    assert gpu.result() == bytes([6] * 64)
    gpu.copier.follow(None)


def test_a_copy_does_not_wait_for_what_is_asked_behind_its_fence(gpu, controls):
    ctypes.memset(gpu.source, 4, 64)
    fence = gpu.copier.fence()
    controls.hold_stream(gpu.compute)
    gpu.context.fill(gpu.source, 5, 64, gpu.compute)
    gpu.copier.copy([gpu.run], fence)
    assert gpu.result() == bytes([4] * 64)
    controls.let_stream_go(gpu.compute)


@pytest.mark.parametrize("is_used", [True, False])
def test_a_fence_leaves_no_event_behind_whether_it_is_used_or_not(gpu, controls, is_used):
    before = controls.num_events
    fence = gpu.copier.fence()
    assert controls.num_events == before + 1
    if is_used:
        gpu.copier.copy([gpu.run], fence)
    del fence
    assert controls.num_events == before


def test_a_copy_is_done_when_it_returns(gpu):
    gpu.context.fill(gpu.source, 7, 64, gpu.compute)
    gpu.copier.copy([gpu.run], gpu.copier.fence())
    assert gpu.result() == bytes([7] * 64)


def test_a_refused_copy_is_an_error_once_what_was_accepted_has_ended(gpu, controls):
    controls.fail("cuMemcpyBatchAsync", 999)
    with pytest.raises(DeviceError, match="cuMemcpyBatchAsync"):
        gpu.copier.copy([gpu.run], None)
    gpu.copier.copy([gpu.run], None)


def test_a_fault_of_the_device_is_told_by_the_copy_that_met_it(gpu):
    with pytest.raises(DeviceError, match="this process must be replaced"):
        gpu.copier.copy([AddressRun(gpu.source, gpu.destination, 128)], None)


def page():
    memory = ctypes.create_string_buffer(2 * 4096)
    return memory, -(-ctypes.addressof(memory) // 4096) * 4096


def test_what_was_registered_is_unregistered_at_the_end(gpu, controls):
    memory, address = page()
    gpu.copier.register(address, 4096)
    with pytest.raises(DeviceError, match="ALREADY_REGISTERED"):
        gpu.copier.register(address, 4096)
    assert controls.registered_bytes == 4096
    gpu.copier.close()
    assert controls.registered_bytes == 0
    del memory


def test_what_was_unregistered_or_never_registered_is_not_unregistered_again(gpu, controls):
    memory, address = page()
    gpu.copier.register(address, 4096)
    gpu.copier.unregister(address)
    gpu.context.register_host(address, 4096)  # by somebody else
    gpu.copier.unregister(address)
    gpu.copier.close()
    assert controls.registered_bytes == 4096
    del memory


def test_a_broken_device_is_left_as_it_is(gpu, controls):
    controls.fail("cuEventDestroy", 700, times=-1)
    gpu.copier.close()
