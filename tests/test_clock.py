import time

from nodeserve.clock import ManualClock, MonotonicClock, unix_now_s


def test_the_monotonic_clock_can_be_compared_between_processes():
    before = time.monotonic()
    assert before <= MonotonicClock().now_s() <= time.monotonic()


def test_a_manual_clock_stands_still_until_it_is_moved():
    clock = ManualClock(5.0)
    assert (clock.now_s(), clock.now_s()) == (5.0, 5.0)
    clock.advance(2.5)
    assert clock.now_s() == 7.5


def test_wall_clock_time_is_in_seconds_since_1970():
    assert 1.6e9 < unix_now_s() < 1e11
