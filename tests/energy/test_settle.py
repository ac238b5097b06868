"""One window's energy: idle, shares, and what nobody can say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.energy.batch import Caused
from nodeserve.energy.calibration import Draw
from nodeserve.energy.settle import Window, settle
from nodeserve.energy.work import Work

A, B = ("d1-1.1", "decode"), ("d1-2.1", "prefill")


def window(metered_mj, *, idle_mw=70_000, seconds=1.0, cause=None, begin_s=100.0):
    return Window(
        meter="GPU-0",
        epoch=1,
        counter_mj=metered_mj,
        metered_mj=metered_mj,
        wrapped_mj=0,
        begin_s=begin_s,
        end_s=100.0 + seconds,
        begin_unix_s=7200.0,
        end_unix_s=7200.0 + seconds,
        idle_mw=idle_mw,
        is_estimate=False,
        cause=cause,
    )


def work(weights, *busy, missing_s=0.0):
    caused = {doer: Caused(step_s=weight) for doer, weight in weights.items()}
    return Work(caused=caused, busy=list(busy), missing_s=missing_s)


def test_idle_is_what_the_device_draws_while_no_step_runs():
    settled = settle(window(500_000), [work({A: 3.0, B: 1.0}, (100.0, 100.6))])
    assert settled.idle_mj == 28_000
    assert settled.shares == {A: 354_000, B: 118_000}
    assert (settled.unattributed_mj, settled.quarantine_mj) == (0, 0)


def test_idle_is_never_more_than_was_metered():
    settled = settle(window(10_000), [work({A: 1.0}, (100.0, 100.1))])
    assert (settled.idle_mj, settled.shares) == (10_000, {})


def test_a_window_without_a_step_is_idle_whatever_was_drawn():
    assert settle(window(500_000), [work({})]).idle_mj == 500_000
    assert settle(window(500_000), []).idle_mj == 500_000


def test_with_unknown_idle_power_a_window_with_steps_is_used_and_says_so():
    used = settle(window(500_000, idle_mw=None), [work({A: 1.0}, (100.0, 100.1))])
    assert (used.idle_mj, used.shares, used.is_idle_known) == (0, {A: 500_000}, False)
    idle = settle(window(500_000, idle_mw=None), [work({})])
    assert (idle.idle_mj, idle.is_idle_known) == (500_000, False)


def test_time_of_which_nothing_was_said_is_used_by_nobody_known():
    settled = settle(window(500_000), [work({A: 1.0}, (100.0, 100.3), missing_s=0.3)])
    assert settled.idle_mj == 28_000
    assert settled.unattributed_mj == settled.shares[A] == 236_000


def test_steps_of_nobody_are_unattributed():
    settled = settle(window(500_000), [work({}, (100.0, 101.0))])
    assert (settled.unattributed_mj, settled.idle_mj) == (500_000, 0)


def test_a_window_with_a_cause_goes_to_quarantine_whole():
    settled = settle(window(500_000, cause="#reset"), [work({A: 1.0}, (100.0, 101.0))])
    assert (settled.quarantine_mj, settled.allocated_mj, settled.idle_mj) == (500_000, 0, 0)


def test_engines_on_one_meter_are_busy_together_once():
    works = [work({A: 1.0}, (100.0, 100.6)), work({B: 1.0}, (100.4, 100.8))]
    settled = settle(window(500_000), works)
    assert settled.idle_mj == pytest.approx(14_000, abs=1)
    assert settled.shares[A] == pytest.approx(settled.shares[B], abs=1)


def test_a_meter_that_nobody_owns_is_shared_by_busy_time():
    works = [work({A: 1e-3}, (100.0, 100.6)), work({B: 1e3}, (100.0, 100.2))]
    settled = settle(window(400_000, idle_mw=None), works, by_time=True)
    assert settled.shares == {A: 300_000, B: 100_000}


def test_shares_go_by_what_the_device_draws_for_what():
    works = [Work(caused={A: Caused(1.0, 0.5, 0.0), B: Caused(1.0, 0.0, 0.5)}, busy=[(100, 101)])]
    settled = settle(window(400_000), works, Draw(1.0, 4.0, 0.0))
    assert settled.shares == {A: 300_000, B: 100_000}


def test_the_hour_is_that_of_a_windows_middle():
    assert window(1).hour == 2
    assert window(1, seconds=1.0).span_s == 1.0
    assert window(1, begin_s=None, seconds=2.0, cause="#down").span_s == 2.0


BUSY = st.floats(0.0, 1.0)
WEIGHTS = st.dictionaries(
    st.tuples(st.sampled_from(["a.1", "b.1", "c.2"]), st.just("decode")), st.floats(0.0, 9.0)
)


@given(
    st.integers(0, 10**9),
    st.one_of(st.none(), st.integers(0, 10**6)),
    st.lists(st.tuples(WEIGHTS, BUSY, BUSY), max_size=3),
    st.booleans(),
)
def test_the_parts_of_any_window_add_up_and_none_is_negative(metered_mj, idle_mw, shapes, by_time):
    works = [work(weights, (100.0, 100.0 + busy), missing_s=m) for weights, busy, m in shapes]
    settled = settle(window(metered_mj, idle_mw=idle_mw), works, by_time=by_time)
    parts = [*settled.shares.values(), settled.unattributed_mj, settled.idle_mj]
    assert sum(parts) == metered_mj
    assert min(parts) >= 0
    busy = {doer for weights, *_ in shapes for doer, weight in weights.items() if weight > 0}
    assert set(settled.shares) <= busy
    turned = settle(window(metered_mj, idle_mw=idle_mw), works[::-1], by_time=by_time)
    assert all(
        abs(turned.shares.get(doer, 0) - mj) <= 1 + metered_mj * 1e-12
        for doer, mj in settled.shares.items()
    )


@given(st.integers(0, 10**8), WEIGHTS, BUSY)
def test_twice_the_energy_is_twice_the_share(metered_mj, weights, busy):
    works = [work(weights, (100.0, 100.0 + busy))]
    once = settle(window(metered_mj, idle_mw=0), works)
    twice = settle(window(2 * metered_mj, idle_mw=0), works)
    for doer, mj in twice.shares.items():
        assert abs(mj - 2 * once.shares.get(doer, 0)) <= 2
