import pytest

from nodeserve.config.node import LivenessSettings
from nodeserve.ids import Generation
from nodeserve.lifecycle.liveness import (
    BUSY_FACTOR,
    FIRST_STEPS,
    HELD_AFTER_S,
    MAX_LOOK_S,
    Held,
    Liveness,
    Sight,
    Verdict,
)

SETTINGS = LivenessSettings(stopped_s=0.2, silent_s=1.0, step_s=10.0, first_step_s=120.0)
LOOK_S = 0.2
ME = Generation(7)


class Watched:
    """One process and a supervisor that looks at it on time."""

    def __init__(self, *, computes_on_cpu=False):
        self.liveness = Liveness(SETTINGS)
        self.liveness.born(ME, computes_on_cpu=computes_on_cpu)
        self.now_s = 0.0
        self.cpu_s = 0.0
        self.steps = 0
        self.look()

    def look(self, *, after_s=LOOK_S, cores=0.0, **shown):
        self.now_s += after_s
        self.cpu_s += after_s * cores
        sight = Sight(cpu_s=self.cpu_s, **shown)
        return list(self.liveness.look({ME: sight}, now_s=self.now_s))

    def beat(self, *, steps=0, num_requests=0, next_s=0.25):
        self.steps += steps
        self.liveness.beat(ME, next_s=next_s, steps=self.steps, num_requests=num_requests)

    def until_judged(self, *, beats, at_most_s=2000.0, **shown):
        """Look on until there is a verdict; return it and how long that took."""
        began_s = self.now_s
        while self.now_s - began_s < at_most_s:
            if beats:
                self.beat(num_requests=1)
            for found in self.look(**shown):
                return found, self.now_s - began_s
        return None, at_most_s

    def work(self, num_steps, *, looks_per_step=1):
        for _ in range(num_steps):
            for look in range(looks_per_step):
                self.beat(steps=look == 0, num_requests=1)
                assert self.look() == []


@pytest.fixture
def watched():
    return Watched()


def test_a_stopped_process_is_judged_at_the_next_look_but_one(watched):
    assert watched.look(is_stopped=True) == []
    (found,) = watched.look(is_stopped=True)
    assert isinstance(found, Verdict)
    assert found.generation == ME
    assert "stopped by a signal or a debugger for 0.2 s" in found.cause


def test_one_that_is_stopped_for_a_moment_now_and_then_lives(watched):
    for _ in range(10):
        assert watched.look(is_stopped=True) == []
        assert watched.look() == []


def test_nobody_is_judged_twice(watched):
    watched.look(is_stopped=True)
    assert len(watched.look(is_stopped=True)) == 1
    assert watched.look(is_stopped=True) == []


def test_silence_counts_from_the_first_heartbeat_on(watched):
    for _ in range(100):
        assert watched.look() == []
    watched.beat()
    found, took_s = watched.until_judged(beats=False)
    assert "has said nothing for" in found.cause
    assert 0.8 <= took_s <= 1.2


def test_an_idle_process_that_beats_less_often_is_given_the_time_it_asked_for(watched):
    watched.beat(next_s=1.0)
    found, took_s = watched.until_judged(beats=False)
    assert isinstance(found, Verdict)
    assert 1.6 <= took_s <= 2.0


@pytest.mark.parametrize(
    "shown",
    [{"is_runnable": True}, {"is_held": True}, {"cores": 0.9}],
    ids=str,
)
def test_silence_of_one_that_runs_or_waits_to_run_is_given_as_long_as_a_step(watched, shown):
    watched.beat()
    found, took_s = watched.until_judged(beats=False, **shown)
    assert isinstance(found, Verdict)
    assert took_s == pytest.approx(SETTINGS.first_step_s, abs=1)


def test_heartbeats_of_an_idle_process_keep_it_alive(watched):
    for _ in range(10_000):
        watched.beat()
        assert watched.look() == []


def test_a_first_step_may_compile_for_two_minutes(watched):
    watched.beat(num_requests=1)
    found, took_s = watched.until_judged(beats=True)
    assert "has work and has not finished a step for 120 s" in found.cause
    assert took_s == pytest.approx(120, abs=1)


def test_after_short_steps_a_step_may_take_ten_seconds(watched):
    watched.work(FIRST_STEPS + 5)
    found, took_s = watched.until_judged(beats=True)
    assert isinstance(found, Verdict)
    assert took_s == pytest.approx(10, abs=1)


def test_after_long_steps_a_step_may_take_twenty_times_as_long(watched):
    watched.work(FIRST_STEPS + 5, looks_per_step=10)
    found, took_s = watched.until_judged(beats=True)
    assert isinstance(found, Verdict)
    assert took_s == pytest.approx(20 * 10 * LOOK_S, abs=4)


def test_slow_steps_that_end_are_never_judged(watched):
    watched.work(200, looks_per_step=40)  # eight seconds each


def test_an_idle_engine_makes_no_steps_and_lives(watched):
    watched.work(FIRST_STEPS + 5)
    for _ in range(1000):
        watched.beat(num_requests=0)
        assert watched.look() == []
    watched.beat(num_requests=1)
    _, took_s = watched.until_judged(beats=True)
    assert took_s == pytest.approx(10, abs=1)  # idle time is no part of a step


@pytest.mark.parametrize(("on_cpu", "longer"), [(True, BUSY_FACTOR), (False, 1.0)])
def test_a_long_step_that_computes_on_the_cpu_is_slow_and_not_stuck(on_cpu, longer):
    watched = Watched(computes_on_cpu=on_cpu)
    watched.work(FIRST_STEPS + 5)
    _, took_s = watched.until_judged(beats=True, cores=1.0)
    assert took_s == pytest.approx(10 * longer, rel=0.1)


def test_a_supervisor_that_looks_late_accuses_nobody_of_it(watched):
    watched.work(FIRST_STEPS + 5)
    watched.beat(num_requests=1)
    assert watched.look(after_s=3600) == []  # suspended, or kept from running
    assert watched.liveness.watched_s < 60
    watched.beat(num_requests=1)
    assert watched.look() == []


def test_a_supervisor_that_always_looks_late_still_finds_who_is_stuck(watched):
    watched.beat()
    looks = 0
    while not watched.look(after_s=5.0):
        looks += 1
    assert looks <= SETTINGS.silent_s / MAX_LOOK_S + 1


def test_a_killed_process_that_does_not_end_is_reported_once(watched):
    watched.liveness.killed(ME)
    found = []
    for _ in range(100):
        found += watched.look(is_held=True)
    (held,) = found
    assert isinstance(held, Held)
    assert "uninterruptible sleep" in held.cause
    assert watched.now_s > HELD_AFTER_S


def test_a_killed_process_that_ends_in_time_is_not(watched):
    watched.liveness.killed(ME)
    assert watched.look() == []
    watched.liveness.gone(ME)
    for _ in range(100):
        assert watched.look() == []


def test_a_process_that_was_told_to_end_may_fall_silent_and_is_held_only_when_killed(watched):
    watched.beat(num_requests=1)
    watched.liveness.ending(ME)
    assert watched.until_judged(beats=False, at_most_s=200.0) == (None, 200.0)
    assert watched.until_judged(beats=False, at_most_s=5.0, is_stopped=True) == (None, 5.0)
    watched.liveness.killed(ME)
    found, _ = watched.until_judged(beats=False)
    assert isinstance(found, Held)
    watched.liveness.ending(Generation(99))


def test_what_is_heard_of_a_process_that_is_gone_changes_nothing(watched):
    watched.liveness.gone(ME)
    watched.beat(num_requests=1)
    watched.liveness.killed(ME)
    assert not watched.liveness.is_quiet(ME)
    assert watched.look(is_stopped=True) == []


def test_time_in_which_a_process_computes_or_waits_for_a_cpu_is_counted(watched):
    for _ in range(5):
        watched.look()
        watched.look(cores=0.5)
        watched.look(is_runnable=True)
    assert watched.liveness.busy_s(ME) == pytest.approx(10 * LOOK_S)
    assert watched.liveness.busy_s(Generation(99)) == 0.0


def test_only_one_that_is_late_is_looked_at_closely(watched):
    assert not watched.liveness.is_quiet(ME)
    watched.beat()
    assert not watched.liveness.is_quiet(ME)
    for _ in range(4):
        watched.look()
    assert watched.liveness.is_quiet(ME)
