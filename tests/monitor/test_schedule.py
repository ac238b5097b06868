import pytest

from nodeserve.monitor.schedule import Schedule

HOUR = 3600.0
NOTHING, TICK, READING = (False, False), (True, False), (True, True)


def test_ten_ticks_a_second_and_one_reading():
    schedule = Schedule(100.0, 10.0)
    due = [schedule.take(100.0 + tick / 10 + 1e-6, 10.0 + tick / 10) for tick in range(31)]
    assert due == ([READING] + [TICK] * 9) * 3 + [READING]


def test_nothing_is_due_between_ticks():
    schedule = Schedule(100.0, 10.0)
    schedule.take(100.0, 10.0)
    assert schedule.wait_s(100.03, 10.03) == pytest.approx(0.07)
    assert schedule.take(100.05, 10.05) == NOTHING
    assert schedule.wait_s(100.2, 10.2) == 0


def test_a_late_tick_does_not_put_off_the_next_and_missed_ones_are_not_made_up_for():
    schedule = Schedule(100.0, 10.0)
    schedule.take(100.0, 10.0)
    assert schedule.take(100.19, 10.19) == TICK
    assert schedule.wait_s(100.19, 10.19) == pytest.approx(0.01)
    assert schedule.take(103.75, 13.75) == READING
    assert schedule.wait_s(103.75, 13.75) == pytest.approx(0.05)
    assert schedule.take(103.8, 13.8) == TICK


def test_a_full_hour_ends_windows_to_the_moment():
    schedule = Schedule(100.0, HOUR - 0.25)
    schedule.take(100.0, HOUR - 0.25)
    schedule.take(100.2, HOUR - 0.05)
    assert schedule.wait_s(100.2, HOUR - 0.05) == pytest.approx(0.05)
    assert schedule.take(100.25, HOUR) == READING
    assert schedule.take(100.3, HOUR + 0.05) == TICK


def test_a_wall_clock_that_is_set_back_and_forth_does_no_harm():
    schedule = Schedule(100.0, 10 * HOUR + 5)
    schedule.take(100.0, 10 * HOUR + 5)
    assert schedule.take(100.1, 9 * HOUR + 5) == TICK
    assert schedule.wait_s(100.15, 9 * HOUR + 5) == pytest.approx(0.05)
    assert schedule.take(100.2, 10 * HOUR + 6) == READING
    assert schedule.take(100.3, 10 * HOUR + 7) == TICK
