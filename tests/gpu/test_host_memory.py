"""GPU memory and the host's: what the host tier rests on."""

import ctypes
import mmap
import os
import threading
import time

import pytest

from nodeserve.errors import DeviceError
from nodeserve.transfer.arenas import create_arenas
from nodeserve.transfer.base import AddressRun
from nodeserve.transfer.shared_memory import SharedMemory
from nodeserve.transfer.tier_memory import PIECE_BYTES
from tests.gpu.conftest import pinned
from tests.gpu.figures import best_s, gbps

pytestmark = pytest.mark.gpu

COPIER = "tests/transfer/test_cuda_copier.py"
TIER = "tests/conformance/transfer/test_host_tier_on_gpu.py"
PINNED_NEXT = "test_a_load_does_not_wait_for_memory_to_be_pinned_but_the_next_one_finds_it_so"


@pytest.mark.twin(f"{COPIER}::test_what_was_registered_is_unregistered_at_the_end")
def test_onboard_bandwidth(gpu, ipc_rig, record_property):
    """bandwidth of onboarding from a shared arena, registered and not, against pinned memory"""
    size = (256 << 20) if not gpu.is_fake else (4 << 20)
    piece = size // 64
    context, copier = ipc_rig.own.context, ipc_rig.own.copier
    device = context.allocate(size)
    memory, page = pinned(size)
    copier.register(page, size)
    arena = SharedMemory("nodeserve-test-arena", size)
    shared = mmap.mmap(arena.fd, size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    whole = [AddressRun(page, device, size)]
    pinned_s = best_s(lambda: copier.copy(whole, None))
    record_property("pinned memcpy, GB/s", gbps(size, pinned_s))
    pieces = [AddressRun(address + i * piece, device + i * piece, piece) for i in range(64)]
    shared[:] = bytes([7]) * size
    cold_s = best_s(lambda: copier.copy(pieces, None))
    record_property("arena, not registered, GB/s", gbps(size, cold_s))
    begun_s = time.perf_counter()
    copier.register(address, size)
    took_ms = (time.perf_counter() - begun_s) * 1e3
    record_property("pinning, ms a GB", round(took_ms * 1e9 / size, 1))
    arena_s = best_s(lambda: copier.copy(pieces, None))
    record_property("arena, registered, in 64 pieces, GB/s", gbps(size, arena_s))
    back = [AddressRun(destination, source, length) for source, destination, length in pieces]
    record_property("offload, GB/s", gbps(size, best_s(lambda: copier.copy(back, None))))
    record_property("onboard to pinned", round(pinned_s / arena_s, 2))
    assert shared[size - 1] == 7
    copier.close()
    context.free(device)
    del memory
    if not gpu.is_fake:
        assert pinned_s / arena_s >= 0.8


@pytest.mark.twin(f"{COPIER}::test_a_copy_waits_for_what_was_asked_of_the_device_before_its_fence")
def test_order(gpu, ipc_rig, record_property):
    """a copy waits for what was asked of the device before its fence"""
    own = ipc_rig.own
    context = own.context
    size = (1 << 30) if not gpu.is_fake else (8 << 20)
    source = context.allocate(size)
    destination, page = pinned(1 << 16)
    wrong = 0
    for value in range(1, 9):
        context.fill(source, value, size, own.compute)  # long, so that a copy could overtake it
        run = AddressRun(source + size - (1 << 16), page, 1 << 16)
        own.copier.copy([run], own.copier.fence())
        wrong += ctypes.string_at(page, 4) != bytes([value] * 4)
    del destination
    context.free(source)
    record_property("overtaken", f"{wrong} of 8")
    assert wrong == 0


@pytest.mark.twin(
    "tests/device/test_cuda_driver.py::test_host_memory_is_registered_once_and_page_by_page"
)
def test_registering(ipc_rig, record_property):
    """host memory is registered once"""
    _, page = pinned(1 << 20)
    context = ipc_rig.own.context
    context.register_host(page, 1 << 20)
    with pytest.raises(DeviceError) as caught:
        context.register_host(page, 1 << 20)
    record_property("a second time", caught.value.code)
    context.unregister_host(page)


@pytest.mark.twin(f"{TIER}::test_a_store_pins_what_it_writes_to_and_nothing_else")
def test_the_tiers_own_arenas(gpu, ipc_rig, record_property):
    """the host tier's own arenas are pinned and copied, of whatever pages they are"""
    size, context, copier = 32 << 20, ipc_rig.own.context, ipc_rig.own.copier
    arenas = create_arenas(2 * size, size)
    record_property("huge pages", arenas.is_huge)
    device = context.allocate(size)
    half = size // 2
    for fd in arenas.arena_fds:
        shared = mmap.mmap(fd, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
        for offset in (0, half):  # as pieces, which touch
            copier.register(address + offset, half)
        shared[:] = bytes([fd % 256]) * size
        for offset in (0, half):
            copier.copy([AddressRun(address + offset, device + offset, half)], None)
        shared[:] = bytes(size)
        for offset in (0, half):
            copier.copy([AddressRun(device + offset, address + offset, half)], None)
        assert shared[:] == bytes([fd % 256]) * size
        for offset in (0, half):
            copier.unregister(address + offset)
    for fd in arenas.fds:
        os.close(fd)
    context.free(device)


@pytest.mark.twin(f"{TIER}::{PINNED_NEXT}")
def test_what_goes_on_while_memory_is_pinned(gpu, ipc_rig, record_property):
    """what the device's other work waits for while a piece of the host tier is pinned"""
    size = PIECE_BYTES if not gpu.is_fake else 4 << 20
    own = ipc_rig.own
    arena = SharedMemory("nodeserve-test-arena", size)
    shared = mmap.mmap(arena.fd, size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    run = AddressRun(own.address, own.address + 4096, 4096)
    usual_s = best_s(lambda: own.copier.copy_on_device([run], None))
    pinning = threading.Thread(target=own.copier.register, args=(address, size))
    longest_s, begun_s = 0.0, time.perf_counter()
    pinning.start()
    while pinning.is_alive():
        last_s = time.perf_counter()
        own.copier.copy_on_device([run], None)
        longest_s = max(longest_s, time.perf_counter() - last_s)
    record_property("pinning, ms", round((time.perf_counter() - begun_s) * 1e3, 1))
    record_property("a small copy, ms", round(usual_s * 1e3, 3))
    record_property("the longest meanwhile, ms", round(longest_s * 1e3, 3))
    own.copier.unregister(address)
    arena.close()
