"""Counters that go forward, fall, wrap, leap, and were not watched."""

import pytest

from nodeserve.energy.meter import DOWN, IMPLAUSIBLE, RESET, Counted, LastReading, count
from nodeserve.wire.accounting import Meter

GPU = Meter(meter="GPU-0", kind="gpu", name="H100", source="nvml-counter", max_power_mw=700_000)
PACKAGE = Meter(
    meter="cpu-package-0",
    kind="cpu",
    name="package-0",
    source="powercap",
    max_power_mw=350_000,
    wraps_at_mj=262_143_328,
)


def last(counter_mj, *, at_s=100.0):
    return LastReading(counter_mj=counter_mj, epoch=4, at_s=at_s, at_unix_s=1e9)


def test_a_counter_that_goes_forward_has_metered_the_difference():
    assert count(GPU, last(1000), 501_000, 101.0) == Counted(metered_mj=500_000, epoch=4)


def test_a_counter_may_stand_still():
    assert count(GPU, last(1000), 1000, 101.0) == Counted(metered_mj=0, epoch=4)


def test_a_counter_that_fell_begins_an_epoch_and_what_that_counted_is_not_billed():
    expected = Counted(metered_mj=300_000, epoch=5, cause=RESET)
    assert count(GPU, last(10**9), 300_000, 101.0) == expected


def test_a_counter_that_fell_to_what_cannot_have_been_drawn_since_metered_nothing():
    expected = Counted(metered_mj=0, epoch=5, cause=RESET)
    assert count(GPU, last(10**9), 10**9 - 5, 101.0) == expected


def test_a_leap_beyond_what_the_device_can_draw_is_not_billed():
    bound_mj = int(1.1 * 700_000 * (1.0 + 0.2))
    assert count(GPU, last(0), bound_mj, 101.0).cause is None
    leap = count(GPU, last(0), bound_mj + 1, 101.0)
    assert leap == Counted(metered_mj=bound_mj + 1, epoch=4, cause=IMPLAUSIBLE)


def test_without_a_bound_any_step_forward_is_plausible():
    boundless = Meter(meter="m", kind="gpu", name="m", source="nvml-counter")
    assert count(boundless, last(0), 10**12, 101.0).cause is None


def test_a_counter_that_wraps_goes_on_in_its_epoch():
    wrapped = count(PACKAGE, last(262_000_000), 100_000, 101.0)
    assert wrapped == Counted(metered_mj=243_328, epoch=4, wrapped_mj=262_143_328)


def test_a_counter_that_fell_further_than_a_wrap_explains_was_reset():
    fell = count(PACKAGE, last(100_000_000), 100_000, 101.0)
    assert fell == Counted(metered_mj=100_000, epoch=5, cause=RESET)


@pytest.mark.parametrize(("counter_mj", "cause"), [(5000, DOWN), (10, RESET)])
def test_what_was_counted_before_the_ledger_came_is_not_billed(counter_mj, cause):
    assert count(GPU, last(1000, at_s=None), counter_mj, 101.0).cause == cause


def test_a_small_wrap_is_believed_without_a_bound_and_a_large_one_is_a_reset():
    package = Meter(
        meter="p", kind="cpu", name="p", source="powercap", wraps_at_mj=1000, max_power_mw=None
    )
    assert count(package, last(900), 100, 101.0).wrapped_mj == 1000
    assert count(package, last(300), 100, 101.0).cause == RESET
