"""What is measured of a path."""

import itertools

import pytest

from nodeserve.clock import ManualClock
from nodeserve.transfer import probe

MIB = 1 << 20


class TimedPool:
    """Takes 10 us a run and 1 s for 10 GB."""

    def __init__(self, clock):
        self.clock, self.num_bytes, self.num_copies = clock, 0, 0

    def copy(self, runs):
        assert all(run.source + run.length <= 64 * MIB for run in runs)
        places = sorted((run.destination, run.length) for run in runs)
        assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(places))
        num_bytes = sum(run.length for run in runs)
        self.num_bytes += num_bytes
        self.num_copies += 1
        self.clock.advance(10e-6 * len(runs) + num_bytes / 10e9)


@pytest.fixture
def pool():
    return TimedPool(ManualClock())


def measured(pool, pool_bytes=1 << 30, scratch_bytes=64 * MIB):
    return probe.measure(pool, pool_bytes, scratch_bytes, pool.clock.now_s)


def test_latency_is_a_small_copys_and_bandwidth_is_by_the_size_of_pieces(pool):
    figures = measured(pool)
    assert figures["latency_us"] == pytest.approx(10.4, abs=0.1)
    assert figures["gbps_64mb"] == pytest.approx(9.98, abs=0.05)
    assert figures["gbps_256kb"] == pytest.approx(7.24, abs=0.05)
    assert figures["gbps_64kb"] == pytest.approx(3.96, abs=0.05)


def test_a_slow_path_is_measured_once_and_a_fast_one_no_more_than_thrice(pool):
    measured(pool)
    assert pool.num_bytes <= 64 * MIB * 11
    slow = TimedPool(pool.clock)
    copy = slow.copy
    slow.copy = lambda runs: (copy(runs), pool.clock.advance(1.0))
    probe.measure(slow, 1 << 30, 64 * MIB, pool.clock.now_s)
    assert slow.num_copies == 1 + 9 + 3


def test_a_small_pool_is_measured_with_what_it_has(pool):
    figures = measured(pool, pool_bytes=100 << 10)
    assert set(figures) == {"latency_us", "gbps_64kb", "gbps_256kb", "gbps_64mb"}


def test_the_slowest_rank_speaks_for_all():
    fast = {"latency_us": 5.0, "gbps_64kb": 9.0, "gbps_256kb": 9.0, "gbps_64mb": 9.0}
    slow = {"latency_us": 7.0, "gbps_64kb": 8.0, "gbps_256kb": 9.5, "gbps_64mb": 1.0}
    assert probe.slowest([fast, slow]) == {
        "latency_us": 7.0,
        "gbps_64kb": 8.0,
        "gbps_256kb": 9.0,
        "gbps_64mb": 1.0,
    }
