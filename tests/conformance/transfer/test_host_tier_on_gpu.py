"""Blocks between GPU memory and the host tier, on the fake driver: in order, and pinned.

The twin of the host tier's rows in tests/gpu. Streams are held one by one, so that a copy that
does not wait for what it should is there too early every time.
"""

import ctypes
import logging
import threading
import time

import pytest

from nodeserve.clock import MonotonicClock
from nodeserve.device.cuda_driver import CudaContext, CudaDriver
from nodeserve.engine.vllm import host_tier_worker
from nodeserve.engine.vllm.host_tier_orders import TierLoad, TierStep, TierStore
from nodeserve.engine.vllm.host_tier_worker import TierWorker
from nodeserve.transfer import tier_memory
from nodeserve.transfer.cuda_copier import CudaCopier
from nodeserve.transfer.slot_directory import SlotShape, SlotState
from tests.support.fake_driver import FakeControls, build
from tests.support.kv_pools import Shape, expected, filled
from tests.support.tier_slots import TierSlots

POOL = Shape(tp=1, block_size=4, heads=2)
GEOMETRY = POOL.geometry(0)
KEYS = [bytes([n]) * 32 for n in range(6)]
TIER = SlotShape(num_slots=6, slot_stride=4096, namespace=b"n" * 32)
WHILE_S = 0.05
"""How long is watched that something does not happen."""


class Gpu:
    """A device with a pool, the stream that a model would compute on, and the tier's half."""

    def __init__(self, library):
        self.controls = FakeControls(library)
        self.context = CudaContext(CudaDriver(str(library)), 0)
        self.compute = 0  # as torch's is, unless it is told otherwise
        self.streams = []
        self.pool = self.context.allocate(GEOMETRY.pool_bytes)
        self.fill(bytes(GEOMETRY.pool_bytes))
        self.worker = TierWorker(GEOMETRY, self.pool, self.copier, rank=0, clock=MonotonicClock())
        self.report = None
        self.ended = threading.Event()

    def copier(self):
        made = CudaCopier(self.context, lambda: self.compute)
        self.streams.append(made._stream)
        return made

    def fill(self, content):
        ctypes.memmove(self.pool, bytes(content), len(content))

    def content(self):
        return ctypes.string_at(self.pool, GEOMETRY.pool_bytes)

    def forward(self, content):
        """Ask the device for what a step would: it writes ``content`` to the pool."""
        self.source = ctypes.create_string_buffer(bytes(content))
        run = (ctypes.addressof(self.source), self.pool, len(content))
        self.context.copy_each([run], self.compute)

    def step(self, tier, *, loads=(), stores=()):
        """Take a step's orders; its own forward would be asked for in between."""
        step = TierStep(welcome=tier.welcome, loads=list(loads), stores=list(stores))
        self.worker.begin_step(step)
        return lambda: self.worker.start(step)

    def outcome(self, num=1):
        """Return finished, failed and the report, once so many orders are over."""
        finished, failed = set(), set()
        until_s = time.monotonic() + 10
        while time.monotonic() < until_s:
            more, worse = self.worker.take_finished()
            finished, failed = finished | more, failed | worse
            if len(finished) + len(self.worker._report.ended) >= num:
                return finished, failed, self.worker.take_report()
            self.ended.wait(0.001)
        raise TimeoutError(f"{finished} and {self.worker._report.ended} are over, not {num}")

    def nothing_ends(self):
        """Whether nothing is reported for a while."""
        self.ended.wait(WHILE_S)
        finished, _ = self.worker.take_finished()
        return not finished and not self.worker._report.ended


@pytest.fixture
def library(tmp_path):
    return build(tmp_path)


@pytest.fixture
def gpu(library):
    made = Gpu(library)
    yield made
    made.controls.let_go()
    made.worker.close()
    assert made.controls.registered_bytes == 0


@pytest.fixture
def tier():
    made = TierSlots(TIER, slots_per_arena=3)
    yield made
    made.close()


def reserve(tier, slots, state):
    for slot in slots:
        tier.directory.write(slot, state, KEYS[slot], tenant=0)


def store(tier, slots=(2, 0), blocks=(3, 5)):
    reserve(tier, slots, SlotState.RESERVED)
    return TierStore(1, list(slots), [KEYS[slot] for slot in slots], [(block,) for block in blocks])


def load(tier, slots=(2, 0), blocks=(7, 2)):
    reserve(tier, slots, SlotState.READY)
    return TierLoad(
        "r", list(slots), [KEYS[slot] for slot in slots], [(block,) for block in blocks]
    )


def stored(gpu, tier, slots=(2, 0)):
    """Store the blocks of a pool into ``slots`` and return what they have been cleared of."""
    gpu.fill(filled(POOL, 0, [3, 5]))
    gpu.step(tier, stores=[store(tier, slots)])()
    assert gpu.outcome()[2].failed == set()
    gpu.fill(bytes(GEOMETRY.pool_bytes))


def has(gpu, blocks):
    content = gpu.content()
    return all(content[at] == value for at, value in expected(POOL, 0, blocks).items())


def test_a_store_waits_for_the_forward_that_computes_its_blocks(gpu, tier):
    gpu.controls.hold_stream(gpu.compute)
    gpu.forward(filled(POOL, 0, [3, 5]))
    gpu.step(tier, stores=[store(tier)])()
    assert gpu.nothing_ends()
    gpu.controls.let_stream_go(gpu.compute)
    assert gpu.outcome()[2].ended == {1: 1}
    gpu.fill(bytes(GEOMETRY.pool_bytes))
    gpu.step(tier, loads=[load(tier)])()
    gpu.outcome()
    assert has(gpu, [7, 2])


def test_a_store_is_over_only_when_its_bytes_are_there(gpu, tier):
    """What is said to be over is published, and its blocks are used for others."""
    gpu.fill(filled(POOL, 0, [3, 5]))
    (_, stores) = gpu.streams
    gpu.controls.hold_stream(stores)
    gpu.step(tier, stores=[store(tier)])()
    assert gpu.nothing_ends()
    gpu.controls.let_stream_go(stores)
    assert gpu.outcome()[2].ended == {1: 1}


def test_a_load_waits_for_steps_that_may_still_use_its_blocks(gpu, tier):
    stored(gpu, tier)
    gpu.controls.hold_stream(gpu.compute)
    gpu.forward(bytes([9]) * GEOMETRY.pool_bytes)  # an earlier step, of whoever had the blocks
    gpu.step(tier, loads=[load(tier)])()
    assert gpu.nothing_ends()
    gpu.controls.let_stream_go(gpu.compute)
    assert gpu.outcome()[:2] == ({"r"}, set())
    assert has(gpu, [7, 2])


def test_a_load_does_not_wait_for_the_forward_of_its_own_step(gpu, tier):
    stored(gpu, tier)
    start = gpu.step(tier, loads=[load(tier)])
    gpu.controls.hold_stream(gpu.compute)
    gpu.forward(b"\x09")  # long, and it touches none of the load's blocks
    start()
    assert gpu.outcome()[:2] == ({"r"}, set())
    assert has(gpu, [7, 2])
    gpu.controls.let_stream_go(gpu.compute)


def test_a_load_is_over_only_when_its_bytes_are_there(gpu, tier):
    """What is said to be over is read by the next forward."""
    stored(gpu, tier)
    (loads, _) = gpu.streams
    gpu.controls.hold_stream(loads)
    gpu.step(tier, loads=[load(tier)])()
    assert gpu.nothing_ends()
    gpu.controls.let_stream_go(loads)
    assert gpu.outcome()[:2] == ({"r"}, set())
    assert has(gpu, [7, 2])


def test_a_load_does_not_wait_for_stores(gpu, tier):
    stored(gpu, tier)
    (_, stores) = gpu.streams
    gpu.controls.hold_stream(stores)
    gpu.step(tier, loads=[load(tier)], stores=[store(tier, (4, 1))])()
    assert gpu.outcome()[:2] == ({"r"}, set())
    gpu.controls.let_stream_go(stores)
    gpu.outcome()


def test_orders_that_are_refused_leave_no_event_behind(gpu, tier, caplog):
    # What is logged here is kept, with the error, its frames and what these hold.
    caplog.set_level(logging.CRITICAL, logger=host_tier_worker.__name__)
    order = load(tier)
    reserve(tier, [0], SlotState.FREE)
    gpu.step(tier, loads=[order])()
    assert gpu.outcome()[:2] == ({"r"}, {"r"})
    gpu.worker.close()
    assert gpu.controls.num_events == 0


# ---------------------------------------------------------------- pinned memory


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(tier_memory, "PIECE_BYTES", 2 * TIER.slot_stride)


def test_nothing_is_pinned_before_it_is_used(gpu, tier, small_pieces):
    gpu.step(tier)()
    assert gpu.controls.registered_bytes == 0


def test_a_store_pins_what_it_writes_to_and_nothing_else(gpu, tier, small_pieces):
    gpu.step(tier, stores=[store(tier, (0, 1))])()
    assert gpu.outcome()[2].unpinned_bytes == 0
    assert gpu.controls.registered_bytes == 2 * TIER.slot_stride
    gpu.step(tier, stores=[store(tier, (5, 1))])()  # the last piece of an arena is smaller
    gpu.outcome()
    assert gpu.controls.registered_bytes == 3 * TIER.slot_stride


def test_a_load_does_not_wait_for_memory_to_be_pinned_but_the_next_one_finds_it_so(
    gpu, tier, small_pieces
):
    gpu.step(tier, loads=[load(tier, (0,), (2,))])()
    assert gpu.outcome()[2].unpinned_bytes == GEOMETRY.block_bytes()
    gpu.step(tier, stores=[store(tier, (1,), (3,))])()  # behind the pinning
    gpu.outcome()
    assert gpu.controls.registered_bytes == 2 * TIER.slot_stride
    gpu.step(tier, loads=[load(tier, (0,), (2,))])()
    assert gpu.outcome()[2].unpinned_bytes == 0


def test_memory_that_cannot_be_pinned_is_copied_all_the_same_and_that_is_said_and_counted(
    gpu, tier, caplog
):
    gpu.controls.fail("cuMemHostRegister", 2, times=-1)
    gpu.fill(filled(POOL, 0, [3, 5]))
    gpu.step(tier, stores=[store(tier, (2, 4))])()  # in two arenas
    _, _, report = gpu.outcome()
    assert (report.ended, report.failed) == ({1: 1}, set())
    assert report.unpinned_bytes == report.store_bytes == 2 * GEOMETRY.block_bytes()
    gpu.fill(bytes(GEOMETRY.pool_bytes))
    gpu.step(tier, loads=[load(tier, (2, 4))])()
    gpu.outcome()
    assert has(gpu, [7, 2])
    (warned,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "kv_tier_not_pinned cause=CUDA driver: cuMemHostRegister_v2" in warned.getMessage()


def test_a_successor_of_the_block_manager_finds_its_memory_pinned(gpu, tier):
    gpu.step(tier, stores=[store(tier, (2, 4))])()
    gpu.outcome()
    pinned = gpu.controls.registered_bytes
    gpu.controls.fail("cuMemHostRegister", 2, times=-1)
    tier.welcome = tier.welcomed(generation=2)
    gpu.step(tier, stores=[store(tier, (2, 4))])()
    assert gpu.outcome()[2].unpinned_bytes == 0
    assert gpu.controls.registered_bytes == pinned


def test_memory_that_is_gone_is_unpinned_with_the_last_copy_that_uses_it(gpu, tier):
    gpu.step(tier, stores=[store(tier)])()
    gpu.outcome()
    pinned = gpu.controls.registered_bytes
    loads, _ = gpu.streams
    gpu.controls.hold_stream(loads)
    gpu.step(tier, loads=[load(tier)])()
    other = TierSlots()
    try:
        gpu.step(other)()
        gpu.step(other, stores=[store(other, (1,), (3,))])()
        assert gpu.outcome()[2].failed == set()
        assert gpu.controls.registered_bytes == pinned + 4 * TIER.slot_stride
        gpu.controls.let_stream_go(loads)
        assert gpu.outcome()[:2] == ({"r"}, set())
        gpu.step(other, loads=[load(other, (1,), (3,))])()  # whose lane has let go of the first
        gpu.outcome()
        assert gpu.controls.registered_bytes == 4 * TIER.slot_stride
    finally:
        other.close()


def test_the_tiers_path_is_measured_with_pinned_memory_and_says_when_it_is_not(gpu, tier):
    scratch = gpu.context.allocate(1 << 16)
    found = gpu.worker.measure(tier.welcome, scratch, 1 << 16)
    assert found.pop("transport") == "pinned_host"
    assert set(found) == {"latency_us", "gbps_64kb", "gbps_256kb", "gbps_64mb"}
    assert all(figure > 0 for figure in found.values())
    assert gpu.controls.registered_bytes == 3 * TIER.slot_stride
    gpu.controls.fail("cuMemHostRegister", 2, times=-1)
    other = TierSlots()
    assert gpu.worker.measure(other.welcome, scratch, 1 << 16)["transport"] == "pageable_host"
    other.close()
