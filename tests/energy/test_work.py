"""From step logs to what legs caused between two times."""

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeserve.energy.work import MAX_LOGS, EngineWork
from nodeserve.wire.accounting import Member, StepRun
from tests.energy.shapes import SHAPE, leg, log, steps

ONE = ("d1-1.1", "decode")
TWO = ("d1-2.1", "decode")


@pytest.fixture
def work():
    return EngineWork(SHAPE, now_s=100.0)


def test_like_members_cause_alike_and_the_time_is_busy(work):
    work.take(steps(100.0, 101.0, batch=(leg(1), leg(2))))
    done = work.until(100.0, 101.0)
    assert done.caused[ONE] == pytest.approx(done.caused[TWO])
    assert done.caused[ONE].step_s == pytest.approx(0.5)
    assert (done.busy, done.covered_s, done.missing_s) == ([(100.0, 101.0)], 1.0, 0.0)
    assert work.finished_seq == 1


def test_a_log_across_two_windows_is_divided_by_time(work):
    whole = EngineWork(SHAPE, now_s=100.0)
    told = steps(100.0, 101.0, batch=(leg(1), leg(2, context=9000)))
    work.take(told)
    whole.take(told)
    first, second = work.until(100.0, 100.25), work.until(100.25, 101.0)
    assert (first.busy_s, second.busy_s) == pytest.approx((0.25, 0.75))
    assert second.caused[ONE] == pytest.approx(first.caused[ONE].times(3), rel=0.02)
    expected = whole.until(100.0, 101.0).caused
    first.add(second)
    assert first.caused == {doer: pytest.approx(one, rel=1e-4) for doer, one in expected.items()}


def test_a_log_counts_as_finished_when_its_last_window_is_asked_for(work):
    work.take(steps(100.0, 101.0, batch=(leg(1),)))
    work.until(100.0, 100.5)
    assert work.finished_seq == 0
    work.until(100.5, 101.0)
    assert work.finished_seq == 1


def test_who_joins_and_who_leaves_counts_for_its_steps_only(work):
    runs = (
        StepRun(100.5, 50, 0.5),
        StepRun(101.0, 50, 0.5, (leg(2),), ("d1-1.1",)),
    )
    work.take(log(100.0, 101.0, batch=(leg(1),), runs=runs))
    assert set(work.until(100.0, 100.5).caused) == {ONE}
    assert set(work.until(100.5, 101.0).caused) == {TWO}


def test_a_chunk_that_lies_across_a_windows_end_is_divided_by_time(work):
    chunk = Member("d1-9.1", 2000, 0)
    work.take(log(100.0, 101.0, runs=(StepRun(101.0, 1, 0.8, once=(chunk,)),)))
    first, second = work.until(100.0, 100.4), work.until(100.4, 101.0)
    assert (first.busy, second.busy) == ([(pytest.approx(100.2), 100.4)], [(100.4, 101.0)])
    early, late = (part.caused["d1-9.1", "decode"] for part in (first, second))
    assert late == pytest.approx(early.times(3))


def test_pauses_between_steps_are_not_busy(work):
    runs = (StepRun(100.2, 10, 0.1), StepRun(100.9, 10, 0.1))
    work.take(log(100.0, 101.0, batch=(leg(1),), runs=runs))
    done = work.until(100.0, 101.0)
    assert [pytest.approx(interval) for interval in done.busy] == [(100.1, 100.2), (100.8, 100.9)]


def test_steps_that_overlap_are_busy_once(work):
    runs = (StepRun(100.5, 1, 0.5), StepRun(100.6, 1, 0.3))
    work.take(log(100.0, 101.0, batch=(leg(1),), runs=runs))
    assert work.until(100.0, 101.0).busy_s == pytest.approx(0.6)


def test_what_has_not_been_said_is_missing_and_what_comes_later_does_not_count(work):
    work.take(steps(100.0, 100.5, batch=(leg(1),)))
    assert work.until(100.0, 101.0).missing_s == pytest.approx(0.5)
    late = msgspec.structs.replace(steps(100.5, 101.5, batch=(leg(2),)), seq=2)
    work.take(late)
    after = work.until(101.0, 102.0)
    assert after.busy == [(101.0, 101.5)]
    assert after.missing_s == pytest.approx(0.5)
    assert work.late_s == pytest.approx(0.5)
    assert set(after.caused) == {TWO}


def test_an_engine_is_not_missed_before_its_first_log_nor_after_its_death(work):
    assert work.until(99.0, 100.0).missing_s == 0.0
    work.take(steps(100.5, 101.0, batch=(leg(1),)))
    work.gone(101.25)
    assert work.until(100.0, 102.0).missing_s == pytest.approx(0.25)
    assert work.until(102.0, 103.0).missing_s == 0.0


def test_a_log_heard_twice_counts_once(work):
    told = steps(100.0, 101.0, batch=(leg(1),))
    work.take(told)
    work.take(told)
    assert work.until(100.0, 102.0).covered_s == 1.0


def test_too_many_logs_push_the_oldest_out_and_their_time_is_missing(work):
    for number in range(MAX_LOGS + 1):
        told = steps(100.0 + number, 101.0 + number, num_steps=1, batch=(leg(1),))
        work.take(msgspec.structs.replace(told, seq=number + 1))
    done = work.until(100.0, 101.0 + MAX_LOGS)
    assert (work.dropped_logs, done.missing_s) == (1, pytest.approx(1.0))


@pytest.mark.parametrize(
    "told",
    [
        log(101.0, 100.0),
        log(math.nan, 101.0),
        log(100.0, 101.0, runs=(StepRun(math.inf, 1, 0.1),)),
        log(100.0, 101.0, runs=(StepRun(101.0, 1, -0.1),)),
        log(100.0, 101.0, batch=(Member("x.1", -1, 5),)),
        log(100.0, 101.0, runs=(StepRun(101.0, 1, 0.1, once=(Member("x.1", 1, -5),)),)),
    ],
)
def test_logs_that_make_no_sense_are_refused(work, told):
    with pytest.raises(ValueError, match="no sense"):
        work.take(told)


RUNS = st.lists(
    st.tuples(st.integers(1, 60), st.floats(0.001, 0.2), st.floats(0.0, 0.05)),
    min_size=1,
    max_size=8,
)


@given(RUNS, st.lists(st.floats(0.0, 1.0), max_size=6))
@settings(max_examples=150)
def test_however_time_is_cut_it_adds_up_to_the_same(shape, cuts):
    at_s, runs = 100.0, []
    for number, (num_steps, busy_s, pause_s) in enumerate(shape):
        at_s += busy_s + pause_s
        once = (Member("d1-9.1", 300, 40),) if number % 3 == 1 else ()
        joined = (leg(number + 3, context=50 * number),) if number % 2 else ()
        runs.append(StepRun(at_s, 1 if once else num_steps, busy_s, joined, (), once))
    told = log(100.0, at_s, batch=(leg(1), leg(2, context=4000)), runs=tuple(runs))
    whole, parts = EngineWork(SHAPE, now_s=100.0), EngineWork(SHAPE, now_s=100.0)
    whole.take(told)
    parts.take(told)
    expected = whole.until(100.0, at_s)
    edges = sorted({100.0, at_s, *(100.0 + cut * (at_s - 100.0) for cut in cuts)})
    found = parts.until(100.0, 100.0)
    for begin_s, end_s in pairwise(edges):
        found.add(parts.until(begin_s, end_s))
    assert found.caused == {
        doer: pytest.approx(one, rel=1e-3, abs=1e-9) for doer, one in expected.caused.items()
    }
    assert found.busy_s == pytest.approx(expected.busy_s)
    assert found.covered_s == pytest.approx(expected.covered_s)
