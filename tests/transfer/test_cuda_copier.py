"""Copies on a stream of their own, behind what they must come after."""

import ctypes
import threading

import pytest

from nodeserve.device.cuda_driver import CudaContext, CudaDriver
from nodeserve.errors import DeviceError
from nodeserve.transfer.base import AddressRun
from nodeserve.transfer.cuda_copier import CudaCopier
from tests.support.fake_driver import FakeControls, build


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
    controls.hold()
    gpu.context.fill(gpu.source, 5, 64, gpu.compute)
    fence = gpu.copier.fence()
    copying = threading.Thread(target=gpu.copier.copy, args=([gpu.run], fence))
    copying.start()
    controls.let_go()
    copying.join()
    assert gpu.result() == bytes([5] * 64)


def test_copies_that_follow_a_fence_wait_for_it(gpu, controls):
    controls.hold()
    gpu.context.fill(gpu.source, 6, 64, gpu.compute)
    gpu.copier.follow(gpu.copier.fence())
    copying = threading.Thread(target=gpu.copier.copy_on_device, args=([gpu.run], None))
    copying.start()
    controls.let_go()
    copying.join()
    assert gpu.result() == bytes([6] * 64)
    gpu.copier.follow(None)


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


def test_what_was_registered_is_unregistered_at_the_end(gpu):
    memory = ctypes.create_string_buffer(2 * 4096)
    page = -(-ctypes.addressof(memory) // 4096) * 4096
    gpu.copier.register(page, 4096)
    with pytest.raises(DeviceError, match="ALREADY_REGISTERED"):
        gpu.copier.register(page, 4096)
    gpu.copier.close()
    gpu.context.register_host(page, 4096)


def test_a_broken_device_is_left_as_it_is(gpu, controls):
    controls.fail("cuEventDestroy", 700, times=-1)
    gpu.copier.close()
