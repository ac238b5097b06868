import ctypes
import dataclasses
import threading

import msgspec
import pytest

from nodeserve.clock import MonotonicClock
from nodeserve.engine.vllm.host_tier_orders import TierLoad, TierStep, TierStore
from nodeserve.engine.vllm.host_tier_worker import TierWorker
from nodeserve.kv.layout import NULL_BLOCK
from nodeserve.transfer.host_copier import HostCopier
from nodeserve.transfer.slot_directory import SlotState
from tests.support.kv_pools import LAYERS, Shape, expected, filled
from tests.support.tier_slots import TierSlots

POOL = Shape(tp=1, block_size=4, heads=2)
A, B = b"a" * 32, b"b" * 32


PAGE = POOL.geometry(0).block_bytes() // LAYERS


def page(pool, layer, block):
    at = (layer * POOL.num_blocks + block) * PAGE
    return pool[at : at + PAGE]


class GatedCopier(HostCopier):
    """Copies when let, and can do something in the middle, and fail."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.amid = lambda: None

    def copy(self, runs, after):
        assert self.gate.wait(10)
        super().copy(runs, after)
        self.amid()


def two_groups():
    """The pool of a model with twice the layers, the second half of which has a window."""
    geometry = POOL.geometry(0)
    (place,) = geometry.places
    window = dataclasses.replace(place, offset=geometry.pool_bytes, group=1)
    return dataclasses.replace(
        geometry,
        places=(place, window),
        block_sizes=geometry.block_sizes * 2,
        pool_bytes=2 * geometry.pool_bytes,
    )


class Half:
    """A worker half over a pool in this process."""

    def __init__(self, blocks=(), geometry=None):
        geometry = geometry or POOL.geometry(0)
        part = bytes(filled(POOL, 0, list(blocks)))
        self.pool = ctypes.create_string_buffer(part * (geometry.pool_bytes // len(part)))
        self.copier = GatedCopier()
        self.worker = TierWorker(
            geometry,
            ctypes.addressof(self.pool),
            lambda: self.copier,
            rank=0,
            clock=MonotonicClock(),
        )

    def outcome(self, num=1):
        """Return finished, failed and the report, once ``num`` orders are over."""
        finished, failed, report = set(), set(), None
        done = threading.Event()
        while not done.wait(0.001):
            more, worse = self.worker.take_finished()
            finished, failed = finished | more, failed | worse
            report = self.worker._report
            if len(finished) + len(report.ended) >= num:
                done.set()
        return finished, failed, self.worker.take_report()


@pytest.fixture
def tier():
    made = TierSlots()
    yield made
    made.close()


@pytest.fixture
def half():
    halves = []

    def make(blocks=(), geometry=None):
        halves.append(Half(blocks, geometry))
        return halves[-1]

    yield make
    for one in halves:
        one.copier.gate.set()
        one.worker.close()


def store(job_id=1):
    return TierStore(job_id, slots=[2, 0], keys=[A, B], blocks=[(3,), (5,)])


def load():
    return TierLoad("r1", slots=[2, 0], keys=[A, B], blocks=[(7,), (2,)])


def reserve(tier, state=SlotState.RESERVED):
    tier.directory.write(2, state, A, tenant=0)
    tier.directory.write(0, state, B, tenant=0)


def test_what_one_stores_another_loads(tier, half):
    writer, reader = half([3, 5]), half()
    reserve(tier)
    writer.worker.start(TierStep(welcome=tier.welcome, stores=[store()]))
    _, _, report = writer.outcome()
    assert (report.ended, report.failed) == ({1: 1}, set())
    reserve(tier, SlotState.READY)
    reader.worker.start(TierStep(welcome=tier.welcome, loads=[load()]))
    finished, failed, report = reader.outcome()
    assert (finished, failed) == ({"r1"}, set())
    assert report.load_bytes == 2 * POOL.geometry(0).block_bytes()
    for at, value in expected(POOL, 0, [7, 2]).items():
        assert reader.pool.raw[at] == value


def test_a_slot_holds_a_block_of_each_group_and_fills_those_that_are_asked_for(tier, half):
    writer, reader = half([3, 5], two_groups()), half((), two_groups())
    reserve(tier)
    both = dataclasses.replace(store(), blocks=[(3, 5), (5, 3)])
    writer.worker.start(TierStep(welcome=tier.welcome, stores=[both]))
    assert writer.outcome()[2].ended == {1: 1}
    reserve(tier, SlotState.READY)
    some = dataclasses.replace(load(), blocks=[(7, NULL_BLOCK), (2, 4)])
    reader.worker.start(TierStep(welcome=tier.welcome, loads=[some]))
    finished, failed, report = reader.outcome()
    assert (finished, failed) == ({"r1"}, set())
    assert report.load_bytes == 3 * POOL.geometry(0).block_bytes()
    full, window = reader.pool.raw[: POOL.pool_bytes(0)], reader.pool.raw[POOL.pool_bytes(0) :]
    source = writer.pool.raw
    for layer, block, source_block, part in (
        *((layer, 7, 3, full) for layer in range(LAYERS)),
        *((layer, 2, 5, full) for layer in range(LAYERS)),
        *((layer, 4, 3, window) for layer in range(LAYERS)),
    ):
        assert page(part, layer, block) == page(source, layer, source_block) != bytes(PAGE)
    assert not any(any(page(window, layer, NULL_BLOCK)) for layer in range(LAYERS))


def test_a_slot_of_another_key_is_not_loaded(tier, half):
    reserve(tier, SlotState.READY)
    tier.directory.write(0, SlotState.READY, A, tenant=0)
    reader = half()
    reader.worker.start(TierStep(welcome=tier.welcome, loads=[load()]))
    assert reader.outcome()[:2] == ({"r1"}, {"r1"})
    assert not any(reader.pool.raw)


def test_a_slot_that_changes_amid_the_copy_fails_the_load(tier, half):
    reserve(tier, SlotState.READY)
    reader = half()
    reader.copier.amid = lambda: tier.directory.write(0, SlotState.READY, B, tenant=0)
    reader.worker.start(TierStep(welcome=tier.welcome, loads=[load()]))
    assert reader.outcome()[:2] == ({"r1"}, {"r1"})


def test_nothing_is_written_into_a_slot_that_is_not_reserved_for_it(tier, half):
    reserve(tier, SlotState.READY)
    writer = half([3, 5])
    writer.worker.start(TierStep(welcome=tier.welcome, stores=[store()]))
    _, _, report = writer.outcome()
    assert report.failed == {1}
    assert report.store_bytes == 0


def test_without_the_tiers_memory_orders_fail_and_are_reported(tier, half):
    stranger = half([3, 5])
    gone = {"arenas": ({**tier.arenas[0].handle(), "pid": 2**22 + 1},)}
    welcome = msgspec.structs.replace(tier.welcome, **gone)
    stranger.worker.start(TierStep(welcome=welcome, loads=[load()], stores=[store()]))
    finished, failed, report = stranger.outcome(2)
    assert (finished, failed, report.failed) == ({"r1"}, {"r1"}, {1})


def test_an_unexpected_error_is_reported_too(tier, half):
    reserve(tier, SlotState.READY)
    reader = half()

    def fail():
        raise ZeroDivisionError

    reader.copier.amid = fail
    reader.worker.start(TierStep(welcome=tier.welcome, loads=[load()]))
    assert reader.outcome()[:2] == ({"r1"}, {"r1"})


def test_a_copy_goes_on_in_the_memory_that_it_was_ordered_for(tier, half):
    reserve(tier, SlotState.READY)
    reader = half()
    reader.copier.gate.clear()
    reader.worker.start(TierStep(welcome=tier.welcome, loads=[load()]))
    other = TierSlots()
    reader.worker.start(TierStep(welcome=other.welcome))
    reader.copier.gate.set()
    assert reader.outcome()[:2] == ({"r1"}, set())
    other.close()
